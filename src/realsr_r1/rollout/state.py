"""The state of a rollout: which rows are in the batch, what they have written, and common steps.

It puts grammar, guidance, sampler and decoder together, but loops over nothing. The loops are
`engine.one_by_one` and `jacobi.look_ahead`. Knows ids; no text, no images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import Diverged
from realsr_r1.models.protocol import Decoder, Policy
from realsr_r1.rollout.chain_grammar import ChainGrammar, chain_sizes
from realsr_r1.rollout.config import INT8, RolloutConfig
from realsr_r1.rollout.grammar import FREE, ImageGrammar
from realsr_r1.rollout.guidance import UnconditionalRows
from realsr_r1.rollout.rows_grammar import RowsGrammar
from realsr_r1.rollout.sampling import Sampler

# The tokens of n rows, the log-probabilities they were drawn with, and whether there was a choice.
Choice = tuple[torch.Tensor, torch.Tensor, "torch.Tensor | bool"]
# An index of rows of the batch (a slice where it is all of them), and the number of rows.
Rows = tuple["torch.Tensor | slice", int]
COMPACT_SHARE = 0.25  # finished rows leave the batch when they make up this share of it


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch: N prompts x G, grouped by prompt.

    `completion_ids`: the end-of-turn is included where it was written. `sampled_mask`: 1 where the
    grammar left a choice, 0 where it left one id. `log_q`: the log-probability each token was drawn
    with (after guidance, grammar, top-k and temperature), 0 where the grammar left one id.
    `forwards`: the number of batched forward passes of each completion, its prompt's included.
    `kept`: False for a completion that was left out by a choice, and ends where it was. `row_passes`:
    what the device computed after the prompts, as the sum over all forward passes of the rows in
    the batch, those of unconditional branches and of rows that have ended included.
    """

    completion_ids: list[list[int]]
    sampled_mask: list[list[int]]
    log_q: list[list[float]]
    forwards: list[int]
    kept: list[bool]
    row_passes: int


class Look(NamedTuple):
    """What Python must know of the batch to go on.

    `left`: the number of rows that haven't ended. `is_sorted`: whether `sort_rows` has nothing to
    do, because every row does what it did. `steps`: for how many tokens this is sure to stay so.
    """

    left: int
    is_sorted: bool
    steps: int


@dataclass
class RolloutState:
    """One call of `generate`: R completions, of which those in `rows` are still in the batch.

    `config`, `grammar`, `decoder`, `sampler`: what the rollout works with. `code_ids`: ids of the
    image codes, ascending, (C,). `rows`: the completions in the batch, (n,) int64; grammar,
    decoder and `branches` know only these, as 0 to n-1. `branches`: which of them have an
    unconditional branch. `branch_columns`: the number of columns of the branches' caches in use.
    `image_rows`, `text_rows`: which rows of the batch choose codes next, and which choose text or
    sizes. `kinds` (n,): what each row did when they were sorted. `is_given`: whether the rows'
    texts are given. `tokens`, `sampled`, `log_q`: what was written so far, (R, max_new_tokens)
    each; see `Rollout`. `lengths`: tokens written, (R,) int64.
    `forwards`: see `Rollout`, (R,) int64, complete when the rollout is. `kept`: see `Rollout`, (R,).
    `row_passes`: see `Rollout`, so far. `has_losers`: whether a choice has ended rows of the batch.
    `check`: called before each forward pass.
    """

    config: RolloutConfig
    grammar: ChainGrammar | ImageGrammar
    decoder: Decoder
    sampler: Sampler
    code_ids: torch.Tensor
    rows: torch.Tensor
    branches: UnconditionalRows
    branch_columns: int
    image_rows: Rows
    text_rows: Rows
    kinds: torch.Tensor
    is_given: bool
    tokens: torch.Tensor
    sampled: torch.Tensor
    log_q: torch.Tensor
    lengths: torch.Tensor
    forwards: torch.Tensor
    kept: torch.Tensor
    row_passes: int = 0
    has_losers: bool = False
    check: Callable[[], None] | None = None

    @classmethod
    def start(cls, policy: Policy, layout: TokenLayout, config: RolloutConfig, prompts: list[tuple[int, ...]],
              step: int, numbers: Sequence[int],
              given: Sequence[Sequence[Sequence[int]]] | None) -> RolloutState:
        """Compute the prompts, and return a state in which nothing is written yet.

        `numbers`: of all rows in the whole batch. The other arguments are those of
        `RolloutEngine.generate`. Prompts with given texts are computed one by one even where two
        are equal, so that a row's sums are done in the same order whatever its neighbours are.
        """
        embedding = policy.get_input_embeddings()
        device, vocab_size = embedding.weight.device, embedding.num_embeddings
        distinct = list(dict.fromkeys(prompts)) if given is None else prompts
        places = map(distinct.index, prompts) if given is None else range(len(prompts))
        prompt_of_row = torch.tensor(list(places), device=device)
        prompt_of_row = prompt_of_row.repeat_interleave(config.num_generations)
        if config.grammar == "chain":
            sizes = [config.image_sizes or chain_sizes(layout, prompt) for prompt in distinct]
            grammar: ChainGrammar | ImageGrammar = ChainGrammar(
                layout, sizes, prompt_of_row, config.max_new_tokens, config.max_text_tokens, vocab_size,
                given)
            config = replace(config, max_new_tokens=grammar.max_new_tokens)  # shorter if texts are given
        else:
            kind = RowsGrammar if config.grammar == "rows" else ImageGrammar
            grammar = kind(layout, len(prompt_of_row), config.max_new_tokens, vocab_size, device)
        rows = torch.arange(len(prompt_of_row), device=device)
        sampler = Sampler(config, step, torch.tensor(list(numbers), device=device))
        span = grammar.longest_span() if sampler.is_guided else 0
        code_ids = torch.tensor(sorted(layout.code_ids), device=device)
        ahead = max(config.jacobi - 1, 0)  # drafts are fed beyond the end of a budget or an image
        decoder = policy.make_decoder(distinct, prompt_of_row, config.max_new_tokens + ahead,
                                      span and span + ahead, code_ids, config.cuda_graphs,
                                      config.cache_dtype == INT8)
        tokens = torch.full((len(rows), config.max_new_tokens), layout.pad, device=device)
        image_rows, text_rows = _sorted(grammar)
        return cls(
            config=config, grammar=grammar, decoder=decoder, sampler=sampler, code_ids=code_ids, rows=rows,
            branches=UnconditionalRows(len(rows), device), branch_columns=0, image_rows=image_rows,
            text_rows=text_rows, kinds=_kinds(grammar), is_given=given is not None, tokens=tokens,
            sampled=torch.zeros_like(tokens),
            log_q=torch.zeros_like(tokens, dtype=torch.float64), lengths=torch.zeros_like(rows),
            forwards=torch.zeros_like(rows), kept=torch.ones_like(rows, dtype=torch.bool))

    def look(self) -> Look:
        """Look at the batch, in one transfer from the device; see `Look`.

        Token by token, Python waits for the device here and nowhere else while rows write on in text
        or in images; Jacobi decoding reads its windows, too. Where texts are given, or a choice has
        ended rows, the rows always count as not sorted.
        """
        grammar, kinds = self.grammar, _kinds(self.grammar)
        left, differ, columns, steps = torch.stack((
            (~grammar.done).sum(), (kinds != self.kinds).sum(), grammar.offset.max(),
            grammar.unchanged_steps().min())).tolist()
        is_sorted = not (differ or self.is_given or self.has_losers)
        if is_sorted and self.sampler.is_guided:
            self.branch_columns = columns
        return Look(left, is_sorted, steps)

    def sort_rows(self) -> None:
        """Sort the batch's rows by what they do next, and give branches to the rows in images."""
        self.image_rows, self.text_rows = _sorted(self.grammar)
        self.kinds = _kinds(self.grammar)
        if self.sampler.is_guided:
            staying = self.branches.update(self.grammar.offset > 0)
            self.branch_columns = int(self.grammar.offset.max())
            if staying is not None:
                self.decoder.keep_slots(staying, self.branch_columns)

    def unchanged_steps(self) -> int:
        """Return for how many tokens the sorting by `sort_rows` stays valid.

        Inside images the device need not be asked at every token.
        """
        return int(self.grammar.unchanged_steps().min())

    def forced_ahead(self) -> int:
        """Return how many tokens of every row are known already; 0 where that isn't looked for.

        It is looked for where texts are given, since rows without them rarely are at such a place
        together. Call it after `sort_rows`.
        """
        if not self.is_given or self.image_rows[1] or self.text_rows[1] or bool(self.grammar.done.any()):
            return 0
        return self.unchanged_steps()

    def step(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row of the batch its token (n,), and the branches theirs; see `Decoder.step`."""
        branched = self._begin_pass()
        return self.decoder.step(tokens, branched, self.grammar.offset[branched] - 1, self.branch_columns)

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor,
             own_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row of the batch several tokens (n, m), and the branches; see `Decoder.feed`."""
        branched = self._begin_pass()
        return self.decoder.feed(tokens, starts, own_columns, branched, self.grammar.offset[branched] - 1,
                                 self.branch_columns)

    def _begin_pass(self) -> torch.Tensor:
        """Check and count a forward pass of the whole batch; returns the rows with branches."""
        if self.check:
            self.check()
        self.row_passes += len(self.rows) + len(self.branches.rows)
        return self.branches.rows

    def leave_out(self, completions: Sequence[int]) -> None:
        """End these completions where they are (grammar "chain"); `leave_out_done` drops their rows."""
        self.has_losers = True
        self.kept[list(completions)] = False
        self.grammar.end(~self.kept[self.rows])

    def leave_out_done(self) -> torch.Tensor | None:
        """Drop finished rows from the batch once they are many, or when a choice has ended some.

        Returns the rows of the batch that stay, (n,), or None for all.
        """
        staying = (~self.grammar.done).nonzero()[:, 0]
        if len(staying) > (1 - COMPACT_SHARE) * len(self.rows) and not self.has_losers:
            return None
        self.has_losers = False
        self.rows = self.rows[staying]
        self.grammar.keep(staying)
        self.decoder.keep_rows(staying)
        self.decoder.keep_slots(self.branches.keep(staying), self.branch_columns)
        return staying

    def choose_first(self) -> torch.Tensor:
        """Choose the first token of every row, (R,).

        Rows of the same prompt draw from one distribution, which is computed once.
        """
        decoder = self.decoder

        def choose_text(_: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
            drawn = self.choose_text(decoder.prompt_states, decoder.first_rows, decoder.by_prompt(uniform))
            token, log_q, several = drawn
            return decoder.by_row(token), decoder.by_row(log_q), several[decoder.prompt_of_row]

        return self._choose(0, choose_text, None)

    def choose(self, position: int, states: torch.Tensor, branch_states: torch.Tensor) -> torch.Tensor:
        """Choose the token at `position` of every row in the batch, (n,).

        `states`, `branch_states`: hidden states of the rows and of their branches.
        """
        def choose_text(rows: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
            return self.choose_text(states[rows], rows, uniform)

        def choose_code(rows: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
            scores = self.code_scores(states[rows], branch_states, rows)
            code, log_q = self.sampler.draw_codes(*scores, uniform)
            return self.code_ids[code], log_q, len(self.code_ids) > 1

        return self._choose(position, choose_text, choose_code)

    def _choose(self, position: int, choose_text: Callable[..., Choice],
                choose_code: Callable[..., Choice] | None) -> torch.Tensor:
        """Take what the grammar forces or what is chosen, and record which tokens were sampled."""
        forced = self.grammar.forced()
        is_free, tokens, has_choice = forced == FREE, forced.clone(), torch.zeros_like(self.grammar.done)
        uniform = self.sampler.numbers(self.rows, position)
        log_q = torch.zeros_like(uniform)
        for (rows, count), choose in ((self.image_rows, choose_code), (self.text_rows, choose_text)):
            if count:
                tokens[rows], log_q[rows], several = choose(rows, uniform[rows])
                has_choice[rows] = several & is_free[rows]
        self.sampled[self.rows, position] = has_choice.long()
        self.log_q[self.rows, position] = log_q.masked_fill(~has_choice, 0.0)
        return torch.where(is_free, tokens, forced)

    def choose_text(self, states: torch.Tensor, rows: torch.Tensor | slice, uniform: torch.Tensor) -> Choice:
        """Choose text and sizes among what the grammar allows.

        `states`: hidden states of `rows`, (n, hidden). `uniform`: (n,), or (n, m) for m draws of
        each row.
        """
        allowed = self.grammar.allowed(rows)
        scores = self.decoder.logits(states).masked_fill(~allowed, -float("inf"))
        drawn = self.sampler.draw_text(scores, uniform, self.grammar.draws_by_entropy(rows))
        return *drawn, allowed.sum(-1) > 1

    def code_scores(self, states: torch.Tensor, branch_states: torch.Tensor,
                    rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scores of the image codes for `rows` and for their branches.

        The second is None without guidance. `states`: hidden states of the rows, (n, hidden), or
        (n, m, hidden), which gives scores (n * m, C). `branch_states`: hidden states of all
        branches.
        """
        if not self.sampler.is_guided:
            return self.decoder.code_logits(states.flatten(0, -2)), None
        both = torch.cat((states, branch_states[self.branches.slot_of_row[rows]]))
        conditional, unconditional = self.decoder.code_logits(both.flatten(0, -2)).chunk(2)
        return conditional, unconditional

    def rollout(self) -> Rollout:
        """Return what was written. Raises `Diverged` where the policy's scores were not finite."""
        if not self.log_q.isfinite().all():
            raise Diverged("the policy's scores are not finite: its training has diverged (lower "
                           "learning_rate, or go back to an earlier checkpoint) or its type is too narrow "
                           "(use bfloat16 or float32)")
        lengths = self.lengths.tolist()
        return Rollout(*([row[:length] for row, length in zip(table.tolist(), lengths, strict=True)]
                         for table in (self.tokens, self.sampled, self.log_q)), self.forwards.tolist(),
                       self.kept.tolist(), self.row_passes)


def _kinds(grammar: ChainGrammar | ImageGrammar) -> torch.Tensor:
    """Return what each row does next, (n,): in text or not, how far inside an image, or ended."""
    return (grammar.chooses_text() + 2 * (grammar.offset > 0) + 4 * (grammar.offset >= 3) + 8 * grammar.done)


def _sorted(grammar: ChainGrammar | ImageGrammar) -> tuple[Rows, Rows]:
    """Return the rows of the batch that choose codes next, and those that choose text or sizes."""
    everything = slice(None)
    image_rows, text_rows = ((everything if len(rows) == len(grammar.done) else rows, len(rows)) for rows in (
        (grammar.offset >= 3).nonzero()[:, 0], grammar.chooses_text().nonzero()[:, 0]))
    return image_rows, text_rows
