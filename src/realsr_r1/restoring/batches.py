"""How many rows are written at a time and by how many threads, and what a full memory does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from realsr_r1.core.cpu import SMALL_POLICY, cores
from realsr_r1.core.errors import UserError
from realsr_r1.planning import memory
from realsr_r1.rollout.config import INT8

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models.protocol import Policy
    from realsr_r1.rollout import RolloutConfig

Item, Result = TypeVar("Item"), TypeVar("Result")

# On a CPU larger batches are hardly faster, so all of them together may take this much; the
# embedded model then writes some 90 tiles at a time.
CPU_BYTES = 2**30
# On a CPU, products of fewer rows than this are summed in another order. Smaller batches are filled
# up, so that a tile is the same in batches of any size.
FEWEST_CPU_ROWS = 4
GPU_SHARE = 0.8  # of the free memory; the rest is for what the formulas don't know
MOST_ROWS = 256


class Batches:
    """Splits work into batches of at most `size` rows; `size` falls when the GPU's memory is full.

    `workers`: how many threads share these rows on a CPU, each with a batch of its own. A small
    policy's products are too short to be shared between threads. With several workers a batch is
    always computed by one thread, so that results don't depend on how many there are.
    """

    def __init__(self, size: int, workers: int = 1):
        if size < 1:
            raise UserError(f"--batch_size {size} must be at least 1")
        self.size, self.workers = size, workers

    def run(self, items: Sequence[Item], rows_each: int,
            work: Callable[[Sequence[Item], Callable[[], None]], Sequence[Result]]) -> Iterator[Result]:
        """Yield the results of `work` on batches of `items`, in their order.

        `rows_each`: the rows that one item takes. `work(batch, check)` calls `check` now and then,
        which ends it with an exception when its results are not wanted any more. Where the GPU runs
        out of memory the batch is halved, with one line. Raises `UserError` when one item alone
        doesn't fit.
        """
        if self.workers > 1:
            yield from self._run_in_threads(items, rows_each, work)
            return
        start = 0
        while start < len(items):
            part = items[start:start + max(1, self.size // rows_each)]
            try:
                results = work(part, lambda: None)
            except torch.cuda.OutOfMemoryError:
                results = None  # what follows needs the memory that the exception's frames hold
            if results is None:
                self._halve(len(part), rows_each)
                continue
            start += len(part)
            yield from results

    def _run_in_threads(self, items: Sequence[Item], rows_each: int,
                        work: Callable[[Sequence[Item], Callable[[], None]], Sequence[Result]]
                        ) -> Iterator[Result]:
        workers = min(self.workers, max(1, self.size // rows_each))
        most = max(1, self.size // workers // rows_each)
        rounds = -(-len(items) // (most * workers))
        count = min(rounds * workers, len(items))  # so that all workers end together
        parts = [items[len(items) * number // count:len(items) * (number + 1) // count]
                 for number in range(count)]
        ended = threading.Event()

        def check() -> None:
            if ended.is_set():
                raise RuntimeError("the results of this batch are not wanted any more")

        todo, futures = iter(enumerate(parts)), [Future() for _ in parts]
        taking = threading.Lock()

        def write_parts() -> None:
            torch.set_num_threads(1)
            while not ended.is_set():
                with taking:
                    number, part = next(todo, (None, None))
                if number is None:
                    return
                try:
                    futures[number].set_result(work(part, check))
                except BaseException as error:
                    futures[number].set_exception(error)

        # Daemons, which a program that ends (the demo, say) doesn't wait for.
        threads = [threading.Thread(target=write_parts, daemon=True) for _ in range(workers)]
        with one_thread():
            try:
                for thread in threads:
                    thread.start()
                for future in futures:
                    yield from future.result()
            finally:
                ended.set()
                for thread in threads:
                    thread.join()

    def step_by_step(self, results: Iterator[Result]) -> Iterator[Result]:
        """Yield the results of a generator that computes as `run` does."""
        if self.workers == 1:
            yield from results
            return
        while True:
            with one_thread():
                result = next(results, None)
            if result is None:
                return
            yield result

    def _halve(self, items: int, rows_each: int) -> None:
        if items == 1:
            raise UserError(f"the GPU's memory is full with {rows_each} row{'s' * (rows_each > 1)} at a "
                            "time; try --load_in_4bit, a smaller --tile, --num_samples or --branch")
        self.size = items // 2 * rows_each
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"the GPU's memory is full; going on with {self.size} rows at a time", flush=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread inside the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def workers_for(policy: Policy, rows: int) -> int:
    """Return how many threads write `rows` that fit into the memory: a CPU's cores, for a small policy.

    Each has at least `FEWEST_CPU_ROWS`.
    """
    is_cpu = policy.get_input_embeddings().weight.device.type == "cpu"
    is_small = policy.num_parameters() < SMALL_POLICY
    return max(1, min(cores(), rows // FEWEST_CPU_ROWS)) if is_cpu and is_small else 1


def rows_that_fit(policy: Policy, processor: ChainProcessor, config: RolloutConfig) -> int:
    """Return how many chains of the model's own size fit into the memory at a time, 1 to 256.

    It takes the planner's formulas, and the memory that is free on the policy's GPU now.
    """
    weight = policy.get_input_embeddings().weight
    size, shape, settings = weight.element_size(), policy.config.shape, processor.settings
    units = settings.target_px // settings.grid_unit_px
    image = processor.layout.span_length(units, units)
    prompt = image + len(processor.encode_text(processor.chain.question)) + 2
    span, is_cuda = 0 if config.guidance_scale == 1.0 else image, weight.device.type == "cuda"

    def needed(rows: int) -> float:
        parts = memory.decoder(shape, len(processor.layout.code_ids), size, rows=rows, prompts=rows,
                               prompt=prompt, completion=config.max_new_tokens, span=span,
                               int8_caches=config.cache_dtype == INT8, has_kernels=is_cuda)
        before = memory.computing_prompts(shape, size, rows, prompt)
        return max(sum(parts.values()), sum(before.values()))

    free = CPU_BYTES
    if is_cuda:
        unused = torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
        free = GPU_SHARE * (torch.cuda.mem_get_info(weight.device)[0] + unused)
    each = needed(2) - needed(1)
    return min(MOST_ROWS, max(1, int((free - (needed(1) - each)) / each)))
