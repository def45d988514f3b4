"""Collect the photographs of the tiny model and the quick start, as PNG, from installed packages.

Which photographs, and where each lies, is data: `assets/photos/photos.json`. What they show: the
sidecars beside it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, read_json
from realsr_r1.core.images import load_image

TABLE = Path(__file__).resolve().parents[2] / "assets" / "photos" / "photos.json"
WHEEL_MODULES = {"scikit-image": "skimage", "scikit-learn": "sklearn"}  # package -> the folder it installs
LONGEST_SIDE = 1024  # px


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

    photos = [p for p in read_json(TABLE) if source == "all" or p["package"] in WHEEL_MODULES]
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
            if not file.is_file() and photo["package"] not in WHEEL_MODULES:
                tqdm.write(f"left out {photo['name']}: this release of {photo['package']} has no "
                           f"{photo['path']}",
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
                             "also those of three Debian wallpaper packages (default: %(default)s)")
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
