"""Small real photos, a small dataset and a small model folder, for tests that run a whole stage."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import skimage
from PIL import Image

PHOTOS = {"astronaut": ["woman", "astronaut", "flag"], "chelsea": ["cat", "whisker"],
          "coffee": ["coffee", "cup", "spoon"], "retina": ["eye"]}
LABELS = (["light blur", "downsample", "medium noise", "light compression", "upsample"],
          ["heavy blur", "keep", "light noise", "heavy compression", "downsample"])


def load_script(name: str) -> ModuleType:
    """The module of `scripts/tools/NAME.py`."""
    path = Path(__file__).parents[1] / "scripts" / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def photo(name: str, px: int = 48, zoom: float = 1.0) -> Image.Image:
    """A square from the middle of a photograph of scikit-image, `px` wide;

    `zoom` above 1 takes a smaller square.
    """
    path = next((Path(skimage.__file__).parent / "data").glob(f"{name}.*"))
    with Image.open(path) as image:
        image = image.convert("RGB")
    side = int(min(image.size) / zoom)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((px, px), Image.Resampling.BOX)


def records(count: int, px: int = 48) -> dict[str, list[Any]]:
    """Columns of `count` dataset records; LQ is HQ at a third of its size and back."""
    names = [list(PHOTOS)[index % len(PHOTOS)] for index in range(count)]
    hq = [photo(name, px, zoom=1 + index / 4) for index, name in enumerate(names)]
    return {
        "image": [image.resize((px // 3, px // 3)).resize((px, px)) for image in hq],
        "problem": ["Name the degradation of this photo, then restore it."] * count,
        "tag": [PHOTOS[name] for name in names],
        "degradation": [LABELS[index % len(LABELS)] for index in range(count)],
        "hq": hq,
        "descriptions": [[f"A {PHOTOS[name][0]}.", f"A {PHOTOS[name][0]}, seen closer.",
                          f"A sharp {PHOTOS[name][0]}."]
                         for name in names],
        "source": [f"{name}.png" for name in names],
    }


def write_dataset(folder: Path, without: tuple[str, ...] = (), train: int = 8, test: int = 4) -> Path:
    """A prepared dataset with the splits train and test_crops; `without`: columns left out."""
    import datasets

    splits = {}
    for name, count in (("train", train), ("test_crops", test)):
        columns = {key: values for key, values in records(count).items() if key not in without}
        split = datasets.Dataset.from_dict(columns)
        for key in {"image", "hq"} & set(columns):
            split = split.cast_column(key, datasets.Image())
        splits[name] = split
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def write_model(folder: Path, tokenizers: Path, target_px: int = 32, seed: int = 0) -> Path:
    """A model folder with a small random policy, on the tokenizers of another folder."""
    import torch

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

    processor = ChainProcessor.from_pretrained(tokenizers)
    processor.settings = dataclasses.replace(processor.settings, target_px=target_px, fit="crop",
                                             color_fix="none", fidelity=0.0,
                                             sampling={"max_text_tokens": 6})
    layout = processor.layout
    torch.manual_seed(seed)
    policy = LuminaPolicy(LuminaConfig(
        vocab_size=layout.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=layout.pad, bos_token_id=layout.bos,
        eos_token_id=layout.end_of_turn))
    torch.nn.init.normal_(policy.lm_head.weight, std=0.5)  # so that choices are far from even
    policy.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def exit_code(main: Any, argv: list[str]) -> int:
    """The code a process would leave with, were `main` its entry point."""
    from realsr_r1.core.errors import run

    try:
        run(main, argv)
    except SystemExit as stopped:
        return stopped.code
    raise AssertionError("errors.run must leave the process")
