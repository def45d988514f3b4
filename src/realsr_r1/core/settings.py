"""The settings of a command: dataclasses whose fields are flags.

A YAML file (`--config FILE`) may give their values, which are read as flags are. TRL's parser does
the work. This file adds errors that name the file or flag.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from realsr_r1.core.errors import UserError, meant
from realsr_r1.core.flags import refuse_unknown
from realsr_r1.core.json_yaml import read_json, read_yaml
from realsr_r1.core.presets import built_in, with_presets
from realsr_r1.core.schema import Json, Text, Variable, checked

if TYPE_CHECKING:
    from argparse import Namespace

    from transformers import HfArgumentParser

SEEDS = (0, 2**32 - 1)  # as numpy takes them

FOLDERS = {"--model_name_or_path": "model folder", "--dataset_name": "dataset folder"}


def check_folders(argv: list[str] | None) -> None:
    """Raise `UserError` when an argument names a model or dataset folder that isn't there.

    A command whose settings are TRL's calls this first, for importing TRL takes seconds.
    """
    argv = with_presets(sys.argv[1:] if argv is None else argv)
    for flag, value in zip(argv, argv[1:], strict=False):
        if flag in FOLDERS and not Path(value).exists():
            raise UserError(f"no such {FOLDERS[flag]}: {value} (given by {flag}){built_in(flag)}")


def check_ranges(args: Namespace, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raise `UserError` that names the first flag whose number is out of its range, ends included.

    None, a flag that wasn't given, is in every range.
    """
    for name, (least, most) in ranges.items():
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise UserError(f"--{name} is {value}; it must be from {least} to {most}")


def parse(classes: tuple[type, ...], argv: list[str] | None, prog: str) -> tuple[Any, ...]:
    """Make one instance of each dataclass from the arguments and the YAML file of `--config`.

    `argv`: by default `sys.argv[1:]`. A flag wins over the file. Raises `UserError` for a missing
    or broken file, an unknown key, and a bad value.
    """
    from trl import TrlParser

    argv = with_presets(sys.argv[1:] if argv is None else argv)
    parser = TrlParser(classes, prog=prog, allow_abbrev=False)
    for action in parser._actions:  # a help text is a format for argparse; ours are plain sentences
        action.help = re.sub(r"%%|%\(|%", lambda found: "%%" if found[0] == "%" else found[0],
                             action.help or "")
    if "--config" in argv[:-1]:
        at = argv.index("--config")
        config = argv[at + 1]
        hints = {name: hint for each in classes for name, hint in get_type_hints(each).items()}
        argv[at:at + 2] = []
        values = read_yaml(config, dict[Text, Json], "--config")
        argv = with_presets([*_as_flags(parser, hints, values, config), *argv])
    _check_deepspeed(argv)
    refuse_unknown(parser, argv)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parser.parse_args_into_dataclasses(args=argv)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        last = complaint.getvalue().strip().splitlines()[-1]
        raise UserError(last.partition("error: ")[2] or "bad arguments") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _as_flags(parser: HfArgumentParser, hints: Mapping[str, Any], values: Mapping[str, Any],
              config: str) -> list[str]:
    """Return the values of a file as flags, so that they are read, and refused, as flags are.

    Values that no flag can express (null, a list without items, an object) become the parser's
    defaults where the field's type (`hints`) has them. `env` becomes environment variables.
    """
    actions, flags = {action.dest: action for action in parser._actions}, []
    for key, value in values.items():
        if key == "env":
            checked(dict[Text, dict[Variable, Variable | int | float]], {key: value}, config)
            os.environ.update({name: _word(item) for name, item in value.items()})
            continue
        if key not in actions:
            near = meant(key, actions) or " (a recipe of another command?)"
            raise UserError(f"{config}: {parser.prog} has no setting {key!r}{near}; {parser.prog} --help "
                            "lists the known ones")
        is_list = actions[key].nargs in ("+", "*")
        if value is None or isinstance(value, dict) or isinstance(value, list) and not (value and is_list):
            kind = type(value)
            if kind not in {get_origin(part) or part for part in (hints[key], *get_args(hints[key]))}:
                raise UserError(f"{config}: {key} is {json.dumps(value)[:60]}; give one value, or leave it "
                                "out")
            parser.set_defaults(**{key: value})
        elif isinstance(value, list):
            checked(dict[Text, list[Text | int | float]], {key: value}, config)
            flags += [f"--{key}", *map(_word, value)]
        else:
            flags.append(f"--{key}={_word(value)}")
    return flags


def _word(value: str | int | float) -> str:
    """Write a value as a flag has it. YAML reads an unquoted yes and no as true and false."""
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _check_deepspeed(argv: Sequence[str]) -> None:
    """Raise `UserError` where what --deepspeed names is no file that holds a JSON object."""
    for flag, file in zip([*argv, ""], [*argv[1:], "", ""], strict=False):
        if flag != "--deepspeed":
            continue
        if not Path(file).is_file():
            raise UserError(f"no such file: {file} (given by --deepspeed){built_in('--deepspeed')}")
        read_json(file, dict[Text, Json], "--deepspeed takes one of local_scripts, or another JSON of "
                  "DeepSpeed")
