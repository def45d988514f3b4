"""Keys and values that a decoder keeps, in their own type or as int8.

An int8 vector has a scale, its largest number over 127, so a number is wrong by half a step at
most: 1/254 of the vector's largest. That takes little more than half the memory of bfloat16, and a
GPU reads as much less in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

INT8_MAX = 127


class Cache:
    """Keys and values of a layer for some rows, (rows, kv heads, columns, head_dim) each.

    `dtype`: the type that they are read in. Stored as int8 they have float32 `scales`, (rows, kv
    heads, columns) each; otherwise `scales` is None.
    """

    def __init__(self, stored: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype,
                 scales: tuple[torch.Tensor, torch.Tensor] | None = None):
        self.stored, self.dtype, self.scales = stored, dtype, scales

    @classmethod
    def of(cls, keys: torch.Tensor, values: torch.Tensor, is_int8: bool) -> Cache:
        """Return a cache that holds these, and no free columns."""
        if not is_int8:
            return cls((keys, values), values.dtype)
        stored, scales = zip(as_int8(keys), as_int8(values), strict=True)
        return cls(stored, values.dtype, scales)

    def empty(self, rows: int, columns: int) -> Cache:
        """Return a cache like this one for other rows and columns.

        It holds zeros, because columns that a row hasn't reached yet get the weight 0, and 0 times an
        arbitrary value may be NaN.
        """
        def zeros(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.new_zeros((rows, tensor.shape[1], columns, *tensor.shape[3:]))
        return self._with(zeros)

    @property
    def columns(self) -> int:
        return self.stored[0].shape[2]

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield all tensors in which the cache is held."""
        yield from self.stored
        yield from self.scales or ()

    def write(self, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store keys and values (n, head_dim) at `places` (n,) of the flattened rows, heads and columns."""
        for number, new in enumerate((key, value)):
            if self.scales is not None:
                new, scale = as_int8(new)
                self.scales[number].view(-1).index_copy_(0, places, scale)
            stored = self.stored[number]
            stored.view(-1, new.shape[-1]).index_copy_(0, places, new.to(stored.dtype))

    def write_column(self, column: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store keys and values (rows, kv heads, head_dim) in one column of all rows."""
        for number, new in enumerate((key, value)):
            if self.scales is not None:
                new, self.scales[number][:, :, column] = as_int8(new)
            self.stored[number][:, :, column] = new

    def read(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the first rows and columns, in `dtype`."""
        keys, values = (tensor[:rows, :, :columns] for tensor in self.stored)
        if self.scales is None:
            return keys, values
        of_keys, of_values = (scale[:rows, :, :columns, None] for scale in self.scales)
        return (keys * of_keys).to(self.dtype), (values * of_values).to(self.dtype)

    def move(self, rows: torch.Tensor, columns: int) -> None:
        """Copy the first columns of `rows` (n,) to rows 0 to n - 1."""
        for tensor in self.tensors():
            tensor[:len(rows), :, :columns] = tensor[rows, :, :columns]

    def first(self, rows: int) -> Cache:
        """Return the first rows, as a view."""
        return self._with(lambda tensor: tensor[:rows])

    def select(self, rows: torch.Tensor) -> Cache:
        """Return a copy of `rows` (n,)."""
        return self._with(lambda tensor: tensor[rows])

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Cache:
        keys, values, *scales = map(change, self.tensors())
        return Cache((keys, values), self.dtype, tuple(scales) or None)


def as_int8(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round vectors (..., n) to int8; returns them and their scales (...), float32."""
    exact = vectors.float()
    scale = exact.abs().amax(-1) / INT8_MAX
    # A vector of zeros has the scale 0; one that isn't finite has none that is. Halves are rounded
    # up, as the GPU's kernel does.
    steps = (exact / scale.where(scale > 0, 1.0)[..., None] + 0.5).floor()
    return steps.clamp(-INT8_MAX, INT8_MAX).to(torch.int8), scale
