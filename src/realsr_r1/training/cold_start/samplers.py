"""The order in which records are trained on: a function of (seed, epoch), so that a resumed run
finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """Indices of an epoch, shuffled; with `group`, batches of so many have samples of similar
    lengths.

    `lengths`: tokens of each sample. `epoch`: tells the epoch's number when its iteration starts.
    transformers' own length-grouped order draws from the global random state, which a resumed run
    has elsewhere; and the epoch that accelerate hands to samplers gets lost in a resumed run of
    several processes.
    """

    def __init__(self, lengths: Sequence[int], seed: int, epoch: Callable[[], int], group: int | None = None):
        self.lengths = lengths
        self.seed = seed
        self.epoch = epoch
        self.group = group

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        if self.group:
            return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
        return iter(torch.randperm(len(self.lengths), generator=generator).tolist())
