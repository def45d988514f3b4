"""The settings of a command: dataclasses whose fields are flags.

A YAML file (`--config FILE`) may give their values. TRL's parser does the work. This file adds
errors that name the file or flag.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import read_yaml
from realsr_r1.core.presets import PLACES, find_preset, with_presets

FOLDERS = {"--model_name_or_path": "model folder", "--dataset_name": "dataset folder"}


def check_folders(argv: list[str] | None) -> None:
    """Raise `UserError` when an argument names a model or dataset folder that isn't there.

    A command whose settings are TRL's calls this first, for importing TRL takes seconds.
    """
    argv = with_presets(sys.argv[1:] if argv is None else argv)
    for flag, value in zip(argv, argv[1:], strict=False):
        if flag in FOLDERS and not Path(value).exists():
            raise UserError(f"no such {FOLDERS[flag]}: {value} (given by {flag})")


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
        config = argv[argv.index("--config") + 1]
        values = read_yaml(config, "--config")
        if not isinstance(values, dict):
            raise UserError(f"{config} must hold `key: value` lines")
        known = {name.lstrip("-").replace("-", "_") for action in parser._actions
                 for name in action.option_strings}
        for key in values:
            if key not in known | {"env"}:
                raise UserError(f"{config}: {prog} has no setting {key!r} (a recipe of another command?); "
                                f"{prog} --help lists the known ones")
            flag = f"--{key}"
            if flag in PLACES and flag not in argv and isinstance(values[key], str):
                argv += [flag, find_preset(flag, values[key])]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tuple(parser.parse_args_and_config(args=argv))
    except SystemExit as error:
        if error.code in (0, None):
            raise
        last = complaint.getvalue().strip().splitlines()[-1]
        raise UserError(last.partition("error: ")[2] or "bad arguments") from error
    except ValueError as error:
        raise UserError(str(error)) from error
