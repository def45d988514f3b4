"""How fast training goes: tokens a second, and the share of the device's arithmetic that the model
needs (MFU).

Counts what the mathematics asks for (arXiv 2204.02311, appendix B): padding and recomputed
activations earn nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}  # of the product that measures a device; 4096 on others
TRIALS = 5


class Throughput:
    """Counts tokens and their floating-point operations between two readings.

    `policy`: maybe inside peft's wrapper. `peak`: operations a second of one device; None leaves
    MFU out.
    """

    def __init__(self, policy: nn.Module, peak: float | None):
        at_answers = {module for root in policy.answer_modules() for module in root.modules()}
        matrices = [module for module in policy.modules() if isinstance(module, nn.Linear)]
        # What runs at every token, and what runs only where an answer is predicted.
        self.everywhere, self.at_answers = ([module for module in matrices
                                             if (module in at_answers) == wanted]
                                            for wanted in (False, True))
        self.peak, shape = peak, policy.config.shape
        self.attention = 2 * shape.hidden * shape.layers  # forward, causal, times a sample's length squared
        self.restart()

    def restart(self) -> None:
        """Begin to count now."""
        self.tokens, self.operations, self.since = 0, 0.0, time.perf_counter()

    def add(self, lengths: Sequence[int], scored: int) -> None:
        """One forward and backward of samples of these lengths, with logits at `scored` positions.
        """
        tokens = sum(lengths)
        self.tokens += tokens
        self.operations += (_products(self.everywhere) * tokens + _products(self.at_answers) * scored
                            + 3 * self.attention * sum(length * length for length in lengths))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside (evaluation, samples, checkpoints) takes no time."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.since += time.perf_counter() - began

    def read(self, tokens: float, operations: float, devices: int) -> dict[str, float]:
        """`tokens_per_second` of all devices and `mfu`, from the sums over the devices; then counts
        anew.
        """
        seconds = time.perf_counter() - self.since
        self.restart()
        figures = {"tokens_per_second": tokens / seconds}
        if self.peak:
            figures["mfu"] = operations / seconds / (self.peak * devices)
        return figures


def _products(modules: Sequence[nn.Linear]) -> int:
    """Operations a token: 2 a weight in the forward, 2 for the gradient of the input, 2 for that of
    a trained weight.

    From the features, not from the weight: under ZeRO-3 and in 4 bits it is not there in its shape.
    """
    return sum(module.in_features * module.out_features * (6 if module.weight.requires_grad else 4)
               for module in modules)


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of a few large matrix products: what this device reaches, not
    what its maker says.
    """
    size = MATRIX_SIZE.get(device.type, 4096)
    # GPUs take constants faster
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in "ab")
    seconds = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)
