"""Images in the stream: ids by name, one span there and back, and what is no complete span."""

from __future__ import annotations

import pytest

from realsr_r1.chain.tokens import (
    BOS,
    END_OF_TURN,
    IMAGE_END,
    IMAGE_START,
    NEW_LINE,
    PAD,
    TokenLayout,
    code_name,
    size_name,
)
from realsr_r1.core.errors import UserError

SPECIALS = (BOS, PAD, END_OF_TURN, IMAGE_START, IMAGE_END, NEW_LINE)


def vocabulary(codes: int = 12, units: int = 4) -> dict[str, int]:
    """Names scattered over ids, so that arithmetic on ids would be wrong."""
    names = [*(size_name(n) for n in range(1, units + 1)), *(code_name(c) for c in range(codes)), *SPECIALS,
             "hello"]
    return {name: (7 * place + 3) % 101 for place, name in enumerate(names)}


def layout(codes: int = 12, units: int = 4, grid_unit_px: int = 8, downsample: int = 4) -> TokenLayout:
    return TokenLayout.from_vocabulary(vocabulary(codes, units), codes, grid_unit_px, downsample)


def grid(rows: int, columns: int, codes: int = 12) -> tuple[tuple[int, ...], ...]:
    """A grid of codes for an image of `rows` x `columns` units of two codes."""
    return tuple(tuple((5 * row + column) % codes for column in range(2 * columns))
                 for row in range(2 * rows))


def test_names_are_those_of_lumina():
    assert [code_name(code) for code in (0, 9, 10, 1004, 16383)] == [
        "IMGIMGAZ", "IMGIMGJZ", "IMGIMGBAZ", "IMGIMGBAAEZ", "IMGIMGBGDIDZ"]
    assert size_name(1) == "<reserved08801>" and size_name(16) == "<reserved08816>"


def test_every_id_is_looked_up_by_name():
    names, found = vocabulary(), layout()
    assert (found.bos, found.pad, found.end_of_turn, found.image_start, found.image_end,
            found.new_line) == tuple(
        names[name] for name in SPECIALS)
    assert found.code_ids == tuple(names[code_name(code)] for code in range(12))
    assert found.size_ids == {units: names[size_name(units)] for units in range(1, 5)}
    assert found.vocab_size == max(names.values()) + 1


@pytest.mark.parametrize("name", [*SPECIALS, size_name(1), code_name(0), code_name(11)])
def test_a_missing_name_is_named(name):
    names = {key: token for key, token in vocabulary().items() if key != name}
    with pytest.raises(UserError, match=name.replace("|", r"\|")):
        TokenLayout.from_vocabulary(names, 12, 8, 4)


def test_a_codebook_that_does_not_fit_the_vocabulary_is_refused():
    with pytest.raises(UserError, match=code_name(12)):  # larger: the first code without a name
        TokenLayout.from_vocabulary(vocabulary(), 13, 8, 4)
    with pytest.raises(UserError, match="more image codes than the image tokenizer's 11"):
        TokenLayout.from_vocabulary(vocabulary(), 11, 8, 4)


def test_a_grid_unit_must_be_whole_codes():
    with pytest.raises(UserError, match="grid_unit_px 6 .* 4"):
        layout(grid_unit_px=6)


@pytest.mark.parametrize("rows, columns", [(1, 1), (2, 3), (4, 1)])
def test_a_span_is_read_back_as_it_was_written(rows, columns):
    tokens, codes = layout(), grid(rows, columns)
    span = tokens.span(codes)
    assert len(span) == tokens.span_length(rows, columns)
    assert span[:3] == [tokens.image_start, tokens.size_ids[rows], tokens.size_ids[columns]]
    assert span[-2:] == [tokens.new_line, tokens.image_end]
    text = [tokens.bos, 99, 99]
    (found,) = tokens.find_spans([*text, *span, *text])
    assert (found.start, found.stop, found.codes) == (3, 3 + len(span), codes)


def test_a_512_px_image_of_pure_takes_4164_tokens():
    found = layout(units=16, grid_unit_px=32, downsample=8)
    assert [found.span_length(units, units) for units in (4, 8, 16)] == [276, 1060, 4164]


@pytest.mark.parametrize("codes", [grid(1, 1)[:1], [row[:1] for row in grid(1, 1)], grid(5, 1), grid(1, 5)])
def test_a_grid_without_a_size_token_is_refused(codes):
    with pytest.raises(ValueError, match="has no size token"):
        layout().span(codes)


def test_broken_and_cut_spans_are_left_out():
    tokens = layout()
    good = tokens.span(grid(2, 1))

    def changed(place: int, token: int) -> list[int]:
        return [*good[:place], token, *good[place + 1:]]

    broken = [good[:-1], good[1:], changed(0, tokens.image_end), changed(1, tokens.size_ids[1]),
              changed(2, tokens.code_ids[0]), changed(3, tokens.new_line), changed(4, 99),
              changed(5, tokens.code_ids[0]), changed(len(good) - 1, tokens.new_line), good[:1], good[:2], []]
    for ids in broken:
        assert tokens.find_spans(ids) == [], ids
        assert [span.codes for span in tokens.find_spans([*ids, *good, 99])] == [grid(2, 1)], ids


def test_neighbouring_spans_are_found_in_order():
    tokens, first, second = layout(), grid(1, 2), grid(2, 1)
    spans = tokens.find_spans([*tokens.span(first), *tokens.span(second)])
    assert [span.codes for span in spans] == [first, second]
    assert spans[0].stop == spans[1].start




@pytest.mark.parametrize("shares", [(), (None, 1.0), (None, 0.5, None, 1.0, None), (0.5, 1.0)])
def test_the_bodies_of_a_chain_are_found_as_far_as_it_is_written(shares):
    from ..rollout.helpers import make_layout as chain_layout

    layout = chain_layout(untagged=shares)
    ids, expected = [], []
    for number, section in enumerate(layout.chain_form.sections):
        body = layout.span([[number, 1], [2, 3]]) if section.is_image else [26 + number, 27]
        ids += [*section.open_ids, *body, *section.close_ids]
        expected.append(body)
    ids.append(layout.end_of_turn)
    assert layout.chain_bodies(ids) == layout.chain_bodies(tuple(ids)) == expected
    found = [layout.chain_bodies(ids[:length]) for length in range(len(ids) + 1)]
    assert found[0] == [] and all(bodies == expected[:len(bodies)] for bodies in found)
    assert [len(bodies) for bodies in found] == sorted(len(bodies) for bodies in found)
    assert shares[:1] == (None,) or layout.chain_bodies([layout.new_line, *ids]) == []  # text may be anything
