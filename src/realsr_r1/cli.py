"""`realsr-r1 <command> ...`: finds the entry point of a command and hands the arguments to it.

Knows the commands' names and one line about each; loads an entry point only when it is needed.
"""

from __future__ import annotations

import importlib
import re
import sys
import textwrap

from realsr_r1 import __version__
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.presets import PRESETS, with_presets

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
    "evaluate": ("evaluate", "restored photos against the originals, or alone: tables with intervals"),
    "benchmark": ("benchmark", "model folder + a test set of the field -> a table beside the published ones"),
    "score": ("score", "a model folder's rewards on fixed prompts and noise, alone or paired with another's"),
    "report": ("report", "training run -> one HTML page with curves and pictures"),
    "demo": ("demo", "a page on this machine on which a photo is restored while one watches"),
    "plan": ("plan", "recipe + model + machine -> GRPO's memory and time by part, and what would fit"),
    "doctor": ("doctor", "this machine and folders -> a line for each check, for reports about a fault"),
}

OF_TRL = ("train-tokenizer", "sft", "grpo")  # their settings are TRL's, too


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
    if argv[0] in OF_TRL and {"-h", "--help"} & set(argv[1:]):
        print(flags_of(argv[0]))
        return 0
    argv = ["--help" if word == "--help_all" else word for word in argv]
    return importlib.import_module(f"realsr_r1.{module}").main(with_presets(argv[1:]))


def flags_of(command: str) -> str:
    """Return the flags of a command, as docs/flags.md has them: this project's own in groups, then
    those of libraries that have another default here; the others by name only.

    The command's own parser would have to import TRL first, which takes seconds.
    """
    page = (PRESETS / "flags.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {command}\n")[2].partition("\n## ")[0].strip()
    folders = "" if command == "train-tokenizer" else " --model_name_or_path DIR"
    lines = [f"usage: realsr-r1 {command}{folders} --dataset_name DIR --output_dir DIR", " " * 12
             + "[--config FILE.yaml] [--FLAG VALUE ...]", ""]
    for line in section.splitlines():
        if line.startswith("| `"):
            flag, default, what = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:4])
            flag, _, choices = _plain(flag).partition(" ")
            flag += f" {{{choices.replace(', ', ',')}}}" * bool(choices)
            if default:
                default = " (required)" if default == "required" else f" (default: {default})"
            is_long = len(flag) > 22
            lines += [f"  {flag}"] * is_long + textwrap.wrap(
                _plain(what + default), 100, initial_indent=" " * 26 if is_long else f"  {flag:<22}  ",
                subsequent_indent=" " * 26)
        elif not line.startswith(("|", "As in")):
            lines += textwrap.wrap(_plain(line.lstrip("# ")), 100, break_on_hyphens=False) or [""]
    return "\n".join([*lines, f"All other settings of TRL and transformers: realsr-r1 {command} --help_all"])


def _plain(text: str) -> str:
    """Return a line of Markdown as plain text."""
    return re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text.replace("`", "").replace("\\|", "|"))


def usage() -> str:
    """Return the help text, with one line for each command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: realsr-r1 <command> [options]", "", *lines, "",
                      "realsr-r1 <command> --help lists a command's options (--help_all: those of TRL and "
                      "transformers, too); realsr-r1 --version prints the version."])


if __name__ == "__main__":
    main()
