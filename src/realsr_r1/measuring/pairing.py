"""Which restored photo belongs to which original and which degraded input: files paired by name.

Opens no picture.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from realsr_r1.core.errors import UserError
from realsr_r1.core.files import existing_folder
from realsr_r1.core.images import listed_images
from realsr_r1.core.texts import composed

CHAINS_FOLDER = "chains"  # `restore` keeps the images on the way in it


@dataclass
class Triple:
    """The files of one photo and their scores. `gt` is None where photos have no originals.

    `restored`: name of a method -> its file. `scores`: name of a row (an input, a method, ...) ->
    metric -> value, None where the metric isn't defined. `resized`: whether a restored image had
    another size than the original. `region`: the region that both show, in words; None where it is
    the whole. `sizes`: of the images that are scored, in px.
    """

    name: str
    restored: dict[str, Path]
    gt: Path | None
    lq: Path | None
    resized: bool = False
    region: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)


def find_triples(methods: dict[str, Path], gt: Path | None, lq: Path | None, skip_bad: bool,
                 recursive: bool = False) -> tuple[list[Triple], list[str]]:
    """Pair the images of the folders by their names without suffix.

    `methods`: name -> folder of restored photos. Without `gt` every restored image counts.
    `recursive`: whether those in subfolders count, too; a restored folder's `chains` never do.
    Returns the photos that all folders have, and a note about each kind of image that has no
    partner. Raises `UserError` on a missing or empty folder, on two files with the same name without
    suffix, and when no name is in all folders; without `skip_bad` also when a photo lacks a restored
    or an LQ image.
    """
    restored = {method: files_by_stem(folder, "--restored", recursive) for method, folder in methods.items()}
    gt_files = files_by_stem(gt, "--gt", recursive) if gt else {
        name: path for files in restored.values() for name, path in files.items()}
    lq_files = files_by_stem(lq, "--lq", recursive) if lq else {}
    pairs = sorted(gt_files.keys() & set.intersection(*map(set, restored.values())))
    if not pairs:
        folders = [*methods.values(), *([gt] if gt else [])]
        first = sorted(next(iter(restored.values())))[0]
        raise UserError(f"no name is in {'both' if len(folders) == 2 else 'all of'} "
                        f"{' and '.join(map(str, folders))}: a restored NAME.png is compared with NAME of "
                        f"any image suffix (e.g. {first!r} has no original)")
    lacking = {f"without a restored image in {folder}": sorted(gt_files.keys() - restored[method].keys())
               for method, folder in methods.items()}
    if lq:
        lacking[f"without an LQ image in {lq}"] = [name for name in pairs if name not in lq_files]
        pairs = [name for name in pairs if name in lq_files]
    notes = []
    for what, names in lacking.items():
        if names and not skip_bad:
            raise UserError(f"{len(names)} photo(s) {what}: {listed(names)}; add them, or leave them out "
                            "with --skip_bad")
        notes += [f"left out, {len(names)} photo(s) {what}: {listed(names)}"] if names else []
    if not pairs:
        raise UserError(f"no pair has an LQ image of the same name in {lq} (given by --lq)")
    for method, files in restored.items():
        unknown = sorted(files.keys() - gt_files.keys())
        if unknown:
            notes.append(f"left out, {len(unknown)} restored image(s) of {methods[method]} without an "
                         f"original in {gt}: {listed(unknown)}")
    return [Triple(name, {method: files[name] for method, files in restored.items()},
                   gt_files[name] if gt else None, lq_files.get(name)) for name in pairs], notes


def files_by_stem(folder: Path, flag: str, recursive: bool) -> dict[str, Path]:
    files: dict[str, Path] = {}
    without = [folder / CHAINS_FOLDER] if flag == "--restored" else []
    listing = listed_images(existing_folder(folder, flag), recursive, without)
    for path in listing.images:
        stem = composed(path.relative_to(folder).with_suffix("").as_posix())
        if stem in files:
            raise UserError(f"{files[stem]} and {path} have the same name up to the suffix; keep one of them")
        files[stem] = path
    if not files:
        raise UserError(f"no images in {folder} (given by {flag}){listing.hint}")
    if listing.hint:
        print(f"{folder} (given by {flag}){listing.hint}")
    return files


def listed(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
