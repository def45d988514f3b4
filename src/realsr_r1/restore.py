"""Restores photos with a model folder.

`realsr-r1 restore --model DIR --input FILE|DIR --output DIR` writes NAME.png for every photo.
`chains/NAME/` gets its chain (the text and the images on the way) and the settings it was made
with. Photos that are already done stay as they are. A photo's noise depends only on its place in
the input, so a resumed run gives the same result (on a GPU up to rounding, which differs in batches
of another size and can change a draw).
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from realsr_r1.chain.settings import SETTINGS_FILE
from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.devices import POLICY_DTYPES, pick_device, policy_dtype
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, atomic_folder, check_new_folder, read_json, write_json
from realsr_r1.core.images import list_images, load_image
from realsr_r1.rollout.config import add_rollout_flags

if TYPE_CHECKING:
    from PIL.Image import Image

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.rollout import RolloutEngine

CHAINS_FOLDER, MADE_WITH_FILE, BAD_ITEMS_FILE = "chains", "made_with.json", "bad_items.txt"
# The fields of `RolloutConfig` that decide how a photo is restored. `cuda_graphs` isn't here, since
# it changes only the time.
ENGINE_FLAGS = ("temperature", "guidance_scale", "text_top_k", "image_top_k_min", "image_top_k_max",
                "max_new_tokens",
                "max_text_tokens", "seed", "jacobi")


class Input(NamedTuple):
    """A photo to restore and its place in the input."""

    place: int
    path: Path


class Fitted(NamedTuple):
    """A photo, its image as the policy sees it, and its own size (width, height) in px."""

    photo: Input
    lq: Image
    shape: tuple[int, int]


def main(argv: list[str] | None = None) -> None:
    """Collect photos, load the model, restore them in batches."""
    parser = argparse.ArgumentParser(prog="realsr-r1 restore", description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="model folder")
    parser.add_argument("--input", required=True, help="a photo or a folder of photos")
    parser.add_argument("--output", required=True, help="folder for the restored photos")
    parser.add_argument("--batch_size", type=int, default=8, help="photos at a time (default: 8)")
    parser.add_argument("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    parser.add_argument("--dtype", choices=POLICY_DTYPES,
                        help="type of the policy (default: bfloat16 on CUDA, else float32)")
    parser.add_argument("--grammar", choices=["chain", "image"], default="chain",
                        help="chain: every answer is a whole chain; image: only images are forced (default: "
                             "chain)")
    parser.add_argument("--skip_bad", action="store_true",
                        help="exit 0 although some photos could not be read or restored")
    add_rollout_flags(parser, (*ENGINE_FLAGS, "cuda_graphs"))
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise UserError("--batch_size must be at least 1")
    photos = find_photos(Path(args.input))
    output = Path(args.output)
    check_new_folder(output, "--output")
    if output.resolve() == photos[0].parent.resolve():
        raise UserError(f"--output {output} is the folder of the photos themselves; name another one")
    made_with = settings_of(args)
    todo = [Input(place, path) for place, path in enumerate(photos)
            if not is_restored(output, path.stem, made_with)]
    if len(todo) < len(photos):
        print(f"{len(photos) - len(todo)} of {len(photos)} photos are restored in {output} already")
    bad = restore_all(todo, *load_engine(args), output, made_with, args.batch_size) if todo else []
    if not bad:
        (output / BAD_ITEMS_FILE).unlink(missing_ok=True)
        return
    with atomic_file(output / BAD_ITEMS_FILE) as partial:
        partial.write_text("".join(f"{path}\t{reason}\n" for path, reason in bad), encoding="utf-8")
    complaint = (f"{len(bad)} of {len(photos)} photos were not restored, the first: {bad[0][1]}; all are in "
                 f"{output / BAD_ITEMS_FILE}")
    if not args.skip_bad:
        raise UserError(f"{complaint}, the others are done (--skip_bad accepts that)")
    print(complaint)


def find_photos(source: Path) -> list[Path]:
    """Return the photos to restore.

    Raises `UserError` when there are none, and when two would get the same name.
    """
    if not source.exists():
        raise UserError(f"no such file or folder: {source} (given by --input)")
    photos = list_images(source) if source.is_dir() else [source]
    if not photos:
        raise UserError(f"{source} (--input) holds no images")
    stems: dict[str, Path] = {}
    for path in photos:
        if path.stem in stems:
            raise UserError(f"{path} and {stems[path.stem]} would both become {path.stem}.png; rename one")
        stems[path.stem] = path
    return photos


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides how a photo is restored.

    These are the flags that were given, and the names, sizes and times of the model's files.
    """
    model = Path(args.model)
    files = [(str(path.relative_to(model)), path.stat()) for path in sorted(model.rglob("*"))
             if path.is_file()]
    listed = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in files)
    flags = {name: getattr(args, name) for name in ("dtype", "grammar", *ENGINE_FLAGS)
             if getattr(args, name) is not None}
    return {"model": hashlib.sha256(listed.encode()).hexdigest()[:16], **flags}


def is_restored(output: Path, name: str, made_with: dict[str, Any]) -> bool:
    """Whether `output` already holds photo `name`.

    Raises `UserError` when it was made with other settings.
    """
    if not (output / f"{name}.png").is_file():
        return False
    record = output / CHAINS_FOLDER / name / MADE_WITH_FILE
    if record.is_file() and read_json(record) != made_with:
        raise UserError(f"{output / name}.png was restored by another model or with other flags ({record}); "
                        "give another --output, or delete this one")
    return True


def load_engine(args: argparse.Namespace) -> tuple[ChainProcessor, RolloutEngine]:
    """Load policy and processor; flags win over the model folder's sampling settings."""
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models import load_policy
    from realsr_r1.rollout import RolloutConfig, RolloutEngine

    device = pick_device(args.device)
    processor = ChainProcessor.from_pretrained(args.model, device=device)
    policy = load_policy(args.model, dtype=args.dtype or policy_dtype(device)).to(device)
    flags = {name: getattr(args, name) for name in (*ENGINE_FLAGS, "grammar", "cuda_graphs")}
    config = RolloutConfig.from_settings(processor.settings.sampling, f"{args.model}: {SETTINGS_FILE}",
                                         num_generations=1,
                                         **flags)
    return processor, RolloutEngine(policy, processor, config)


def restore_all(photos: list[Input], processor: ChainProcessor, engine: RolloutEngine, output: Path,
                made_with: dict[str, Any], batch_size: int) -> list[tuple[Path, str]]:
    """Restore photos batch by batch; returns (photo, reason) for those that failed."""
    from tqdm import tqdm

    bad: list[tuple[Path, str]] = []
    forwards = tokens = 0
    with tqdm(total=len(photos), desc="restoring", unit="photo") as progress:
        for start in range(0, len(photos), batch_size):
            batch: list[Fitted] = []
            for photo in photos[start:start + batch_size]:
                try:
                    image = load_image(photo.path)
                    batch.append(Fitted(photo, processor.fit(image), image.size))
                except UserError as error:
                    bad.append((photo.path, str(error)))
            for part in neighbours(batch):
                prompts = [processor.encode_prompt(item.lq) for item in part]
                rollout = engine.generate(prompts, first_row=part[0].photo.place)
                forwards, tokens = forwards + sum(rollout.forwards), tokens + sum(map(len,
                                                                                      rollout.completion_ids))
                for (photo, lq, shape), ids in zip(part, rollout.completion_ids, strict=True):
                    text, found = processor.decode(ids)  # one by one, since a batch can round differently
                    if found:
                        write_chain(output / CHAINS_FOLDER / photo.path.stem, lq, text, found,
                                    processor.chain, made_with)
                        write_photo(output / f"{photo.path.stem}.png", processor.finish(found[-1], lq, shape))
                    else:
                        bad.append((photo.path,
                                    f"the policy wrote no image for {photo.path} in {len(ids)} tokens; try "
                                                "another --seed, a larger --max_new_tokens or, if it was "
                                                "taught chains, --grammar chain"))
            progress.update(min(batch_size, len(photos) - start))
    if engine.config.jacobi > 1 and tokens:
        print(f"{forwards / tokens:.3f} forward passes a token (jacobi {engine.config.jacobi})")
    return bad


def neighbours(batch: list[Fitted]) -> Iterator[list[Fitted]]:
    """Split a batch where a place is missing.

    The engine numbers the rows of a call without gaps, and the numbers decide their noise.
    """
    part: list[Fitted] = []
    for item in batch:
        if part and item.photo.place != part[-1].photo.place + 1:
            yield part
            part = []
        part.append(item)
    if part:
        yield part


def write_chain(path: Path, lq: Image, text: str, images: list[Image], chain: ChainSpec,
                made_with: dict[str, Any]) -> None:
    """Write the folder of a photo's chain.

    It holds the input as the policy saw it, text and images as the policy wrote them, and `chain`.
    """
    with atomic_folder(path) as folder:
        lq.save(folder / "lq.png")
        (folder / "chain.txt").write_text(text + "\n", encoding="utf-8")
        for label, image in zip(chain.labels, images, strict=False):  # --grammar image may give fewer or more
            image.save(folder / f"{label}.png")
        write_json(folder / CHAIN_FILE, chain.to_dict())
        write_json(folder / MADE_WITH_FILE, made_with)


def write_photo(path: Path, image: Image) -> None:
    """Write the restored photo.

    This comes after its chain, so the photo's file says that both exist.
    """
    with atomic_file(path) as partial:
        image.save(partial, format="PNG")


if __name__ == "__main__":
    run(main)
