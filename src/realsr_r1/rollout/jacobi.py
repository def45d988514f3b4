"""Speculative Jacobi Decoding (Teng et al., arXiv 2410.01699): several tokens a row in one forward, same distribution.

A row looks ahead over a window of tokens. Forced ones are known; of every code there is a draft, and the distribution it
was drawn from. One forward over the drafts gives every code a new distribution, and its draft stays, or is drawn again,
by the rule of speculative sampling (`couple`), which makes it a draw from that one. Up to the first draft that had to go,
and what came in its place, tokens are final: their distributions were computed from final tokens. The rest are the drafts
of the next forward.

Why it is exact: drafts depend on what stands before them, never on what stands behind. So, whatever came before, a draft
is a draw from the distribution kept beside it, as long as each of its updates has a random number of its own: a hash of
seed, step, row, position and place in the window, so that rows don't depend on their neighbours.
"""

from __future__ import annotations

import torch
from torch import nn

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.grammar import FREE
from realsr_r1.rollout.run import Rollout, Run
from realsr_r1.rollout.sampling import BELOW_ONE, couple, invert, uniforms, weights


class JacobiRun(Run):
    """A `Run` whose rows go on at their own pace: by one token in text, by one or more in tags and images.

    `config.jacobi` is N, the tokens of a row fed in one forward. Drafts and their distributions move along with the rows:
    column j belongs to the j-th token from a row's next on, in text and tags, too, where nobody asks for them.
    """

    def __init__(self, policy: nn.Module, layout: TokenLayout, config: RolloutConfig, prompts: list[tuple[int, ...]],
                 step: int, first_row: int):
        super().__init__(policy, layout, config, prompts, step, first_row)
        self.window, rows, codes = config.jacobi, len(self.rows), len(self.code_ids)
        # A position's numbers: one for its update at each place in the window, the last for its first draft.
        self.noise = uniforms(config.seed, step, self.rows + first_row, config.max_new_tokens + self.window,
                              draws=self.window + 1)
        self.drafts = (self.noise[:, :self.window, -1] * codes).long()  # numbers of codes, (R, N)
        self.drawn_from = torch.full((rows, self.window, codes), 1 / codes, dtype=torch.float64, device=self.device)
        self.forwards = torch.ones_like(self.rows)

    def finish(self) -> Rollout:
        """Write every completion to its end."""
        self._plan()
        tokens = self._choose_first()
        self.tokens[:, 0] = tokens
        self._advance(tokens, torch.ones_like(tokens))
        while not self.grammar.done.all():
            tokens = self._leave_out_done(tokens)
            self._plan()
            tokens = self._look_ahead(tokens)
        return self._rollout(self.forwards)

    def _look_ahead(self, last: torch.Tensor) -> torch.Tensor:
        """One forward from the rows' last tokens (R,) on. Returns their new last tokens."""
        grammar, start, has_ended = self.grammar, self.lengths[self.rows], self.grammar.done
        window = grammar.steady_steps().clamp(max=self.window).masked_fill(has_ended, 1)
        # In images always N: what drafts behind a row's window become must not depend on its neighbours' windows.
        n = self.window if self.image_rows[1] else int(window.max())
        ahead = torch.arange(n, device=self.device)
        forced = grammar.upcoming(n)
        is_free = forced == FREE
        drafts = torch.where(is_free, self.code_ids[self.drafts[:, :n]], forced)
        self.reach += n - 1
        states, free_states = self.decoder.feed(
            torch.cat((last[:, None], drafts[:, :-1]), dim=1), start - 1, int(start.max()) - 1 + n, self.unconditional.rows,
            grammar.offset[self.unconditional.rows] - 1, self.reach)
        self.forwards[self.rows] += ~has_ended

        tokens, has_choice = drafts.clone(), torch.zeros_like(is_free)
        log_q = torch.zeros(tokens.shape, dtype=torch.float64, device=self.device)
        rows, count = self.text_rows  # their window is one token
        if count:
            uniform = self.uniforms[self.rows, start][rows]
            tokens[rows, 0], log_q[rows, 0], has_choice[rows, 0] = self._choose_text(states[:, 0], rows, uniform)
        rows, count = self.image_rows
        if count:
            tokens[rows], log_q[rows] = self._update_drafts(states[rows], free_states, rows)
            has_choice[rows] = len(self.code_ids) > 1
        tokens, has_choice = torch.where(is_free, tokens, forced), has_choice & is_free

        stands = (tokens == drafts) & (ahead < window[:, None] - 1)
        count = (stands.cumprod(-1).sum(-1) + 1).masked_fill(has_ended, 0)
        row, place = (ahead < count[:, None]).nonzero(as_tuple=True)
        target = self.rows[row], start[row] + place
        self.tokens[target], self.sampled[target] = tokens[row, place], has_choice[row, place].long()
        self.log_q[target] = log_q.masked_fill(~has_choice, 0.0)[row, place]
        self._advance(tokens[:, 0], count)
        return tokens.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]

    def _update_drafts(self, states: torch.Tensor, free_states: torch.Tensor,
                       rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the first n drafts of `rows` follow the distributions at `states` (rows, n, hidden).

        Returns ids and log-probabilities, (rows, n). Forced places and those behind an image's end are updated with the
        others: nobody asks for them, and they stay draws from what is kept beside them.
        """
        config, n = self.config, states.shape[1]
        scores, k = self._code_scores(states, free_states, rows)
        target = weights(scores, k, config.temperature, config.image_top_k_max)
        target /= target.sum(-1, keepdim=True)
        ahead = torch.arange(n, device=self.device)
        uniform = self.noise[self.rows[rows, None], self.lengths[self.rows][rows, None] + ahead, ahead]
        choice = couple(self.drafts[rows, :n].flatten(), self.drawn_from[rows, :n].flatten(0, 1), target, uniform.flatten())
        log_q = target.gather(1, choice[:, None]).log_()
        self.drafts[rows, :n], self.drawn_from[rows, :n] = choice.view(-1, n), target.view(-1, n, len(self.code_ids))
        return self.code_ids[choice].view(-1, n), log_q.view(-1, n)

    def _advance(self, tokens: torch.Tensor, count: torch.Tensor) -> None:
        """Every row took `count` (R,) tokens, the first of them in `tokens` (R,): its drafts move up by as many.

        New ones come from the distribution of the last.
        """
        self.lengths[self.rows] += count
        self.grammar.advance(tokens, count)
        places = torch.arange(self.window, device=self.device)
        source = places + count[:, None]
        uniform = self.noise[self.rows[:, None], self.lengths[self.rows, None] + places, -1]
        fresh = invert(self.drawn_from[:, -1].cumsum(-1), uniform.clamp(max=BELOW_ONE))
        is_fresh, source = source >= self.window, source.clamp(max=self.window - 1)
        self.drafts = torch.where(is_fresh, fresh, self.drafts.gather(1, source))
        self.drawn_from = self.drawn_from.gather(1, source[..., None].expand_as(self.drawn_from))

    def _keep(self, rows: torch.Tensor) -> None:
        super()._keep(rows)
        self.drafts, self.drawn_from = self.drafts[rows], self.drawn_from[rows]
