"""Write docs/flags.md, a table of each command's flags, from the commands' own parsers.

    python scripts/tools/write_flags.py

Flags of TRL and transformers are only named there: their own documentation explains them.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

from realsr_r1.cli import COMMANDS
from realsr_r1.core.files import atomic_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "flags.md"
HUB = "https://huggingface.co/docs"
DOCUMENTATION = {
    "TrainingArguments": f"{HUB}/transformers/main_classes/trainer#transformers.TrainingArguments",
    "GRPOConfig": f"{HUB}/trl/grpo_trainer#trl.GRPOConfig",
    "ModelConfig": "https://github.com/huggingface/trl/blob/main/trl/trainer/model_config.py"}
# Command -> the flags that begin a group of its own ones, with the group's heading.
GROUPS = {
    "grpo": {"dataset_name": "Data", "reward_funcs": "Rewards", "max_prompt_length": "Batches",
             "rollout_temperature": "Rollouts", "train_forced_tokens": "Credit and loss",
             "sample_steps": "While it runs"},
    "sft": {"dataset_name": "Data and chain", "z_loss": "Loss", "sample_steps": "While it runs",
            "max_length": "Sizes"},
    "train-tokenizer": {"dataset_name": "Folders", "target_px": "Chain", "text_vocab_size": "Tokenizers",
                        "max_steps": "Training"}}
HEAD = """\
# Flags of the commands

Made by `scripts/tools/write_flags.py` from the commands' parsers; a test says when it has to be run
again. What is behind the main settings: [settings.md](settings.md).
"""


class Caught(Exception):
    """Carries a command's parser out of the command, in place of reading the arguments."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that `realsr-r1 command` reads its arguments with.

    Nothing else of the command runs.
    """
    def catch(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise Caught(parser)

    with patch.object(argparse.ArgumentParser, "parse_known_args", catch):
        try:
            importlib.import_module(f"realsr_r1.{COMMANDS[command][0]}").main([])
        except Caught as caught:
            return caught.args[0]
    raise AssertionError(f"{command} read no arguments")


def flags_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every spelling of every flag, `--help` aside."""
    actions = [action for action in parser._actions if action.dest != "help"]
    return {flag: action for action in actions for flag in action.option_strings}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for command, (_, what) in COMMANDS.items():
        parser = parser_of(command)
        actions = list(dict.fromkeys(flags_of(parser).values()))
        theirs, changed = _library_fields(parser)
        borrowed = {name for names in theirs.values() for name in names}
        parts.append(f"## {command}\n\n{what[0].upper()}{what[1:]}.\n")
        own = [action for action in actions if action.dest not in borrowed | changed]
        for heading, group in _groups(own, GROUPS.get(command, {})):
            parts += [f"### {heading}\n"] * bool(heading) + [_table(group)]
        if changed:
            parts.append("### Flags of TRL and transformers with another default or meaning here\n")
            parts.append(_table(action for action in actions if action.dest in changed))
        for owner, names in theirs.items():
            listed = ", ".join(f"`--{name}`" for name in names)
            parts.append(f"As in [{owner}]({DOCUMENTATION[owner]}): {listed}.\n")
        if command == "plan":
            parts.append("And every flag of [grpo](#grpo).\n")
    return "\n".join(parts)


def _groups(actions: list[argparse.Action],
            headings: dict[str, str]) -> list[tuple[str, list[argparse.Action]]]:
    """Split actions where a heading begins; without headings they are one group without a name."""
    groups: list[tuple[str, list[argparse.Action]]] = []
    for action in actions:
        if action.dest in headings or not groups:
            groups.append((headings.get(action.dest, ""), []))
        groups[-1][1].append(action)
    return groups


def _library_fields(parser: argparse.ArgumentParser) -> tuple[dict[str, list[str]], set[str]]:
    """Names of TRL's and transformers' settings: those taken over, by class, and those changed."""
    theirs: dict[str, list[str]] = {}
    ours: set[str] = set()
    changed: set[str] = set()
    for settings in getattr(parser, "dataclass_types", ()):
        seen: set[str] = set()
        for one in settings.__mro__[:-1]:  # a field belongs to the first class that declares it
            annotated = vars(one).get("__annotations__", {})
            declared = [name for name in annotated if name in settings.__dataclass_fields__]
            if one.__module__.startswith("realsr_r1."):
                ours.update(declared)
            else:
                # TRL's private base of GRPOConfig is documented with it.
                owner = one.__name__ if one.__name__ in DOCUMENTATION else "GRPOConfig"
                theirs.setdefault(owner, []).extend(name for name in declared if name not in seen)
                changed.update(name for name in declared if name in ours)
            seen.update(declared)
    return theirs, changed


def _table(actions: Iterable[argparse.Action]) -> str:
    rows = ["| flag | default | what |", "|---|---|---|"]
    for action in actions:
        flag = next((one for one in action.option_strings if "-" not in one[2:]), action.option_strings[0])
        if flag.startswith("--no_"):  # what the parser adds to each flag that is true by default
            continue
        choices = f" {', '.join(map(str, action.choices))}" if action.choices else ""
        default, explanation = _default(action, action.help or "")
        rows.append(f"| `{flag}`{choices} | {default} | {_cell(explanation)} |")
    return "\n".join(rows) + "\n"


def _default(action: argparse.Action, explanation: str) -> tuple[str, str]:
    """The default, and the explanation without it.

    Where the explanation says "(default: ...)", that is taken: the value itself may depend on the
    machine, as the number of cores does.
    """
    explanation = re.sub(r"%\((\w+)\)s", lambda found: str(vars(action)[found[1]]), explanation)
    explanation = explanation.replace("%%", "%")
    said = re.search(r"\s*\(default:? (.*?)\)", explanation)
    if said:
        return _cell(said[1]), explanation.replace(said[0], "")
    if action.required:
        return "required", explanation
    value = action.default() if callable(action.default) else action.default
    is_said = "default" in explanation
    if value in (None, "", []) or is_said or isinstance(action, argparse._StoreTrueAction):
        return "", explanation
    shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
    return f"`{shown}`", explanation


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    with atomic_file(PAGE) as partial:
        partial.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE}")
