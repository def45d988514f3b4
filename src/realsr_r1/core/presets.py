"""What comes with the package and is found by name from any folder: recipes, chain, degradation,
annotation, suite and DeepSpeed files, configs of models, and the embedded model.

`presets/` holds links to the repository's folders, and their contents in a wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PRESETS = Path(__file__).resolve().parents[1] / "presets"
# Flag -> where its files lie below `presets`, with {} for the name.
PLACES = {
    "--config": ("configs/recipes/{}.yaml",), "--recipe": ("configs/recipes/{}.yaml",),
    "--chain_settings": ("configs/chain/{}.yaml",), "--degradation": ("configs/degradation/{}.yaml",),
    "--annotation": ("configs/annotation/{}.yaml",), "--suite": ("configs/suites/{}.yaml",),
    "--deepspeed": ("local_scripts/{}.json",),
    "--model": ("{}",), "--model_name_or_path": ("{}", "configs/models/{}"), "--checkpoint": ("{}",),
}


def find_preset(flag: str, value: str) -> str:
    """Return the path of what `value` names for a flag: its own, or that of a file of the package.

    A path that exists in the working folder counts first. A path of the repository
    (`configs/recipes/tiny_grpo.yaml`, `assets/tiny`) is found from anywhere, too. What isn't found
    is returned as it is.
    """
    if not value or Path(value).exists():
        return value
    name = value.removeprefix("assets/")
    places = PLACES[flag] if Path(name).name == name else ("{}",)
    paths = (PRESETS / place.format(name) for place in places)
    return next((str(path) for path in paths if path.exists()), value)


def with_presets(argv: Sequence[str]) -> list[str]:
    """Return arguments whose named files and folders are paths, each a word after its flag.

    `--flag=value` becomes these two words.
    """
    found: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        if equals and flag in PLACES:
            found += [flag, find_preset(flag, value)]
        else:
            found.append(find_preset(found[-1], word) if found and found[-1] in PLACES else word)
    return found


def built_in(flag: str | None) -> str:
    """Return the names that `flag` takes of the package, as the end of a complaint; else nothing."""
    names = [path.stem for place in PLACES.get(flag or "", ())
             for path in sorted(PRESETS.glob(place.format("*")))
             if "." in place or (path / "config.json").is_file()]
    return f"; built in: {', '.join(names)}" if names else ""
