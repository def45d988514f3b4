"""The names of the numbers that a GRPO run logs, known before it starts.

So `--stop_if` with a name that is none is refused at once. A test holds them against real runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from realsr_r1.rewards.experts import parse_expert
from realsr_r1.training.grpo.guards import EVALUATION
from realsr_r1.training.grpo.objective import CLIPPED

if TYPE_CHECKING:
    from realsr_r1.training.config import ChainGRPOConfig

# What TRL and transformers log: in training only, of every rollout, and in evaluations only.
STEP_NAMES = ("loss", "grad_norm", "learning_rate", "epoch", "step_time")
ROLLOUT_NAMES = (
    "num_tokens", "reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length",
    "completions/min_length", "completions/max_length", "completions/clipped_ratio",
    "completions/mean_terminated_length", "completions/min_terminated_length",
    "completions/max_terminated_length")
EVALUATION_NAMES = ("loss", "runtime", "samples_per_second", "steps_per_second")
CLIP_NAMES = tuple(f"clip_ratio/{part}" for part in ("low_mean", "low_min", "high_mean", "high_max",
                                                     "region_mean"))


def logged_names(args: ChainGRPOConfig, rewards: Sequence[str], sections: Sequence[str]) -> set[str]:
    """The names of the numbers that a run with our own rewards logs.

    `rewards`: short names. `sections`: names of the chain's sections. Functions of one's own may
    log more (TRL's `log_metric`).
    """
    short = [name.removesuffix("_reward") for name in rewards]
    names = {*ROLLOUT_NAMES, "sampling/log_ratio", "repeated_rows", "spread/total"}
    names |= {f"rewards/{name}_reward/{part}" for name in short for part in ("mean", "std")}
    names |= {f"{part}/{name}" for name in short for part in ("spread", "no_spread")}
    names |= {f"correlation/{one}-{other}" for index, one in enumerate(short) for other in short[index + 1:]}
    names |= {f"{part}/{section}" for section in sections for part in ("entropy", "length")}
    if args.loss_type in CLIPPED:
        names |= {*CLIP_NAMES}
    else:
        names |= {"cispo": {"cispo_clip_ratio"}, "vespo": {"vespo/phi_seq_mean"}}.get(args.loss_type, set())
    if args.credit == "section":
        names |= {f"advantage/{name}" for name in (*sections, "other")}
    if args.entropy_coef or args.use_adaptive_entropy:
        names |= {"policy_loss", "entropy_coef"}
    if args.beta:
        names.add("kl")
    watched = [f"monitor/{parse_expert(text).name}" for text in args.monitor_experts or []]
    evaluated = {f"{EVALUATION}{name}" for name in (*names, *watched, *EVALUATION_NAMES)}
    return {*STEP_NAMES, *names, *(evaluated if args.eval_strategy != "no" else ())}
