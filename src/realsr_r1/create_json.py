"""realsr-r1 create-json: photos and sidecars -> degraded crops, JSON lists in the seed's format, and a DatasetDict.

With --json, an existing list becomes a DatasetDict as it is. Cropping and degrading live in data/crops.py and
data/degrade.py, record formats in data/dataset.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from realsr_r1.errors import UserError, run
from realsr_r1.files import atomic_folder, existing_folder, read_json, write_json

STATE_FILE = "create_json.json"  # what an output folder was made from; written last inside it
BAD_FILE = "bad_items.txt"
SPLITS = ("train", "test_crops", "test")
CROPS_PER_TASK = 200  # a photo is decoded once for so many crops
DEFAULT_SCALES = (0.25, 1.0)
FORMAT = 1  # raise when the same arguments would give another dataset


def main(argv: list[str] | None = None) -> int:
    """Make a dataset folder. Returns the exit code; raises `UserError` on bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_arguments(args)
    _check_output(args)
    fingerprint = _fingerprint(args)
    state = _finished_state(args.output, fingerprint)
    if state is None:
        with atomic_folder(args.output) as folder:
            records, bad = _from_list(args, folder) if args.json else _from_photos(args, folder)
            _write(folder, records, bad, source=args.json)
            state = {"fingerprint": fingerprint, "summary": _summary(records), "bad": [str(item) for item in bad]}
            write_json(folder / STATE_FILE, state)
        print(f"{args.output}: {state['summary']}")
    else:
        print(f"{args.output} is up to date, nothing to do: {state['summary']}")
    if state["bad"] and not args.skip_bad:
        raise UserError(f"{len(state['bad'])} bad item(s) left out, the first: {state['bad'][0]}; all are listed in "
                        f"{args.output / BAD_FILE}, the others are done (--skip_bad accepts that)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="realsr-r1 create-json", description=(
        "Make a dataset: a folder of photos with sidecar tags becomes crops, their degraded versions with true labels, "
        "JSON lists and a DatasetDict with the splits train, test_crops and test (those that aren't empty)."))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = parser.add_argument
    add("--images", type=Path, help="folder of photos")
    add("--tags", type=Path, help="folder of tag files: NAME.txt for NAME.jpg, comma-separated")
    add("--descriptions", type=Path, help="folder of descriptions: NAME.json with the texts rough, middle, final")
    add("--json", type=Path, help="instead of photos: a JSON list with image_path, problem, tag (and the keys that "
                                  "create-json adds); it becomes the split train, nothing is degraded")
    add("--output", type=Path, required=True, help="folder to make")
    add("--degradation", type=Path, help="YAML file, see configs/degradation; default: Real-ESRGAN's published numbers")
    add("--crop_px", type=int, default=512, help="side of the HQ crop in px (default: 512)")
    add("--crops_per_photo", type=int, default=1,
        help="train crops a photo (default: 1, the largest square in the middle)")
    add("--test_crops_per_photo", type=int, default=0,
        help="crops a training photo from a reserved strip that no train crop touches, and crops a test photo "
             "(default: 0, which reserves nothing and takes one crop a test photo)")
    add("--test_photos", default="", metavar="A,B|@FILE",
        help="photos kept for the split test: names separated by commas, or @FILE with one a line")
    add("--crop_scales", metavar="MIN,MAX",
        help="smallest and largest side of a crop as a share of the photo's shorter side, drawn log-uniformly; the "
             "crop is then scaled down to --crop_px (default: 0.25,1.0 when more than one crop a photo is taken)")
    add("--seed", type=int, default=0, help="of crops and degradations (default: 0)")
    add("--num_proc", type=int, default=cores, help="processes (default: all cores); the result doesn't depend on it")
    add("--skip_bad", action="store_true", help="exit 0 although some items were bad and left out")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.json is not None:
        if args.images or args.tags or args.descriptions or args.degradation or args.test_photos:
            raise UserError("--json takes a list as it is; drop --images, --tags, --descriptions, --degradation and "
                            "--test_photos, or drop --json")
    elif args.images is None or args.tags is None:
        raise UserError("give --images DIR and --tags DIR, or --json FILE")
    for flag, smallest in (("crop_px", 8), ("crops_per_photo", 1), ("test_crops_per_photo", 0), ("num_proc", 1)):
        if getattr(args, flag) < smallest:
            raise UserError(f"--{flag} is {getattr(args, flag)}; it must be at least {smallest}")
    args.scales = _scales(args)
    for flag in ("images", "tags", "descriptions"):
        if getattr(args, flag) is not None:
            folder = existing_folder(getattr(args, flag), f"--{flag}")
            if not any(not item.name.startswith(".") for item in folder.iterdir()):
                raise UserError(f"folder {folder} (given by --{flag}) is empty")


def _scales(args: argparse.Namespace) -> tuple[float, float] | None:
    if args.crop_scales is None:
        return DEFAULT_SCALES if max(args.crops_per_photo, args.test_crops_per_photo) > 1 else None
    try:
        smallest, largest = (float(part) for part in args.crop_scales.split(","))
    except ValueError:
        smallest = largest = 0.0
    if not 0 < smallest <= largest <= 1:
        raise UserError(f"--crop_scales is {args.crop_scales!r}; give two shares like 0.25,1.0, above 0 and at most 1")
    return smallest, largest


def _check_output(args: argparse.Namespace) -> None:
    """Refuse to replace a folder that isn't ours, or one that holds the input."""
    output = args.output.resolve()
    for flag in ("images", "tags", "descriptions", "json", "degradation"):
        path = getattr(args, flag)
        if path is not None and path.resolve().is_relative_to(output):
            raise UserError(f"--{flag} {path} lies inside --output {args.output}, which is written anew; give another "
                            "--output")
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file; give a folder")
    if args.output.is_dir() and any(args.output.iterdir()) and not (args.output / STATE_FILE).is_file():
        raise UserError(f"--output {args.output} has files that create-json did not make; give a new folder")


def _fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments that change the result, and a digest of the input files' names, sizes and times."""
    arguments = {key: str(value) for key, value in vars(args).items()
                 if key not in ("output", "num_proc", "skip_bad") and value is not None}
    files: list[Path] = [path for path in (args.json, args.degradation) if path is not None]
    for folder in (args.images, args.tags, args.descriptions):
        files += sorted(folder.iterdir()) if folder is not None else []
    if args.test_photos.startswith("@"):
        files.append(Path(args.test_photos[1:]))
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        stat = path.stat() if path.exists() else None
        digest.update(json.dumps([path.name, stat and stat.st_size, stat and stat.st_mtime_ns]).encode())
    return {"format": FORMAT, "arguments": arguments, "input": digest.hexdigest()}


def _finished_state(output: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """What `output` was made from, if that is what is asked for now."""
    if not (output / STATE_FILE).is_file():
        return None
    state = read_json(output / STATE_FILE)
    if isinstance(state, dict) and state.get("fingerprint") == fingerprint:
        return state
    print(f"{output} was made from other arguments or files; making it again")
    return None


# --- from photos ---

def _from_photos(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[Any]]:
    """Write the images of all splits under `folder`; return the records of each split, and the bad items."""
    from realsr_r1.data.crops import CropPlan, make_crops
    from realsr_r1.data.degradation_config import DegradationConfig
    from realsr_r1.data.sidecars import BadItem, pair_photos

    config = DegradationConfig.from_yaml(args.degradation) if args.degradation else DegradationConfig()
    if args.crop_px % config.scale:
        raise UserError(f"--crop_px {args.crop_px} is no multiple of the degradation's scale {config.scale}")
    photos, bad = pair_photos(args.images, args.tags, args.descriptions)
    if not photos and not bad:
        raise UserError(f"folder {args.images} (given by --images) has no images")
    plan = CropPlan(args.crop_px, args.scales, args.test_crops_per_photo > 0, args.seed, config)
    tasks = _tasks(args, photos, bad, folder)
    records: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    reasons: dict[str, str] = {}
    sizes = [task.stop - task.start for task in tasks]
    results = _map(partial(make_crops, plan=plan), tasks, args.num_proc, sizes, "crops")
    for task, result in zip(tasks, results, strict=True):
        if isinstance(result, str):
            reasons[task.photo.name] = result
        else:
            records[task.split] += result
    return records, bad + [BadItem(name, reason) for name, reason in reasons.items()]


def _tasks(args: argparse.Namespace, photos: list[Any], bad: list[Any], folder: Path) -> list[Any]:
    from realsr_r1.data.crops import CropTask

    test = _test_photos(args, [photo.path.name for photo in photos] + [item.name for item in bad])
    tasks = []
    for photo in photos:
        counts = ({"test": max(1, args.test_crops_per_photo)} if photo.path.name in test
                  else {"train": args.crops_per_photo, "test_crops": args.test_crops_per_photo})
        for split, count in counts.items():
            tasks += [CropTask(photo.path, split, start, min(start + CROPS_PER_TASK, count), folder, photo.extra)
                      for start in range(0, count, CROPS_PER_TASK)]
    return tasks


def _test_photos(args: argparse.Namespace, names: list[str]) -> set[str]:
    """File names of the photos that --test_photos names, with or without their suffix."""
    text = args.test_photos
    if text.startswith("@"):
        if not Path(text[1:]).is_file():
            raise UserError(f"no such file: {text[1:]} (given by --test_photos)")
        text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if not any(name in (known, Path(known).stem) for known in names):
            raise UserError(f"--test_photos names {name!r}, which isn't in {args.images}")
    return {known for known in names if known in wanted or Path(known).stem in wanted}


# --- from a list ---

def _from_list(args: argparse.Namespace, folder: Path) -> tuple[dict[str, list[dict[str, Any]]], list[Any]]:
    """The records of --json whose images can be read, and the bad items. Paths are relative to the list's folder."""
    from realsr_r1.data.dataset import COLUMN_OF_KEY, read_records
    from realsr_r1.data.sidecars import BadItem

    records = read_records(args.json)
    keys = [key for key in COLUMN_OF_KEY if key in records[0]]
    paths = [[args.json.parent / record[key] for key in keys] for record in records]
    reasons = list(_map(_unreadable, paths, args.num_proc, [1] * len(paths), "records"))
    bad = [BadItem(record["image_path"], f"record {number} of {args.json}: {reason}")
           for number, (record, reason) in enumerate(zip(records, reasons, strict=True)) if reason]
    return {"train": [record for record, reason in zip(records, reasons, strict=True) if not reason]}, bad


def _unreadable(paths: list[Path]) -> str | None:
    """Why one of the image files can't be read, or None."""
    from realsr_r1.images import load_image

    for path in paths:
        try:
            load_image(path)
        except UserError as error:
            return str(error)
    return None


# --- both ---

def _map(function: Callable[[Any], Any], items: list[Any], num_proc: int, sizes: list[int], unit: str) -> Iterator[Any]:
    """`function` of each item, in order, over processes, with a progress bar that counts `sizes`."""
    from tqdm import tqdm

    processes = min(num_proc, len(items))
    with tqdm(total=sum(sizes), unit=f" {unit}", desc="create-json") as bar:
        def counted(results: Iterable[Any]) -> Iterator[Any]:
            for size, result in zip(sizes, results, strict=True):
                bar.update(size)
                yield result

        if processes <= 1:
            yield from counted(map(function, items))
            return
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            yield from counted(pool.imap(function, items))


def _write(folder: Path, records: dict[str, list[dict[str, Any]]], bad: list[Any], source: Path | None) -> None:
    """Write lists, DatasetDict and the list of bad items into `folder`. `source`: the list the records came from."""
    import tempfile

    import datasets

    from realsr_r1.data.dataset import build_dataset

    records = {split: items for split, items in records.items() if items}
    if not records:
        raise UserError(f"no good item among {len(bad)}; the first: {bad[0]}")
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        splits = datasets.DatasetDict({split: build_dataset(items, source.parent if source else folder, work)
                                       for split, items in records.items()})
        splits.save_to_disk(str(folder))
        del splits
    for split, items in records.items() if source is None else ():
        write_json(folder / f"{split}.json", items)
    if bad:
        (folder / BAD_FILE).write_text("".join(f"{item}\n" for item in bad), encoding="utf-8")


def _summary(records: dict[str, list[dict[str, Any]]]) -> str:
    """Counts of each split and the balance of the labels of `train`, in one line."""
    from realsr_r1.data.dataset import label_balance

    counts = ", ".join(f"{split} {len(items)}" for split, items in records.items())
    balance = label_balance(records["train"])
    return counts + (f" | train labels: {balance}" if balance else "")


if __name__ == "__main__":
    run(main)
