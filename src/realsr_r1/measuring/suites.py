"""Suites: sets of test photos as the field uses them, each a short YAML file (configs/suites).

Checks that a folder holds what a suite says, and cuts photos to its sizes. Restores and scores
nothing.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import content_hash, existing_folder, resumable_folder, write_json
from realsr_r1.core.images import cover_offset, load_image
from realsr_r1.core.json_yaml import read_json, read_yaml
from realsr_r1.core.presets import PRESETS
from realsr_r1.core.schema import Count, Ge, Gt, Json, Le, Len, MinLen, Place, Text, fields_of
from realsr_r1.core.texts import composed, split_list
from realsr_r1.measuring.pairing import files_by_stem, listed

if TYPE_CHECKING:
    from PIL.Image import Image

LQ_FOLDER, HQ_FOLDER, DONE_FILE = "lq", "hq", "prepared.json"
MOST_NAMES = 100_000
Size = Annotated[list[Annotated[int, Ge(1), Le(65536)]], Len(2, 2)]


@dataclass(frozen=True)
class Suite:
    """A set of test photos, and how results on it are made.

    `where`: where to get it. `lq`, `hq`: folders below that of the data; without `hq` there are no
    originals. `names`: of the photos without suffix, with braces as a shell has them
    (`a_{001..050}`, `b_{3,7}`); without them the LQ and the HQ names must be the same. `count`: of
    photos. `lq_px`, `hq_px`: width and height of each photo; with `crop` larger ones are cut at
    their centre (those with originals at a whole scale only). `scale`: of the restored photos to the
    LQ ones. `metrics`: names. `published`: the data set of Table 1 whose rows stand beside; `differs`:
    its metric, or `all`, -> why these rows may be of another protocol.
    """

    name: Text
    where: Text
    lq: Place
    scale: Annotated[float, Gt(0), Le(64)]
    metrics: Annotated[list[Text], MinLen(1)]
    hq: Place | None = None
    names: Annotated[list[Text], MinLen(1)] | None = None
    count: Count | None = None
    lq_px: Size | None = None
    hq_px: Size | None = None
    crop: bool = False
    published: Text | None = None
    differs: dict[Text, Text] = field(default_factory=dict)

    @classmethod
    def from_yaml(cls, path: Path) -> Suite:
        """Read a suite. Raises `UserError` that names the file and the key."""
        if not path.is_file():
            known = sorted(file.stem for file in (PRESETS / "configs" / "suites").glob("*.yaml"))
            raise UserError(f"no such suite: {path} (given by --suite); known are {', '.join(known)}, or "
                            "your own as FILE.yaml")
        values = read_yaml(path, fields_of(cls), "--suite")
        missing = [key for key in ("name", "where", "lq", "scale", "metrics") if key not in values]
        if missing:
            raise UserError(f"{path} (given by --suite) has no key {missing[0]!r}")
        suite = cls(**values)
        if suite.hq is None and suite.hq_px:
            raise UserError(f"{path} (given by --suite) has hq_px without hq")
        if suite.crop and not suite.lq_px:
            raise UserError(f"{path} (given by --suite) has crop without lq_px")
        if suite.crop and suite.hq and not float(suite.scale).is_integer():
            raise UserError(f"{path} (given by --suite) has crop with the scale {suite.scale:g}: a photo and "
                            "its original are cut to the same region only where it is a whole number; cut "
                            "them yourself, and drop crop")
        if suite.lq_px and suite.hq_px and [round(side * suite.scale) for side in suite.lq_px] != suite.hq_px:
            raise UserError(f"{path} (given by --suite): hq_px is not lq_px times the scale {suite.scale:g}")
        return suite


@dataclass(frozen=True)
class SuiteData:
    """The folders of a suite's photos, as they are restored and compared. `hq`: None without."""

    lq: Path
    hq: Path | None


def check_data(suite: Suite, data: Path, output: Path) -> SuiteData:
    """Check that `data` holds the suite, and return the folders to restore and compare.

    Where photos are cut, these folders lie below `output`, and are made once. Raises `UserError`
    that names the photos which are missing, don't belong or have another size, and says where to
    get the suite.
    """
    existing_folder(data, "--data")
    folders = {"lq": data / suite.lq, **({"hq": data / suite.hq} if suite.hq else {})}
    files = {}
    for side, folder in folders.items():
        if not folder.is_dir():
            raise _wrong(suite, data, f"it has no folder {folder.relative_to(data)}")
        files[side] = files_by_stem(folder, "--data", False)
    expected = _expected(suite, files)
    for side, found in files.items():
        lacking, others = sorted(expected - found.keys()), sorted(found.keys() - expected)
        faults = [f"lacks {listed(lacking)}"] if lacking else []
        faults += [f"has {listed(others)} besides"] if others else []
        if faults:
            raise _wrong(suite, data, f"{folders[side].relative_to(data)} {' and '.join(faults)}")
    if suite.count is not None and len(expected) != suite.count:
        raise _wrong(suite, data, f"{suite.lq} has {len(expected)} photos, not {suite.count}")
    cut = _check_sizes(suite, data, files)
    if not cut:
        return SuiteData(folders["lq"], folders.get("hq"))
    return _cut_all(suite, files, output)


def _wrong(suite: Suite, data: Path, fault: str) -> UserError:
    return UserError(f"{data} (--data) is not the suite {suite.name}: {fault}; get it from {suite.where}")


def _expected(suite: Suite, files: dict[str, dict[str, Path]]) -> set[str]:
    if suite.names:
        names = [composed(name) for pattern in suite.names for name in spelled_out(pattern)]
        return set(names)
    return set().union(*files.values())


def spelled_out(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `a_{01..03}` and `a_{1,5}` as in a shell.

    Raises `UserError` where they are too many.
    """
    parts = [_choices(part) if number % 2 else [part]
             for number, part in enumerate(re.split(r"\{([^{}]*)\}", pattern))]
    count = 1
    for part in parts:
        count *= len(part)
    if count > MOST_NAMES:
        raise UserError(f"the suite's names {pattern!r} stand for {count:,} photos; at most {MOST_NAMES:,} "
                        "are read")
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(text: str) -> list[str]:
    numbers = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", text)
    if not numbers:
        return split_list(text)
    first, last = numbers.groups()
    numbers_between = range(int(first), min(int(last), int(first) + MOST_NAMES) + 1)
    return [str(number).zfill(len(first)) for number in numbers_between]


def _check_sizes(suite: Suite, data: Path, files: dict[str, dict[str, Path]]) -> bool:
    """Return whether photos are to be cut. Raises `UserError` for one that has no size of the suite."""
    from tqdm import tqdm

    cut = False
    for name, path in tqdm(sorted(files["lq"].items()), desc="checking", unit="photo"):
        sizes = {side: load_image(named[name]).size for side, named in files.items()}
        for side, wanted in (("lq", suite.lq_px), ("hq", suite.hq_px)):
            if wanted is None or side not in sizes or sizes[side] == tuple(wanted):
                continue
            if not suite.crop or any(have < want for have, want in zip(sizes[side], wanted, strict=True)):
                raise _wrong(suite, data, f"{files[side][name]} is {_px(sizes[side])}, not "
                                          f"{'at least ' if suite.crop else ''}{_px(wanted)}")
            cut = True
        restored = tuple(round(side * suite.scale) for side in sizes["lq"])
        if "hq" in sizes and sizes["hq"] != restored:
            raise _wrong(suite, data, f"{path} is {_px(sizes['lq'])} and its original {_px(sizes['hq'])}, "
                                      f"not {suite.scale:g} times as large")
    return cut


def _cut_all(suite: Suite, files: dict[str, dict[str, Path]], output: Path) -> SuiteData:
    """Cut the photos at their centre: an original where its LQ photo is cut, at the suite's whole scale."""
    hashes = {side: {name: content_hash(path) for name, path in named.items()}
              for side, named in files.items()}
    made_from: dict[str, Any] = {"px": suite.lq_px, "scale": suite.scale, "files": hashes}
    target = output / "prepared"
    if not _is_made(target, made_from):
        with resumable_folder(target, made_from, DONE_FILE) as folder:
            for name, path in sorted(files["lq"].items()):
                lq = load_image(path)
                left, top = cover_offset(lq.size, (suite.lq_px[0], suite.lq_px[1]))
                box = (left, top, left + suite.lq_px[0], top + suite.lq_px[1])
                _save(lq.crop(box), folder / LQ_FOLDER / f"{name}.png")
                if "hq" in files:
                    whole = load_image(files["hq"][name])
                    _save(whole.crop(tuple(round(edge * suite.scale) for edge in box)),
                          folder / HQ_FOLDER / f"{name}.png")
            write_json(folder / DONE_FILE, made_from)
    return SuiteData(target / LQ_FOLDER, target / HQ_FOLDER if "hq" in files else None)


def _is_made(folder: Path, made_from: dict[str, Any]) -> bool:
    return (folder / DONE_FILE).is_file() and read_json(folder / DONE_FILE, Json) == made_from


def _save(image: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _px(size: Any) -> str:
    return f"{size[0]}x{size[1]} px"
