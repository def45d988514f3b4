"""How many rows are written at a time, and what happens when they don't fit into the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from realsr_r1.core.errors import UserError
from realsr_r1.planning import memory

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models.protocol import Policy
    from realsr_r1.rollout import RolloutConfig

Item, Result = TypeVar("Item"), TypeVar("Result")

# On a CPU larger batches are hardly faster, so they may take this much; the embedded model then
# writes some 50 tiles at a time.
CPU_BYTES = 2**29
GPU_SHARE = 0.8  # of the free memory; the rest is for what the formulas don't know
MOST_ROWS = 256


class Batches:
    """Splits work into batches of at most `size` rows; `size` falls when the GPU's memory is full."""

    def __init__(self, size: int):
        if size < 1:
            raise UserError(f"--batch_size {size} must be at least 1")
        self.size = size

    def run(self, items: Sequence[Item], rows_each: int,
            work: Callable[[Sequence[Item]], Sequence[Result]]) -> Iterator[Result]:
        """Yield the results of `work` on batches of `items`, in their order.

        `rows_each`: the rows that one item takes. Where the GPU runs out of memory the batch is
        halved, with one line. Raises `UserError` when one item alone doesn't fit.
        """
        start = 0
        while start < len(items):
            part = items[start:start + max(1, self.size // rows_each)]
            try:
                results = work(part)
            except torch.cuda.OutOfMemoryError:
                results = None  # what follows needs the memory that the exception's frames hold
            if results is None:
                self._halve(len(part), rows_each)
                continue
            start += len(part)
            yield from results

    def _halve(self, items: int, rows_each: int) -> None:
        if items == 1:
            raise UserError(f"the GPU's memory is full with {rows_each} row{'s' * (rows_each > 1)} at a "
                            "time; try --load_in_4bit, a smaller --tile, --num_samples or --branch")
        self.size = items // 2 * rows_each
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"the GPU's memory is full; going on with {self.size} rows at a time", flush=True)


def rows_that_fit(policy: Policy, processor: ChainProcessor, config: RolloutConfig) -> int:
    """Return how many chains of the model's own size fit into the memory at a time, 1 to 256.

    It takes the planner's formulas, and the memory that is free on the policy's GPU now.
    """
    weight = policy.get_input_embeddings().weight
    size, shape, settings = weight.element_size(), policy.config.shape, processor.settings
    units = settings.target_px // settings.grid_unit_px
    image = processor.layout.span_length(units, units)
    prompt = image + len(processor.encode_text(processor.chain.question)) + 2
    span = 0 if config.guidance_scale == 1.0 else image

    def needed(rows: int) -> float:
        parts = memory.decoder(shape, len(processor.layout.code_ids), size, rows=rows, prompts=rows,
                               prompt=prompt, completion=config.max_new_tokens, span=span)
        # While prompts are gathered their caches exist twice.
        return sum(parts.values()) + parts["cache: prompts"]

    free = CPU_BYTES
    if weight.device.type == "cuda":
        unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
        free = GPU_SHARE * (torch.cuda.mem_get_info(weight.device)[0] + unused)
    each = needed(2) - needed(1)
    return min(MOST_ROWS, max(1, int((free - (needed(1) - each)) / each)))
