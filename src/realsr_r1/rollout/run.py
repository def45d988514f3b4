"""One rollout: the completions of a batch of prompts, one batched forward a token.

Puts grammar, guidance, sampling and decoder together; no step loops over rows. Knows ids; no text, no images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import UserError
from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.grammar import FREE, ChainGrammar, ImageGrammar, chain_sizes
from realsr_r1.rollout.guidance import UnconditionalRows, guide
from realsr_r1.rollout.sampling import draw, entropy_top_k, uniforms

Choice = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | bool"]  # tokens, log-probabilities, whether there was a choice
COMPACT_SHARE = 0.25  # finished rows leave the batch when they are this share of it


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch, N prompts x G, grouped.

    `completion_ids`: the end-of-turn included where it was written. `sampled_mask`: 1 where the grammar left a choice,
    0 where it left one id. `log_q`: log-probability each token was drawn with (guidance, grammar, top-k and temperature
    applied), 0 where it left one id. `forwards`: batched forward passes each completion took, its prompt's included.
    """

    completion_ids: list[list[int]]
    sampled_mask: list[list[int]]
    log_q: list[list[float]]
    forwards: list[int]


class Run:
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
        # Drafts are fed beyond a budget's, or a span's, end.
        spare = max(config.jacobi - 1, 0)
        self.decoder = policy.make_decoder(distinct, prompt_of_row, config.max_new_tokens + spare, span and span + spare,
                                           self.code_ids, config.cuda_graphs)
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
        self._plan()
        tokens = self._choose_first()
        for position in range(self.config.max_new_tokens):
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
            tokens = self._choose(position + 1, partial(self._choose_text, states),
                                  partial(self._choose_code, states, free_states))
        return self._rollout(self.lengths)

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

    def _choose_first(self) -> torch.Tensor:
        """The first token of every row, (R,)."""
        return self._choose(0, self._choose_first_text)

    def _choose(self, position: int, choose_text: Callable[..., Choice],
                choose_code: Callable[..., Choice] | None = None) -> torch.Tensor:
        """The next token of every row, (R,); keeps count of what was sampled."""
        forced = self.grammar.forced()
        is_free, tokens, has_choice = forced == FREE, forced.clone(), torch.zeros_like(self.grammar.done)
        uniform = self.uniforms[self.rows, position]
        log_q = torch.zeros_like(uniform)
        for (rows, count), choose in ((self.image_rows, choose_code), (self.text_rows, choose_text)):
            if count:
                tokens[rows], log_q[rows], several = choose(rows, uniform[rows])
                has_choice[rows] = several & is_free[rows]
        self.sampled[self.rows, position] = has_choice.long()
        self.log_q[self.rows, position] = log_q.masked_fill(~has_choice, 0.0)
        return torch.where(is_free, tokens, forced)

    def _choose_code(self, states: torch.Tensor, free_states: torch.Tensor, rows: torch.Tensor | slice,
                     uniform: torch.Tensor) -> Choice:
        """Image codes: guidance, then entropy top-k, temperature, draw."""
        scores, k = self._code_scores(states[rows], free_states, rows)
        choice, log_q = draw(scores, k, self.config.temperature, uniform, self.config.image_top_k_max)
        return self.code_ids[choice], log_q, len(self.code_ids) > 1

    def _code_scores(self, states: torch.Tensor, free_states: torch.Tensor,
                     rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Guided scores of the image codes, only these are computed, (n, C), and top-k, (n,), at states of `rows`.

        `states` (n, hidden) or (n, m, hidden), then n * m scores; `free_states`: the same of the unconditional branches.
        """
        if self.is_guided:
            states = torch.cat((states, free_states[self.unconditional.slot_of_row[rows]]))
        scores = self.decoder.code_logits(states.flatten(0, -2))
        if self.is_guided:
            scores = guide(*scores.chunk(2), self.config.guidance_scale)
        return scores, entropy_top_k(scores, self.config.image_top_k_min, self.config.image_top_k_max)

    def _choose_text(self, states: torch.Tensor, rows: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
        """Text and sizes: what the grammar allows, fixed top-k, temperature, draw."""
        return self._draw_text(states[rows], rows, uniform)

    def _choose_first_text(self, _: slice, uniform: torch.Tensor) -> Choice:
        """As `_choose_text`, for all rows: those of a prompt draw from one distribution, which is computed once."""
        decoder = self.decoder
        token, log_q, several = self._draw_text(decoder.prompt_states, decoder.first_rows, decoder.by_prompt(uniform))
        return decoder.by_row(token), decoder.by_row(log_q), several[decoder.prompt_of_row]

    def _draw_text(self, states: torch.Tensor, rows: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
        """`uniform` (n,), or (n, m) for m draws of each of `rows`; says for each row whether it had a choice, (n,)."""
        allowed = self.grammar.allowed(rows)
        scores = self.decoder.logits(states).masked_fill(~allowed, -float("inf"))
        token, log_q = draw(scores, self.config.text_top_k, self.config.temperature, uniform)
        return token, log_q, allowed.sum(-1) > 1

    def _leave_out_done(self, tokens: torch.Tensor) -> torch.Tensor:
        """Drop finished rows from the batch once they are many. Returns the tokens of the rows in it."""
        keep = (~self.grammar.done).nonzero()[:, 0]
        if len(keep) > (1 - COMPACT_SHARE) * len(self.rows):
            return tokens
        self._keep(keep)
        return tokens[keep]

    def _keep(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only, (n,) int64."""
        self.rows = self.rows[rows]
        self.grammar.keep(rows)
        self.decoder.keep_rows(rows)
        self.decoder.keep_slots(self.unconditional.keep(rows), self.reach)

    def _rollout(self, forwards: torch.Tensor) -> Rollout:
        if not self.log_q.isfinite().all():
            raise UserError("the policy's scores are not finite: its training has diverged (lower learning_rate, or go "
                            "back to an earlier checkpoint) or its type is too narrow (use bfloat16 or float32)")
        lengths = self.lengths.tolist()
        return Rollout(*([row[:length] for row, length in zip(table.tolist(), lengths, strict=True)]
                         for table in (self.tokens, self.sampled, self.log_q)), forwards.tolist())
