"""The rollout engine: writes completions for prompts, a group at a time.

It checks its input, and then writes all completions together, with one forward pass for each token
(`one_by_one`) or with fewer (`jacobi.look_ahead`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import UserError
from realsr_r1.rollout.choosing import Choose, Choosing
from realsr_r1.rollout.config import RolloutConfig
from realsr_r1.rollout.jacobi import look_ahead
from realsr_r1.rollout.state import Rollout, RolloutState

if TYPE_CHECKING:
    from realsr_r1.chain.processor import ChainProcessor

__all__ = ["Rollout", "RolloutEngine"]


class RolloutEngine:
    """Samples completions of a policy under a grammar, with guidance inside images.

    `policy`: a loaded policy (`realsr_r1.models.protocol.Policy`), also one inside a LoRA wrapper;
    on any device, of any float type. Under ZeRO-3 its parameters must be gathered.
    `processor_or_layout`: the `ChainProcessor` of the model, or its `TokenLayout`. `config`: see
    `RolloutConfig`.
    """

    def __init__(self, policy: nn.Module, processor_or_layout: ChainProcessor | TokenLayout,
                 config: RolloutConfig):
        self.policy = policy
        self.layout: TokenLayout = getattr(processor_or_layout, "layout", processor_or_layout)
        self.config = config
        if config.grammar == "chain" and self.layout.chain_form is None:
            raise UserError('grammar "chain" needs a layout that knows the chain (make it with a '
                            'ChainProcessor)')
        vocab_size = policy.get_input_embeddings().num_embeddings
        if self.layout.vocab_size > vocab_size:
            raise UserError(f"the policy has {vocab_size} tokens, its text tokenizer "
                            f"{self.layout.vocab_size}; they don't belong together")

    def generate(self, prompt_ids: Sequence[int] | Sequence[Sequence[int]], step: int = 0,
                 first_row: int = 0, rows: Sequence[int] | None = None,
                 given: Sequence[Sequence[Sequence[int]]] | None = None,
                 choose: Choose | None = None, check: Callable[[], None] | None = None) -> Rollout:
        """Write G completions of one prompt (a list of ids), or of each prompt in a list.

        The completions of N prompts (N x G) come grouped by prompt. `step`: the global step.
        `first_row`: the number of this call's first completion in the whole batch; `rows`: the
        numbers of all of them, where they don't follow one another. These only choose the random
        numbers. `given`: for each prompt the ids of its chain's texts, in order, which are then
        forced, so that only the images are chosen (grammar "chain"); the chain may then be as long
        as it is. `choose`: asked at each image which of a prompt's completions go on; the others
        end there (`realsr_r1.rollout.choosing`; grammar "chain"). `check` is called before each
        forward pass; what it raises ends the rollout. Raises `UserError` when a prompt
        is empty, a chain doesn't fit into the budget of tokens, or the policy's scores are not
        finite.
        """
        if choose is not None and self.config.grammar != "chain":
            raise UserError('choosing among completions needs the grammar "chain"')
        choosing = None if choose is None else Choosing(choose, self.layout, self.config.num_generations)
        for state in self._writing(prompt_ids, step, first_row, rows, given, check):
            if choosing is not None:
                choosing.look(state)
        return state.rollout()

    def stream(self, prompt_ids: Sequence[int], first_row: int = 0) -> Iterator[list[int]]:
        """Write one completion, and yield what is written of it from time to time.

        The ids grow from one to the next, and the last ones are the whole completion, which is the
        one that `generate` writes with `num_generations` 1.
        """
        for state in self._writing(prompt_ids, 0, first_row, None, None, None):
            yield state.tokens[0, :int(state.lengths[0])].tolist()
        yield state.rollout().completion_ids[0]

    @torch.no_grad()
    def _writing(self, prompt_ids: Sequence[int] | Sequence[Sequence[int]], step: int, first_row: int,
                 rows: Sequence[int] | None, given: Sequence[Sequence[Sequence[int]]] | None,
                 check: Callable[[], None] | None) -> Iterator[RolloutState]:
        """Write completions, and yield their state again and again, for the last time when all end.

        The arguments are those of `generate`.
        """
        prompts = [prompt_ids] if prompt_ids and isinstance(prompt_ids[0], int) else prompt_ids
        if not prompts or not all(prompts):
            raise UserError("a rollout needs at least one prompt, and every prompt at least one token")
        if given is not None and self.config.grammar != "chain":
            raise UserError('given texts need the grammar "chain"')
        count = len(prompts) * self.config.num_generations
        numbers = range(first_row, first_row + count) if rows is None else rows
        if len(numbers) != count or given is not None and len(given) != len(prompts):
            raise ValueError(f"{len(numbers)} row numbers and {len(given or prompts)} given texts for "
                             f"{len(prompts)} prompts and {count} completions")
        with _evaluating(self.policy):
            state = RolloutState.start(self.policy, self.layout, self.config,
                                       [tuple(prompt) for prompt in prompts], step, numbers, given)
            state.check = check
            for _ in look_ahead(state) if self.config.jacobi > 1 else one_by_one(state):
                yield state


def one_by_one(state: RolloutState) -> Iterator[None]:
    """Write every completion to its end; one forward pass writes one token of every row.

    Where the next tokens of all rows are known, one forward takes all of them. Yields when rows
    have come to another part of their completions, for the last time when all have ended.
    """
    grammar, position, unchanged_steps = state.grammar, 0, 1
    tokens = state.choose_first()
    while position < state.config.max_new_tokens:
        state.tokens[state.rows, position] = tokens
        state.lengths[state.rows] += ~grammar.done
        grammar.advance(tokens)
        unchanged_steps -= 1
        state.branch_columns += 1
        if unchanged_steps == 0:
            yield
            look = state.look()
            if not look.left:
                break
            unchanged_steps = look.steps
            if not look.is_sorted:
                staying = state.leave_out_done()
                tokens = tokens if staying is None else tokens[staying]
                state.sort_rows()
                known = state.forced_ahead()
                if known > 1:
                    tokens, unchanged_steps = _take_known(state, tokens, position, known), 1
                    position += known
                    continue
                unchanged_steps = state.unchanged_steps()
        states, branch_states = state.step(tokens)
        position += 1
        tokens = state.choose(position, states, branch_states)
    state.forwards += state.lengths


def _take_known(state: RolloutState, tokens: torch.Tensor, position: int, known: int) -> torch.Tensor:
    """Feed every row its token (n,) at `position` and all `known` forced ones but the last.

    Returns the last ones, (n,), whose place is `position` + `known`.
    """
    forced = state.grammar.upcoming(known)
    state.branch_columns += known - 1
    fed = torch.cat((tokens[:, None], forced[:, :-1]), dim=1)
    state.feed(fed, torch.full_like(tokens, position), position + known)
    state.tokens[state.rows, position + 1:position + known] = forced[:, :-1]
    state.lengths[state.rows] += known - 1
    state.forwards[state.rows] -= known - 1
    state.grammar.advance(forced[:, 0], known - 1)
    return forced[:, -1]


@contextmanager
def _evaluating(policy: nn.Module) -> Iterator[None]:
    """Switch off dropout and gradient checkpointing inside the block.

    Gradient checkpointing would drop the cache. Every module gets its own mode back afterwards.
    """
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
