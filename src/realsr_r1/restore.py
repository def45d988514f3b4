"""Restores photos with a model folder.

`realsr-r1 restore --model DIR --input FILE|DIR --output DIR` writes NAME.png (or `--format`) for
every photo, at its own size or `--scale` times it, with the transparency it had, and grey where it
was grey. `chains/NAME/` gets its chain (the text and the images on the way) and a record of what it
was made from. Results that are there stay as they are, unless their photo was replaced. The noise of
a photo and of each of its tiles depends only on their places, so a resumed run gives the same
result (on a GPU up to rounding, which differs in batches of another size and can change a draw).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.settings import SETTINGS_FILE, ChainSettings
from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.devices import POLICY_DTYPES
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import (
    atomic_file,
    atomic_folder,
    check_new_folder,
    content_hash,
    existing_folder,
    write_json,
)
from realsr_r1.core.flags import Parser
from realsr_r1.core.images import listed_images
from realsr_r1.core.picture_writer import WRITTEN, check_format, write_picture
from realsr_r1.core.pictures import READ, Picture, read_picture
from realsr_r1.core.run_files import model_files
from realsr_r1.core.settings import check_ranges
from realsr_r1.core.texts import escaped, is_text
from realsr_r1.restoring.made import CHAINS_FOLDER, MADE_WITH_FILE, PHOTO, to_restore
from realsr_r1.restoring.options import add_restore_flags, given_options, restore_options
from realsr_r1.rollout.config import RolloutConfig, add_rollout_flags

if TYPE_CHECKING:
    from realsr_r1.restoring import Photo, Restoration, Restorer

BAD_ITEMS_FILE = "bad_items.txt"
TILES_FILE = "tiles.json"  # of a photo in tiles: where each is, and what was written for it
# The fields of `RolloutConfig` that decide how a photo is restored. `cuda_graphs` isn't here, since
# it changes only the time.
ENGINE_FLAGS = ("temperature", "guidance_scale", "text_top_k", "image_top_k_min", "image_top_k_max",
                "max_new_tokens",
                "max_text_tokens", "seed", "jacobi", "cache_dtype")
LONGEST_NAME = 255  # bytes, of a file system
Bad = list[tuple[Path, str]]  # photos that were not restored, and why


def main(argv: list[str] | None = None) -> None:
    """Collect photos, load the model, restore them."""
    parser = Parser(prog="realsr-r1 restore", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder; tiny is the embedded one")
    parser.add_argument("--input", required=True, help=f"a photo or a folder of photos. {READ}")
    parser.add_argument("--recursive", action="store_true",
                        help="restore the photos in the input's subfolders, too, and keep the tree")
    parser.add_argument("--output", required=True, help="folder for the restored photos")
    add_restore_flags(parser)
    parser.add_argument("--format", choices=tuple(WRITTEN), default="png",
                        help="of the restored photos; jpg has no transparency (default: png)")
    parser.add_argument("--quality", type=int,
                        help="of jpg and webp, from 1 to 100 (default: 95 and 90)")
    parser.add_argument("--batch_size", type=int, help="photos or tiles at a time (default: as many as the "
                                                       "device's memory holds)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=POLICY_DTYPES,
                        help="type of the policy (default: bfloat16 on CUDA, else float32)")
    bits = parser.add_mutually_exclusive_group()
    for count in (8, 4):
        bits.add_argument(f"--load_in_{count}bit", dest="bits", action="store_const", const=count,
                          help=f"hold the policy's layers in {count} bits (bitsandbytes), for small cards")
    parser.add_argument("--grammar", choices=["chain", "image"], default="chain",
                        help="chain: every answer is a whole chain; image: only images are forced, and no "
                             "photo is written in tiles (default: chain)")
    parser.add_argument("--skip_bad", action="store_true",
                        help="exit 0 although some photos could not be read or restored")
    add_rollout_flags(parser, (*ENGINE_FLAGS, "cuda_graphs"))
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & {*argv} and "--model" in argv[:-1]:
        show_defaults(parser, Path(argv[argv.index("--model") + 1]))
    args = parser.parse_args(argv)
    check_ranges(args, {"batch_size": (1, 4096)})
    check_format(args.format, args.quality)
    restore_options(args)  # refuses bad values before anything is loaded
    existing_folder(args.model, "--model", "model folder")
    source, output = Path(args.input), Path(args.output)
    names, unread = find_photos(source, args.format, args.recursive)
    photos = list(names)
    check_new_folder(output, "--output")
    if output.resolve() == (source if source.is_dir() else source.parent).resolve():
        raise UserError(f"--output {output} is the folder of the photos themselves; name another one")
    if args.recursive and output.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--output {output} lies inside --input {source}, which is read with its subfolders; "
                        "name another one")
    made_with = settings_of(args)
    todo = to_restore(names, output, args.format, made_with)
    if source.is_file() and todo and not args.skip_bad:
        read_picture(source)  # of a single photo a fault is said before the model is loaded
    bad = restore_all(todo, names, args, output, made_with) if todo else []
    bad += [(path, f"{path}: {reason}") for path, reason in unread]
    if not bad:
        (output / BAD_ITEMS_FILE).unlink(missing_ok=True)
        return
    with atomic_file(output / BAD_ITEMS_FILE) as partial:
        partial.write_text(escaped("".join(f"{path}\t{reason}\n" for path, reason in bad)), encoding="utf-8")
    every = len(photos) + len(unread)
    complaint = (f"{len(bad)} of {every} photos were not restored, the first: {bad[0][1]}; all are in "
                 f"{output / BAD_ITEMS_FILE}")
    if not args.skip_bad:
        others = ", the others are done (--skip_bad accepts that)" if len(bad) < every else ""
        raise UserError(complaint + others)
    print(complaint)


def show_defaults(parser: Parser, model: Path) -> None:
    """Put a model folder's own values into the help of the flags whose defaults they are."""
    file = model / SETTINGS_FILE
    if not file.is_file():
        return
    settings = ChainSettings.read(file)
    values = {**asdict(RolloutConfig()), **settings.sampling, "color_fix": settings.color_fix,
              "fidelity": settings.fidelity}
    for action in parser._actions:
        said, its, _ = (action.help or "").partition("(default: the model folder's")
        if its and action.dest in values:
            action.help = f"{said}(default: {values[action.dest]}, as {model} says)"


def find_photos(source: Path, format: str, recursive: bool = False) -> tuple[dict[Path, str],
                                                                             list[tuple[Path, str]]]:
    """Return the photos to restore with their names (places below `source`, without suffix).

    The second value lists pictures that can't be restored, with the reason. A line tells of photos in
    subfolders that are passed over. Raises `UserError` when there are no photos, and when two would
    get the same name.
    """
    if not source.exists():
        raise UserError(f"no such file or folder: {source} (given by --input)")
    if not source.is_dir():
        if not is_text(source.name):
            raise UserError(f"the name of {source} (given by --input) is not UTF-8 text; rename it")
        if _is_too_long(source, format):
            raise UserError(f"the name of {source} (given by --input) is too long; rename it")
        return {source: source.stem}, []
    listing = listed_images(source, recursive)
    if not listing.images:
        raise UserError(f"{source} (--input) holds no images{listing.hint}")
    if listing.deeper:
        several = listing.deeper != 1
        print(f"{source}: {listing.deeper} photo{'s' * several} in its subfolders "
              f"{'are' if several else 'is'} passed over; --recursive restores "
              f"{'them' if several else 'it'}, too")
    stems: dict[str, Path] = {}
    unread = list(listing.unread)
    for path in listing.images:
        name = path.relative_to(source).with_suffix("").as_posix()
        if _is_too_long(path, format):
            unread.append((path, "its name is too long; rename it"))
            continue
        if name in stems:
            raise UserError(f"{path} and {stems[name]} would both become {name}.{format}; rename one")
        stems[name] = path
    for name, path in stems.items():
        if name.startswith(f"{CHAINS_FOLDER}/"):
            raise UserError(f"{path} would be written among the chains of the other photos, into "
                            f"{CHAINS_FOLDER}; leave --recursive out, or give its folder another name")
        # The folder of a photo's chain is written anew.
        above = next((stems[folder.as_posix()] for folder in PurePosixPath(name).parents
                      if folder.as_posix() in stems), None)
        if above is not None:
            raise UserError(f"the chain of {path} would lie in that of {above}; rename one")
    return {path: name for name, path in stems.items()}, unread


def _is_too_long(photo: Path, format: str) -> bool:
    return len(os.fsencode(f"{photo.stem}.{format}")) > LONGEST_NAME


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides how a photo is restored.

    These are the flags that were given, and the names, sizes and times of the model's files.
    """
    model = Path(args.model)
    files = [(str(path.relative_to(model)), path.stat()) for path in model_files(model)]
    listed = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    flags = {name: getattr(args, name) for name in ("dtype", "bits", "grammar", *ENGINE_FLAGS)
             if getattr(args, name) is not None}
    if args.format != "png":
        flags |= {"format": args.format, "quality": args.quality}
    return {"model": hashlib.sha256(os.fsencode(listed)).hexdigest()[:16], **flags, **given_options(args)}


def load_restorer(args: argparse.Namespace) -> Restorer:
    """Load the model; flags win over the model folder's sampling settings."""
    from realsr_r1.restoring import Restorer

    sampling = {name: getattr(args, name) for name in (*ENGINE_FLAGS, "grammar", "cuda_graphs")}
    return Restorer.from_pretrained(args.model, args.device, args.dtype, bits=args.bits,
                                    batch_size=args.batch_size, **sampling)


def restore_all(todo: list[tuple[int, Path]], names: dict[Path, str], args: argparse.Namespace,
                output: Path, made_with: dict[str, Any]) -> Bad:
    """Restore photos, each with its place in the input, and write each when it is done.

    `names`: what each is called in `output`. Returns those that could not be restored, in the order
    of the input.
    """
    from tqdm import tqdm

    restorer, bad, paths = load_restorer(args), [], dict(todo)
    pictures: dict[int, tuple[Picture, str]] = {}  # those being restored, with their hashes, by place
    begun, done, pixels, started = 0, 0, 0, time.monotonic()
    with tqdm(total=len(todo), desc="restoring", unit="tile") as bar:
        def progress(more: int, written: int) -> None:
            nonlocal begun
            begun += more > 0
            bar.set_description(f"restoring photo {begun} of {len(todo)}", refresh=False)
            bar.total += max(0, more - 1)  # one of a photo's rows is counted already
            bar.update(written)

        for photo, result in restorer.restore_all(read_photos(todo, pictures, bad, bar.update),
                                                  restore_options(args), progress):
            picture, content = pictures.pop(photo.place)
            if isinstance(result, UserError):
                bad.append((paths[photo.place], str(result)))
                continue
            name = names[paths[photo.place]]
            target = output / f"{name}.{args.format}"
            # The photo comes after its chain, so its file says that both exist, and are of one photo.
            target.unlink(missing_ok=True)
            write_chain(output / CHAINS_FOLDER / name, result, restorer.processor.chain,
                        {**made_with, PHOTO: content})
            lost = write_picture(target, result.final, picture, args.format, args.quality)
            for note in filter(None, (picture.note, result.note, lost)):
                tqdm.write(note)
            done, pixels = done + 1, pixels + result.final.width * result.final.height
    print(f"{output}: {done} photo{'s' * (done != 1)}, {pixels / 1e6:.2f} megapixels, "
          f"{time.monotonic() - started:.0f} s")
    writer = restorer.writer
    if restorer.engine.config.jacobi > 1 and writer.tokens:
        print(f"{writer.forwards / writer.tokens:.3f} forward passes a token (jacobi "
              f"{restorer.engine.config.jacobi})")
    return sorted(bad, key=lambda item: list(paths.values()).index(item[0]))


def read_photos(todo: list[tuple[int, Path]], pictures: dict[int, tuple[Picture, str]], bad: Bad,
                skip: Any) -> Iterator[Photo]:
    """Yield the photos that can be read, and put them with their hashes into `pictures` by their places.

    The others go into `bad`, and `skip` is told of each.
    """
    from realsr_r1.restoring import Photo

    for place, path in todo:
        try:
            content = content_hash(path)  # before it is read: one that is replaced meanwhile is done again
            pictures[place] = read_picture(path), content
        except UserError as error:
            bad.append((path, str(error)))
            skip(1)
            continue
        yield Photo(pictures[place][0].image, place, str(path))


def write_chain(path: Path, result: Restoration, chain: ChainSpec, made_with: dict[str, Any]) -> None:
    """Write the folder of a photo's chain.

    It holds the input as the policy saw it, text and images as the policy wrote them, those of
    tiles put together, and `chain`.
    """
    with atomic_folder(path) as folder:
        result.lq.save(folder / "lq.png")
        (folder / "chain.txt").write_text(result.text + "\n", encoding="utf-8")
        labels = {section.name: section.label for section in chain.images}
        for name, image in result.images.items():
            image.save(folder / f"{labels[name]}.png")
        if result.tiles:
            write_json(folder / TILES_FILE, [{"box": box, "text": text} for box, text in result.tiles])
        write_json(folder / CHAIN_FILE, chain.to_dict())
        write_json(folder / MADE_WITH_FILE, made_with)


if __name__ == "__main__":
    run(main)
