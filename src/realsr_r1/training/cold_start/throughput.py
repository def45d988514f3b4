"""How fast training is: tokens a second, and the share of the device's peak that is used (MFU).

Only the operations that the mathematics asks for count (arXiv 2204.02311, appendix B); those for
padding and recomputed activations don't.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}  # side of the matrices that measure a device; others use 4096
TRIALS, LONGEST = 5, 1.0  # products, of which none begins after so many seconds


class Throughput:
    """Counts tokens and their floating-point operations between two readings.

    `policy`: may be inside peft's wrapper. `peak`: operations a second of one device; with None
    there is no MFU.
    """

    def __init__(self, policy: nn.Module, peak: float | None):
        at_answers = {module for root in policy.answer_modules() for module in root.modules()}
        matrices = [module for module in policy.modules() if isinstance(module, nn.Linear)]
        # Matrices that run at every token, and those that run only where an answer is predicted.
        self.everywhere, self.at_answers = ([module for module in matrices
                                             if (module in at_answers) == wanted]
                                            for wanted in (False, True))
        self.peak, shape = peak, policy.config.shape
        # The operations of causal attention in the forward pass are this times a sample's length
        # squared.
        self.attention = 2 * shape.hidden * shape.layers
        self.restart()

    def restart(self) -> None:
        """Start to count again from now."""
        self.tokens, self.operations, self.since = 0, 0.0, time.perf_counter()

    def add(self, lengths: Sequence[int], scored: int) -> None:
        """Count one forward and backward of samples of these lengths.

        `scored`: the number of positions with logits.
        """
        tokens = sum(lengths)
        self.tokens += tokens
        self.operations += (_products(self.everywhere) * tokens + _products(self.at_answers) * scored
                            + 3 * self.attention * sum(length * length for length in lengths))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what happens inside (evaluation, samples, checkpoints)."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - began

    def read(self, tokens: float, operations: float, devices: int) -> dict[str, float]:
        """Return `tokens_per_second` of all devices and `mfu`, then start to count again.

        `tokens`, `operations`: sums over the devices.
        """
        seconds = time.perf_counter() - self.since
        self.restart()
        figures = {"tokens_per_second": tokens / seconds}
        if self.peak:
            figures["mfu"] = operations / seconds / (self.peak * devices)
        return figures


def _products(modules: Sequence[nn.Linear]) -> int:
    """Return the operations for one token.

    A weight takes 2 in the forward, 2 for the gradient of the input, and 2 for its own gradient if
    it is trained. They are computed from the layers' features, because under ZeRO-3 and in 4 bits
    the weight doesn't have its shape.
    """
    return sum(module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
               for module in modules)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations a second of the fastest of a few large matrix products.

    This is what the device really reaches, not the figure of its maker.
    """
    size = MATRIX_SIZE.get(device.type, 4096)
    # Random numbers, because GPUs are faster with constants.
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in "ab")
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > LONGEST:  # a CPU that has no instructions for bfloat16
            break
    return 2 * size**3 / min(seconds)
