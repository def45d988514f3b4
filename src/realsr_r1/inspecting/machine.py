"""What a machine has of what the commands need: versions, GPUs, a compiler, space, ports, weights.

The quick checks come first, and nothing is imported for them.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from realsr_r1.core.devices import triton_compiler
from realsr_r1.core.errors import UserError
from realsr_r1.inspecting.finding import FAULT, NOTE, OK, Finding, found

PYTHONS = ((3, 11), (3, 12))
LEAST_SPACE, LITTLE_SPACE = 2**30, 20 * 2**30  # bytes: below the first nothing can be saved
# Port -> what it is for, where no setting says otherwise.
PORTS = {11317: "scripts/train_grpo.sh", 11318: "scripts/train_sft.sh", 7860: "realsr-r1 demo"}


def machine(folders: Sequence[Path]) -> Iterator[Finding]:
    """Check the machine. `folders`: those whose disks matter, besides the working folder's."""
    yield found("python", _python)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Finding(OK, "machine", f"{platform.platform()}, {os.cpu_count()} CPUs, {memory:.0f} GiB of memory")
    yield packages()
    yield from _disks([Path.cwd(), Path(tempfile.gettempdir()), *folders])
    yield from _ports()
    yield from _gpus()


def _python() -> str:
    version = platform.python_version()
    if sys.version_info[:2] not in PYTHONS:
        raise UserError(f"{version}; this project runs on "
                        f"{' and '.join('.'.join(map(str, each)) for each in PYTHONS)}: bash setup.sh")
    return f"{version}, {sys.executable}"


def packages() -> Finding:
    """Compare the installed packages with those that the project was tested with."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in metadata.requires("realsr-r1") or ()]
    except metadata.PackageNotFoundError:
        return Finding(NOTE, "packages", "realsr-r1 isn't installed, so their versions aren't known: bash "
                       "setup.sh")
    missing, others, count = [], [], 0
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = metadata.version(one.name)
        except metadata.PackageNotFoundError:
            missing.append(one.name)
            continue
        if not one.specifier.contains(version, prereleases=True):
            others.append(f"{one.name} {version} (tested with {one.specifier})")
    if missing:
        return Finding(FAULT, "packages", f"missing: {', '.join(missing)}; run bash setup.sh")
    if others:
        return Finding(NOTE, "packages", f"others than tested: {', '.join(others)}")
    return Finding(OK, "packages", f"all {count} as tested")


def _disks(folders: Sequence[Path]) -> Iterator[Finding]:
    """One line for each disk that these folders are on."""
    seen = set()
    for folder in map(Path.absolute, folders):
        while not folder.exists():
            folder = folder.parent
        device = folder.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(folder).free
        mark = FAULT if free < LEAST_SPACE else NOTE if free < LITTLE_SPACE else OK
        left = {OK: "", NOTE: "; a 7B policy's checkpoint needs more", FAULT: "; nothing can be saved"}[mark]
        yield Finding(mark, "disk", f"{free / 2**30:.1f} GiB free at {folder}{left}")


def _ports() -> Iterator[Finding]:
    wanted = dict(PORTS)
    given = os.environ.get("MASTER_PORT", "")
    if given:
        if not given.isascii() or not given.isdigit() or not 0 < int(given) < 2**16:
            yield Finding(FAULT, "ports", f"MASTER_PORT is {given!r}; it must be a number from 1 to 65535")
        else:
            wanted[int(given)] = "MASTER_PORT"
    taken = [f"{port} ({what})" for port, what in wanted.items() if not _is_free(port)]
    if taken:
        yield Finding(NOTE, "ports", f"in use: {', '.join(taken)}; give others with MASTER_PORT or --port")
    else:
        yield Finding(OK, "ports", f"{', '.join(map(str, wanted))} are free")


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _gpus() -> Iterator[Finding]:
    """The GPUs that torch sees, and the compiler that Triton needs where there are some."""
    try:
        import torch
    except ImportError as error:
        yield Finding(FAULT, "torch", f"can't be imported ({error}); run bash setup.sh")
        return
    if not torch.cuda.is_available():
        yield Finding(NOTE, "gpu", f"torch {torch.__version__} sees none; everything runs on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        yield Finding(OK, "gpu", f"{number}: {about.name}, {about.total_memory / 2**30:.0f} GiB, "
                      f"torch {torch.__version__}, CUDA {torch.version.cuda}")
    yield found("compiler", lambda: f"{triton_compiler()}, for Triton")


def experts(names: Sequence[str], weights: str | None) -> Iterator[Finding]:
    """Check whether visual experts can be had, from what is on the disk. Nothing is downloaded."""
    from realsr_r1.rewards.experts import create_experts

    def check(name: str) -> str:
        create_experts([name], "cpu", weights)
        return name

    for name in names:
        yield found("expert", lambda name=name: check(name))
