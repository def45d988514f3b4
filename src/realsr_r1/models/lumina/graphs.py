"""A decoder whose steps are CUDA graphs: all kernels of a step start together.

Without graphs Python starts them one by one. At the batch size of a group, starting some 15 kernels
in each layer takes longer than reading the layer's weights. A graph repeats what was recorded,
in the same memory. So a step is recorded once for each of its shapes, and what differs from token
to token goes in through tensors. On other devices the same steps run without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from realsr_r1.models.lumina.caches import Cache
from realsr_r1.models.lumina.decoder import LuminaDecoder

# Caches are read up to the next multiple of this, so a step's shape stays the same for as many
# tokens.
COLUMN_STEP = 1024

Step = Callable[..., tuple[torch.Tensor, torch.Tensor]]


class GraphDecoder(LuminaDecoder):
    """A decoder that records a step when its shape comes for the second time.

    From then on it repeats the recorded step. What it returns is valid until the next step.
    """

    def __init__(self, *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)
        self._forget()

    def step(self, tokens: torch.Tensor, rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what a plain decoder does."""
        column = self.steps
        states, branch_states = self.feed(tokens[:, None], torch.full_like(tokens, column), column + 1, rows,
                                          places, branch_columns)
        return states[:, 0], branch_states[:, 0]

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor, own_columns: int, rows: torch.Tensor,
             places: torch.Tensor, branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what a plain decoder does."""
        reads = (self._rounded(own_columns, self.own),
                 self._rounded(branch_columns, self.unconditional) if len(rows) else 0)
        if reads[0] != self._reads:
            self._forget()
            self._reads = reads[0]
        shape = (*tokens.shape, len(rows), reads[1])
        step = partial(self._feed, *reads)
        if shape in self._seen:
            self._seen[shape] = self._seen[shape] or record(step, (tokens, starts, rows, places), self._pool)
            step = self._seen[shape]
        else:
            # Many shapes come only once, and libraries set themselves up in their first call.
            self._seen[shape] = None
        result = step(tokens, starts, rows, places)
        self.steps = own_columns
        return result

    def _feed(self, own_columns: int, branch_columns: int, tokens: torch.Tensor, starts: torch.Tensor,
              rows: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return super().feed(tokens, starts, own_columns, rows, places, branch_columns)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Do what a plain decoder does."""
        super().keep_rows(rows)
        self._forget()

    def _forget(self) -> None:
        """Drop all graphs, because no later step has their shape.

        All must go, since they share memory that is freed with the last one.
        """
        self._seen: dict[tuple[int, ...], Step | None] = {}
        self._reads = 0
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    @staticmethod
    def _rounded(columns: int, caches: list[Cache]) -> int:
        return min(-(-columns // COLUMN_STEP) * COLUMN_STEP, caches[0].columns)


def record(step: Step, inputs: tuple[torch.Tensor, ...], pool: tuple[int, int] | None) -> Step:
    """Return a function that does what `step` did with `inputs`, for other inputs of these shapes.

    It is a CUDA graph, in `pool`'s memory.
    """
    if inputs[0].device.type != "cuda":
        return step
    held = [tensor.clone() for tensor in inputs]
    graph = torch.cuda.CUDAGraph()
    # Other threads may use the device at the same time (a data loader's thread pins memory).
    with (torch.cuda.device(held[0].device),
          torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")):
        result = step(*held)

    def repeat(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for kept, value in zip(held, values, strict=True):
            kept.copy_(value)
        graph.replay()
        return result

    return repeat
