"""What VLCoT-GRPO optimises, as pure functions on tensors: advantages, tokens that count, the loss.

Knows numbers only: nothing of policies, rollouts or processes. `docs/algorithm.md` has the formulas
on one page.

The trainer calls `group_advantages` (with `--credit section`: `section_advantages`),
`token_weights` and `sampling_log_ratio`: to change one of them is to change a run. The loss of a run
is computed by TRL, whose `GRPOTrainer._compute_loss` also logs and can't be had in parts.
`policy_loss` says what it computes, and a test holds the two together, in value and in gradient.

Letters in shapes: N completions of a rollout over all processes, G completions of a group, K
rewards, S sections of a chain, B completions of a microbatch, T tokens of the longest completion.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trl import GRPOConfig

EPSILON_STD = 1e-4  # added to a standard deviation before division; the published code's and TRL's
SCALINGS = ("group", "batch", "none")
AGGREGATIONS = ("sum_then_normalize", "normalize_then_sum")
CREDITS = ("sequence", "section")  # see `group_advantages` and `section_advantages`
CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # with PPO's clipped gain; their means differ
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")


def group_advantages(rewards: torch.Tensor, weights: torch.Tensor, num_generations: int,
                     scale_rewards: str = "group",
                     multi_objective_aggregation: str = "sum_then_normalize") -> torch.Tensor:
    """How much better a completion is than the others of its group, (N,).

    r_k is a reward and w_k its weight; `mean` and `std` are over a group, `mean_N` and `std_N` over
    all N. A std has the number of values less 1 in its denominator.

        sum_then_normalize:   r = sum_k w_k r_k
            group:            A = (r - mean(r)) / (std(r) + 1e-4)
            batch:            A = (r - mean(r)) / (std_N(r) + 1e-4)
            none:             A = r - mean(r)
        normalize_then_sum:   z = sum_k w_k (r_k - mean(r_k)) / (std(r_k) + 1e-4)
            always:           A = (z - mean_N(z)) / (std_N(z) + 1e-4)

    Args:
        rewards: (N, K), neighbours are a group. NaN where a completion has no score in a reward: it
            counts in no sum, mean or std. Completions without any score have advantage 0, and so
            has one that nothing can be compared with.
        weights: (K,).
        num_generations: G; N is a multiple of it.
        scale_rewards: "group" (DeepSeekMath, arXiv 2402.03300), "batch" (arXiv 2508.08221) or
            "none" (Dr. GRPO, arXiv 2503.20783).
        multi_objective_aggregation: "sum_then_normalize", or "normalize_then_sum" (GDPO, arXiv
            2601.05242), for which `scale_rewards` has no meaning.

    Raises `ValueError` for any other word in the last two.
    """
    if scale_rewards not in SCALINGS:
        raise ValueError(f"scale_rewards is {scale_rewards!r}; it must be one of {', '.join(SCALINGS)}")
    if multi_objective_aggregation not in AGGREGATIONS:
        raise ValueError(f"multi_objective_aggregation is {multi_objective_aggregation!r}; it must be one "
                         f"of {', '.join(AGGREGATIONS)}")
    unscored = rewards.isnan().all(dim=1)
    if multi_objective_aggregation == "normalize_then_sum":
        grouped = rewards.view(-1, num_generations, rewards.shape[1])
        scaled = _centred(grouped, 1) / (_std(grouped, 1) + EPSILON_STD)
        total = _weighted_sum(scaled.view_as(rewards), weights, unscored)
        advantages = _centred(total, 0) / (_std(total, 0) + EPSILON_STD)
    else:
        total = _weighted_sum(rewards, weights, unscored)
        grouped = total.view(-1, num_generations)
        advantages = _centred(grouped, 1)
        if scale_rewards != "none":
            std = _std(grouped, 1) if scale_rewards == "group" else _std(total, 0)
            advantages = advantages / (std + EPSILON_STD)
    return advantages.flatten().nan_to_num(nan=0.0)


def section_advantages(rewards: torch.Tensor, weights: torch.Tensor, judged: torch.Tensor,
                       num_generations: int, scale_rewards: str = "group",
                       multi_objective_aggregation: str = "sum_then_normalize") -> torch.Tensor:
    """How much better each section of a completion is than the same section of its group, (N, S).

    Every reward is compared within its group on its own, and counts where it judges:

        A_k = `group_advantages` of reward k alone
        A[:, s] = sum_k v_k A_k over the rewards k that judge section s

    v_k is |w_k| over the mean of |w|, so that weights say how rewards count beside each other (their
    signs are in A_k); with `scale_rewards` "none", where A_k keeps w_k, v_k is 1. One reward that
    judges everything gives what `group_advantages` gives. So a token is pushed by what it can have
    caused: an image's codes aren't, by whether a tag was named. Ours; no paper has it.

    Args:
        rewards, weights, num_generations, scale_rewards, multi_objective_aggregation: as in
            `group_advantages`.
        judged: (K, S) bool, whether a reward judges a section.
    """
    sizes = weights.abs()
    shares = torch.ones_like(sizes) if scale_rewards == "none" else sizes / sizes.mean().clamp(min=1e-30)
    total = rewards.new_zeros(len(rewards), judged.shape[1])
    for number, sections in enumerate(judged):
        own = group_advantages(rewards[:, number:number + 1], weights[number:number + 1], num_generations,
                               scale_rewards, multi_objective_aggregation)
        total += shares[number] * own[:, None] * sections
    return total


def token_advantages(by_section: torch.Tensor, sections: torch.Tensor) -> torch.Tensor:
    """The advantage of each token, (B, T): that of its section.

    `by_section` (B, S), `sections` (B, T) int64: the number of each token's section.
    """
    return by_section.gather(1, sections)


def _weighted_sum(rewards: torch.Tensor, weights: torch.Tensor, unscored: torch.Tensor) -> torch.Tensor:
    """(N,) of rewards (N, K), NaN where `unscored` (N,) says that there is none."""
    return (rewards * weights).nansum(dim=1).masked_fill(unscored, torch.nan)


def _centred(values: torch.Tensor, dim: int) -> torch.Tensor:
    """`values` less their mean along `dim`."""
    return values - values.nanmean(dim, keepdim=True)


def _std(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Along `dim`, which stays with length 1; NaN where fewer than two values are there."""
    count = (~values.isnan()).sum(dim, keepdim=True)
    return ((_centred(values, dim) ** 2).nanmean(dim, keepdim=True) * (count / (count - 1))).sqrt()


def token_weights(completion_mask: torch.Tensor, sampled_mask: torch.Tensor) -> torch.Tensor:
    """m_t, (B, T): 1 for a token that is learned from, 0 for padding and what the grammar forced.

    `completion_mask` is 0 at padding, and in all of a cut completion with
    `--mask_truncated_completions true`. `sampled_mask` is 0 where the grammar left one choice, and
    nowhere with `--train_forced_tokens true`.
    """
    return completion_mask * sampled_mask


def sampling_log_ratio(sampled_log_probs: torch.Tensor, log_probs: torch.Tensor,
                       weights: torch.Tensor) -> torch.Tensor:
    """Mean of log q(o_t) - log pi(o_t) over the tokens that count, a scalar.

    q is the distribution that the rollout drew from (guidance, top-k, temperature), and pi is the
    policy as the loss scores it; (B, T) both. It is 0 where the two are the same, and grows with
    the gap between what is drawn from and what is trained.
    """
    return ((sampled_log_probs - log_probs) * weights).sum() / weights.sum().clamp(min=1)


def importance_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor, weights: torch.Tensor,
                     level: str = "token") -> torch.Tensor:
    """How much likelier the tokens have become since the rollout.

        token:      rho_t = exp(log pi(o_t) - log pi_old(o_t)), (B, T)
        sequence:   rho = exp(sum_t m_t (log pi(o_t) - log pi_old(o_t)) / sum_t m_t), (B, 1)

    The second is GSPO's (arXiv 2507.18071). Raises `ValueError` for any other `level`.
    """
    log_ratio = log_probs - old_log_probs
    if level == "sequence":
        log_ratio = _mean_of_rows(log_ratio, weights)[:, None]
    elif level != "token":
        raise ValueError(f"importance_sampling_level is {level!r}; it must be token or sequence")
    return log_ratio.exp()


def clipped_gain(ratio: torch.Tensor, advantages: torch.Tensor, low: float, high: float,
                 ceiling: float | None = None) -> torch.Tensor:
    """min(rho A, clip(rho, 1 - low, 1 + high) A): nothing is gained beyond the clip.

    From PPO (arXiv 1707.06347); a `high` of its own is DAPO's (arXiv 2503.14476). With a `ceiling`
    the first rho is min(rho, ceiling), so that the loss is bounded where A < 0 (INTELLECT-2, arXiv
    2505.07291).
    """
    bounded = ratio if ceiling is None else ratio.clamp(max=ceiling)
    return torch.minimum(bounded * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def soft_gain(ratio: torch.Tensor, advantages: torch.Tensor, positive: float,
              negative: float) -> torch.Tensor:
    """(4 / tau) sigmoid(tau (rho - 1)) A: a smooth gate in place of the clip.

    tau is `positive` where A > 0 and `negative` elsewhere (SAPO, arXiv 2511.20347).
    """
    tau = torch.where(advantages > 0, positive, negative)
    return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantages


def gamma_weight(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor,
                 weights: torch.Tensor, positive: tuple[float, float],
                 negative: tuple[float, float]) -> torch.Tensor:
    """phi = w^k exp(lambda (1 - w)), w = prod_t rho_t^(m_t); it has no gradient.

    `positive` is (k, lambda) where A >= 0, `negative` elsewhere (VESPO, arXiv 2602.10693). Each
    log rho_t is kept within [-20, 20], log w within [log 1e-8, 20], and lambda at 1e-4 or more.
    Shaped as `advantages`, (B, 1) or (B, T).
    """
    log_w = ((log_probs - old_log_probs).detach().clamp(-20, 20) * weights).sum(-1, keepdim=True)
    log_w = log_w.clamp(math.log(1e-8), 20)
    k, rate = (torch.where(advantages >= 0, *pair) for pair in zip(positive, negative, strict=True))
    rate = rate.clamp(min=1e-4)
    return (rate + k * log_w - rate * log_w.exp()).exp()


def kl_estimate(log_probs: torch.Tensor, reference_log_probs: torch.Tensor) -> torch.Tensor:
    """d_t = x - log x - 1 with x = pi_ref(o_t) / pi(o_t), (B, T).

    It is never negative, and KL(pi, pi_ref) in the mean over tokens drawn from pi (DeepSeekMath,
    arXiv 2402.03300, equation 4).
    """
    log_x = reference_log_probs - log_probs
    return log_x.exp() - log_x - 1


def token_losses(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor,
                 weights: torch.Tensor, settings: GRPOConfig,
                 reference_log_probs: torch.Tensor | None = None) -> torch.Tensor:
    """l_t = -gain_t + beta rho_t d_t, (B, T), or (B, 1) where nothing in it differs between tokens.

        grpo, bnpo, dr_grpo, dapo, luspo:   gain_t = `clipped_gain`
        sapo:                               gain_t = `soft_gain`
        cispo:                              gain_t = min(rho_t, epsilon_high) A log pi(o_t)
        vespo:                              gain_t = `gamma_weight` A log pi(o_t)

    cispo's min has no gradient (MiniMax-M1, arXiv 2506.13585). d_t is `kl_estimate`; rho_t stands
    before it with `use_bias_correction_kl` (TRL's default; DeepSeek-V3.2, arXiv 2512.02556), and 1
    without. `advantages` is (B, 1) or (B, T). Raises `ValueError` for an unknown `loss_type`.
    """
    ratio = importance_ratio(log_probs, old_log_probs, weights, settings.importance_sampling_level)
    high = settings.epsilon if settings.epsilon_high is None else settings.epsilon_high
    if settings.loss_type in CLIPPED:
        gain = clipped_gain(ratio, advantages, settings.epsilon, high, settings.delta)
    elif settings.loss_type == "sapo":
        gain = soft_gain(ratio, advantages, settings.sapo_temperature_pos, settings.sapo_temperature_neg)
    elif settings.loss_type == "cispo":
        gain = ratio.clamp(max=high).detach() * advantages * log_probs
    elif settings.loss_type == "vespo":
        phi = gamma_weight(log_probs, old_log_probs, advantages, weights,
                           (settings.vespo_k_pos, settings.vespo_lambda_pos),
                           (settings.vespo_k_neg, settings.vespo_lambda_neg))
        gain = phi * advantages * log_probs
    else:
        raise ValueError(f"loss_type is {settings.loss_type!r}; it must be one of {', '.join(LOSS_TYPES)}")
    if settings.beta == 0:
        return -gain
    divergence = kl_estimate(log_probs, reference_log_probs)
    return -gain + settings.beta * (divergence * ratio if settings.use_bias_correction_kl else divergence)


def policy_loss(log_probs: torch.Tensor, advantages: torch.Tensor, weights: torch.Tensor,
                settings: GRPOConfig, old_log_probs: torch.Tensor | None = None,
                reference_log_probs: torch.Tensor | None = None,
                step_tokens: torch.Tensor | float | None = None) -> torch.Tensor:
    """The loss of a microbatch, a scalar: a mean of the `token_losses` l_t.

        grpo, sapo:           1/B sum_i (sum_t m_t l_t / sum_t m_t)     sequences count alike
        luspo:                1/B sum_i sum_t m_t l_t                   longer ones count more
        bnpo:                 sum m_t l_t / sum m_t                     tokens of a microbatch alike
        dr_grpo:              sum m_t l_t / (B max_completion_length)   the same, over a constant
        dapo, cispo, vespo:   sum m_t l_t / step_tokens                 tokens of an update alike

    From DeepSeekMath (arXiv 2402.03300), LUSPO (2602.05261), TRL (bnpo), Dr. GRPO (2503.20783) and
    DAPO (2503.14476). A row whose weights are all 0 adds 0. An update is the sum of its
    microbatches' losses, divided by their number except in the last line.

    Args:
        log_probs: log pi(o_t) of the policy, (B, T), with gradient.
        advantages: (B,), or (B, T) where each token has its own.
        weights: m_t from `token_weights`, (B, T).
        settings: TRL's, of which `loss_type`, `importance_sampling_level`, `epsilon`,
            `epsilon_high`, `delta`, `beta`, `use_bias_correction_kl`, `max_completion_length` and
            those of sapo and vespo are read.
        old_log_probs: log pi_old(o_t), (B, T), of the policy that the completions were drawn with;
            by default `log_probs` without gradient: the first update after a rollout.
        reference_log_probs: log pi_ref(o_t), (B, T); needed where beta isn't 0.
        step_tokens: how many tokens count in an update, for one process (the mean over processes);
            by default those of this microbatch.
    """
    old_log_probs = log_probs.detach() if old_log_probs is None else old_log_probs
    advantages = advantages[:, None] if advantages.dim() == 1 else advantages
    losses = token_losses(log_probs, old_log_probs, advantages, weights, settings, reference_log_probs)
    if settings.loss_type in ("grpo", "sapo"):
        return _mean_of_rows(losses, weights).mean()
    total = (losses * weights).sum()
    if settings.loss_type == "luspo":
        return total / len(weights)
    if settings.loss_type == "dr_grpo":
        return total / (len(weights) * settings.max_completion_length)
    if settings.loss_type == "bnpo" or step_tokens is None:
        step_tokens = weights.sum().clamp(min=1)
    return total / step_tokens


def _mean_of_rows(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,): each row's mean of values, (B, T) or (B, 1), by its weights; 0 where they are all 0."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)
