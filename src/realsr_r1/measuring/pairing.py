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

    `scores`: name of a row (`LQ`, `MEAN_COLOUR`, `RESTORED`) -> metric -> value, None where the
    metric isn't defined. `resized`: whether the restored image had another size than the original.
    `region`: the region that both show, in words; None where it is the whole.
    """

    name: str
    restored: Path
    gt: Path | None
    lq: Path | None
    resized: bool = False
    region: str | None = None
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)


def find_triples(restored: Path, gt: Path | None, lq: Path | None, skip_bad: bool,
                 recursive: bool = False) -> tuple[list[Triple], list[str]]:
    """Pair the images of the folders by their names without suffix.

    Without `gt` every restored image counts.
    `recursive`: whether those in subfolders count, too; a restored folder's `chains` never do.
    Returns the pairs, and a note about each kind of image that has no partner. Raises `UserError`
    on a missing or empty folder, on two files with the same name without suffix, and when no name
    is in all folders; without `skip_bad` also when an original has no restored image, or a pair has
    no LQ image.
    """
    restored_files = _by_stem(restored, "--restored", recursive)
    gt_files = _by_stem(gt, "--gt", recursive) if gt else restored_files
    lq_files = _by_stem(lq, "--lq", recursive) if lq else {}
    pairs = sorted(restored_files.keys() & gt_files.keys())
    if not pairs:
        raise UserError(f"no name is in both {restored} and {gt}: a restored NAME.png is compared with NAME "
                        f"of any image suffix (e.g. {sorted(restored_files)[0]!r} has no original)")
    lacking = {f"without a restored image in {restored}": sorted(gt_files.keys() - restored_files.keys())}
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
    unknown = sorted(restored_files.keys() - gt_files.keys())
    if unknown:
        notes.append(f"left out, {len(unknown)} restored image(s) without an original in {gt}: "
                     f"{listed(unknown)}")
    return [Triple(name, restored_files[name], gt_files[name] if gt else None, lq_files.get(name))
            for name in pairs], notes


def _by_stem(folder: Path, flag: str, recursive: bool) -> dict[str, Path]:
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
