"""Machines that a run is planned for: GPUs by name from public data sheets, or your own numbers.

Knows numbers of hardware; `memory` and `duration` know what a run does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from realsr_r1.core.errors import UserError, meant
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Gt, Number, TypedDict

GIB, GB = 2**30, 1e9  # memory is in GiB (an "80 GB" A100 has 81,920 MiB), rates are in powers of ten


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet.

    `memory_gib`: its memory. `tflops`: bfloat16 on tensor cores, dense, with float32 accumulation.
    `bandwidth_gb`: of its memory, GB/s. `link_gb`: to the other GPUs of its machine in one
    direction, GB/s. `host_gb`: PCIe in one direction, GB/s.
    """

    memory_gib: float
    tflops: float
    bandwidth_gb: float
    link_gb: float
    host_gb: float
    source: str


# Data sheets give NVLink and PCIe for both directions together; half of that is here. Where a sheet
# gives rates with sparsity, half of that is here, too.
GPUS = {
    "a100-40gb": Gpu(40, 312, 1555, 300, 32, "NVIDIA A100 data sheet, 40 GB SXM"),
    "a100-80gb": Gpu(80, 312, 2039, 300, 32, "NVIDIA A100 data sheet, 80 GB SXM"),
    "a100-80gb-pcie": Gpu(80, 312, 1935, 32, 32, "NVIDIA A100 data sheet, 80 GB PCIe without NVLink bridge"),
    "h100-80gb": Gpu(80, 989, 3350, 450, 64, "NVIDIA H100 data sheet, SXM"),
    "h100-80gb-pcie": Gpu(80, 756, 2000, 64, 64, "NVIDIA H100 data sheet, PCIe without NVLink bridge"),
    "h200": Gpu(141, 989, 4800, 450, 64, "NVIDIA H200 data sheet, SXM"),
    "b200": Gpu(180, 2250, 8000, 900, 64, "NVIDIA DGX B200 data sheet, an eighth of the system"),
    "l40s": Gpu(48, 362, 864, 32, 32, "NVIDIA L40S data sheet"),
    "a6000": Gpu(48, 155, 768, 32, 32, "NVIDIA RTX A6000 data sheet"),
    "rtx4090": Gpu(24, 165, 1008, 32, 32, "NVIDIA Ada GPU architecture white paper, RTX 4090"),
    "rtx3090": Gpu(24, 71, 936, 32, 32, "NVIDIA Ampere GA102 white paper, RTX 3090"),
}
# The shares of a data sheet's rates that good code reaches. Compute: 0.46 to 0.52 were reported
# for training large models (PaLM, arXiv 2204.02311; Megatron-LM on A100, arXiv 2104.04473). Memory
# and links: copies reach 0.8 to 0.9.
COMPUTE_SHARE, BANDWIDTH_SHARE, LINK_SHARE = 0.45, 0.8, 0.7
# The time to start one operation of PyTorch on an idle GPU, Python included; it depends on the CPU. A
# 7B decoder's eager step of 1,340 operations took 37 ms beside an H200 (docs/speed.md).
LAUNCH_SECONDS = 27e-6
NETWORK_GB = 25.0      # between machines, GB/s for each machine and direction: one 200 Gb/s adapter
# The rate of the CPU's memory, from which an offloaded optimizer works, in GB/s (8 channels of
# DDR4-3200 have 205).
HOST_BANDWIDTH_GB = 150.0


@dataclass(frozen=True)
class Machine:
    """What a run gets: bytes of one GPU, and the rates that it really reaches.

    `flops`: operations/s. `bandwidth`, `link`, `host`: bytes/s of a GPU's memory, to its
    neighbours, and to the CPU. `network`: bytes/s between machines, for a whole machine. `launch`:
    the seconds that it takes to start an operation.
    """

    name: str
    source: str
    gpus: int
    nodes: int
    memory: float
    flops: float
    bandwidth: float
    link: float
    host: float
    network: float
    launch: float = LAUNCH_SECONDS

    @property
    def world(self) -> int:
        """The number of processes, one for each GPU."""
        return self.gpus * self.nodes

    @property
    def gather_rate(self) -> float:
        """The bytes/s at which one GPU takes part in a collective.

        It is the rate of its links, or its share of the network.
        """
        return self.link if self.nodes == 1 else min(self.link, self.network / self.gpus)


# Your own numbers -> the field of `Machine` that they become, and their unit.
MEASURED = {"memory_gib": ("memory", GIB), "tflops": ("flops", 1e12), "bandwidth_gb": ("bandwidth", GB),
            "link_gb": ("link", GB), "host_gb": ("host", GB), "network_gb": ("network", GB),
            "launch_us": ("launch", 1e-6)}
MeasuredFile = TypedDict("MeasuredFile", dict.fromkeys(MEASURED, Annotated[Number, Gt(0)]), total=False,
                         closed=True)


def machine(gpu: str | None, gpus: int = 1, nodes: int = 1,
            measured: Mapping[str, float] | None = None) -> Machine:
    """Return a machine of `nodes` times `gpus` GPUs.

    `gpu`: a name in `GPUS`, whose rates are multiplied with the shares above. `measured`: keys of
    `MEASURED`, which are taken as they are and win over the data sheet. Without `gpu`, memory,
    tflops and bandwidth must be among them. Raises `UserError` that names what is unknown, missing
    or not above 0.
    """
    measured = dict(measured or {})
    if gpus < 1 or nodes < 1:
        raise UserError(f"--gpus {gpus} and --nodes {nodes} must be at least 1")
    for key, value in measured.items():
        if key not in MEASURED:
            raise UserError(f"a machine has no {key}; known numbers are {', '.join(MEASURED)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UserError(f"{key} of the machine is {value!r}; it must be a number above 0")
    if gpu is not None and gpu.lower() not in GPUS:
        raise UserError(f"--gpu {gpu} is unknown{meant(gpu.lower(), GPUS)}; known are {', '.join(GPUS)}, or "
                        "give --memory_gib, --tflops and --bandwidth_gb")
    missing = [key for key in ("memory_gib", "tflops", "bandwidth_gb") if key not in measured]
    if gpu is None and missing:
        raise UserError(f"name a GPU with --gpu ({', '.join(GPUS)}), or give --{missing[0]} as well")
    fields: dict[str, Any] = {"link": 32 * GB * LINK_SHARE, "host": 32 * GB * LINK_SHARE,
                              "network": NETWORK_GB * GB * LINK_SHARE}
    source = "your numbers"
    if gpu is not None:
        sheet = GPUS[gpu.lower()]
        fields |= {"memory": sheet.memory_gib * GIB, "flops": sheet.tflops * 1e12 * COMPUTE_SHARE,
                   "bandwidth": sheet.bandwidth_gb * GB * BANDWIDTH_SHARE,
                   "link": sheet.link_gb * GB * LINK_SHARE, "host": sheet.host_gb * GB * LINK_SHARE}
        source = sheet.source + (f"; measured: {', '.join(measured)}" if measured else "")
    fields |= {MEASURED[key][0]: value * MEASURED[key][1] for key, value in measured.items()}
    return Machine(gpu.lower() if gpu else "own", source, gpus, nodes, **fields)


def read_measured(path: str | Path) -> dict[str, float]:
    """Read a YAML or JSON file of `MEASURED` numbers.

    Raises `UserError` that names a missing or broken file.
    """
    return read_yaml(path, MeasuredFile, "--machine")
