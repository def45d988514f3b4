"""How many bytes torch's tensors hold at most inside a block of code, on any device, also without
memory (`meta`).

Counts storages as operations make them and as they are freed. What an operation needs for itself
inside is not seen.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside `with LiveBytes() as live`: `now` and `peak`, bytes of storages made since;
    `operations` run since, views aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.operations = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage() for tensor in tree_leaves((args, kwargs))
                 if isinstance(tensor, torch.Tensor)}
        result = function(*args, **(kwargs or {}))
        made = {tensor.untyped_storage() for tensor in tree_leaves(result)
                if isinstance(tensor, torch.Tensor)} - given
        self.operations += bool(made) or function._schema.is_mutable
        for storage in made:
            if storage in self._known:
                continue
            self._known.add(storage)
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, count: int) -> None:
        self.now -= count
