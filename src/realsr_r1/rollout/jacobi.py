"""Speculative Jacobi Decoding (Teng et al., arXiv 2410.01699): several tokens a row in one forward.

A row looks ahead over a window of tokens. Tokens that the grammar forces are known. For each image
code there is a draft, together with the distribution it was drawn from. One forward over the drafts
gives every code a new distribution. By the rule of speculative sampling the draft then stays or is
drawn again, which makes it a draw from the new distribution. Tokens up to the first replaced draft,
its replacement included, are final, because their distributions were computed from final tokens.
The others are the drafts of the next forward.

The result has the same distribution as decoding one by one, because a draft depends only on the
tokens before it and never on those after it. Whatever came before, it is a draw from the
distribution kept beside it, as long as each of its updates has a random number of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from realsr_r1.rollout.grammar import FREE
from realsr_r1.rollout.state import RolloutState


@dataclass
class Drafts:
    """Guesses of the next tokens of the n rows in the batch.

    `codes` (n, N): numbers of image codes. `drawn_from` (n, N, C) float64: the distributions they
    were drawn from, with sums of 1. N is `config.jacobi`, the number of tokens of a row in one
    forward. Column j belongs to the j-th token from a row's next one on. Drafts are kept in text
    and tags too, where they aren't used.
    """

    codes: torch.Tensor
    drawn_from: torch.Tensor

    @classmethod
    def start(cls, state: RolloutState) -> Drafts:
        """Make the first drafts: before anything is known, all codes are equally likely."""
        codes = len(state.code_ids)
        drafts = state.sampler.first_drafts(codes)
        shape = (*drafts.shape, codes)
        return cls(drafts, torch.full(shape, 1 / codes, dtype=torch.float64, device=drafts.device))

    def keep(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""
        self.codes, self.drawn_from = self.codes[rows], self.drawn_from[rows]

    def update(self, state: RolloutState, states: torch.Tensor, branch_states: torch.Tensor,
               rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Update the first m drafts of `rows` with the distributions at `states` (rows, m, hidden).

        Returns ids and log-probabilities, (rows, m). Drafts at forced places and behind an image's
        end are updated like the others. They aren't used, but they stay draws from the
        distributions kept beside them.
        """
        m, numbers = states.shape[1], state.rows[rows]
        scores = state.code_scores(states, branch_states, rows)
        codes, drawn_from, log_q = state.sampler.update_drafts(
            self.codes[rows, :m], self.drawn_from[rows, :m], *scores, numbers, state.lengths[numbers])
        self.codes[rows, :m], self.drawn_from[rows, :m] = codes, drawn_from
        return state.code_ids[codes], log_q

    def move_up(self, state: RolloutState, count: torch.Tensor) -> None:
        """Move the drafts of each row up by the `count` (n,) tokens that it took.

        New drafts are drawn from the last distribution.
        """
        window = self.codes.shape[1]
        source = torch.arange(window, device=count.device) + count[:, None]
        fresh = state.sampler.draw_drafts(self.drawn_from[:, -1], state.rows, state.lengths[state.rows])
        is_fresh, source = source >= window, source.clamp(max=window - 1)
        self.codes = torch.where(is_fresh, fresh, self.codes.gather(1, source))
        self.drawn_from = self.drawn_from.gather(1, source[..., None].expand_as(self.drawn_from))


def look_ahead(state: RolloutState) -> Iterator[None]:
    """Write every completion to its end, each row at its own pace.

    A row advances by one token in text, and by several in tags and images. Yields after every
    forward, for the last time when all have ended.
    """
    drafts = Drafts.start(state)
    state.forwards += 1  # the prompts'
    last = state.choose_first()
    state.tokens[:, 0] = last
    _advance(state, drafts, last, torch.ones_like(last))
    while True:
        yield
        look = state.look()
        if not look.left:
            break
        if not look.is_sorted:
            staying = state.leave_out_done()
            if staying is not None:
                last = last[staying]
                drafts.keep(staying)
            state.sort_rows()
        state.forwards[state.rows] += ~state.grammar.done
        last = _one_forward(state, drafts, last)


def _one_forward(state: RolloutState, drafts: Drafts, last: torch.Tensor) -> torch.Tensor:
    """Do one forward from the rows' last tokens (n,) on; returns their new last tokens."""
    grammar, start, has_ended = state.grammar, state.lengths[state.rows], state.grammar.done
    window = grammar.unchanged_steps().clamp(max=state.config.jacobi).masked_fill(has_ended, 1)
    # In images m is always N: the drafts behind a row's window must not depend on the windows of
    # its neighbours.
    m = state.config.jacobi if state.image_rows[1] else int(window.max())
    ahead = torch.arange(m, device=window.device)
    forced = grammar.upcoming(m)
    is_free = forced == FREE
    drafted = torch.where(is_free, state.code_ids[drafts.codes[:, :m]], forced)
    state.branch_columns += m - 1
    states, branch_states = state.feed(torch.cat((last[:, None], drafted[:, :-1]), dim=1), start - 1,
                                       int(start.max()) - 1 + m)

    tokens, has_choice = drafted.clone(), torch.zeros_like(is_free)
    log_q = torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device)
    rows, count = state.text_rows  # their window is one token
    if count:
        # Not of all rows: one that has filled its budget has no number any more.
        uniform = state.sampler.numbers(state.rows[rows], start[rows])
        drawn = state.choose_text(states[rows, 0], rows, uniform)
        tokens[rows, 0], log_q[rows, 0], has_choice[rows, 0] = drawn
    rows, count = state.image_rows
    if count:
        tokens[rows], log_q[rows] = drafts.update(state, states[rows], branch_states, rows)
        has_choice[rows] = len(state.code_ids) > 1
    tokens, has_choice = torch.where(is_free, tokens, forced), has_choice & is_free

    stands = (tokens == drafted) & (ahead < window[:, None] - 1)
    count = (stands.cumprod(-1).sum(-1) + 1).masked_fill(has_ended, 0)
    row, place = (ahead < count[:, None]).nonzero(as_tuple=True)
    target = state.rows[row], start[row] + place
    state.tokens[target], state.sampled[target] = tokens[row, place], has_choice[row, place].long()
    state.log_q[target] = log_q.masked_fill(~has_choice, 0.0)[row, place]
    _advance(state, drafts, tokens[:, 0], count)
    return tokens.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]


def _advance(state: RolloutState, drafts: Drafts, tokens: torch.Tensor, count: torch.Tensor) -> None:
    """Advance every row by `count` (n,) tokens, of which `tokens` (n,) has the first."""
    state.lengths[state.rows] += count
    state.grammar.advance(tokens, count)
    drafts.move_up(state, count)
