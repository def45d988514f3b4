"""The cold start's trainer: transformers' `Trainer` on packed rows.

It adds losses by section, throughput and sample chains. Knows ids and sections of tokens;
`realsr_r1.data.tokens.cold_start` turns chains into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from realsr_r1.chain.text import parse_chain
from realsr_r1.data.tokens.samples import QUESTION
from realsr_r1.models.protocol import PackedRow
from realsr_r1.rollout import RolloutConfig, RolloutEngine
from realsr_r1.training.agreement import Agreement
from realsr_r1.training.callbacks import JsonLog, OneLineLogs
from realsr_r1.training.cold_start.losses import SectionLosses, cross_entropy
from realsr_r1.training.cold_start.samplers import EpochSampler
from realsr_r1.training.cold_start.throughput import Throughput, measured_peak
from realsr_r1.training.completion import CompletionMarker
from realsr_r1.training.rendering import RenderingTokenizer
from realsr_r1.training.samples import show_samples, write_samples
from realsr_r1.training.steady import SteadyTrainer
from realsr_r1.training.whole_policy import whole_policy

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.training.config import ColdStartConfig

IGNORED = -100  # label that is not scored
SAMPLE_CHAINS = 2
# Lengths in tokens are rounded up to multiples of these. This gives few different shapes (oneDNN
# compiles code for each) and whole tiles of the processors' matrix units.
TILE, ROW_TILE = 16, 64


class ColdStartTrainer(SteadyTrainer, Trainer):
    """Trains a policy on the answers of tokenised samples.

    The samples have `input_ids`, `sections` and `length` (`realsr_r1.data.tokens.token_store`).
    Those of a microbatch are put one after the other into one row (`pack_samples`): attention stays
    inside each sample, positions begin again, and the head runs only where an answer is predicted.
    The loss is the mean over the answers' tokens of the whole step, plus `z_loss` times the mean of
    log²Z (arXiv 2204.02311).
    """

    def __init__(self, model: Any, processor: ChainProcessor, args: ColdStartConfig, train_dataset: Dataset,
                 eval_dataset: Dataset | None = None, callbacks: Sequence[TrainerCallback] = ()):
        self.processor = processor
        # A process uses one device, because DataParallel can't split a row; torchrun starts more.
        args._n_gpu = min(args.n_gpu, 1)
        model.prepare_for_cold_start(args.dropout)
        for config in (model.config, model.generation_config):  # otherwise transformers warns and does it
            config.bos_token_id, config.pad_token_id = processor.layout.bos, processor.layout.pad
            config.eos_token_id = processor.layout.end_of_turn
        super().__init__(model=model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset,
                         data_collator=pack_samples, processing_class=RenderingTokenizer.of(processor),
                         callbacks=[JsonLog(), CompletionMarker(), SampleChains(self), *callbacks])
        OneLineLogs.take_over(self)
        self._agreement = Agreement()
        self._losses = {mode: SectionLosses(processor.chain.parts) for mode in ("train", "eval")}
        self._throughput = Throughput(model, self._peak())

    def _peak(self) -> float:
        if self.args.peak_tflops is not None:
            return self.args.peak_tflops * 1e12
        dtype = torch.bfloat16 if self.args.bf16 else self.model.dtype
        return measured_peak(self.args.device, dtype)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> torch.utils.data.Sampler | None:
        args, dataset = self.args, self.train_dataset if train_dataset is None else train_dataset
        if args.train_sampling_strategy not in ("random", "group_by_length"):
            return super()._get_train_sampler(train_dataset)
        together = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seed = args.seed if args.data_seed is None else args.data_seed
        return EpochSampler(dataset["length"][:].tolist(), seed, lambda: int(self.state.epoch or 0),
                            together if args.train_sampling_strategy == "group_by_length" else None)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Do what `Trainer.train` does; throughput counts from here."""
        self._throughput.restart()
        return super().train(*args, **kwargs)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False,
                     num_items_in_batch: torch.Tensor | int | None = None) -> Any:
        """Return the loss of a packed row (`pack_samples`), over `num_items_in_batch` tokens."""
        layout, where, sections = inputs["layout"], inputs["where"], inputs["sections"]
        filling = where[-1:].expand(-len(where) % ROW_TILE)
        outputs = model(input_ids=inputs["input_ids"], shared_prompts=layout,
                        logits_to_keep=torch.cat((where, filling)), use_cache=False)
        labels = inputs["labels"][0, where + 1]
        nll, log_z = cross_entropy(outputs.logits[0, :len(where)], labels)
        total = nll.sum()
        if self.args.z_loss:
            total = total + self.args.z_loss * log_z.square().sum()
        loss = total / (len(where) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            # The number of tokens is that of all ranks, and the ranks' gradients are averaged.
            loss = loss * self.accelerator.num_processes
        lengths = inputs["lengths"]
        if self.model.training:
            self._losses["train"].add(nll.detach(), log_z.detach(), sections)
            self._throughput.add(lengths, len(where))
        else:
            first = inputs["samples"] < self._first_seen(len(lengths))
            self._losses["eval"].add(nll[first], log_z[first], sections[first])
        return (loss, outputs) if return_outputs else loss

    def _first_seen(self, samples: int) -> int:
        """Return how many samples of an evaluation batch are no repeats.

        accelerate repeats samples to fill up the ranks' last round.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return samples
        return max(0, state.remainder - self.args.process_index * self.args.eval_batch_size)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add losses by section, tokens a second and MFU to a training step's log."""
        if "loss" in logs and self._losses["train"].sums is not None:
            logs = {**logs, **self._losses["train"].read(self.accelerator)}
            counted = torch.tensor([self._throughput.tokens, self._throughput.operations],
                                   dtype=torch.float64, device=self.args.device)
            logs |= self._throughput.read(*self.accelerator.reduce(counted).tolist(),
                                          self.accelerator.num_processes)
        super().log(logs, start_time)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Return the metrics of an evaluation.

        `eval_loss` is the mean negative log-likelihood of all tokens, each counted once; the means
        of each section are added.
        """
        with self._throughput.paused():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
            losses = self._losses["eval"].read(self.accelerator)
            output.metrics[f"{metric_key_prefix}_loss"] = losses.pop("nll")
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in losses.items()})
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._throughput.paused():
            super()._save_checkpoint(*args, **kwargs)

    def write_sample(self) -> None:
        """Write chains for the first sample's question, decoded, into `output_dir/samples`.

        All ranks must call it (ZeRO-3).
        """
        sample = (self.eval_dataset if self.eval_dataset is not None else self.train_dataset)[0]
        ids, sections = sample["input_ids"].tolist(), sample["sections"].tolist()
        prompt = ids[:next(place for place, section in enumerate(sections) if section != QUESTION)]
        # Otherwise the sample is a conversation, which may ask for anything.
        is_chain = set(range(len(self.processor.chain.sections))) <= set(sections)
        config = RolloutConfig.from_settings(
            self.processor.settings.sampling, "the chain settings", num_generations=SAMPLE_CHAINS,
            seed=self.args.seed, grammar="chain" if is_chain else "image",
            max_new_tokens=self.args.max_length - len(prompt) if is_chain else len(ids))
        # On a CPU in float32: in bfloat16 oneDNN compiles code for each length of the caches, which takes
        # longer than it saves, and the place of what training needs again.
        with (self._throughput.paused(), self._phase("rollout"), whole_policy(self) as policy,
              torch.autocast("cpu", enabled=False), self._agreement):  # faults stay inside
            rollout = RolloutEngine(policy, self.processor, config).generate(prompt)
        self._agreement.settle()
        with self._throughput.paused(), self._agreement:
            if self.is_world_process_zero():
                texts, images = self.processor.decode_batch(rollout.completion_ids)
                question, shown = self.processor.decode(prompt)
                answer, answered = self.processor.decode(ids[len(prompt):])
                chain = self.processor.chain
                bodies = parse_chain(answer, chain).sections
                labels = next((bodies[section.name] for section in chain.about("degradation")
                               if section.name in bodies), None)
                record = {"problem": question,
                          "degradation": labels and [label.strip() for label in labels.split(",")],
                          "lq": next(iter(shown), None), "hq": next(reversed(answered), None)}
                write_samples(self.args.output_dir, self.state.global_step, record, texts, images, {}, chain)
                show_samples(self.callback_handler.callbacks, self.state.global_step, texts, images, chain)
        self._agreement.settle()


class SampleChains(TrainerCallback):
    """Makes the trainer write a sample every `sample_steps` steps."""

    def __init__(self, trainer: ColdStartTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
                    **kwargs: Any) -> None:
        if args.sample_steps and state.global_step % args.sample_steps == 0:
            self.trainer.write_sample()


def pack_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pack samples into one row, the shortest first.

    The result has `input_ids` and `labels`, (1, T), and `layout`. For the K tokens that are scored
    it has `where` (the places of the states that predict them), their `sections`, and the numbers
    of their `samples`, (K,) each. `lengths` are the tokens of each sample in the given order.

    Each sample is padded to a multiple of `TILE` tokens, and the row to a multiple of `ROW_TILE`.
    Nothing attends to the padding, and it isn't scored.
    """
    lengths = [len(sample["input_ids"]) for sample in samples]
    # Neighbours of the same length share one attention call.
    order = sorted(range(len(samples)), key=lengths.__getitem__)
    gaps = [-lengths[number] % TILE for number in order]
    filled = [lengths[number] + gap for number, gap in zip(order, gaps, strict=True)]
    rest = -sum(filled) % ROW_TILE

    def row(key: str, filling: int) -> torch.Tensor:
        pieces = [numpy.pad(samples[number][key], (0, gap), constant_values=filling)
                  for number, gap in zip(order, gaps, strict=True)]
        pieces.append(numpy.full(rest, filling))
        return torch.from_numpy(numpy.concatenate(pieces)).long()

    ids, sections = row("input_ids", 0), row("sections", QUESTION)
    scored = (sections != QUESTION).nonzero()[:, 0]
    return {"input_ids": ids[None], "labels": ids.masked_fill(sections == QUESTION, IGNORED)[None],
            "where": scored - 1, "sections": sections[scored],
            "samples": torch.tensor(order).repeat_interleave(torch.tensor(filled))[scored],
            "layout": PackedRow.of_samples([*filled, rest] if rest else filled), "lengths": lengths}
