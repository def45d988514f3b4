"""How a process uses a machine without a GPU: its memory, and how many threads compute.

Commands and Python programs get the same settings, for `load_policy` and `new_policy` make them.
What the user set (`OMP_NUM_THREADS`, glibc's `MALLOC_*` variables) stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import os

# glibc gives large blocks back at once, and taking them again was 40 % of the processor time when
# the tokenizer trained. Parameters of mallopt (malloc.h) with their values: the top of the heap is
# never given back, it grows by 64 MiB, and no block is mapped on its own.
MALLOC = {"MALLOC_TRIM_THRESHOLD_": (-1, -1), "MALLOC_TOP_PAD_": (-2, 64 * 2**20),
          "MALLOC_MMAP_MAX_": (-4, 0)}
# oneDNN keeps programs for this many shapes; its own 1,024 are 705 MB in a cold start, whose rows
# all differ in length.
ONEDNN = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256"}
# Products of a smaller policy are too short to be shared between threads: the embedded model is
# restored with one thread a batch, and as many batches at a time as there are cores.
SMALL_POLICY = 50_000_000  # parameters


def suit_cpu(parameters: int) -> None:
    """Set this process up for a model of so many parameters, unless it computes on a GPU.

    Products of a small model are computed by one thread, so results don't depend on the number of
    cores. Calling it again does no harm.
    """
    import torch

    if torch.cuda.is_available():
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for variable, (parameter, value) in MALLOC.items():
            if variable not in os.environ:
                mallopt(parameter, value)
    for variable, setting in ONEDNN.items():
        os.environ.setdefault(variable, setting)  # it is read at the first product
    if parameters < SMALL_POLICY and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def cores() -> int:
    """Return how many threads this process may compute with: `OMP_NUM_THREADS`, or its cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted):
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
