"""What the other packages may ask of a policy, whatever its base model is.

Rollout, training, planning, export and loading use it. A base model is a `Family`: a config class
(`PolicyConfig`) and a policy class (`Policy`), which `realsr_r1.models.families` lists. Plain data
that go between them are also here: `PolicyShape` (a policy in numbers) and `PackedRow`
(how tokens lie in a row).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import nn

from realsr_r1.core.errors import UserError

# The names of a layer's matrices in every family; transformers' Llama and later models use them.
LAYER_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

# What a policy's sizes may be. Building one beyond them would take minutes before it failed.
MOST = {"hidden": 2**16, "intermediate": 2**18, "layers": 512, "heads": 2**10, "kv_heads": 2**10,
        "vocabulary": 2**22}


@dataclass(frozen=True)
class PolicyShape:
    """Sizes of a policy: a decoder with gated MLPs and two RMS norms in each layer.

    There may also be norms of queries and keys. `query_norm_rows` and `key_norm_rows` are the
    numbers of their rows, 0 where there are no such norms. A row has the width of a head and holds
    scale and shift.
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

    def check(self) -> None:
        """Raise `UserError` for sizes that no policy has."""
        for name, most in MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise UserError(f"it has {getattr(self, name)} {name} (from 1 to {most} are read)")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """The width of one token's keys, which is also that of its values."""
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
        """The number of weights in all layers' matrices; the head isn't counted."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices.values())

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """The number of all parameters: layers, last norm, embedding and head."""
        norms = 2 * self.hidden + 2 * self.head_dim * (self.query_norm_rows + self.key_norm_rows)
        biases = (self.attention_bias * 2 * (self.hidden + self.kv_width)
                  + self.mlp_bias * (2 * self.intermediate + self.hidden))
        return (self.matrix_parameters + self.layers * (norms + biases) + self.hidden
                + self.head_parameters * (1 if self.tied else 2))


@dataclass(frozen=True)
class PackedRow:
    """How tokens lie in one row: for each group its prompt, then its completions of equal length.

    `groups`: (tokens of the prompt, number of completions), in order. `length`: tokens of every
    completion in the row; shorter ones are padded at the end, where nothing looks. A completion
    sees its prompt and itself. A group without completions is a whole sample, which sees only
    itself.
    """

    groups: tuple[tuple[int, int], ...]
    length: int

    @classmethod
    def of_samples(cls, lengths: Iterable[int]) -> PackedRow:
        """Return a row of whole samples of these lengths, each of which sees only itself."""
        return cls(tuple((length, 0) for length in lengths), 0)

    @property
    def has_completions(self) -> bool:
        """Whether any group has completions (otherwise the row holds samples)."""
        return any(count for _, count in self.groups)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """For a row of samples: (tokens of a sample, number of neighbours of that length)."""
        return [(length, len(list(run))) for length, run in groupby(length for length, _ in self.groups)]

    @property
    def lengths(self) -> list[int]:
        """The tokens of each group's prompt and of all its completions, in the row's order."""
        return [tokens for prompt, count in self.groups for tokens in (prompt, count * self.length)]

    def spans(self) -> Iterator[tuple[slice, slice, int]]:
        """Yield for each group where its prompt is, where its completions are, and their number."""
        start = 0
        for prompt_length, count in self.groups:
            middle = start + prompt_length
            end = middle + count * self.length
            yield slice(start, middle), slice(middle, end), count
            start = end

    def positions(self) -> torch.Tensor:
        """Return the positions of the packed tokens, (1, T) int64.

        Positions of a completion go on from its prompt.
        """
        pieces = []
        for prompt_length, count in self.groups:
            own = torch.arange(prompt_length, prompt_length + self.length)
            pieces += [torch.arange(prompt_length), own.repeat(count)]
        return torch.cat(pieces)[None]

    def predecessors(self) -> torch.Tensor:
        """Return the places whose states predict completions, (completions, length + 1) int64.

        The first place of a completion is its prompt's last token. The state at its last place
        predicts what follows the completion's last token.
        """
        rows = []
        for prompt, own, count in self.spans():
            first = torch.full((count, 1), prompt.stop - 1)
            rows.append(torch.cat((first, torch.arange(own.start, own.stop).view(count, self.length)), dim=1))
        return torch.cat(rows)


class Decoder(Protocol):
    """A policy that continues N distinct prompts in R rows and caches what it has computed.

    While a row writes an image it may have an unconditional branch: a second row that sees only the
    image's tokens, at positions from 0. Branches have slots of their own. `U` below is the
    present number of branches.
    """

    prompt_states: torch.Tensor  # (N, hidden): the hidden state of each prompt's last token
    prompt_of_row: torch.Tensor  # (R,) int64

    @property
    def first_rows(self) -> torch.Tensor:
        """Return the first row of each prompt, (N,)."""

    def by_prompt(self, values: torch.Tensor) -> torch.Tensor:
        """Lay one value for each row, (R,), out by prompt, (N, largest group).

        The places that fill up a smaller group have no meaning.
        """

    def by_row(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values in the order of rows: the inverse of `by_prompt`."""

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states (n, hidden) into scores of all ids, (n, vocabulary).

        They are at least float32.
        """

    def code_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Turn hidden states (n, hidden) into scores of the image codes, (n, codes).

        They are at least float32.
        """

    def step(self, tokens: torch.Tensor, rows: torch.Tensor, places: torch.Tensor,
             branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row its token, and the branches of `rows` (U,) the same tokens.

        `tokens` (R,). The branch of `rows[i]` is in slot i. `places` (U,): positions of these
        tokens in their images. `branch_columns`: at least the largest place + 1. Returns hidden
        states (R, hidden) and (U, hidden).
        """

    def feed(self, tokens: torch.Tensor, starts: torch.Tensor, own_columns: int, rows: torch.Tensor,
             places: torch.Tensor, branch_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Feed every row n tokens (R, n), and the branches of `rows` the same tokens.

        `starts` (R,): the place of the first of them in the row's completion; what the row was fed
        from there on before is forgotten. `own_columns`: the largest start + n. `places` (U,): the
        places of the first tokens in their images. `branch_columns`: at least the largest place +
        n. Don't mix with `step`. Returns hidden states (R, n, hidden) and (U, n, hidden).
        """

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep only these rows, (n,) int64."""

    def keep_slots(self, slots: torch.Tensor, branch_columns: int) -> None:
        """Move the branches in `slots` (n,) to slots 0 to n-1.

        `branch_columns`: the number of columns of their caches in use.
        """


class PolicyConfig(Protocol):
    """A `transformers.PreTrainedConfig` with transformers' names, and the members below.

    The names are `vocab_size`, `hidden_size`, ...
    """

    model_type: str  # the one that our own folders have

    @classmethod
    def from_folder(cls, raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> PolicyConfig:
        """Make the config of a folder, ours or published; `raw` is its config.json.

        `shapes`: of its tensors; empty for one of our folders, or where there are no tensors. May
        raise any exception for bad values.
        """

    @property
    def shape(self) -> PolicyShape:
        """The policy in numbers."""

    def as_published(self, dtype: torch.dtype | None, vocabulary: Mapping[str, int] | None) -> dict[str, Any]:
        """Return the policy's config.json in the layout that its family is published in.

        Tensors keep their names. `dtype`: the type of the written tensors (None: several types).
        `vocabulary`: name -> id, where the text tokenizer is known.
        """


class Policy(Protocol):
    """A `transformers.PreTrainedModel` with a language model's head, and the members below.

    The head is `lm_head`. peft's wrapper passes the members on.
    """

    config: PolicyConfig

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                position_ids: torch.Tensor | None = None, shared_prompts: PackedRow | None = None,
                logits_to_keep: int | torch.Tensor = 0, **kwargs: Any) -> Any:
        """Return an object with `.logits` (B, L, vocabulary), image tokens included.

        `logits_to_keep`: as in transformers. With `shared_prompts`, `input_ids` (1, T) is the
        packed row that they describe. For a row with completions, the last hidden states are
        (completions, length + 1, hidden): those that predict each completion's tokens.
        """

    def make_decoder(self, prompts: Sequence[Sequence[int]], prompt_of_row: torch.Tensor,
                     max_new_tokens: int, max_span: int, code_ids: torch.Tensor,
                     cuda_graphs: bool = False, int8_caches: bool = False) -> Decoder:
        """Compute the prompts, and return a decoder that continues them.

        `prompts`: distinct lists of ids. `prompt_of_row` (R,): the prompt that a row continues.
        `max_new_tokens`: how many tokens a row can be fed. `max_span`: how many tokens an
        unconditional branch can be fed (0: there will be none). `code_ids`: ids of the image codes,
        ascending. `cuda_graphs`: whether to record steps and repeat them, which changes nothing but
        the time. `int8_caches`: whether keys and values are kept as int8, which is less exact.
        """

    def answer_modules(self) -> list[nn.Module]:
        """Return the modules that run only where an answer is predicted.

        This is so on a packed row of samples; it is used to count operations.
        """

    def prepare_for_cold_start(self, dropout: float) -> None:
        """Make supervised training faster, and add dropout in training mode.

        What makes it faster may change gradients by rounding only. `dropout`: the share, in [0, 1),
        that is dropped of what attention and MLP add to the residual stream.
        """


@dataclass(frozen=True)
class Family:
    """A base model.

    `config` and `policy`: classes that fulfil `PolicyConfig` and `Policy`; they are registered with
    transformers' Auto classes. `published`: `model_type` of published folders -> who publishes
    them, for messages. `left_out`: how the names of those tensors begin that such folders hold
    besides the policy's.
    """

    config: type
    policy: type
    published: Mapping[str, str]
    left_out: str
