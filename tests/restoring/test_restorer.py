"""The Restorer: exact sizes, words shared by tiles, no seams, the same result in any batches."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from realsr_r1 import Restorer
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.errors import UserError
from realsr_r1.restoring import Piece, Restoration
from realsr_r1.restoring.options import RestoreOptions
from realsr_r1.restoring.restoration import Photo

from ..small import photo, write_model

TEXTS = ("degradation", "rough_understand", "middle_understand", "final_understand")


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    """A small random policy with images of 32 px."""
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture(scope="module")
def restorer(model) -> Restorer:
    return Restorer.from_pretrained(model, "cpu", batch_size=6)


@pytest.fixture(scope="module")
def tiled(restorer) -> Restoration:
    """A photo of 80 x 60 px in six tiles."""
    return restorer.restore(photo("coffee", 80).crop((0, 0, 80, 60)))


def same(one: Restoration, other: Restoration) -> bool:
    first, second = ((result.final.tobytes(), result.text, result.tiles,
                      {name: image.tobytes() for name, image in result.images.items()})
                     for result in (one, other))
    return first == second


def test_the_package_offers_it_and_stays_light_without_it():
    code = "import sys, realsr_r1; assert 'torch' not in sys.modules; print(realsr_r1.Restorer.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True,
                          text=True, check=True).stdout == "Restorer\n"


@pytest.mark.parametrize(("size", "scale"), [((80, 60), 1), ((20, 15), 4), ((33, 70), 0.5), ((9, 120), 1),
                                             ((40, 30), 1.7), ((32, 32), 1), ((1, 1), 1)])
def test_the_result_has_exactly_the_size_asked_for(restorer, size, scale):
    result = restorer.restore(photo("coffee", 128).resize(size), scale)
    assert result.final.size == (round(size[0] * scale), round(size[1] * scale))
    assert result.final.mode == "RGB" and result.chain.is_well_formed
    assert result.rough.width <= result.middle.width <= result.images["final_image"].width


def test_photos_of_any_mode_are_taken(restorer):
    for mode in ("L", "RGBA", "P", "CMYK"):
        assert restorer.restore(photo("coffee", 32).convert(mode)).final.size == (32, 32)


def test_tiles_are_given_the_whole_photos_words(tiled):
    assert len(tiled.tiles) == 6
    words = {name: tiled.chain.sections[name] for name in TEXTS}
    for _, text in tiled.tiles:
        chain = parse_chain(text)
        assert chain.is_well_formed and {name: chain.sections[name] for name in TEXTS} == words


def test_with_own_words_each_tile_writes_a_chain_of_its_own(restorer, tiled):
    own = restorer.restore(photo("coffee", 80).crop((0, 0, 80, 60)), tile_text="own")
    assert own.text == tiled.text and [box for box, _ in own.tiles] == [box for box, _ in tiled.tiles]
    texts = [text for _, text in own.tiles]
    assert len(set(texts)) == 6 and tiled.text not in texts
    assert all(parse_chain(text).is_well_formed for text in texts)


def test_a_photo_of_one_image_is_written_as_the_engine_alone_writes_it(restorer):
    image = photo("astronaut", 32)
    [ids] = restorer.engine.generate(restorer.processor.encode_prompt(image), first_row=5).completion_ids
    text, images = restorer.processor.decode(ids)
    for tile_text in ("shared", "own"):
        result = restorer.restore(image, place=5, tile_text=tile_text)
        assert result.text == text and not result.tiles
        assert [found.tobytes() for found in result.images.values()] == [found.tobytes() for found in images]
        assert result.final.tobytes() == images[-1].tobytes()


def test_what_fitting_cuts_off_is_restored_too(restorer):
    image = photo("coffee", 40).crop((0, 0, 40, 20))  # fitted to 32 x 16 from a canvas of the same shape
    assert not restorer.restore(image).tiles
    result = restorer.restore(photo("coffee", 40).crop((0, 0, 40, 25)))  # fitted to 32 x 16 from 32 x 20
    assert result.final.size == (40, 25) and result.images["final_image"].size == (32, 16)
    assert [box[1] for box, _ in result.tiles] == [0, 2, 4] and result.tiles[1][1] == result.text


@pytest.mark.parametrize("tile_text", ["shared", "own"])
def test_a_photo_is_the_same_in_batches_of_any_size_and_beside_any_photos(model, restorer, tile_text):
    image, options = photo("coffee", 70), {"tile_text": tile_text}
    expected = restorer.restore(image, place=3, **options)
    for size in (5, 64):
        other = Restorer.from_pretrained(model, "cpu", batch_size=size)
        assert same(other.restore(image, place=3, **options), expected), size
    beside = [Photo(photo("astronaut", 32), 0), Photo(image, 3), Photo(photo("chelsea", 32), 1)]
    results = dict((item.place, result) for item, result in
                   restorer.restore_all(beside, RestoreOptions(**options)))
    assert same(results[3], expected) and same(results[1], restorer.restore(photo("chelsea", 32), place=1))
    assert not same(restorer.restore(image, place=4, **options), expected)


@pytest.mark.parametrize("size", [(32, 32), (80, 60), (40, 25)])
def test_the_stream_gives_the_sections_in_order_and_then_the_same_result(restorer, size):
    image = photo("coffee", 80).resize(size)
    *pieces, result = restorer.stream(image, place=2)
    assert same(result, restorer.restore(image, place=2))
    names = list(restorer.processor.chain.names())
    is_tiled = size == (80, 60)
    images = [section.name for section in restorer.processor.chain.images]
    assert [piece.name for piece in pieces] == names + images * is_tiled
    assert all(isinstance(piece, Piece) and (piece.kind == "image") == (piece.image is not None)
               for piece in pieces)
    assert [piece.is_preview for piece in pieces if piece.kind == "image"] == [True, True, True] * is_tiled \
        + [False] * 3
    for piece in pieces:
        if piece.kind == "text":
            assert piece.text == result.chain.sections[piece.name]
        elif not piece.is_preview:
            assert piece.image.tobytes() == result.images[piece.name].tobytes()


def test_pieces_come_while_the_chain_is_being_written(restorer):
    pieces = restorer.stream(photo("coffee", 32))
    assert next(pieces).name == "degradation"
    written = restorer.writer.tokens
    assert [piece.name for piece in (next(pieces), next(pieces))] == ["rough_understand", "rough_image"]
    assert restorer.writer.tokens == written
    pieces.close()
    assert restorer.restore(photo("coffee", 32)).chain.is_well_formed


def test_of_several_samples_each_tile_keeps_the_one_that_agrees_best(restorer, tiled):
    image = photo("coffee", 80).crop((0, 0, 80, 60))
    one, best = (restorer.restore(image, num_samples=count, pick="agreement") for count in (1, 4))
    assert same(one, tiled) and best.text == one.text
    assert best.scores["agreement of the first samples"] == one.scores["agreement"]
    assert best.scores["agreement"] > one.scores["agreement"]
    single = photo("coffee", 32)
    scores = [restorer.restore(single, num_samples=count, pick="piqe").scores["piqe"] for count in (1, 4)]
    assert scores[1] >= scores[0]


def test_colours_are_fixed_on_the_whole_result(restorer):
    image = photo("coffee", 80).crop((0, 0, 80, 60))
    for method in ("wavelet", "adain"):
        result = restorer.restore(image, color_fix=method)
        shift = numpy.asarray(result.final, float).mean((0, 1)) - numpy.asarray(image, float).mean((0, 1))
        assert abs(shift).max() <= 2
    assert restorer.restore(image, color_fix="none").final.tobytes() == result.images["final_image"].tobytes()


def test_the_photos_share_in_the_result_is_what_was_asked_for(restorer, tiled):
    image = photo("coffee", 80).crop((0, 0, 80, 60))
    mixed = restorer.restore(image, fidelity=0.25)
    wanted = 0.75 * numpy.asarray(tiled.final, float) + 0.25 * numpy.asarray(image, float)
    assert abs(numpy.asarray(mixed.final, float) - wanted).max() <= 1
    assert mixed.images["final_image"].tobytes() == tiled.images["final_image"].tobytes()
    assert (mixed.settings["fidelity"], tiled.settings["fidelity"]) == (0.25, 0.0)
    assert restorer.restore(image, fidelity=1).final.tobytes() == image.tobytes()


def seam_ratio(result: Restoration) -> float:
    """Mean step between neighbouring pixels across tile borders, by that at as many random places."""
    pixels = numpy.asarray(result.final, dtype=float)
    across = []
    for axis, start, end in ((1, 0, 2), (0, 1, 3)):
        steps = abs(numpy.diff(pixels, axis=axis)).mean(2)
        steps = steps if axis else steps.T  # (lines, places)
        borders = sorted({edge for box, _ in result.tiles for edge in (box[start], box[end])
                          if 0 < edge < steps.shape[1] + 1})
        random = numpy.random.default_rng(0).integers(0, steps.shape[1], (len(steps), len(borders)))
        across.append((steps[:, [border - 1 for border in borders]],
                       numpy.take_along_axis(steps, random, axis=1)))
    return sum(at.sum() for at, _ in across) / sum(elsewhere.sum() for _, elsewhere in across)


def test_tiles_leave_no_seams(tiny_model):
    """Beside what the photo itself has at these few places: the cup's rim lies on a border."""
    restorer, ratios = Restorer.from_pretrained(tiny_model, "cpu"), []
    for name in ("astronaut", "coffee"):
        small = photo(name, 130).crop((0, 20, 130, 109))
        result = restorer.restore(small)
        ratios.append(seam_ratio(result) / seam_ratio(replace(result, final=small)))
    assert sum(ratios) / 2 <= 1.1


def test_a_policy_that_runs_out_of_memory_is_asked_for_less(model, monkeypatch, capsys, tiled):
    restorer = Restorer.from_pretrained(model, "cpu", batch_size=6)
    make_decoder = restorer.engine.policy.make_decoder

    def full(prompts, *args, **kwargs):
        if len(prompts) > 4:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return make_decoder(prompts, *args, **kwargs)

    monkeypatch.setattr(restorer.engine.policy, "make_decoder", full)
    assert same(restorer.restore(photo("coffee", 80).crop((0, 0, 80, 60))), tiled)
    assert capsys.readouterr().out == "the GPU's memory is full; going on with 3 rows at a time\n"


def test_a_model_that_cant_be_tiled_says_so_and_gives_the_size_asked_for(model, tiny_model):
    restorer = Restorer.from_pretrained(tiny_model, "cpu", grammar="image")
    result = restorer.restore(photo("coffee", 80), name="a.png")
    assert result.final.size == (80, 80) and not result.tiles
    assert result.note == ("a.png was restored at 48 x 48 px and enlarged: only the grammar chain writes "
                           "tiles")


def test_a_photo_without_an_image_is_named(model):
    restorer = Restorer.from_pretrained(model, "cpu", grammar="image", max_new_tokens=4)
    with pytest.raises(UserError, match="the policy wrote no image for a.png in 4 tokens"):
        restorer.restore(photo("coffee", 32), name="a.png")


def test_the_settings_say_what_a_photo_was_made_with(model, tiled):
    settings = tiled.settings
    assert (settings["model"], settings["scale"], settings["tile"], settings["overlap"]) == (str(model), 1.0,
                                                                                             32, 4)
    assert settings["color_fix"] == "none" and settings["sampling"]["grammar"] == "chain"


def test_bad_options_are_named(restorer):
    for options, named in (({"scale": 0}, "--scale 0 must be"), ({"num_samples": 0}, "--num_samples 0 must"),
                           ({"tile": 40}, "--tile 40 must be a multiple of"),
                           ({"overlap": 32}, "--overlap 32 must be"),
                           ({"fidelity": 1.5}, "--fidelity 1.5 must be a number from 0 to 1"),
                           ({"color_fix": "x"}, "--color_fix x must be one of none, wavelet, adain"),
                           ({"tile_text": "x"}, "--tile_text x must be one of shared, own")):
        with pytest.raises(UserError, match=named):
            restorer.restore(Image.new("RGB", (32, 32)), **options)


def test_progress_counts_every_row(restorer):
    counts: list[tuple[int, int]] = []
    restorer.restore(photo("coffee", 80).crop((0, 0, 80, 60)), progress=lambda *count: counts.append(count))
    assert counts == [(7, 0), *[(0, 1)] * 7]
