"""realsr-r1 create-json: photos and what is known of them -> degraded crops, JSON lists in the seed's format, and a DatasetDict.

With --json, an existing list becomes a DatasetDict as it is. Reads the command line and plans; data/making.py has the parts made
and joined, data/parts.py makes one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.errors import UserError, run
from realsr_r1.files import existing_folder, read_json

if TYPE_CHECKING:
    from realsr_r1.data.making import Plan, Shard
    from realsr_r1.data.parts import Part
    from realsr_r1.data.sources import Listing

DEFAULT_SCALES = (0.25, 1.0)
FORMAT = 2  # raise when the same arguments would give another dataset
PATHS = ("images", "tags", "descriptions", "json", "degradation")


def main(argv: list[str] | None = None) -> int:
    """Make a dataset folder. Returns the exit code; raises `UserError` on bad input."""
    args = _parser().parse_args(argv)
    from realsr_r1.data import making
    from realsr_r1.reporting.dataset_page import write_dataset_page

    if args.merge:
        _check_output(args)
        state = making.merge_shards(args.output, write_dataset_page)
        print(f"{args.output}: {state['summary']}\n{making.shards_folder(args.output)} is not needed any more")
        return _exit_code(state, args)
    _check_arguments(args)
    _check_output(args)
    target = args.shard.folder(args.output) if args.shard else args.output
    fingerprint = _fingerprint(args)
    state = _finished_state(target, fingerprint)
    if state is not None:
        print(f"{target} is up to date, nothing to do: {state['summary']}")
        return _exit_code(state, args)
    plan = _plan_list(args, fingerprint) if args.json else _plan_photos(args, fingerprint)
    if args.shard:
        state = making.make_shard(args.output, args.shard, plan)
    else:
        state = making.make_dataset(args.output, plan, write_dataset_page)
    print(f"{target}: {state['summary']}")
    return _exit_code(state, args)


def _exit_code(state: dict[str, Any], args: argparse.Namespace) -> int:
    from realsr_r1.data.assembly import REJECTED_FILE

    if state["bad_count"] and not args.skip_bad:
        raise UserError(f"{state['bad_count']} bad item(s) left out, the first: {state['bad'][0]}; all are listed in "
                        f"{args.output / REJECTED_FILE}, the others are done (--skip_bad accepts that)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="realsr-r1 create-json", description=(
        "Make a dataset: photos with tags become crops, their degraded versions with true labels, JSON lists, a DatasetDict with "
        "the splits train, test_crops and test (those that aren't empty), and a page about it. Started again after an "
        "interruption, it goes on where it was."))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = parser.add_argument
    add("--images", type=Path, help="folder of photos (with its subfolders), or a webdataset .tar, or a folder of those; with --json: the "
                                    "folder that its paths lie in (default: the list's)")
    add("--hf_dataset", help="instead of --images: a dataset with the column image, a folder of save_to_disk or a name on the Hub")
    add("--hf_split", default="train", help="its split (default: train)")
    add("--tags", type=Path, help="folder of tag files: NAME.txt for NAME.jpg, comma-separated; or a .jsonl file with one line a photo: "
                                  '{"image": "NAME.jpg", "tag": ["cat", "fur"]}; not needed where they lie beside the photos, as '
                                  "KEY.txt in a tar or the column tag of a dataset")
    add("--descriptions", type=Path, help="folder of descriptions: NAME.json with the texts rough, middle, final; or a .jsonl file with "
                                          "these keys; in a tar KEY.json, in a dataset the column descriptions")
    add("--tagger", metavar="MODEL", help="instead of --tags: package.module:factory, or a model of the Hugging Face Hub (zero-shot object "
                                          "detection, or image-text-to-text)")
    add("--captioner", metavar="MODEL", help="instead of --descriptions: package.module:factory, or an image-text-to-text model")
    add("--annotation", type=Path, help="YAML file with their prompts, batches, time limits: configs/annotation/default.yaml or a copy")
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
    add("--evaluation_photos", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders of other photos to evaluate on: their near-duplicates are kept out, as those of the test photos are")
    add("--crop_scales", metavar="MIN,MAX",
        help="smallest and largest side of a crop as a share of the photo's shorter side, drawn log-uniformly; the "
             "crop is then scaled down to --crop_px (default: 0.25,1.0 when more than one crop a photo is taken)")
    add("--seed", type=int, default=0, help="of crops and degradations (default: 0)")
    add("--num_proc", type=int, default=cores, help="processes (default: all cores); the result doesn't depend on it")
    add("--shard", metavar="i/n", help="make only share i (1 to n) of the work, on one of n machines, in OUTPUT.shards")
    add("--merge", action="store_true", help="join the shards in OUTPUT.shards; needs no other argument but --output")
    add("--skip_bad", action="store_true", help="exit 0 although some items were bad and left out")
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    if args.json is not None:
        if args.hf_dataset or args.tags or args.descriptions or args.degradation or args.test_photos or args.evaluation_photos:
            raise UserError("--json takes a list as it is; drop --hf_dataset, --tags, --descriptions, --degradation, "
                            "--test_photos and --evaluation_photos, or drop --json")
    elif (args.images is None) == (args.hf_dataset is None):
        raise UserError("give one of --images DIR, --hf_dataset NAME and --json FILE")
    for flag, smallest in (("crop_px", 8), ("crops_per_photo", 1), ("test_crops_per_photo", 0), ("num_proc", 1)):
        if getattr(args, flag) < smallest:
            raise UserError(f"--{flag} is {getattr(args, flag)}; it must be at least {smallest}")
    for given, model in (("tags", "tagger"), ("descriptions", "captioner")):
        if getattr(args, given) and getattr(args, model):
            raise UserError(f"--{given} and --{model} are two ways to the same; drop one")
    args.scales = _scales(args)
    args.shard = _shard(args.shard) if args.shard else None
    for flag, file_suffix in (("images", ".tar"), ("tags", ".jsonl"), ("descriptions", ".jsonl")):
        path = getattr(args, flag)
        if path is None or (path.is_file() and path.suffix == file_suffix):
            continue
        if path.is_file():
            raise UserError(f"{path} (given by --{flag}) is neither a folder nor a {file_suffix} file")
        if not any(not item.name.startswith(".") for item in existing_folder(path, f"--{flag}").iterdir()):
            raise UserError(f"folder {path} (given by --{flag}) is empty")
    for path in args.evaluation_photos:
        existing_folder(path, "--evaluation_photos")


def _shard(text: str) -> Shard:
    from realsr_r1.data.making import Shard

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard is {text!r}; give i/n with i from 1 to n, like 1/4")
    return Shard(int(index), int(count))


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
    from realsr_r1.data.making import STATE_FILE

    output = args.output.resolve()
    for flag in PATHS:
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
    from realsr_r1.data.sources import hf_dataset, walk

    arguments = {key: str(value) for key, value in vars(args).items()
                 if key not in ("output", "num_proc", "skip_bad", "shard", "merge") and value not in (None, [])}
    files = [Path(args.test_photos[1:])] if args.test_photos.startswith("@") else []
    folders = () if args.json else (args.images, args.tags, args.descriptions, *args.evaluation_photos)
    for path in (args.json, args.degradation, args.annotation, *folders):
        if path is not None:
            files += walk(path) if path.is_dir() else [path]
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        stat = path.stat() if path.exists() else None
        digest.update(json.dumps([path.name, stat and stat.st_size, stat and stat.st_mtime_ns]).encode())
    if args.hf_dataset:
        digest.update(hf_dataset(args.hf_dataset, args.hf_split)._fingerprint.encode())
    return {"format": FORMAT, "arguments": arguments, "input": digest.hexdigest()}


def _finished_state(folder: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """What `folder` was made from, if that is what is asked for now."""
    from realsr_r1.data.making import STATE_FILE

    if not (folder / STATE_FILE).is_file():
        return None
    state = read_json(folder / STATE_FILE)
    if isinstance(state, dict) and state.get("fingerprint") == fingerprint:
        return state
    print(f"{folder} was made from other arguments or files; making it again")
    return None


# --- plans ---

def _plan_photos(args: argparse.Namespace, fingerprint: dict[str, Any]) -> Plan:
    """Crops of photos, split as the arguments say."""
    from realsr_r1.data.annotation import AnnotationConfig, annotating, models
    from realsr_r1.data.crops import CropPlan
    from realsr_r1.data.degradation_config import DegradationConfig
    from realsr_r1.data.making import Plan
    from realsr_r1.data.near_duplicates import hash_once
    from realsr_r1.data.parts import PhotoJob, make_missing_parts, plan_parts
    from realsr_r1.data.sidecars import reader
    from realsr_r1.data.sources import list_photos

    config = DegradationConfig.from_yaml(args.degradation) if args.degradation else DegradationConfig()
    if args.crop_px % config.scale:
        raise UserError(f"--crop_px {args.crop_px} is no multiple of the degradation's scale {config.scale}")
    listing = list_photos(args.images, args.hf_dataset, args.hf_split)
    tags = None if args.tagger else reader(args.tags, "tag", listing.photos)
    descriptions = None if args.captioner else reader(args.descriptions, "description", listing.photos)
    if tags is None and not args.tagger:
        raise UserError(f"give the photos' tags: --tags DIR, --tags FILE.jsonl or --tagger MODEL "
                        f"({args.images or args.hf_dataset} has none)")
    asking = AnnotationConfig.from_yaml(args.annotation) if args.annotation else AnnotationConfig()
    rejected = _with_orphans(args, listing, [tags, descriptions])
    test = _test_photos(args, listing)
    counts = {True: {"test": max(1, args.test_crops_per_photo)},
              False: {"train": args.crops_per_photo, "test_crops": args.test_crops_per_photo}}
    parts = plan_parts((photo, counts[photo.name in test]) for photo in listing.photos)
    crop_plan = CropPlan(args.crop_px, args.scales, args.test_crops_per_photo > 0, args.seed, config)

    def make(work: Path, parts: Sequence[Part]) -> None:
        others = [photo for folder in args.evaluation_photos for photo in list_photos(folder, None, "").photos]
        evaluation = hash_once([photo for photo in listing.photos if photo.name in test] + others, work / "parts" / "evaluation.json")
        job = PhotoJob(work, crop_plan, tags, descriptions, evaluation, test)
        with models({"tag": args.tagger, "description": args.captioner}, asking) as asked:
            make_missing_parts(job, parts, args.num_proc, annotating(parts, asked, asking))

    return Plan(fingerprint, parts, rejected, listing.left_out, True, make)


def _with_orphans(args: argparse.Namespace, listing: Listing, readers: Sequence[Any]) -> list[Any]:
    """What is wrong with the listing: rejected photos, and sidecars that belong to none."""
    from realsr_r1.data.sources import stem_of

    stems = [stem_of(item.name) for item in listing.rejected + listing.left_out] + [photo.stem for photo in listing.photos]
    source = str(args.images or args.hf_dataset)
    return listing.rejected + [item for one in readers if one is not None for item in one.orphans(stems, source)]


def _test_photos(args: argparse.Namespace, listing: Listing) -> frozenset[str]:
    """Names of the photos that --test_photos names: by name or file name, with or without suffix; by either view of a pair."""
    from realsr_r1.data.sources import first_view, stem_of

    text = args.test_photos
    if text.startswith("@"):
        if not Path(text[1:]).is_file():
            raise UserError(f"no such file: {text[1:]} (given by --test_photos)")
        text = Path(text[1:]).read_text(encoding="utf-8").replace("\n", ",")
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    known: dict[str, set[str]] = {}
    for item in [*listing.photos, *listing.rejected, *listing.left_out]:
        stem = stem_of(item.name)
        names = {item.name, stem, Path(item.name).name, Path(stem).name}
        for name in names & wanted:
            known.setdefault(name, set()).update((stem, first_view(stem) or stem))
    for name in sorted(wanted - known.keys()):
        raise UserError(f"--test_photos names {name!r}, which isn't in {args.images or args.hf_dataset}")
    stems = {stem for found in known.values() for stem in found}
    return frozenset(photo.name for photo in listing.photos if photo.stem in stems)


def _plan_list(args: argparse.Namespace, fingerprint: dict[str, Any]) -> Plan:
    """The records of --json whose images can be read."""
    from realsr_r1.data.dataset import read_records
    from realsr_r1.data.making import Plan
    from realsr_r1.data.parts import ListJob, make_missing_parts, plan_list

    root = args.images or args.json.parent
    return Plan(fingerprint, plan_list(read_records(args.json)), [], [], False, lambda work, parts: make_missing_parts(
        ListJob(work, args.json, root), parts, args.num_proc))


if __name__ == "__main__":
    run(main)
