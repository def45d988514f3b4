"""`realsr-r1 doctor [FOLDER ...]`: is everything there that a command needs, and are folders whole?

One line for each check, the quick ones first: what belongs into a report about a fault. Knows no
check; `inspecting` has them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from realsr_r1 import __version__
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.flags import Parser
from realsr_r1.inspecting.finding import FAULT, OK, Finding


def main(argv: list[str] | None = None) -> None:
    """Make the checks and print them as they are made. Raises `UserError` where one found a fault."""
    parser = Parser(prog="realsr-r1 doctor", description=(
        "Check this machine (versions, GPUs, compiler, disks, ports, experts' weights), and whether folders "
        "are whole: datasets, tokens, models, runs and their checkpoints. Ends with exit code 2 where "
        "something is missing. Its lines belong into a report about a fault."))
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER",
                        help="dataset, tokens, model, run or checkpoint to look into")
    parser.add_argument("--experts", nargs="+", default=[], metavar="NAME",
                        help="visual experts whose weights are to be there, named as in GRPO's --experts")
    parser.add_argument("--expert_weights", metavar="DIR",
                        help="folder where they are looked for, as GRPO's flag")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a check downloads nothing; read at the client's import
    bad, count = [], 0
    for finding in _findings(args.folders, args.experts, args.expert_weights):
        print(finding, flush=True)
        count += 1
        bad += [finding.name] if finding.mark == FAULT else []
    if bad:
        raise UserError(f"{len(bad)} of {count} checks found a fault: {', '.join(dict.fromkeys(bad))}")
    print(f"{count} checks, no fault")


def _findings(folders: Sequence[Path], names: Sequence[str], weights: str | None) -> Iterator[Finding]:
    from realsr_r1.inspecting.machine import experts, machine

    yield Finding(OK, "realsr-r1", f"{__version__} in {Path(__file__).resolve().parent}")
    yield from machine(folders)
    for folder in folders:
        from realsr_r1.inspecting.folders import folder_findings

        yield from folder_findings(folder)
    yield from experts(names, weights)


if __name__ == "__main__":
    run(main)
