"""`realsr-r1 <command> ...`: finds the entry point of a command and hands the arguments to it.

Knows the commands' names and one line about each; loads an entry point only when it is needed.
"""

from __future__ import annotations

import importlib
import sys

from realsr_r1 import __version__
from realsr_r1.core.errors import UserError, run

# Command -> (module of the package, what it does), in the order in which they are used.
COMMANDS = {
    "create-json": ("create_json", "photos and their tags -> a dataset of degraded crops with true labels"),
    "train-tokenizer": ("train_tokenizer", "photos -> an image tokenizer (VQ)"),
    "pretokenise": ("pretokenise", "a dataset's chains -> shards of token ids, made once for any number of "
                                   "cold starts"),
    "sft": ("sft", "cold start: supervised training on chains"),
    "grpo": ("grpo", "reinforcement learning (VLCoT-GRPO) from a cold-started policy"),
    "export": ("export", "training checkpoint -> a model folder that needs nothing else"),
    "restore": ("restore", "model folder + photos -> restored photos and their chains"),
    "evaluate": ("evaluate", "restored photos against the originals: a table, JSON and CSV"),
    "score": ("score", "a model folder's rewards on fixed prompts and noise, alone or paired with another's"),
    "report": ("report", "training run -> one HTML page with curves and pictures"),
    "demo": ("demo", "a page on this machine on which a photo is restored while one watches"),
    "plan": ("plan", "recipe + model + machine -> GRPO's memory and time by part, and what would fit"),
    "doctor": ("doctor", "this machine and folders -> a line for each check, for reports about a fault"),
}


def main(argv: list[str] | None = None) -> None:
    """The console script.

    It ends the process with the command's exit code, which is 2 on bad input.
    """
    run(dispatch, argv)


def dispatch(argv: list[str] | None = None) -> int | None:
    """Run the command that `argv` (default: the process's arguments) begins with.

    Returns its exit code. Raises `UserError` for an unknown command.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] == "--version":
        print(f"realsr-r1 {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}; the commands are {', '.join(COMMANDS)}")
    module, _ = COMMANDS[argv[0]]
    return importlib.import_module(f"realsr_r1.{module}").main(argv[1:])


def usage() -> str:
    """Return the help text, with one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: realsr-r1 <command> [options]", "", *lines, "",
                      "realsr-r1 <command> --help lists a command's options; realsr-r1 --version prints the "
                      "version."])


if __name__ == "__main__":
    main()
