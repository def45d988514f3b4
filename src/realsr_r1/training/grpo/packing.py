"""From TRL's padded microbatch to a packed row in which every group has its prompt once.

Knows TRL's tensors (prompts padded at the left, completions at the right);
`realsr_r1.models.protocol.PackedRow` says what the row means to the layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from realsr_r1.models.protocol import PackedRow

IGNORED = -100  # label that is not scored


@dataclass(frozen=True)
class PackedGroups:
    """`input_ids` (1, T), `labels` (B, longest completion) and the layout of the row.

    `labels` are `IGNORED` where a completion has ended.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    layout: PackedRow


def pack_groups(input_ids: torch.Tensor, attention_mask: torch.Tensor,
                completion_length: int) -> PackedGroups:
    """Pack B rows of prompt + completion into one row.

    `input_ids`, `attention_mask`: (B, L); the last `completion_length` columns are the completions.
    Neighbours with the same prompt share it. A completion's last token isn't fed, because nothing
    is predicted from it. Completions that are masked throughout have no label that is scored.
    """
    prompts, completions = input_ids[:, :-completion_length], input_ids[:, -completion_length:]
    prompt_mask = attention_mask[:, :-completion_length]
    completion_mask = attention_mask[:, -completion_length:]
    differs = ((prompts[1:] != prompts[:-1]) | (prompt_mask[1:] != prompt_mask[:-1])).any(-1)
    # One transfer from the device for the whole microbatch.
    facts = torch.cat((differs.long(), prompt_mask.sum(-1), completion_mask.sum(-1).max()[None])).tolist()
    count = len(input_ids)
    differs, prompt_lengths = facts[:count - 1], facts[count - 1:-1]
    # Where no completion counts (all were cut, and are masked) one place stays, which is not scored.
    longest = max(1, facts[-1])
    starts = [0, *(row + 1 for row, new in enumerate(differs) if new), count]
    pieces, groups = [], []
    for start, stop in zip(starts, starts[1:], strict=False):
        pieces += [prompts[start, prompts.shape[1] - prompt_lengths[start]:],
                   completions[start:stop, :longest - 1].flatten()]
        groups.append((prompt_lengths[start], stop - start))
    labels = completions.masked_fill(completion_mask == 0, IGNORED)[:, :longest]
    return PackedGroups(torch.cat(pieces)[None], labels, PackedRow(tuple(groups), longest - 1))
