"""With branching the judge's best candidates go on from image to image, and each is what it would be
alone.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from PIL import Image

from realsr_r1 import Restorer
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.errors import UserError
from realsr_r1.core.images import scale_to
from realsr_r1.restore import main
from realsr_r1.restoring.branching import Branching
from realsr_r1.restoring.picking import agreement, best_of
from realsr_r1.rollout import RolloutEngine

from ..small import exit_code, photo, write_model
from .test_restorer import TEXTS, same


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture(scope="module")
def restorer(model) -> Restorer:
    """In float64, so that a row is the same in batches of any size."""
    return Restorer.from_pretrained(model, "cpu", torch.float64, batch_size=24)


class Brightness:
    """A judge that likes bright images, and remembers the inputs it was shown."""

    def __init__(self):
        self.inputs = []

    def __call__(self, images, lq):
        self.inputs.append(lq)
        return [image.getpixel((0, 0))[0] / 255 for image in images]


def grey(ids):
    return Image.new("RGB", (16, 8), (ids[0],) * 3)


def test_the_best_go_on_judged_beside_the_input_at_their_own_size():
    judge, view = Brightness(), photo("coffee", 32).crop((0, 0, 32, 16))
    branching = Branching((4, 2, 1), [photo("astronaut", 32), view], judge, grey)
    assert sorted(branching(1, 0, {0: [9], 1: [200], 2: [50], 3: [199]})) == [1, 3]
    assert judge.inputs[0].tobytes() == scale_to(view, (16, 8)).tobytes()
    assert branching(1, 1, {1: [7], 3: [7]}) == [1]  # of equal ones the first
    assert branching(1, 2, {1: [7]}) == [1] and len(judge.inputs) == 2


def test_where_all_go_on_nobody_is_asked():
    judge = Brightness()
    branching = Branching((3, 3, 2), [photo("coffee", 32)], judge, grey)
    assert sorted(branching(0, 0, {0: [1], 1: [2], 2: [3]})) == [0, 1, 2]
    assert not judge.inputs


def test_the_result_is_the_sample_that_wins_at_every_image(restorer):
    image, engine = photo("coffee", 32), restorer.engine
    config = dataclasses.replace(engine.config, num_generations=6)
    engine = RolloutEngine(engine.policy, engine.layout, config)
    samples = engine.generate(restorer.writer.prompt(image), rows=[3 + sample * 2**48 for sample in range(6)])
    decoded = [restorer.processor.decode(ids) for ids in samples.completion_ids]
    left = list(range(6))
    for number, count in ((0, 3), (1, 2), (2, 1)):
        shown = [decoded[sample][1][number] for sample in left]
        scores = agreement(shown, scale_to(image, shown[0].size))
        left = [left[place] for place in sorted(best_of(scores, count))]
    text, images = decoded[left[0]]
    result = restorer.restore(image, place=3, branch=(6, 3, 2))
    assert result.text == text
    assert [found.tobytes() for found in result.images.values()] == [found.tobytes() for found in images]
    assert result.scores == {"agreement": pytest.approx(agreement(images[-1:], image)[0])}
    assert result.settings["branch"] == (6, 3, 2) and result.settings["pick"] == "agreement"


def test_the_judge_that_is_named_decides(restorer):
    image = photo("coffee", 32)
    one, other = (restorer.restore(image, branch=(6, 1, 1), pick=pick) for pick in ("agreement", "piqe"))
    assert one.text != other.text and set(other.scores) == {"piqe"}


def test_equal_numbers_are_whole_samples_and_falling_ones_cost_fewer_passes(restorer):
    image, passes = photo("coffee", 60), []
    results = []
    for options in ({"num_samples": 4}, {"branch": (4, 4, 4)}, {"branch": (4, 2, 1)}, {}):
        before = restorer.writer.row_passes
        results.append(restorer.restore(image, **options))
        passes.append(restorer.writer.row_passes - before)
    assert same(results[0], results[1]) and passes[0] == passes[1] > passes[2] > passes[3]
    assert not same(results[2], results[3])


@pytest.mark.parametrize("tile_text", ["shared", "own"])
def test_each_tile_branches_by_itself_and_keeps_the_words_it_was_given(restorer, tile_text):
    result = restorer.restore(photo("coffee", 80).crop((0, 0, 80, 60)), branch=(4, 2, 1), tile_text=tile_text)
    words = {name: result.chain.sections[name] for name in TEXTS}
    chains = [parse_chain(text) for _, text in result.tiles]
    assert len(chains) == 6 and all(chain.is_well_formed for chain in chains)
    assert all((({name: chain.sections[name] for name in TEXTS} == words) == (tile_text == "shared"))
               for chain in chains)


def test_tiles_are_the_same_in_batches_of_any_size(model):
    """In float32 too: a batch is filled up, so that sums are done in the same order to the end."""
    results = [Restorer.from_pretrained(model, "cpu", batch_size=size).restore(
        photo("coffee", 60), branch=(4, 2, 1)) for size in (4, 12, 64)]
    assert len(results[0].tiles) == 4 and all(same(result, results[0]) for result in results[1:])


def test_the_stream_gives_the_same_result(restorer):
    image = photo("coffee", 32)
    *pieces, result = restorer.stream(image, branch=(4, 2, 1))
    assert same(result, restorer.restore(image, branch=(4, 2, 1)))
    assert [piece.name for piece in pieces] == list(restorer.processor.chain.names())


@pytest.mark.parametrize(("flags", "named"), [
    (("--branch", "4,5,1"), "--branch 4,5,1 must be numbers of at least 1 that don't rise, like 4,2,1"),
    (("--branch", "4,2,0"), "--branch 4,2,0 must be numbers of at least 1"),
    (("--branch", "4;2"), "--branch 4;2 must be whole numbers with commas between them, like 4,2,1"),
    (("--branch", "4,2,1", "--num_samples", "3"), "--num_samples 3 and --branch 4,2,1 exclude each other"),
    (("--branch", "4,2"), "--branch 4,2 has 2 numbers; this model's chain has 3 images (rough, middle, fin"),
    (("--branch", "4,2,1", "--grammar", "image"), "--branch 4,2,1 needs --grammar chain"),
    (("--branch", "4,2,1", "--pick", "ssim"), "--pick ssim compares with the original")])
def test_what_cant_be_branched_is_refused_in_one_line(model, tmp_path, capsys, flags, named):
    photo("coffee", 32).save(tmp_path / "coffee.png")
    argv = ["--model", str(model), "--input", str(tmp_path / "coffee.png"), "--output", str(tmp_path / "out")]
    assert exit_code(main, [*argv, "--device", "cpu", *flags]) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_numbers_are_no_branching(restorer):
    with pytest.raises(UserError, match="--branch  must be numbers"):
        restorer.restore(photo("coffee", 32), branch=())


def test_a_branched_folder_is_known_as_done(model, tmp_path, capsys):
    photo("coffee", 32).save(tmp_path / "coffee.png")
    argv = ["--model", str(model), "--input", str(tmp_path / "coffee.png"), "--output", str(tmp_path / "out"),
            "--device", "cpu", "--branch", "4,2,1"]
    assert exit_code(main, argv) == exit_code(main, argv) == 0
    assert "1 of 1 photos are restored" in capsys.readouterr().out
    assert exit_code(main, [*argv[:-1], "4,1,1"]) == 2
    assert "restored by another model or with other flags" in capsys.readouterr().err
