"""`realsr-r1` answers at once, lists the commands, and refuses unknown ones with exit code 2."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import realsr_r1
from realsr_r1.cli import COMMANDS, dispatch, main

HEAVY = ("torch", "transformers", "trl", "deepspeed", "datasets", "pyiqa", "matplotlib", "wandb")


def run_python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(argv)
    return exit_info.value.code


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_help_lists_every_command_with_a_line(argv, capsys):
    assert exit_code(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, what) in COMMANDS.items():
        assert any(line.split() == [name, *what.split()] for line in lines)


def test_the_version_is_the_packages(capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["realsr-r1", realsr_r1.__version__]


def test_an_unknown_command_is_refused_with_the_list(capsys):
    assert exit_code(["restor"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "'restor'" in err
    assert all(name in err for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_flags(command, capsys):
    assert exit_code([command, "--help"]) == 0
    shown = capsys.readouterr()
    assert f"usage: realsr-r1 {command}" in shown.out and "--" in shown.out and not shown.err


def test_the_help_of_restore_has_the_model_folders_values(capsys):
    assert exit_code(["restore", "--model", "tiny", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for value in ("default: 0.7, as", "default: 100, as", "default: wavelet, as"):
        assert value in said, value


@pytest.mark.parametrize("command", ["grpo", "sft", "train-tokenizer"])
def test_the_help_of_trls_commands_has_own_flags_in_groups_with_defaults(command, capsys):
    assert exit_code([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert "--help_all" in short and max(map(len, short.splitlines())) <= 100
    assert {"grpo": "Rewards\n", "sft": "Loss\n", "train-tokenizer": "Tokenizers\n"}[command] in short
    own = {"grpo": ("--credit {sequence,section}", "(default: sequence)"), "sft": ("--z_loss", "(default: 0.0)"),
           "train-tokenizer": ("--target_px", "(default: 48)")}[command]
    assert all(text in " ".join(short.split()) for text in own) and "--adam_beta1" not in short
    assert exit_code([command, "--help_all"]) == 0
    whole = capsys.readouterr().out
    assert "usage: realsr-r1" in whole and own[0].split()[0] in whole
    assert "--adam_beta1" in whole or command == "train-tokenizer"


@pytest.mark.parametrize("argv", [
    ["restore", "--model", "no/such", "--input", "README.md", "--output", "out"],
    ["score", "--model", "no/such", "--dataset_name", "no/data", "--output", "out.json"],
    ["demo", "--model", "no/such"],
    ["grpo", "--model_name_or_path", "no/such", "--dataset_name", "no/data", "--output_dir", "out"],
    ["sft", "--dataset_name", "tests", "--model_name_or_path", "no/such", "--output_dir", "out"]])
def test_a_folder_that_isnt_there_is_said_before_anything_heavy_is_imported(argv):
    code = f"""
import sys
from realsr_r1.cli import dispatch
from realsr_r1.core.errors import UserError
try:
    dispatch({argv!r})
except UserError as error:
    print(error)
print([name for name in {HEAVY!r} if name in sys.modules])"""
    found = run_python(code)
    assert found.returncode == 0, found.stderr
    said, heavy = found.stdout.splitlines()[-2:]
    assert said.startswith("no such model folder: no/such") and heavy == "[]"


@pytest.mark.parametrize("argv, words", [
    (["restore", "--modle", "tiny", "--input", "x", "--output", "y"],
     "unknown flag --modle (did you mean --model?)"),
    (["evaluate", "--restored", "x", "--out=y"], "unknown flag --out (did you mean --output?)"),
    (["create-json", "--crops-per-photo", "3"],
     "unknown flag --crops-per-photo (did you mean --crops_per_photo?)"),
    (["report", "--zzz"], "unknown flag --zzz; realsr-r1 report --help lists them"),
    (["grpo", "--lerning_rate", "1"], "unknown flag --lerning_rate (did you mean --learning_rate?)"),
    (["export", "--checkpoint", "x"], "required: --output; realsr-r1 export --help"),
    (["restore", "--model", "tiny", "--input", "x", "--output", "y", "--dtype", "float"],
     "invalid choice: 'float'"),
    (["report", "--run", "x", "folder"], "unrecognized arguments: folder; realsr-r1 report --help"),
    (["plan", "--gpus", "many"], "argument --gpus: invalid int value: 'many'"),
    (["restore", "--model", "tyni", "--input", "x", "--output", "y"],
     "no such model folder: tyni (given by --model); built in: tiny"),
    (["grpo", "--model_name_or_path", "tyni", "--dataset_name", "x"], "built in: tiny, lumina_7b, pure_7b"),
    (["sft", "--config", "tiny_stf"], "tiny_grpo, tiny_sft"),
    (["grpo", "--deepspeed", "zero5"], "(given by --deepspeed); built in: zero2, zero3, zero3_multinode, zero3_offload")])
def test_a_mistake_in_the_flags_is_one_line_that_names_what_was_meant(argv, words, capsys):
    assert exit_code(argv) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1


def test_help_of_every_command_imports_nothing_heavy_and_takes_less_than_a_second():
    process = run_python(f"""
import contextlib, sys, time
from realsr_r1.cli import COMMANDS, dispatch
dispatch(["--help"])
for command in COMMANDS:
    began = time.process_time()
    with contextlib.suppress(SystemExit):
        dispatch([command, "--help"])
    assert time.process_time() - began < 1, command
print([name for name in {HEAVY} if name in sys.modules], time.process_time() < 1)
""")
    assert process.stdout.splitlines()[-1] == "[] True", process.stdout + process.stderr


@pytest.mark.parametrize("module", [module for module, _ in COMMANDS.values()])
def test_every_command_has_an_entry_point_that_loads_nothing_heavy_before_it_is_called(module):
    assert importlib.util.find_spec(f"realsr_r1.{module}"), f"no module realsr_r1.{module}"
    process = run_python(f"""
import sys
import realsr_r1.{module} as entry
print(callable(entry.main), [name for name in {HEAVY} if name in sys.modules])
""")
    assert process.stdout.split("\n")[0] == "True []", process.stdout + process.stderr


def test_a_command_gets_the_arguments_after_its_name(monkeypatch):
    import realsr_r1.create_json

    monkeypatch.setattr(realsr_r1.create_json, "main", lambda argv: len(argv))
    assert dispatch(["create-json", "--images", "photos"]) == 2


def test_a_commands_bad_input_is_exit_code_2(monkeypatch, capsys):
    import realsr_r1.create_json
    from realsr_r1.core.errors import UserError

    def refuse(argv):
        raise UserError("no such folder: photos")

    monkeypatch.setattr(realsr_r1.create_json, "main", refuse)
    assert exit_code(["create-json"]) == 2
    assert capsys.readouterr().err == "realsr-r1: error: no such folder: photos\n"
