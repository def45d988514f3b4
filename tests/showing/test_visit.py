"""A visit: what is read and refused, and how a restoration is told while it goes on."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.core.pictures import as_picture
from realsr_r1.restoring import Restorer
from realsr_r1.showing import visit
from realsr_r1.showing.examples import write_examples
from realsr_r1.showing.render import ChainView, message_html, progress_html
from realsr_r1.showing.turns import Turns


@pytest.fixture(scope="module")
def restorer(tiny_model):
    return Restorer.from_pretrained(tiny_model, device="cpu")


@pytest.fixture
def picture(photos_dir):
    with Image.open(photos_dir / "coffee.png") as image:
        return as_picture(image.convert("RGB").resize((60, 40)))


def test_sections_are_told_in_order_images_among_them_and_then_the_result(restorer, picture):
    order, image_at, last = [], None, None
    for moment in visit.restore(restorer, Turns(0), picture, "coffee.png", visit.Wish(seed=5)):
        order += [name for name in moment.pieces if name not in order]
        if image_at is None and any(piece.image for piece in moment.pieces.values()):
            image_at = len(order)
        last = moment
    assert order == [section.name for section in restorer.processor.chain.sections]
    assert image_at < len(order)
    assert last.result.final.size == (60, 40) and last.rows_done == last.rows > 1
    assert last.result.settings["sampling"]["seed"] == 5


def test_the_visitors_settings_reach_the_restoration(restorer, picture):
    wish = visit.Wish(0.5, "own", "adain", 2, 1.1, 9)
    *_, last = visit.restore(restorer, Turns(0), picture, "coffee.png", wish)
    settings = last.result.settings
    assert {name: settings[name] for name in ("scale", "tile_text", "color_fix", "num_samples")} == {
        "scale": 0.5, "tile_text": "own", "color_fix": "adain", "num_samples": 2}
    assert (settings["sampling"]["temperature"], settings["sampling"]["seed"]) == (1.1, 9)
    assert last.result.final.size == (30, 20)
    assert restorer.engine.config.seed != 9  # the next visitor begins with the page's own


def test_a_second_visitor_waits_and_begins_when_the_first_has_left(restorer, picture):
    turns = Turns(1)
    first = visit.restore(restorer, turns, picture, "a.png", visit.Wish())
    next(first)
    second = visit.restore(restorer, turns, picture, "b.png", visit.Wish())
    assert next(second).ahead == 1
    with pytest.raises(UserError, match="1 more photo is waiting"):
        next(visit.restore(restorer, turns, picture, "c.png", visit.Wish()))
    first.close()
    *_, last = second
    assert last.ahead == 0 and last.result is not None
    assert next(visit.restore(restorer, turns, picture, "d.png", visit.Wish())).ahead == 0


def test_one_who_leaves_while_waiting_makes_room(restorer, picture):
    turns = Turns(1)
    running = turns.take()
    waiting = visit.restore(restorer, turns, picture, "a.png", visit.Wish())
    assert next(waiting).ahead == 1
    waiting.close()
    assert turns.take().wait(0) == 1
    running.end()


def test_a_failure_is_told_in_words_and_the_next_one_can_go_on(restorer, picture, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("out of luck")
        yield

    turns = Turns(0)
    with monkeypatch.context() as patched:
        patched.setattr(Restorer, "stream", fails)
        with pytest.raises(UserError, match=r"The restoration failed on the server \(out of luck\)"):
            list(visit.restore(restorer, turns, picture, "a.png", visit.Wish()))
    assert turns.take().wait(30) == 0


def test_a_settings_value_out_of_range_is_told(restorer, picture):
    with pytest.raises(UserError, match="temperature is -1"):
        list(visit.restore(restorer, Turns(0), picture, "a.png", visit.Wish(temperature=-1)))


@pytest.mark.parametrize("size, best, allowed", [
    ((800, 600), 1.0, [0.25, 0.5, 1.0]), ((4032, 3024), 0.25, [0.25]), ((100, 100), 1.0, list(visit.SCALES)),
    ((1024, 1024), 1.0, [0.25, 0.5, 1.0]), ((9000, 7000), 0.25, [])])
def test_the_size_of_the_result_has_a_limit(size, best, allowed):
    most = 1024**2
    assert visit.best_scale(size, most) == best
    for scale in visit.SCALES:
        if scale in allowed:
            visit.check_size(size, scale, most)
        else:
            advice = f"choose {visit.scale_name(allowed[-1])} or less" if allowed else "scale the photo down"
            with pytest.raises(UserError, match=rf"million pixels; this page makes at most 1.0.*{advice}"):
                visit.check_size(size, scale, most)


def test_a_file_that_is_refused_is_called_by_its_name_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    for name, reason in (("notes.txt", "can't be read as an image"), ("bomb.png", "has 10000x10000 px")):
        with pytest.raises(UserError, match=f"^{name} {reason}"):
            visit.read_photo(tmp_path / name)


def test_what_the_model_writes_is_text_on_the_page(restorer):
    from realsr_r1.restoring.restoration import Piece

    chain = restorer.processor.chain
    piece = Piece("rough_understand", "rough", "text", "<script>alert(1)</script>")
    page = ChainView(chain, (3, 2)).html(visit.Moment(pieces={piece.name: piece}))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<b>" not in message_html("<b>.png can't be read", "bad")


def test_the_line_says_what_is_being_done(restorer):
    chain = restorer.processor.chain
    assert "yours is next" in progress_html(chain, visit.Moment(ahead=1))
    assert "3 photos are ahead" in progress_html(chain, visit.Moment(ahead=3))
    assert "Writing: degradation" in progress_html(chain, visit.Moment(seconds=2))
    done = {section.name: None for section in chain.sections}
    assert "2 of 8 tiles" in progress_html(chain, visit.Moment(pieces=done, rows_done=3, rows=9))


def test_examples_are_small_degraded_photos_and_the_same_each_time(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = write_examples(tmp_path / "a"), write_examples(tmp_path / "b")
    assert len(first) >= 3 and [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        with Image.open(one) as left, Image.open(other) as right:
            assert min(left.size) == 144 and (numpy.asarray(left) == numpy.asarray(right)).all()
