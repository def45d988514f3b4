"""VLCoT-GRPO: TRL's GRPOTrainer with rollouts of interleaved text and images.

Plugs in at TRL's hooks: `rollout_func` makes the completions with our engine, extra fields carry
their images to the rewards, `env_mask` keeps tokens that the grammar forced out of the loss, and
the advantages are those of `objective`. LoRA, the reference policy, logging, evaluation and the
loss are TRL's; `objective` has the loss as formulas. `trl_hooks` says what of TRL this relies on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from trl import GRPOTrainer

from realsr_r1.core.errors import UserError
from realsr_r1.rollout import RolloutEngine
from realsr_r1.training.agreement import Agreement
from realsr_r1.training.callbacks import JsonLog, OneLineLogs
from realsr_r1.training.completion import CompletionMarker
from realsr_r1.training.grpo.guards import Condition
from realsr_r1.training.grpo.monitors import monitor_scores
from realsr_r1.training.grpo.objective import (
    group_advantages,
    sampling_log_ratio,
    section_advantages,
    token_advantages,
    token_weights,
)
from realsr_r1.training.grpo.packing import pack_groups
from realsr_r1.training.grpo.scores import IdleWatch, guarded
from realsr_r1.training.grpo.statistics import (
    repeated_rows,
    reward_statistics,
    section_lengths,
    section_sums,
)
from realsr_r1.training.grpo.stopping import StopGuard
from realsr_r1.training.grpo.trl_hooks import (
    as_rows,
    check_hooks,
    from_row,
    microbatches,
    reference_like,
    result_of,
)
from realsr_r1.training.rendering import RenderingTokenizer
from realsr_r1.training.samples import append_reward_log, show_samples, write_samples
from realsr_r1.training.steady import SteadyTrainer
from realsr_r1.training.whole_policy import OptimizerStates, whole_policy

if TYPE_CHECKING:
    from datasets import Dataset

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.training.config import ChainGRPOConfig

logger = logging.getLogger(__name__)
EVALUATION_STEP = -1  # the step of evaluation's noise: the same at every evaluation


class ChainGRPOTrainer(SteadyTrainer, GRPOTrainer):
    """Trains a policy on chains.

    `model`: a loaded policy. `processor`: its `ChainProcessor`. `reward_funcs`: functions with
    TRL's signature. `judged`: for each the names of the sections that it judges, or None for the
    whole chain (`rewards.registry.judged_sections`; by default all judge everything); it counts
    with `--credit section`. `monitors`: held-out experts by name (`rewards.registry.load_monitors`);
    their means are logged at evaluations as `monitor/NAME`. `train_dataset`, `eval_dataset`: from
    `load_prompts`. `reward_log`: path of the text log of rewards, or None. Everything else is
    passed on to `GRPOTrainer`. Raises `UserError` when the installed TRL has changed what this
    relies on (`trl_hooks.check_hooks`).
    """

    def __init__(self, model: Any, processor: ChainProcessor, reward_funcs: list[Callable],
                 args: ChainGRPOConfig, train_dataset: Dataset, eval_dataset: Dataset | None = None,
                 reward_log: str | Path | None = None, callbacks: Sequence[Any] = (),
                 judged: Sequence[tuple[str, ...] | None] | None = None,
                 monitors: Mapping[str, Callable] | None = None, **kwargs: Any):
        check_hooks()
        if args.credit == "section" and type(self).advantages is not ChainGRPOTrainer.advantages:
            raise UserError(f"{type(self).__name__} has advantages of its own, one a completion, which go "
                            "with --credit sequence, and not with section")
        self.processor = processor
        self._monitors = dict(monitors or {})
        names = processor.chain.names()
        # (rewards, sections + 1): the last column is what belongs to no section.
        self._judged = torch.tensor([[sections is None or name in sections for name in (*names, None)]
                                     for sections in judged or [None] * len(reward_funcs)])
        self.reward_log = reward_log
        self._rollouts_at: tuple[int, int] = (-1, 0)  # (global step, rollouts made at it)
        self._evaluated_rows = 0
        self._sampled_at = 0  # the step of the last saved sample
        self._agreement = Agreement()
        self._states: OptimizerStates | None = None
        model.generation_config.eos_token_id = processor.layout.end_of_turn
        conditions = [Condition.parse(text) for text in args.stop_if]
        guards = [StopGuard(conditions)] if conditions else []
        with reference_like(model):
            super().__init__(
                model, args=args,
                reward_funcs=[guarded(func, self._agreement, self._phase) for func in reward_funcs],
                train_dataset=train_dataset, eval_dataset=eval_dataset,
                processing_class=RenderingTokenizer.of(processor), rollout_func=ChainGRPOTrainer.rollout,
                callbacks=[JsonLog(), CompletionMarker(keep_best=bool(guards)), *guards, *callbacks],
                **kwargs)
        OneLineLogs.take_over(self)
        self._idle = IdleWatch([name.removesuffix("_reward") for name in self.reward_func_names])

    def rollout(prompts: list[list[int]], trainer: ChainGRPOTrainer) -> dict[str, Any]:  # noqa: N805
        """TRL's `rollout_func`: prompts, each G times in a row -> completions, images, masks."""
        return trainer._rollout(prompts)

    def _rollout(self, prompts: list[list[int]]) -> dict[str, Any]:
        training, group = self.model.training, self.group_size
        step, first_row = self._noise_of(len(prompts), training)
        with (self._phase("rollout"), self._without_states(), whole_policy(self) as policy,
              self._agreement,  # faults stay inside
              self.signals.interrupting(lambda: training and self.is_late())):
            engine = RolloutEngine(policy, self.processor, self.args.rollout_config(group))
            rollout = engine.generate(prompts[::group], step=step, first_row=first_row)
        self._agreement.settle()
        if training:
            self.stop_in_time()
        with self._agreement:
            images = self.processor.decode_images(rollout.completion_ids)
        self._agreement.settle()
        mask = rollout.sampled_mask
        if self.args.train_forced_tokens:
            mask = [[1] * len(row) for row in mask]
        return {"prompt_ids": prompts, "completion_ids": rollout.completion_ids, "logprobs": rollout.log_q,
                "env_mask": mask, "images": images}

    def _without_states(self) -> AbstractContextManager:
        """Keep the optimizer's states in the host's memory, with `--offload_during_rollout`."""
        if not self.args.offload_during_rollout or self.optimizer is None:
            return nullcontext()
        if self._states is None:
            self._states = OptimizerStates(self.optimizer, self.model)
        return self._states.on_host()

    def _noise_of(self, rows: int, training: bool) -> tuple[int, int]:
        """(step, first row) of a rollout's noise.

        With them, what a completion draws depends on neither ranks nor resuming.
        """
        offset = self.accelerator.process_index * rows
        if not training:
            first_row = self._evaluated_rows + offset
            self._evaluated_rows += rows * self.accelerator.num_processes
            return EVALUATION_STEP, first_row
        at, made = self._rollouts_at
        made = made if at == self.state.global_step else 0
        self._rollouts_at = (self.state.global_step, made + 1)
        return self.state.global_step, made * rows * self.accelerator.num_processes + offset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, with the same noise each time."""
        self._evaluated_rows = 0
        return super().evaluate(*args, **kwargs)

    @property
    def group_size(self) -> int:
        """Completions of a group, now."""
        return self.num_generations if self.model.training else self.num_generations_eval

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch of a rollout with its rewards, and the objective's advantages.

        In training with `share_prompts` it is made of whole microbatches, which TRL then shuffles.
        """
        with result_of(self, "_calculate_rewards") as results:
            batch = super()._generate_and_score_completions(inputs)
        (rewards,) = results
        own = self._own_rows(len(inputs))
        batch["section_numbers"] = self._section_numbers(batch)
        self._watch(batch, rewards)
        if self.args.credit == "sequence":
            everyone = self.advantages(rewards)
            batch["advantages"] = everyone[own]
        else:
            everyone = self._section_advantages(rewards)
            batch["advantages"] = token_advantages(everyone[own], batch["section_numbers"])
        if self.model.training and (idle := self._idle.warning(rewards, everyone)):
            if self.accelerator.is_main_process:
                logger.warning(idle)
        if not self.args.share_prompts or not self.model.training:
            return batch
        return as_rows(microbatches(batch, self.args.steps_per_generation))

    def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """What completions are learned from: rewards (N, K) of all processes -> advantages (N,).

        Neighbours in groups of `group_size` share a prompt, and NaN is no score. This is the place
        to override for advantages of your own (docs/extending.md), with `--credit sequence`.
        """
        return group_advantages(rewards, self.reward_weights.to(rewards.device), self.group_size,
                                self.args.scale_rewards, self.args.multi_objective_aggregation)

    def _section_advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (N, K) of all processes -> advantages (N, sections + 1), with `--credit section`.

        Logs the mean of their absolute values by section.
        """
        by_section = section_advantages(
            rewards, self.reward_weights.to(rewards.device), self._judged.to(rewards.device),
            self.group_size, self.args.scale_rewards, self.args.multi_objective_aggregation)
        self._note(self._by_section("advantage", by_section.abs().mean(0).tolist(), "other"))
        return by_section

    def _watch(self, batch: dict[str, Any], rewards: torch.Tensor) -> None:
        """Log what tells a policy that learns from one that cheats or falls apart (`statistics`)."""
        names = [name.removesuffix("_reward") for name in self.reward_func_names]
        self._note(reward_statistics(rewards.cpu(), self.reward_weights.cpu(), self.group_size, names))
        lengths = section_lengths(batch["section_numbers"], len(self.processor.chain.names()))
        spans = [self.processor.layout.find_spans(row) for row in batch["completion_ids"].tolist()]
        repeated = [repeated_rows(found[-1].codes) if found else math.nan for found in spans]
        own = torch.cat([lengths, lengths.new_tensor(repeated)[:, None]], 1)
        *lengths, repeated = self.accelerator.gather(own).nanmean(0).tolist()
        self._note({**self._by_section("length", lengths), "repeated_rows": repeated})

    def _by_section(self, what: str, values: Sequence[float], *others: str) -> dict[str, float]:
        """A log's names and values for a number of each section."""
        names = (*self.processor.chain.names(), *others)
        return {f"{what}/{name}": value for name, value in zip(names, values, strict=True)}

    def _note(self, numbers: Mapping[str, float]) -> None:
        """Log numbers, the same on all processes, with the next logged step or this evaluation.

        What a microbatch can't say (NaN: all its completions are masked, say) doesn't hide what
        others say.
        """
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in numbers.items():
            metrics[name] = [one for one in (*metrics[name], value) if one == one] or [math.nan]

    def _section_numbers(self, batch: dict[str, Any]) -> torch.Tensor:
        """The number of each completion token's section, (B, T); what is in none has the last one."""
        ids = batch["completion_ids"]
        rows = torch.tensor([self.processor.layout.section_numbers(row) for row in ids.tolist()],
                            device=ids.device)
        return rows.where(rows >= 0, self._judged.shape[1] - 1)

    def _own_rows(self, count: int) -> slice:
        """Where this process' `count` rows stand among those of all."""
        first = self.accelerator.process_index * count
        return slice(first, first + count)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        return from_row(super()._prepare_inputs(generation_batch))

    def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, logits_to_keep: int,
            batch_size: int | None = None, compute_entropy: bool = False, **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's log-probabilities (and entropies) of completions, (B, completion).

        With `share_prompts`, a prompt is computed once for its completions in a microbatch.
        """
        if not self.args.share_prompts:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs)
        log_probs, entropies, batch_size = [], [], batch_size or len(input_ids)
        for ids, mask in zip(input_ids.split(batch_size), attention_mask.split(batch_size), strict=True):
            packed = pack_groups(ids, mask, logits_to_keep)
            with self.accelerator.autocast():
                outputs = model(input_ids=packed.input_ids, shared_prompts=packed.layout,
                                shift_labels=packed.labels, fused_lm_head=True)
            missing = (0, logits_to_keep - packed.labels.shape[1])
            log_probs.append(F.pad(outputs.log_probs, missing))
            entropies.append(F.pad(outputs.entropy, missing) if compute_entropy else None)
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """TRL's loss (`objective.policy_loss`).

        Logs the gap between what was drawn from and pi, and the entropy of each section.
        """
        with result_of(self, "_get_per_token_logps_and_entropies") as results:
            loss = super()._compute_loss(model, inputs)
        log_probs, entropies = (part.detach() for part in results[0][:2])
        weights = token_weights(inputs["completion_mask"], inputs["tool_mask"])
        log_ratio = sampling_log_ratio(inputs["sampling_per_token_logps"], log_probs, weights)
        count = len(self.processor.chain.names())
        sums = section_sums(entropies, weights, inputs["section_numbers"], count)
        gathered = self.accelerator.gather(torch.cat([log_ratio[None], sums.flatten()])[None]).cpu()
        entropy, tokens = gathered[:, 1:].sum(0).view(2, count)
        self._note({"sampling/log_ratio": gathered[:, 0].mean().item(),
                    **self._by_section("entropy", (entropy / tokens).tolist())})
        return loss

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[str],
                           completion_ids_list: list[list[int]]) -> torch.Tensor:
        scored = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            with self._agreement:
                self._write_down(inputs, completions, self._named(scored[self._own_rows(len(prompts))]))
        self._agreement.settle()
        if not self.model.training and self._monitors:
            self._ask_monitors(inputs, completions)
        is_first = self.model.training and self.accelerator.is_main_process and self.state.global_step == 0
        if is_first and not scored.nan_to_num().any():
            logger.warning("No completion of the first step earned any reward, so there is nothing to learn "
                           "from yet: give the policy a cold start on this chain (realsr-r1 sft), look at "
                           "what it writes (realsr-r1 score), or force whole chains with --grammar chain")
        return scored

    def _ask_monitors(self, inputs: list[dict[str, Any]], completions: list[str]) -> None:
        """Log what held-out experts say of an evaluation's completions; nothing is learned from it."""
        with self._agreement:
            found = monitor_scores(self._monitors, inputs, completions)
        self._agreement.settle()
        everyone = self.accelerator.gather(found.to(self.accelerator.device))
        for name, scores in zip(self._monitors, everyone.unbind(1), strict=True):
            if not scores.isnan().all():
                self._metrics["eval"][f"monitor/{name}"].append(scores.nanmean().item())

    def _write_down(self, inputs: list[dict[str, Any]], completions: list[str],
                    rewards: dict[str, list[float | None]]) -> None:
        """The text log of rewards, and a sample where one is due."""
        step = self.state.global_step + 1  # the step these completions will be learned from
        if self.reward_log:
            append_reward_log(self.reward_log, step, self.accelerator.process_index, completions, rewards)
        every = self.args.sample_steps
        is_due = every and (step == 1 or step // every > self._sampled_at // every)
        if self.accelerator.is_main_process and is_due:
            self._sampled_at = step
            group = slice(0, self.num_generations)
            images = [row["images"] for row in inputs[group]]
            write_samples(self.args.output_dir, step, inputs[0], completions[group], images,
                          {name: values[group] for name, values in rewards.items()}, self.processor.chain)
            show_samples(self.callback_handler.callbacks, step, completions[group], images,
                         self.processor.chain)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL's would name a hub model. `settings.json` and the report describe a run."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's logging; with `--log_completions` its table shows prompts as text."""
        prompts = [prompt if isinstance(prompt, str) else self.processor.decode_text(prompt)
                   for prompt in self._logs["prompt"]]
        self._logs["prompt"].clear()
        self._logs["prompt"].extend(prompts)
        super().log(logs, start_time)

    def _named(self, scored: torch.Tensor) -> dict[str, list[float | None]]:
        """Rewards (rows, functions) -> name -> values (None: no score), weighted `total` last."""
        names = [name.removesuffix("_reward") for name in self.reward_func_names]
        columns = {name: [None if value != value else value for value in scored[:, index].tolist()]
                   for index, name in enumerate(names)}
        return {**columns, "total": (scored * self.reward_weights.to(scored.device)).nansum(1).tolist()}
