"""The rollout as simply as it can be said: one row, one token, one whole forward without cache,
plain Python.

The truth the engine is compared with. Random numbers, grammar and sampling are written a second
time here on purpose.
"""

from __future__ import annotations

import math

import torch

from realsr_r1.chain.spec import image_sizes

_64_BITS = 2**64 - 1


def uniform(seed: int, step: int, row: int, position: int) -> float:
    """The number in [0, 1) of one token."""
    key = 0
    for counter in (seed, step, row, position):
        key = (key + (counter + 1) * 0x9E3779B97F4A7C15) & _64_BITS
        key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
        key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _64_BITS
        key ^= key >> 31
    return (key >> 11) * 2.0**-53


def distribution(scores: list[float], k: int, temperature: float) -> list[float]:
    """Top-k with ties kept, then temperature: scores to probabilities."""
    smallest = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
    weights = [math.exp((score - max(scores)) / temperature) if score >= smallest else 0.0
               for score in scores]
    return [weight / sum(weights) for weight in weights]


def entropy_k(scores: list[float], k_min: int, k_max: int) -> int:
    """Top-k at an image code."""
    weights = [math.exp(score - max(scores)) for score in scores]
    entropy = -sum(weight / sum(weights) * math.log(weight / sum(weights)) for weight in weights)
    entropy = min(max(entropy, 0.0), 10.0)
    return min(max(round(k_min + (k_max - k_min) / (1 + math.exp(5 - entropy))), 1), len(scores))


class ReferenceEngine:
    """One completion at a time."""

    def __init__(self, policy, layout, config):
        self.policy, self.layout, self.config = policy.eval(), layout, config

    def generate(self, prompt: list[int], step: int = 0,
                 row: int = 0) -> tuple[list[int], list[int], list[float]]:
        """One completion of one prompt: ids, sampled mask, and the log-probability each token was
        drawn with (forced: 0).
        """
        ids, sampled, log_q = [], [], []
        while len(ids) < self.config.max_new_tokens:
            choices = self.choices(prompt, ids)
            log_q.append(0.0)
            if len(choices) == 1:
                token = choices[0]
            else:
                scores = self.logits(prompt + ids)
                probabilities = self.probabilities(scores, ids, choices)
                token = choices[self._pick(probabilities, uniform(self.config.seed, step, row, len(ids)))]
                log_q[-1] = math.log(probabilities[choices.index(token)])
            sampled.append(int(len(choices) > 1))
            ids.append(token)
            if token == self.layout.end_of_turn:
                break
        return ids, sampled, log_q

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return self.policy(torch.tensor([ids])).logits[0, -1].double()

    def probabilities(self, scores: torch.Tensor, ids: list[int], choices: list[int]) -> list[float]:
        """Of each of `choices`, in order of ids, from the conditional scores of all ids."""
        config, scores = self.config, scores[choices]
        if set(choices) <= set(self.layout.code_ids):
            if config.guidance_scale != 1.0:
                free = self.logits(self._span(ids))[choices]
                scores = free + config.guidance_scale * (scores - free)
            k = entropy_k(scores.tolist(), config.image_top_k_min, config.image_top_k_max)
        elif config.grammar == "rows" and self._span(ids):
            k = entropy_k(scores.tolist(), config.image_top_k_min, config.image_top_k_max)
        else:
            k = config.text_top_k
        return distribution(scores.tolist(), k, config.temperature)

    @staticmethod
    def _pick(probabilities: list[float], number: float) -> int:
        total = 0.0
        for index, probability in enumerate(probabilities):
            total += probability
            if total > number:
                return index
        return max(index for index, probability in enumerate(probabilities) if probability > 0)

    def choices(self, prompt: list[int], ids: list[int]) -> list[int]:
        """The ids the grammar leaves, ascending."""
        span = self._span(ids)
        if self.config.grammar == "chain":
            return self._chain_choices(prompt, ids)
        if self.config.grammar == "rows":
            return self._rows_choices(span or [])
        return self._text_choices(len(ids)) if span is None else self._span_choices(span,
                                                                                    len(ids) - len(span))

    def _span(self, ids: list[int]) -> list[int] | None:
        """The image that is being written, or None in text."""
        layout, place = self.layout, 0
        while layout.image_start in ids[place:]:
            start = ids.index(layout.image_start, place)
            sizes = [layout.units_of_id.get(token, math.inf) for token in ids[start + 1:start + 3]]
            if len(sizes) < 2 or layout.span_length(*sizes) > len(ids) - start:
                return ids[start:]
            place = start + layout.span_length(*sizes)
        return None

    def _rows_choices(self, span: list[int]) -> list[int]:
        if len(span) < 3:
            return list(range(self.layout.vocab_size))
        return self._body_choices(span, *(self.layout.units_of_id.get(token, math.inf)
                                          for token in span[1:3]))

    def _text_choices(self, written: int) -> list[int]:
        layout = self.layout
        banned = {*layout.code_ids, *layout.size_ids.values(), layout.image_end, layout.new_line, layout.pad,
                  layout.bos}
        smallest = min(layout.size_ids)
        if written + layout.span_length(smallest, smallest) > self.config.max_new_tokens:
            banned.add(layout.image_start)
        return [token for token in range(layout.vocab_size) if token not in banned]

    def _span_choices(self, span: list[int], before: int) -> list[int]:
        layout = self.layout
        room = self.config.max_new_tokens - before
        if len(span) == 1:
            return sorted(token for rows, token in layout.size_ids.items()
                          if min(layout.span_length(rows, columns) for columns in layout.size_ids) <= room)
        rows = layout.units_of_id[span[1]]
        if len(span) == 2:
            return sorted(token for columns, token in layout.size_ids.items()
                          if layout.span_length(rows, columns) <= room)
        return self._body_choices(span, rows, layout.units_of_id[span[2]])

    def _end_of_body(self, number: int) -> int:
        """What ends the text of section `number`: the first id of what comes after it."""
        layout, form = self.layout, self.layout.chain_form
        after = [*form.sections[number].close_ids]
        for later in form.sections[number + 1:]:
            after += [*later.open_ids, *([layout.image_start] if later.is_image else []), *later.close_ids]
        return [*after, layout.end_of_turn][0]

    def _body_choices(self, span: list[int], rows: int, columns: int) -> list[int]:
        layout = self.layout
        if len(span) == layout.span_length(rows, columns) - 1:
            return [layout.image_end]
        width = columns * layout.codes_per_unit
        return [layout.new_line] if (len(span) - 3) % (width + 1) == width else sorted(layout.code_ids)

    def _chain_choices(self, prompt: list[int], ids: list[int]) -> list[int]:
        """Walk the chain from its start: what can follow `ids`?"""
        layout, form = self.layout, self.layout.chain_form
        sizes = list(self.config.image_sizes or image_sizes(
            form.shares, *(side // layout.codes_per_unit for side in
              (len(layout.find_spans(prompt)[-1].codes), len(layout.find_spans(prompt)[-1].codes[0])))))
        position = 0
        for number, section in enumerate(form.sections):
            for token in section.open_ids:
                if position == len(ids):
                    return [token]
                position += 1
            if section.is_image:
                rows, columns = sizes.pop(0)
                for token in (layout.image_start, layout.size_ids[rows], layout.size_ids[columns]):
                    if position == len(ids):
                        return [token]
                    position += 1
                stop = position - 3 + layout.span_length(rows, columns)
                if len(ids) < stop:
                    return self._body_choices(ids[position - 3:], rows, columns)
                position = stop
            else:
                body, end = 0, self._end_of_body(number)
                while position < len(ids) and ids[position] != end:
                    position, body = position + 1, body + 1
                if position == len(ids):
                    rest = len(section.close_ids) + 1 + sum(
                        len(later.open_ids) + len(later.close_ids) for later in form.sections[number + 1:])
                    rest += sum(layout.span_length(*size) for size in sizes)
                    is_full = len(ids) + 1 + rest > self.config.max_new_tokens
                    if body == self.config.max_text_tokens or is_full:
                        return [end]
                    return sorted({*form.body_ids, end})
            for token in section.close_ids:
                if position == len(ids):
                    return [token]
                position += 1
        return [layout.end_of_turn]
