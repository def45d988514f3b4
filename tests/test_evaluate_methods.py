"""realsr-r1 evaluate with several methods, in batches, stopped in the middle, and as text for papers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image

from realsr_r1 import evaluate
from realsr_r1.core.errors import UserError
from realsr_r1.measuring import scoring
from realsr_r1.measuring.metrics import METRICS, OFFLINE_METRICS, Scorer, load_metrics

from .small import photo

NAMES = ("astronaut", "chelsea", "coffee")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """gt/, and restored by two methods: good/ with little noise, bad/ with much."""
    for folder, sigma in (("gt", 0), ("good", 5), ("bad", 25)):
        (tmp_path / folder).mkdir()
        for name in NAMES:
            pixels = numpy.asarray(photo(name, 64)).astype(float)
            pixels += numpy.random.default_rng(len(name)).normal(0, sigma, pixels.shape)
            image = Image.fromarray(pixels.round().clip(0, 255).astype("uint8"))
            image.save(tmp_path / folder / f"{name}.png")
    return tmp_path


def run(folder: Path, *restored: str, output: str = "out", more: tuple[str, ...] = ()) -> dict:
    assert evaluate.main(["--restored", *restored, "--gt", str(folder / "gt"), "--output",
                          str(folder / output), "--metrics", "psnr,ssim,piqe", *more]) == 0
    return json.loads((folder / output / "metrics.json").read_text(encoding="utf-8"))


def test_methods_stand_side_by_side_with_paired_differences(folders, capsys):
    both = run(folders, f"ours={folders / 'good'}", f"theirs={folders / 'bad'}")
    alone = {name: run(folders, str(folders / name), output=name) for name in ("good", "bad")}
    for method, name in (("ours", "good"), ("theirs", "bad")):
        assert [image[method] for image in both["images"]] == [
            image["restored"] for image in alone[name]["images"]]
    found = both["paired"]["theirs"]["psnr"]
    differences = [image["ours"]["psnr"] - image["theirs"]["psnr"] for image in both["images"]]
    assert found["difference"] == pytest.approx(numpy.mean(differences))
    assert min(differences) <= found["ci95"][0] < found["ci95"][1] <= max(differences)
    assert set(both["paired"]) == {"theirs"} and "ours − theirs" in capsys.readouterr().out
    heading = (folders / "out" / "metrics.csv").read_text().splitlines()[0]
    assert heading.startswith("name,resized,ours psnr,ours ssim,ours piqe,theirs psnr")


def test_no_figure_is_cut_on_a_narrow_screen(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = run(folders, *(f"method{number}={folders / 'good'}" for number in range(6)))
    printed = capsys.readouterr().out
    assert "…" not in printed and found["pairs"] == 3 and printed.count("method5") == 2


@pytest.mark.parametrize(("restored", "words"), [
    (["{0}/good", "{0}/bad"], "the same name .restored.; name each: --restored ours=DIR"),
    (["a={0}/good", "a={0}/bad"], "the same name .a."), (["LQ input={0}/good"], "use NAME=DIR"),
    (["={0}/good"], "use NAME=DIR"), (["a={0}/nowhere"], "no such folder: .*nowhere .given by --restored"),
])
def test_names_of_methods_are_checked(restored, words, folders):
    with pytest.raises(UserError, match=words):
        run(folders, *(word.format(folders) for word in restored))


def test_a_photo_that_one_method_lacks_is_named(folders):
    (folders / "bad" / "coffee.png").unlink()
    methods = [f"ours={folders / 'good'}", f"theirs={folders / 'bad'}"]
    with pytest.raises(UserError, match=r"1 photo\(s\) without a restored image in .*bad: coffee"):
        run(folders, *methods)
    assert run(folders, *methods, more=("--skip_bad",))["pairs"] == 2


def test_methods_are_compared_on_the_same_region_only(folders):
    photo("coffee", 64).crop((0, 0, 64, 48)).save(folders / "bad" / "coffee.png")
    with pytest.raises(UserError, match="bad/coffee.png has another shape .* evaluate it alone"):
        run(folders, f"ours={folders / 'good'}", f"theirs={folders / 'bad'}", more=("--resize",))
    assert run(folders, str(folders / "bad"), more=("--resize",))["images"][2]["region"]


def test_a_batch_gives_each_photo_its_own_value():
    images = [photo(name, 200, zoom=zoom) for name in NAMES for zoom in (1, 1.5)]
    originals = [image.resize((100, 100)).resize((200, 200)) for image in images]
    scorers, _ = load_metrics(OFFLINE_METRICS, "cpu")
    assert {name for name in OFFLINE_METRICS if not METRICS[name].batched} == {"ssim"}
    for scorer in scorers.values():
        alone = [scorer.scores([image], [original])[0]
                 for image, original in zip(images, originals, strict=True)]
        assert scorer.scores(images, originals) == pytest.approx(alone, rel=1e-5), scorer.name


def test_photos_of_one_size_share_a_batch(folders, monkeypatch):
    sizes, scores = [], Scorer.scores

    def counted(self, images, originals):
        sizes.append(len(images))
        return scores(self, images, originals)

    monkeypatch.setattr(Scorer, "scores", counted)
    run(folders, str(folders / "good"))
    assert set(sizes) == {3}
    sizes.clear()
    monkeypatch.setattr(scoring, "MOST_PIXELS", 2 * 64 * 64)
    run(folders, str(folders / "bad"), more=("--overwrite",))
    assert set(sizes) == {2, 1}


class Killed(BaseException):
    """Ends a process at once, as kill -9 does."""


def stopped_after(count: int, monkeypatch) -> list[str]:
    """Let only so many batches be scored; returns the list that fills with the metrics of each."""
    asked, scores = [], Scorer.scores

    def counted(self, images, originals):
        if len(asked) == count:
            raise Killed
        asked.append(self.name)
        return scores(self, images, originals)

    monkeypatch.setattr(Scorer, "scores", counted)
    return asked


def test_a_killed_evaluation_goes_on_and_gives_the_same_table(folders, monkeypatch):
    monkeypatch.setattr(scoring, "MOST_PIXELS", 64 * 64)
    whole = run(folders, str(folders / "good"), output="whole")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stopped_after(7, patch)
        run(folders, str(folders / "good"))
    store = folders / "out" / "scores.jsonl"
    assert len(store.read_text().splitlines()) == 7 and not (folders / "out" / "metrics.json").exists()
    store.write_text(store.read_text()[:-9])  # the last line was being written
    with monkeypatch.context() as patch:
        asked = stopped_after(100, patch)
        again = run(folders, str(folders / "good"))
        assert len(asked) == 15 - 6  # (3 metrics + psnr and ssim of the mean colour) x 3 photos
        assert again == whole
        assert run(folders, str(folders / "good")) == whole and len(asked) == 9
    for suffix in ("md", "tex", "csv"):
        assert (folders / "out" / f"metrics.{suffix}").read_bytes() == (
            folders / "whole" / f"metrics.{suffix}").read_bytes()


def test_what_changed_is_scored_again(folders, monkeypatch):
    run(folders, str(folders / "good"))
    photo("coffee", 64).save(folders / "good" / "coffee.png")
    assert run(folders, str(folders / "good"))["images"][2]["restored"]["psnr"] == pytest.approx(80)
    border = run(folders, str(folders / "good"), more=("--crop_border", "8", "--overwrite"))
    assert border["images"][0] != run(folders, str(folders / "good"), more=("--overwrite",))["images"][0]


def test_a_kept_score_is_of_a_files_content_whatever_its_size_and_time(folders):
    (folders / "good" / "coffee.png").unlink()
    file, values = folders / "good" / "coffee.bmp", []
    for image in (photo("coffee", 64), photo("coffee", 64).transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        image.save(file)
        os.utime(file, (0, 0))
        values.append(run(folders, str(folders / "good"))["images"][2]["restored"]["psnr"])
    assert values[0] == pytest.approx(80) and values[1] < 40


def test_the_table_is_written_for_papers(folders):
    name = "a_b & 5% | $x$ <b>"
    result = run(folders, f"{name}={folders / 'good'}", f"theirs={folders / 'bad'}")
    markdown, latex = ((folders / "out" / f"metrics.{suffix}").read_text(encoding="utf-8")
                       for suffix in ("md", "tex"))
    best = f"{result['rows'][1]['mean']['psnr']:.2f}"
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert f"**{best}**" in markdown and r"a\_b &amp; 5% \| \$x\$ &lt;b>" in lines[0]
    assert len(lines) == 2 + 3 and {line.replace(r"\|", "").count("|") for line in lines} == {6}
    assert rf"\textbf{{{best}}}" in latex and r"a\_b \& 5\% | \$x\$ <b>" in latex
    rows = latex.partition(r"\begin{tabular}{lrrrr}")[2]
    assert rows.count("\\\\\n") == 4 and all(row.replace(r"\&", "").count("&") == 4
                                             for row in rows.splitlines() if row.endswith("\\\\"))


def test_suffixes_in_capitals_and_grey_pictures_are_read(folders):
    (folders / "good" / "coffee.png").rename(folders / "good" / "coffee.PNG")
    photo("chelsea", 64).convert("L").save(folders / "good" / "chelsea.png")
    result = run(folders, str(folders / "good"))
    assert result["pairs"] == 3 and result["images"][1]["restored"]["psnr"] > 50  # it compares Y
