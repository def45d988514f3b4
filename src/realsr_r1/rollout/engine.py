"""The rollout engine: writes completions for prompts, a group at a time.

It checks its input, and then writes all completions together, with one forward pass for each token
(`one_by_one`) or with fewer (`jacobi.look_ahead`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from realsr_r1.chain.tokens import TokenLayout
from realsr_r1.core.errors import UserError
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

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[int] | Sequence[Sequence[int]], step: int = 0,
                 first_row: int = 0) -> Rollout:
        """Write G completions of one prompt (a list of ids), or of each prompt in a list.

        The completions of N prompts (N x G) come grouped by prompt. `step`: the global step.
        `first_row`: the number of this call's first completion in the whole batch. Both only choose
        the random numbers. Raises `UserError` when a prompt is empty, a chain doesn't fit into the
        budget of tokens, or the policy's scores are not finite.
        """
        prompts = [prompt_ids] if prompt_ids and isinstance(prompt_ids[0], int) else prompt_ids
        if not prompts or not all(prompts):
            raise UserError("a rollout needs at least one prompt, and every prompt at least one token")
        with _evaluating(self.policy):
            state = RolloutState.start(self.policy, self.layout, self.config,
                                       [tuple(prompt) for prompt in prompts], step, first_row)
            return look_ahead(state) if self.config.jacobi > 1 else one_by_one(state)


def one_by_one(state: RolloutState) -> Rollout:
    """Write every completion to its end; one forward pass writes one token of every row."""
    grammar = state.grammar
    tokens, unchanged_steps = state.choose_first(), state.unchanged_steps()
    for position in range(state.config.max_new_tokens):
        state.tokens[state.rows, position] = tokens
        state.lengths[state.rows] += ~grammar.done
        grammar.advance(tokens)
        unchanged_steps -= 1
        state.branch_columns += 1
        if unchanged_steps == 0:
            if grammar.done.all():
                break
            staying = state.leave_out_done()
            tokens = tokens if staying is None else tokens[staying]
            state.sort_rows()
            unchanged_steps = state.unchanged_steps()
        branched = state.branches.rows
        states, branch_states = state.decoder.step(tokens, branched, grammar.offset[branched] - 1,
                                                   state.branch_columns)
        tokens = state.choose(position + 1, states, branch_states)
    return state.rollout(state.lengths)


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
