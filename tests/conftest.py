"""What every test shares: an offline, single-threaded process, a folder of real photos, and the
embedded model.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parents[1]

# Set before torch and the hub's client are imported: both read them once.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="offline",
                  TOKENIZERS_PARALLELISM="false",
                  OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

# file inside scikit-image -> its tags
PHOTOS = {
    "astronaut.png": "woman, astronaut, space suit, flag, space shuttle",
    "chelsea.png": "cat, eye, ear, whisker",
    "coffee.png": "coffee, cup, saucer, spoon, table",
    "rocket.jpg": "rocket, launch pad, tower, sky",
    "motorcycle_left.png": "motorcycle, wheel, garage",
}


class Scheduling(LoadFileScheduling):
    """Which worker runs which tests: those of a file share one, for its fixtures, and so do all
    that start training runs.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "end_to_end" if "end_to_end" in Path(file).parts else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """Scopes in the order of their tests, not the largest first."""
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, so that no worker is left with it at the end."""
    items.sort(key=lambda item: "end_to_end" not in item.path.parts)


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs as PNG, each with its tags beside it (`NAME.txt`).

    Shared by all tests: copy it to change it.
    """
    import skimage
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for name, tags in PHOTOS.items():
        target = folder / Path(name).with_suffix(".png").name
        with Image.open(Path(skimage.__file__).parent / "data" / name) as photo:
            photo.convert("RGB").save(target, compress_level=1)
        target.with_suffix(".txt").write_text(tags + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """The embedded model folder, `assets/tiny`."""
    folder = ROOT / "assets" / "tiny"
    assert (folder / "model.safetensors").is_file(), f"no model in {folder}; scripts/build_tiny.sh makes it"
    return folder


@pytest.fixture(scope="session")
def published_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published policy with its tokenizers, as `published.write_published_files` has it.

    Copy it to change it.
    """
    from .published import write_published_files

    return write_published_files(tmp_path_factory.mktemp("published"))
