"""README and docs name what is there: files, folders, commands, flags. flags.md is up to date."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("assets", "configs", "docs", "figs", "local_scripts", "scripts", "src", "tests")
MOST_LINES = 130
# Files of others that the docs name, and those that a reader of extending.md writes.
PUBLISHED = {"vqgan.yaml", "trl/trainer/grpo_trainer.py", "my_advantages.py", "my_base.py",
             "my_experts.py", "my_grpo.py", "my_labeller.py", "my_rewards.py", "my_chain.yaml",
             "my_degradation.yaml", "my_suite.yaml"}
SCRIPT_OF_COMMAND = {"train_grpo.sh": "grpo", "train_multinode.sh": "grpo", "train_sft.sh": "sft",
                     "prepare_data.sh": "create-json"}

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "local_scripts" / "README.md"]
SCRIPTS = sorted(path for path in (ROOT / "scripts").rglob("*") if path.suffix in (".sh", ".slurm", ".py"))
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml")) + [ROOT / "configs" / "models" / "README.md"]


def by_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def files_of_repository() -> frozenset[str]:
    below = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return frozenset(by_name(path) for path in [*below, *ROOT.glob("*.*")])


@cache
def tool() -> ModuleType:
    """scripts/tools/write_flags.py, which knows the commands' parsers."""
    path = ROOT / "scripts" / "tools" / "write_flags.py"
    spec = importlib.util.spec_from_file_location("write_flags", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def flags_of(command: str) -> frozenset[str]:
    own = frozenset(tool().flags_of(tool().parser_of(command))) | {"--help", "--config"}
    return own | flags_of("grpo") if command == "plan" else own


def lines_of(path: Path) -> list[str]:
    """With a command that goes over several lines as one."""
    return re.sub(r"\\\n\s*#?", " ", path.read_text(encoding="utf-8")).splitlines()


def test_readme_is_for_ten_minutes() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for needed in ("bash setup.sh", "bash scripts/quickstart.sh", "bash scripts/test.sh", "figs/strip.png",
                   "arxiv.org/abs/2506.16796", "never released"):
        assert needed in text


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS, *SCRIPTS, ROOT / "setup.sh"], ids=by_name)
def test_files_and_folders_that_are_named_exist(path: Path) -> None:
    text = re.sub(r"https?://\S+", "", path.read_text(encoding="utf-8"))
    known = files_of_repository()
    ends = {end for name in known for end in (name, *_ends(name))}
    named = {name for name in re.findall(r"(?<![\w$}*./-])[\w./-]+\.(?:py|sh|slurm|yaml)\b", text)
             if name.islower()}
    assert sorted(name for name in named if name.removeprefix("./") not in ends | PUBLISHED) == []
    folders = re.findall(rf"(?<![\w$}}./*-])(?:{'|'.join(FOLDERS)})/[\w./-]+", text)
    found = {name.rstrip("./-") for name in folders} - {name for name in folders if "outputs" in name}
    assert sorted(name for name in found if name not in known and name not in FOLDERS) == []


def _ends(name: str) -> list[str]:
    """a/b/c -> b/c, c: docs name a file of the package as its docstrings do."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]


@pytest.mark.parametrize("path", [*PAGES, *CONFIGS, *SCRIPTS], ids=by_name)
def test_commands_have_the_flags_that_are_named(path: Path) -> None:
    launchers = "|".join(map(re.escape, SCRIPT_OF_COMMAND))
    pattern = rf"(?:\brealsr(?:-r1)? ([a-z-]+)|\b({launchers}))\b([^`#;]*)"
    for line in lines_of(path):
        for command, script, rest in re.findall(pattern, line):
            command = command or SCRIPT_OF_COMMAND[script]
            if command not in tool().COMMANDS:
                assert not re.search(r"(?<!\S)--\w", rest), f"unknown command in: {line}"
                continue
            rest = re.split(r"\brealsr(?:-r1)? |\|\|? |&& ", rest)[0]
            unknown = [flag for flag in re.findall(r"(?<![\w-])--[a-z_0-9-]+", rest)
                       if flag not in flags_of(command)]
            assert unknown == [], line


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_flags_that_are_named_alone_belong_to_some_command(page: Path) -> None:
    known = {flag for command in tool().COMMANDS for flag in flags_of(command)}
    known |= {flag for script in SCRIPTS
              for flag in re.findall(r"--[a-z_0-9-]+", script.read_text(encoding="utf-8"))}
    of_hub = {"--local-dir"}  # of `hf download`
    named = set(re.findall(r"(?<![\w-])--[a-z_0-9-]+", page.read_text(encoding="utf-8")))
    assert sorted(named - known - of_hub) == []


def test_page_of_flags_is_up_to_date() -> None:
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == tool().page(), "run: python scripts/tools/write_flags.py"
