"""Of several samples the judge's best one is taken."""

from __future__ import annotations

import pytest
from PIL import ImageFilter

from realsr_r1.core.errors import UserError
from realsr_r1.restoring.picking import agreement, best_of, make_judge

from ..small import photo


def test_agreement_prefers_what_looks_like_the_input_from_afar():
    lq = photo("coffee", 64)
    sharpened, other, tinted = lq.filter(ImageFilter.SHARPEN), photo("astronaut", 64), lq.point(
        lambda value: value // 2)
    scores = agreement([other, lq, tinted, sharpened, lq.resize((32, 32))], lq)
    assert scores[1] == 1.0 and scores[3] > 0.98 and scores[4] > 0.98
    assert scores[2] < 0.9 and scores[0] < scores[3]


def test_an_expert_without_a_reference_can_judge():
    clean = photo("coffee", 64)
    scores = make_judge("piqe", "cpu")([clean, clean.filter(ImageFilter.GaussianBlur(4))], clean)
    assert best_of(scores) == [0] and all(0 <= score <= 1 for score in scores)


def test_experts_that_need_the_original_and_unknown_ones_are_refused():
    with pytest.raises(UserError, match="--pick ssim compares with the original .* agreement"):
        make_judge("ssim", "cpu")
    with pytest.raises(UserError, match="no_such"):
        make_judge("no_such", "cpu")


def test_of_equal_scores_the_first_is_taken():
    assert best_of([0.5, 0.7, 0.7]) == [1]
    assert best_of([0.5, 0.7, 0.9, 0.7], 3) == [2, 1, 3]
