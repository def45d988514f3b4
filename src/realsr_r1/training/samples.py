"""What a person looks at during a run: samples of one group, and the text log of rewards.

Samples go to files and to the logs of the trackers. DEBUG_MODE and LOG_PATH ask for the text log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.spec import CHAIN_FILE, ChainSpec
from realsr_r1.core.files import atomic_folder, write_json

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import TrainerCallback

SAMPLES_FOLDER = "samples"


def write_samples(output_dir: str | Path, step: int, record: Mapping[str, Any], completions: Sequence[str],
                  images: Sequence[Sequence[Image]], rewards: Mapping[str, Sequence[float | None]],
                  chain: ChainSpec) -> None:
    """Write a folder `output_dir/samples/step-NNNNNN` about the completions of one group.

    It holds the record, its photos, each completion's text, images and rewards, and `chain`.
    """
    with atomic_folder(Path(output_dir) / SAMPLES_FOLDER / f"step-{step:06d}") as folder:
        write_json(folder / "prompt.json",
                   {key: record.get(key) for key in ("source", "crop", "tag", "degradation", "problem")})
        for name in ("lq", "hq"):
            if record.get(name) is not None:
                record[name].save(folder / f"{name}.png")
        for index, (text, found) in enumerate(zip(completions, images, strict=True)):
            (folder / f"completion-{index}.txt").write_text(text + "\n", encoding="utf-8")
            # A broken chain may hold fewer or more images.
            for label, image in zip(chain.labels, found, strict=False):
                image.save(folder / f"completion-{index}-{label}.png")
        write_json(folder / "rewards.json", rewards)
        write_json(folder / CHAIN_FILE, chain.to_dict())


def show_samples(callbacks: Iterable[TrainerCallback], step: int, completions: Sequence[str],
                 images: Sequence[Sequence[Image]], chain: ChainSpec) -> None:
    """Log the texts and images of completions to wandb and tensorboard, where the run uses them."""
    import numpy
    from transformers.integrations import TensorBoardCallback, WandbCallback

    pictures = [(f"samples/{index}-{label}", image, text)
                for index, (text, found) in enumerate(zip(completions, images, strict=True))
                for label, image in zip(chain.labels, found, strict=False)]
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            for name, image, _ in pictures:
                callback.tb_writer.add_image(name, numpy.asarray(image), step, dataformats="HWC")
            for index, text in enumerate(completions):
                callback.tb_writer.add_text(f"samples/{index}", text, step)
        elif isinstance(callback, WandbCallback):
            import wandb

            if wandb.run is not None:
                wandb.log({**{name: wandb.Image(image, caption=text) for name, image, text in pictures},
                           "train/global_step": step})


def append_reward_log(path: str | Path, step: int, rank: int, completions: Sequence[str],
                      rewards: Mapping[str, Sequence[float | None]]) -> None:
    """Append this rank's completions and their rewards to the text file at `path` (LOG_PATH).

    Everything is written at once, so that ranks don't mix.
    """
    entries = []
    for index, text in enumerate(completions):
        scores = ", ".join(f"{name} {values[index]}" for name, values in rewards.items())
        entries.append(f"step {step}, rank {rank}, completion {index}: {scores}\n{text}\n\n")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(entries))
