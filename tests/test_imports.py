"""The direction of imports: a room imports only rooms below it, none in a circle, and a base
model's classes stay in `models/`.

Rooms are the packages directly below `realsr_r1`; what lies at the package's root are the commands.
Imports are read from the source with `ast`: also those inside functions and under `TYPE_CHECKING`.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "realsr_r1"
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / PACKAGE
# From the top down. A room may import from its own line and from those below; within a line rooms
# don't know each other.
LEVELS = (("commands",), ("showing", "inspecting"), ("restoring",),
          ("planning", "reporting", "measuring", "training"), ("data",), ("rewards", "rollout"), ("chain",),
          ("models",), ("core",))
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
# Inside a line: a plan reads a run's settings.
BESIDE = {("planning", "training")}
# Imports that are known to run upward: (file, imported module). Empty this list.
EXPECTED: set[tuple[str, str]] = set()
LUMINA = re.compile(r"models\.lumina|\b(Lumina[A-Z]\w*|SharedHeadNorm|Chameleon[A-Z]\w*)\b")


def modules() -> dict[str, Path]:
    """Module -> file of the whole package."""
    found = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = (PACKAGE, *file.relative_to(SOURCE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imports(file: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: imports are absolute here"
            names = [name if (name := f"{node.module}.{item.name}") in MODULES else node.module
                     for item in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == PACKAGE)


def room_of(module: str) -> str:
    """The package below `realsr_r1` that a module is in; `commands` for the root's own."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (SOURCE / parts[1]).is_dir() else "commands"


ARROWS = [(module, target) for module, file in MODULES.items() for target in imports(file)]


def is_upward(module: str, target: str) -> bool:
    start, end = room_of(module), room_of(target)
    return start != end and (start, end) not in BESIDE and LEVEL[end] <= LEVEL[start]


def test_every_room_has_a_level():
    assert {room_of(module) for module in MODULES} == set(LEVEL)


def test_no_import_runs_upward():
    upward = {(str(MODULES[module].relative_to(SOURCE)), target) for module, target in ARROWS
              if is_upward(module, target)}
    assert upward - EXPECTED == set(), "these import a room that is not below their own"
    assert EXPECTED - upward == set(), "no longer so: take these out of EXPECTED"


@pytest.mark.parametrize("of", ["rooms", "modules"])
def test_nothing_is_imported_in_a_circle(of):
    graph: dict[str, set[str]] = {}
    for module, target in ARROWS:
        start, end = (room_of(module), room_of(target)) if of == "rooms" else (module, target)
        if start != end and end != PACKAGE:
            graph.setdefault(start, set()).add(end)
    done: set[str] = set()

    def walk(node: str, path: tuple[str, ...]) -> None:
        assert node not in path, " -> ".join((*path[path.index(node):], node))
        if node not in done:
            for following in sorted(graph.get(node, ())):
                walk(following, (*path, node))
            done.add(node)

    for node in sorted(graph):
        walk(node, ())


def test_no_name_of_a_base_models_classes_stands_outside_models():
    """`models.protocol` is what others may ask for, `models.families` says which classes there are.
    """
    found = [f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
             for folder in ("src", "scripts") for file in sorted((ROOT / folder).rglob("*.py"))
             if not file.is_relative_to(SOURCE / "models")
             for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
             if LUMINA.search(line)]
    assert found == []


def test_inside_models_only_the_registry_names_a_base_model():
    naming = {module for module, target in ARROWS if target.startswith(f"{PACKAGE}.models.lumina")
              and not module.startswith(f"{PACKAGE}.models.lumina")}
    assert naming == {f"{PACKAGE}.models.families"}


@pytest.mark.parametrize("package, names", [
    ("chain", ["SECTIONS", "ChainProcessor", "ChainSpec", "parse_chain"]),
    ("models", ["load_image_tokenizer", "load_policy"]),
    ("rollout", ["RolloutConfig", "RolloutEngine"]),
    ("rewards", ["degradation_reward", "format_reward", "generation_reward", "load_reward_funcs",
                 "understanding_reward"]),
    ("training", ["ChainGRPOConfig", "ChainGRPOTrainer"])])
def test_a_package_gives_its_public_names(package, names):
    module = importlib.import_module(f"{PACKAGE}.{package}")
    assert set(names) <= set(module.__all__)
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        module.nothing_here  # noqa: B018
