"""The rollout: completions for prompts, a group at a time, one batched forward a token.

Puts grammar, guidance, sampling and decoder together; no step loops over rows. Knows ids; no text, no images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from realsr_r1.errors import UserError
from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.decoder import Decoder
from realsr_r1.rollout.grammar import FREE, ChainGrammar, ImageGrammar, chain_sizes
from realsr_r1.rollout.guidance import UnconditionalRows, guide
from realsr_r1.rollout.sampling import draw, entropy_top_k, uniforms
from realsr_r1.tokens import TokenLayout

if TYPE_CHECKING:
    from realsr_r1.processing import ChainProcessor

COMPACT_SHARE = 0.25  # finished rows leave the batch when they are this share of it


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch, N prompts x G, grouped.

    `completion_ids`: the end-of-turn included where it was written. `sampled_mask`: 1 where the grammar left a choice,
    0 where it left one id. `log_q`: log-probability each token was drawn with (guidance, grammar, top-k and temperature
    applied), 0 where it left one id.
    """

    completion_ids: list[list[int]]
    sampled_mask: list[list[int]]
    log_q: list[list[float]]


class RolloutEngine:
    """Samples completions of a policy under a grammar, with guidance inside images.

    Args:
        policy: a `LuminaPolicy`, or a LoRA one around it; on any device, of any float type. Under ZeRO-3 its parameters
            must be gathered.
        processor_or_layout: the `ChainProcessor` of the model, or its `TokenLayout`.
        config: see `RolloutConfig`.
    """

    def __init__(self, policy: nn.Module, processor_or_layout: ChainProcessor | TokenLayout, config: RolloutConfig):
        self.policy = policy
        self.layout: TokenLayout = getattr(processor_or_layout, "layout", processor_or_layout)
        self.config = config
        if config.grammar == "chain" and self.layout.chain_form is None:
            raise UserError('grammar "chain" needs a layout that knows the chain (make it with a ChainProcessor)')
        vocab_size = policy.get_input_embeddings().num_embeddings
        if self.layout.vocab_size > vocab_size:
            raise UserError(f"the policy has {vocab_size} tokens, its text tokenizer {self.layout.vocab_size}; "
                            "they don't belong together")

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[int] | Sequence[Sequence[int]], step: int = 0,
                 first_row: int = 0) -> Rollout:
        """G completions of one prompt (a list of ids), or N x G of a list of prompts, grouped.

        `step`: global step; `first_row`: number of the first completion in the whole batch, where this call makes a
        part of it. Both only choose the random numbers. Raises `UserError` when a prompt is empty, a chain can't fit
        the budget, or the policy's scores are not finite.
        """
        prompts = [prompt_ids] if prompt_ids and isinstance(prompt_ids[0], int) else prompt_ids
        if not prompts or not all(prompts):
            raise UserError("a rollout needs at least one prompt, and every prompt at least one token")
        with _evaluating(self.policy):
            run = _Run(self.policy, self.layout, self.config, [tuple(prompt) for prompt in prompts], step, first_row)
            return run.finish()


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    """No dropout and no gradient checkpointing (it would drop the cache) inside; every module's own mode afterwards."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Run:
    """One call of `generate`. `rows` are the batch rows still in it: their numbers in the whole call."""

    def __init__(self, policy: nn.Module, layout: TokenLayout, config: RolloutConfig, prompts: list[tuple[int, ...]],
                 step: int, first_row: int):
        embedding = policy.get_input_embeddings()
        self.layout, self.config, self.device = layout, config, embedding.weight.device
        distinct = list(dict.fromkeys(prompts))
        prompt_of_row = torch.tensor([distinct.index(prompt) for prompt in prompts], device=self.device)
        prompt_of_row = prompt_of_row.repeat_interleave(config.num_generations)
        count, vocab_size = len(prompt_of_row), embedding.num_embeddings
        if config.grammar == "chain":
            sizes = [config.image_sizes or chain_sizes(layout, prompt) for prompt in distinct]
            self.grammar: ChainGrammar | ImageGrammar = ChainGrammar(
                layout, sizes, prompt_of_row, config.max_new_tokens, config.max_text_tokens, vocab_size)
        else:
            self.grammar = ImageGrammar(layout, count, config.max_new_tokens, vocab_size, self.device)
        self.is_guided = config.guidance_scale != 1.0
        span = self.grammar.longest_span() if self.is_guided else 0
        self.code_ids = torch.tensor(sorted(layout.code_ids), device=self.device)
        self.decoder = Decoder(policy, distinct, prompt_of_row, config.max_new_tokens, span, self.code_ids)
        self.rows = torch.arange(count, device=self.device)
        self.unconditional = UnconditionalRows(count, self.device)
        self.uniforms = uniforms(config.seed, step, self.rows + first_row, config.max_new_tokens)
        self.tokens = torch.full((count, config.max_new_tokens), layout.pad, device=self.device)
        self.sampled = torch.zeros_like(self.tokens)
        self.lengths = torch.zeros_like(self.rows)
        self.reach = 0  # columns of the unconditional caches in use
        self.log_q = torch.zeros(self.tokens.shape, dtype=torch.float64, device=self.device)

    def finish(self) -> Rollout:
        """Write every completion to its end."""
        states, free_states = self.decoder.first_states, None
        self._plan()
        for position in range(self.config.max_new_tokens):
            tokens = self._choose(states, free_states, position)
            self.tokens[self.rows, position] = tokens
            self.lengths[self.rows] += ~self.grammar.done
            self.grammar.advance(tokens)
            self.steady -= 1
            self.reach += 1
            if self.steady == 0:
                if self.grammar.done.all():
                    break
                tokens = self._leave_out_done(tokens)
                self._plan()
            places = self.grammar.offset[self.unconditional.rows] - 1
            states, free_states = self.decoder.step(tokens, self.unconditional.rows, places, self.reach)
        return self._rollout()

    def _plan(self) -> None:
        """Sort rows by what they do next. Holds for `steady` tokens: inside images the device need not be asked."""
        grammar, everything = self.grammar, slice(None)
        self.image_rows, self.text_rows = (
            (everything if len(rows) == len(self.rows) else rows, len(rows))
            for rows in ((grammar.offset >= 3).nonzero()[:, 0], grammar.chooses_text().nonzero()[:, 0]))
        self.steady = int(grammar.steady_steps().min())
        if self.is_guided:
            stay = self.unconditional.update(grammar.offset > 0)
            self.reach = int(grammar.offset.max())
            if stay is not None:
                self.decoder.keep_slots(stay, self.reach)

    def _choose(self, states: torch.Tensor, free_states: torch.Tensor | None, position: int) -> torch.Tensor:
        """The next token of every row, (R,), from hidden states; keeps count of what was sampled."""
        forced = self.grammar.forced()
        is_free, tokens, has_choice = forced == FREE, forced.clone(), torch.zeros_like(self.grammar.done)
        uniform = self.uniforms[self.rows, position]
        log_q = torch.zeros_like(uniform)
        for (rows, count), choose in ((self.image_rows, self._choose_code), (self.text_rows, self._choose_text)):
            if count:
                tokens[rows], log_q[rows], several = choose(states[rows], rows, free_states, uniform[rows])
                has_choice[rows] = several & is_free[rows]
        self.sampled[self.rows, position] = has_choice.long()
        self.log_q[self.rows, position] = log_q.masked_fill(~has_choice, 0.0)
        return torch.where(is_free, tokens, forced)

    def _choose_code(self, states: torch.Tensor, rows: torch.Tensor | slice, free_states: torch.Tensor | None,
                     uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | bool]:
        """Image codes: guidance, then entropy top-k, temperature, draw. Only the codes' logits are computed."""
        config = self.config
        if self.is_guided:
            states = torch.cat((states, free_states[self.unconditional.slot_of_row[rows]]))
        scores = self.decoder.code_logits(states)
        if self.is_guided:
            scores = guide(*scores.chunk(2), config.guidance_scale)
        k = entropy_top_k(scores, config.image_top_k_min, config.image_top_k_max)
        choice, log_q = draw(scores, k, config.temperature, uniform, config.image_top_k_max)
        return self.code_ids[choice], log_q, len(self.code_ids) > 1

    def _choose_text(self, states: torch.Tensor, rows: torch.Tensor | slice, free_states: torch.Tensor | None,
                     uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | bool]:
        """Text and sizes: what the grammar allows, fixed top-k, temperature, draw."""
        allowed = self.grammar.allowed(rows)
        scores = self.decoder.logits(states).masked_fill(~allowed, -float("inf"))
        token, log_q = draw(scores, self.config.text_top_k, self.config.temperature, uniform)
        return token, log_q, allowed.sum(-1) > 1

    def _leave_out_done(self, tokens: torch.Tensor) -> torch.Tensor:
        """Drop finished rows from the batch once they are many. Returns the tokens of the rows in it."""
        keep = (~self.grammar.done).nonzero()[:, 0]
        if len(keep) > (1 - COMPACT_SHARE) * len(self.rows):
            return tokens
        self.rows = self.rows[keep]
        self.grammar.keep(keep)
        self.decoder.keep_rows(keep)
        self.decoder.keep_slots(self.unconditional.keep(keep), self.reach)
        return tokens[keep]

    def _rollout(self) -> Rollout:
        if not self.log_q.isfinite().all():
            raise UserError("the policy's scores are not finite: its training has diverged (lower learning_rate, or go "
                            "back to an earlier checkpoint) or its type is too narrow (use bfloat16 or float32)")
        lengths = self.lengths.tolist()
        return Rollout(*([row[:length] for row, length in zip(table.tolist(), lengths, strict=True)]
                         for table in (self.tokens, self.sampled, self.log_q)))
