"""What rollout, training, planning, export and loading may ask of a policy, whatever base model it
is of.

A base model is a `Family`: a config class (`PolicyConfig`) and a policy class (`Policy`), which
`realsr_r1.models.families` lists. Here are also the plain data that go between: `PolicyShape` (a
policy in numbers) and `PackedRow` (how tokens lie in a row).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import nn

# What every family calls the matrices of a layer, as transformers' Llama and those after it do.
LAYER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of a policy: a decoder with gated MLPs, two RMS norms a layer, and perhaps norms of
    queries and keys.

    `query_norm_rows` and `key_norm_rows`: rows of a head's width that those have, scale and shift
    each; 0 where there are none.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    query_norm_rows: int = 1
    key_norm_rows: int = 1
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer: name -> (inputs, outputs)."""
        width, wide, narrow = self.hidden, self.intermediate, self.kv_width
        sizes = ((width, width), (width, narrow), (width, narrow), (width, width), (width, wide),
                 (width, wide), (wide, width))
        return dict(zip(LAYER_MATRICES, sizes, strict=True))

    @property
    def matrix_parameters(self) -> int:
        """Weights of all layers' matrices: what a token is multiplied with, but for the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All of them: matrices, norms and biases of the layers, the last norm, embedding and head.
        """
        norms = 2 * self.hidden + 2 * self.head_dim * (self.query_norm_rows + self.key_norm_rows)
        biases = (self.attention_bias * 2 * (self.hidden + self.kv_width)
                  + self.mlp_bias * (2 * self.intermediate + self.hidden))
        return (self.matrix_parameters + self.layers * (norms + biases) + self.hidden
                + self.head_parameters * (1 if self.tied else 2))


@dataclass(frozen=True)
class PackedRow:
    """How tokens lie in one row: for each group its prompt, then its completions, all of one
    length.

    `groups`: (tokens of the prompt, number of completions), in order; `length`: tokens of every
    completion in the row (shorter ones are padded at their ends, where nothing looks at the
    padding). A completion sees its prompt and itself. A group without completions is a whole
    sample, which sees itself only.
    """

    groups: tuple[tuple[int, int], ...]
    length: int

    @classmethod
    def of_samples(cls, lengths: Iterable[int]) -> PackedRow:
        """A row of whole samples of these lengths, each seeing only itself."""
        return cls(tuple((length, 0) for length in lengths), 0)

    @property
    def has_completions(self) -> bool:
        """Whether any group has one (else the row is samples)."""
        return any(count for _, count in self.groups)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """Of a row of samples: tokens of a sample, and how many of that length are neighbours."""
        return [(length, len(list(run))) for length, run in groupby(length for length, _ in self.groups)]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each group's prompt, and of all its completions, in the row's order."""
        return [tokens for prompt, count in self.groups for tokens in (prompt, count * self.length)]

    def spans(self) -> Iterator[tuple[slice, slice, int]]:
        """For each group: where its prompt is, where its completions are, and how many they are."""
        start = 0
        for prompt_length, count in self.groups:
            middle = start + prompt_length
            end = middle + count * self.length
            yield slice(start, middle), slice(middle, end), count
            start = end

    def positions(self) -> torch.Tensor:
        """Positions of the packed tokens, (1, T) int64: completions go on from their prompt."""
        pieces = []
        for prompt_length, count in self.groups:
            own = torch.arange(prompt_length, prompt_length + self.length)
            pieces += [torch.arange(prompt_length), own.repeat(count)]
        return torch.cat(pieces)[None]

    def predecessors(self) -> torch.Tensor:
        """Packed places whose states predict the completions, (completions, length + 1) int64.

        The first is the prompt's last token; the last one predicts what follows the row's last
        token.
        """
        rows = []
        for prompt, own, count in self.spans():
            first = torch.full((count, 1), prompt.stop - 1)
            rows.append(torch.cat((first, torch.arange(own.start, own.stop).view(count, self.length)), dim=1))
        return torch.cat(rows)


class Decoder(Protocol):
    """A policy that continues N distinct prompts in R rows, with everything it has computed kept in
    caches.

    While a row writes an image it may have an unconditional branch: a second row that sees the
    image's tokens only, at positions from 0. Branches have slots of their own. `U` below is the
    number of branches now.
    """

    prompt_states: torch.Tensor  # (N, hidden): hidden state of each prompt's last token
    prompt_of_row: torch.Tensor  # (R,) int64

    @property
    def first_rows(self) -> torch.Tensor:
        """The first row of each prompt, (N,)."""

    def by_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """A value a row (R,) -> a prompt's side by side, (N, largest group); what fills a small
        group means nothing.
        """

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Inverse of `by_prompt`."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states (n, hidden) -> scores of all ids, (n, vocabulary), in float32 at least."""

    def code_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states (n, hidden) -> scores of the image codes only, (n, codes), in float32 at
        least.
        """

    def step(self, tokens: torch.Tensor, rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row its token (R,), and the branches of `rows` (U,) the same; the branch of
        `rows[i]` is in slot i.

        `places` (U,): positions of these tokens in their images; `branch_columns`: at least the
        largest place + 1. Returns hidden states (R, hidden) and (U, hidden).
        """

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor, own_columns: int, rows: torch.Tensor,
             places: torch.Tensor, branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row n tokens (R, n), the first at place `starts` (R,) of its completion, and
        the branches of `rows` too.

        What a row was fed from there on before is forgotten. `own_columns`: the largest start + n;
        `places` (U,): of the first tokens in their images; `branch_columns`: at least the largest
        place + n. Don't mix with `step`. Returns hidden states (R, n, hidden) and (U, n, hidden).
        """

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Go on with these rows only, (n,) int64."""

    def keep_slots(self, slots: torch.Tensor, branch_columns: int) -> None:
        """Move the branches in `slots` (n,) to slots 0 to n-1; `branch_columns`: columns of their
        caches in use.
        """


class PolicyConfig(Protocol):
    """A `transformers.PreTrainedConfig` with transformers' names (`vocab_size`, `hidden_size`,
    ...), and these.
    """

    model_type: str  # of our own folders

    @classmethod
    def from_folder(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> PolicyConfig:
        """The config of a folder, ours or published: `raw` is its config.json.

        `shapes`: of its tensors; empty for a folder of ours, or where there are none. May raise
        anything for bad values.
        """

    @property
    def shape(self) -> PolicyShape:
        """The policy in numbers."""

    def as_published(self, dtype: torch.dtype | None, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
        """The config.json of this policy in the layout that its family is published in; tensors
        keep their names.

        `dtype`: of the written tensors (None: of several types); `vocabulary`: name -> id, where
        the text tokenizer is known.
        """


class Policy(Protocol):
    """A `transformers.PreTrainedModel` with a language model's head, `lm_head`, and these. (peft's
    wrapper passes them on.)
    """

    config: PolicyConfig

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                position_ids: torch.Tensor | None = None, shared_prompts: PackedRow | None = None,
                logits_to_keep: int | torch.Tensor = 0, **kwargs: Any) -> Any:
        """`.logits` (B, L, vocabulary), image tokens included; `logits_to_keep`: as in
        transformers.

        With `shared_prompts`, `input_ids` (1, T) is the packed row they describe. Of a row with
        completions, the last hidden states are (completions, length + 1, hidden): those that
        predict each completion's tokens.
        """

    def make_decoder(self, prompts: Sequence[Sequence[int]], prompt_of_row: torch.Tensor,
                     max_new_tokens: int, max_span: int, code_ids: torch.Tensor,
                     cuda_graphs: bool = False) -> Decoder:
        """Compute the prompts, and be ready to continue them.

        `prompts`: distinct, lists of ids; `prompt_of_row` (R,): which one a row continues.
        `max_new_tokens`: tokens a row can be fed; `max_span`: tokens an unconditional branch can be
        fed (0: there will be none). `code_ids`: those of the image codes, ascending. `cuda_graphs`:
        record steps, and repeat them; changes nothing but the time.
        """

    def answer_modules(self) -> list[nn.Module]:
        """Modules that run, on a packed row of samples, only where an answer is predicted (for
        counting operations).
        """

    def prepare_for_cold_start(self, dropout: float) -> None:
        """Whatever makes supervised training faster and changes gradients by rounding only; and
        dropout, in training mode.

        `dropout`: the share, in [0, 1), that is dropped of what attention and MLP add to the
        residual stream.
        """


@dataclass(frozen=True)
class Family:
    """A base model.

    `config` and `policy`: classes that keep `PolicyConfig` and `Policy`; they are registered with
    Auto classes.

    `published`: `model_type` of folders that others published -> who did, for messages. `left_out`:
    what the names of tensors begin with that such folders hold beside the policy.
    """

    config: type
    policy: type
    published: Mapping[str, str]
    left_out: str
