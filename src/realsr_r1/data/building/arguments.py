"""The command line of create-json: flags, their checks, and a fingerprint of the input.

Reads no photo. What the flags lead to is decided in create_json.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import MOST_PX
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import TRIAL, check_new_folder, existing_folder
from realsr_r1.core.flags import Parser
from realsr_r1.core.pictures import READ
from realsr_r1.core.processes import MOST_PROCESSES
from realsr_r1.core.settings import SEEDS, check_ranges
from realsr_r1.core.texts import READ_TAGS, escaped

if TYPE_CHECKING:
    from realsr_r1.data.building.build import MachineShare

DEFAULT_SCALES = (0.25, 1.0)
MOST_CROPS = 100_000  # of a photo: their files are numbered with five digits
PATHS = ("images", "hf_dataset", "tags", "descriptions", "json", "degradation", "annotation",
         "chain_settings")


def parser() -> Parser:
    """The parser of create-json's flags."""
    flags = Parser(prog="realsr-r1 create-json", description=(
        "Make a dataset: photos with tags become crops, their degraded versions with true labels, JSON "
        "lists, a DatasetDict with the splits train, test_crops and test (those that aren't empty), and a "
        "page about it. Started again after an interruption, it goes on where it was."))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    add = flags.add_argument
    add("--images", type=Path,
        help="folder of photos (with its subfolders), or a webdataset .tar, or a folder of those; with "
             f"--json: the folder that its paths lie in (default: the list's). {READ}")
    add("--hf_dataset", help="instead of --images: a dataset with the column image, a folder of save_to_disk "
                             "or a name on the Hub, with @REVISION for one commit or tag of it")
    add("--hf_split", default="train", help="its split (default: train)")
    add("--tags", type=Path,
        help="folder of tag files: NAME.txt (or NAME.jpg.txt) for NAME.jpg; or a .jsonl file with one line a "
             'photo: {"image": "NAME.jpg", "tag": ["cat", "fur"]}; not needed where they lie beside the '
             "photos, as NAME.txt in their folder, KEY.txt in a tar or the column tag of a dataset. "
             f"{READ_TAGS}")
    add("--descriptions", type=Path,
        help="folder of descriptions: NAME.json with a text for each level (rough, middle, final); or a "
             ".jsonl file with these keys; in a tar KEY.json, in a dataset the column descriptions")
    add("--tagger", metavar="MODEL",
        help="instead of --tags: package.module:factory, or a model of the Hugging Face Hub (zero-shot "
             "object detection, or image-text-to-text), with @REVISION for one commit or tag of it; no code "
             "that comes with it is run")
    add("--captioner", metavar="MODEL", help="instead of --descriptions: package.module:factory, or an "
                                             "image-text-to-text model")
    add("--annotate", choices=["photo", "crop"], help=(
        "what the tagger and the captioner are shown: the whole photo, whose crops all get its tags, or each "
        "crop, which gets those of what is seen in it (default: photo)"))
    add("--annotate_side", choices=["lq", "hq"], help=(
        "with --annotate crop: the crop as it is degraded, as the paper's tagger sees it, or the clean one "
        "(default: lq)"))
    add("--degradation_labeller", metavar="FACTORY", help=(
        "package.module:factory of your own estimator: the photos are real LQ ones without originals; their "
        "crops are not degraded, and it gives the five labels of each"))
    add("--annotation", type=Path,
        help="YAML file with their prompts, batches, time limits: configs/annotation/default.yaml or a copy")
    add("--chain_settings", type=Path,
        help="YAML or JSON file whose chain the records are for: its question, and the levels of "
             "descriptions (configs/chain, or a model folder's chain_settings.json; default: the "
             "published chain)")
    add("--json", type=Path, help="instead of photos: a JSON list with image_path, problem, tag (and the "
                                  "keys that create-json adds); it becomes the split train, nothing is "
                                  "degraded")
    add("--output", type=Path, required=True, help="folder to make")
    add("--degradation", type=Path, help="YAML file, see configs/degradation; default: Real-ESRGAN's "
                                         "published numbers")
    add("--crop_px", type=int, default=512, help="side of the HQ crop in px (default: 512)")
    add("--crops_per_photo", type=int, default=1,
        help="train crops a photo (default: 1, the largest square in the middle)")
    add("--test_crops_per_photo", type=int, default=0,
        help="crops a training photo from a reserved strip that no train crop touches, and crops a test "
             "photo (default: 0, which reserves nothing and takes one crop a test photo)")
    add("--test_photos", default="", metavar="A,B|@FILE",
        help="photos kept for the split test: names separated by commas, or @FILE with one a line")
    add("--evaluation_photos", type=Path, nargs="+", default=[], metavar="DIR",
        help="folders of other photos to evaluate on: their near-duplicates are kept out, as those of the "
             "test photos are")
    add("--crop_scales", metavar="MIN,MAX",
        help="smallest and largest side of a crop as a share of the photo's shorter side, drawn "
             "log-uniformly; the crop is then scaled down to --crop_px (default: 0.25,1.0 when more than one "
             "crop a photo is taken)")
    add("--seed", type=int, default=0, help="of crops and degradations (default: 0)")
    add("--num_proc", type=int, default=cores,
        help="processes (default: all cores); the result doesn't depend on it")
    add("--shard", metavar="i/n", help="make only share i (1 to n) of the work, on one of n machines, in "
                                       "OUTPUT.shards")
    add("--merge", action="store_true", help="join the shards in OUTPUT.shards; needs no other argument but "
                                             "--output")
    add("--overwrite", action="store_true",
        help="replace the dataset in OUTPUT although it was made from other arguments or files")
    add("--skip_bad", action="store_true", help="exit 0 although some items were bad and left out")
    return flags


def check_arguments(args: argparse.Namespace) -> None:
    """Check the flags, and replace `scales` and `shard` by what their texts stand for.

    Raises `UserError` that names the flag whose value can't be used.
    """
    if args.json is not None:
        others = [flag for flag in ("hf_dataset", "tags", "descriptions", "tagger", "captioner", "annotate",
                                    "annotate_side", "degradation_labeller", "annotation", "degradation",
                                    "test_photos", "evaluation_photos") if getattr(args, flag)]
        if others:
            raise UserError(f"--json takes a list as it is; drop "
                            f"{', '.join(f'--{flag}' for flag in others)}, or drop --json")
    elif (args.images is None) == (args.hf_dataset is None):
        raise UserError("give one of --images DIR, --hf_dataset NAME and --json FILE")
    check_ranges(args, {"crop_px": (8, MOST_PX), "crops_per_photo": (1, MOST_CROPS),
                        "test_crops_per_photo": (0, MOST_CROPS), "num_proc": (1, MOST_PROCESSES),
                        "seed": SEEDS})
    for given, model in (("tags", "tagger"), ("descriptions", "captioner")):
        if getattr(args, given) and getattr(args, model):
            raise UserError(f"--{given} and --{model} are two ways to the same; drop one")
    if args.annotate == "crop" and not (args.tagger or args.captioner):
        raise UserError("--annotate crop says what --tagger and --captioner are shown; give one, or drop it")
    if args.annotate_side and args.annotate != "crop":
        raise UserError("--annotate_side says which crop is shown; give --annotate crop, too, or drop it")
    if args.degradation_labeller:
        wrong = ["degradation"] * bool(args.degradation) + ["annotate_side hq"] * (args.annotate_side == "hq")
        if wrong:
            raise UserError(f"--{wrong[0]} has no effect with --degradation_labeller, which takes photos as "
                            "they are, without originals; drop one")
    for flag in ("hf_dataset", "tagger", "captioner", "degradation_labeller"):
        if getattr(args, flag) is not None and not getattr(args, flag).strip():
            raise UserError(f"--{flag} is empty; give a name, or drop it")
    args.scales = _scales(args)
    args.shard = _shard(args.shard) if args.shard else None
    for flag, file_suffix in (("images", ".tar"), ("tags", ".jsonl"), ("descriptions", ".jsonl")):
        path = getattr(args, flag)
        if path is None or (path.is_file() and path.suffix.lower() == file_suffix):
            continue
        if path.is_file():
            raise UserError(f"{path} (given by --{flag}) is neither a folder nor a {file_suffix} file; "
                            f"give the folder that holds all of them, {path.parent}")
        if not any(not item.name.startswith(".") for item in existing_folder(path, f"--{flag}").iterdir()):
            raise UserError(f"folder {path} (given by --{flag}) is empty")
    for path in args.evaluation_photos:
        existing_folder(path, "--evaluation_photos")


def _shard(text: str) -> MachineShare:
    from realsr_r1.data.building.build import MachineShare

    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard is {text!r}; give i/n with i from 1 to n, like 1/4")
    return MachineShare(int(index), int(count))


def _scales(args: argparse.Namespace) -> tuple[float, float] | None:
    if args.crop_scales is None:
        return DEFAULT_SCALES if max(args.crops_per_photo, args.test_crops_per_photo) > 1 else None
    try:
        smallest, largest = (float(part) for part in args.crop_scales.split(","))
    except ValueError:
        smallest = largest = 0.0
    if not 0 < smallest <= largest <= 1:
        raise UserError(f"--crop_scales is {args.crop_scales!r}; give two shares like 0.25,1.0, above 0 and "
                        "at most 1")
    return smallest, largest


def check_output(args: argparse.Namespace) -> None:
    """Raise `UserError` where --output can't be replaced: it is not ours, or it holds the input."""
    from realsr_r1.data.building.build import STATE_FILE

    check_new_folder(args.output, "--output")
    if args.output.is_symlink() or args.output.name in ("", ".."):
        args.output = args.output.resolve()  # the folder itself is replaced
    output = args.output.resolve()
    given = [(flag, Path(path)) for flag in PATHS if (path := getattr(args, flag)) and Path(path).exists()]
    given += [("evaluation_photos", path) for path in args.evaluation_photos]
    given += [("test_photos", Path(args.test_photos[1:]))] if args.test_photos.startswith("@") else []
    walked = () if args.json else ("images", "tags", "descriptions", "evaluation_photos")
    for flag, path in given:
        if path.resolve().is_relative_to(output):
            raise UserError(f"--{flag} {path} lies inside --output {args.output}, which is written anew; "
                            "give another --output")
        if flag in walked and output.is_relative_to(path.resolve()):
            raise UserError(f"--output {args.output} lies inside --{flag} {path}, which is read with its "
                            "subfolders; give another --output")
    if output.is_mount():
        raise UserError(f"--output {args.output} is a mount point, which can't be replaced; give a folder in "
                        "it")
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file; give a folder")
    found = ([path for path in args.output.iterdir() if not path.name.startswith(TRIAL)]
             if args.output.is_dir() else [])
    if found and not (args.output / STATE_FILE).is_file():
        raise UserError(f"--output {args.output} has files that create-json did not make; give a new folder")


def fingerprint(args: argparse.Namespace) -> dict[str, Any]:
    """What the dataset is made from; equal values give the same dataset.

    The arguments that change the result, and a digest of the input files' paths, sizes and times.
    """
    from realsr_r1.data.building.build import FORMAT
    from realsr_r1.data.photos.sources import hf_dataset, walk

    arguments = {key: escaped(str(value)) for key, value in vars(args).items()
                 if key not in ("output", "num_proc", "skip_bad", "overwrite", "shard", "merge")
                 and value not in (None, [])}
    files = [(args.test_photos, Path(args.test_photos[1:]))] if args.test_photos.startswith("@") else []
    folders = () if args.json else (args.images, args.tags, args.descriptions, *args.evaluation_photos)
    for path in (args.json, args.degradation, args.annotation, args.chain_settings, *folders):
        if path is not None:
            files += ([(str(file.relative_to(path)), file) for file in walk(path)]
                      if path.is_dir() else [(path.name, path)])
    if args.json:
        from realsr_r1.data.building.arrow_rows import COLUMN_OF_KEY
        from realsr_r1.data.records import read_list

        root = args.images or args.json.parent
        files += [(record[key], root / record[key]) for record in read_list(args.json)
                  if isinstance(record, dict)
                  for key in COLUMN_OF_KEY if isinstance(record.get(key), str)]
    digest = hashlib.blake2b(digest_size=16)
    for name, path in files:
        try:
            stat = path.stat()
            facts = [stat.st_size, stat.st_mtime_ns, os.access(path, os.R_OK)]
        except (OSError, ValueError):  # missing, or no path at all: said of it later
            facts = None
        digest.update(json.dumps([name, facts]).encode())
    if args.hf_dataset:
        digest.update(hf_dataset(args.hf_dataset, args.hf_split)._fingerprint.encode())
    return {"format": FORMAT, "arguments": arguments, "input": digest.hexdigest()}
