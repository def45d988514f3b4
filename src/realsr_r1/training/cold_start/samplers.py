"""The order in which records are trained on.

It depends only on (seed, epoch), so a resumed run finds it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class EpochSampler(Sampler[int]):
    """Shuffled indices of an epoch; with `group`, batches of that size have similar lengths.

    `lengths`: tokens of each sample. `epoch`: returns the epoch's number when an iteration starts.
    transformers' own order by length draws from the global random state, which differs in a resumed
    run; and a resumed run of several processes loses the epoch that accelerate hands to samplers.
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
