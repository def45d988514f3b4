"""Non-padding tokens a second of the cold start's trainer, beside transformers' Trainer with padded
batches.

    python scripts/benchmarks/benchmark_sft.py --dataset_name DATASET --model assets/tiny \\
        [--target_px 32 48 64] [--json FILE]

Same policy, same samples in the same batches and order, same optimizer: one lays a batch's samples
in a row, the other pads them to the longest, with transformers' own loss. In turn in one process;
ratios are medians over turns, of the time on the clock and of the processor's time, which other
processes on the machine disturb less. `--target_px`: sizes that records are fitted to in turn, for
a mixed-size distribution; by default the model's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy
import torch
from benchmarking import median_ratio, paired_seconds
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from transformers.utils.logging import set_verbosity_error

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.data.records import load_dataset_dict
from realsr_r1.data.tokens.cold_start import encode_records
from realsr_r1.data.tokens.samples import QUESTION
from realsr_r1.models import load_policy
from realsr_r1.training.cold_start.trainer import IGNORED, ColdStartTrainer
from realsr_r1.training.config import ColdStartConfig


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="folder of a prepared dataset")
    parser.add_argument("--model", default="assets/tiny", help="model folder")
    parser.add_argument("--target_px", type=int, nargs="+", help="sizes that records are fitted to in turn")
    parser.add_argument("--steps", type=int, default=8, help="optimizer steps a turn")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16 products, as the tiny "
                                                               "recipe has them")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    set_verbosity_error()
    processor = ChainProcessor.from_pretrained(args.model)
    samples = tokens_of(args, processor)
    with tempfile.TemporaryDirectory() as work:
        settings = ColdStartConfig(
            output_dir=work, dataset_name=args.dataset_name, per_device_train_batch_size=args.batch_size,
            max_steps=args.steps, train_sampling_strategy="sequential", bf16=not args.float32,
            logging_steps=args.steps, save_strategy="no", report_to="none", disable_tqdm=True,
            sample_steps=0, learning_rate=1e-5, max_grad_norm=1.0)
        ours = ColdStartTrainer(load_policy(args.model, dtype="float32"), processor, settings, samples)
        plain = Trainer(load_policy(args.model, dtype="float32"), dataclasses.replace(settings),
                        train_dataset=samples, data_collator=Padded(processor.layout.pad))
        torch.set_num_threads(args.threads)  # loading has set one
        clocks = {"packed": Clock(ours), "padded": Clock(plain)}
        load = os.getloadavg()[0]
        seconds = paired_seconds({name: clock.turn for name, clock in clocks.items()}, args.repeats)
    lengths = samples["length"][:]
    tokens = int(lengths.sum())
    padded = sum(int(batch.max()) * len(batch) for batch in numpy.split(lengths, args.steps))
    figures: dict[str, Any] = {
        "tokens a turn": tokens, "shortest, longest": [int(lengths.min()), int(lengths.max())],
        "padding, share of the padded rows": 1 - tokens / padded,
        "packed, tokens/s": tokens / statistics.median(seconds["packed"]),
        "padded, tokens/s": tokens / statistics.median(seconds["padded"]),
        "ratio, median over turns": median_ratio(seconds, "padded", "packed"),
        "ratio of processor time": median_ratio({name: clock.busy[1:] for name, clock in clocks.items()},
                                                "padded", "packed"),
        "ratio of the quickest turns' processor time": min(clocks["padded"].busy[1:]) / min(
            clocks["packed"].busy[1:]),
        "ratios": [round(mine / other, 3) for mine, other in zip(seconds["padded"], seconds["packed"],
                                                                 strict=True)],
        "threads": args.threads, "load before": load, "load after": os.getloadavg()[0]}
    for name, value in figures.items():
        print(f"{name:44} {value:.4g}" if isinstance(value, float) else f"{name:44} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def tokens_of(args: argparse.Namespace, processor: ChainProcessor) -> Dataset:
    """Samples for one turn, shuffled: the chains of the dataset's first records."""
    records = load_dataset_dict(args.dataset_name)["train"].shuffle(seed=0)
    count = args.steps * args.batch_size
    sizes = args.target_px or [processor.settings.target_px]
    processors = [ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                                 dataclasses.replace(processor.settings, target_px=size)) for size in sizes]
    samples = [encode_records(records[[number % len(records)]], [number], processors[number % len(sizes)],
                              seed=0)[0]
               for number in range(count)]
    samples = [samples[number] for number in numpy.random.default_rng(0).permutation(count)]
    return Dataset.from_dict({
        "input_ids": [sample.input_ids for sample in samples],
        "sections": [sample.sections for sample in samples],
        "length": [len(sample.input_ids) for sample in samples]}).with_format("numpy")


class Padded:
    """Samples -> a right-padded batch whose labels leave out the question and the padding."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), length), self.pad)
        labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
        for row, sample in enumerate(samples):
            own, trained = torch.tensor(sample["input_ids"]).long(), torch.tensor(
                sample["sections"]) != QUESTION
            ids[row, :len(own)], mask[row, :len(own)] = own, 1
            labels[row, :len(own)][trained] = own[trained]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class Clock(TrainerCallback):
    """Takes the time of a trainer's turns: of its steps, not of what `train` sets up."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.busy: list[float] = []  # seconds of processor time of each turn
        trainer.add_callback(self)

    def turn(self) -> float:
        """Train a turn; its seconds."""
        self.trainer.train()
        return self.seconds

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter(), time.process_time()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.began[0]
        self.busy.append(time.process_time() - self.began[1])


if __name__ == "__main__":
    main()
