"""docs/algorithm.md names functions that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import trl

from realsr_r1.training.grpo import objective

from ...conftest import ROOT

PAGE = (ROOT / "docs" / "algorithm.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", PAGE)))


def names_in(path: Path) -> set[str]:
    """Functions, classes, methods as `Class.method`, and constants that the file defines."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "name"), NAMED, ids=str)
def test_a_function_that_the_page_names_exists(file, name):
    root = Path(trl.__file__).parents[1] if file.startswith("trl/") else ROOT / "src" / "realsr_r1"
    assert (root / file).is_file(), f"docs/algorithm.md names {file}, and there is no such file"
    assert name in names_in(root / file), f"docs/algorithm.md names {name} of {file}, which has none"


def test_every_formula_of_the_objective_is_on_the_page_and_files_in_it_exist():
    here = {name for file, name in NAMED if file == "training/grpo/objective.py"}
    public = {name for name in names_in(Path(objective.__file__)) if name.islower() and name[0] != "_"}
    assert public - here == {"soft_gain", "gamma_weight"}  # parts of token_losses
    assert all((ROOT / path).is_file() for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE))
