"""What `realsr-r1 evaluate` promises: the field's PSNR and SSIM, files that agree, clear errors, no
half results.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import urllib.error
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from skimage import color, data, metrics

from realsr_r1 import evaluate
from realsr_r1.core.errors import UserError
from realsr_r1.measuring.metrics import Scorer, load_metrics, parse_metrics, tiles_of

PHOTOS = {"astronaut": data.astronaut()[60:108, 200:248], "coffee": data.coffee()[150:198, 250:298],
          "chelsea": data.chelsea()[90:138, 130:178]}  # 48 px, as the tiny model's images


def noisy(pixels: numpy.ndarray, sigma: float = 10.0) -> numpy.ndarray:
    noise = numpy.random.default_rng(0).normal(0, sigma, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype("uint8")


def luma(pixels: numpy.ndarray) -> numpy.ndarray:
    return color.rgb2ycbcr(pixels)[..., 0]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """restored/ (PNG), gt/ (BMP) and lq/ (small JPEG) of three photos."""
    for name in ("restored", "gt", "lq"):
        (tmp_path / name).mkdir()
    for name, pixels in PHOTOS.items():
        Image.fromarray(noisy(pixels)).save(tmp_path / "restored" / f"{name}.png")
        Image.fromarray(pixels).save(tmp_path / "gt" / f"{name}.bmp")
        Image.fromarray(pixels).resize((24, 24)).save(tmp_path / "lq" / f"{name}.jpg", quality=40)
    return tmp_path


def run(folder: Path, *more: str) -> dict:
    assert evaluate.main(["--restored", str(folder / "restored"), "--gt", str(folder / "gt"),
                          "--output", str(folder / "out"), *more]) == 0
    return json.loads((folder / "out" / "metrics.json").read_text(encoding="utf-8"),
                      parse_constant=pytest.fail)


def mean(result: dict, row: str, metric: str) -> float:
    return next(item["mean"][metric] for item in result["rows"] if item["name"] == row)


def test_psnr_and_ssim_are_those_of_luma(folders: Path) -> None:
    import pyiqa

    result = run(folders)
    ssim = pyiqa.create_metric("ssim", test_y_channel=True, color_space="ycbcr", device="cpu")
    for image in result["images"]:
        original, restored = luma(PHOTOS[image["name"]]), luma(noisy(PHOTOS[image["name"]]))
        field = 10 * numpy.log10(255**2 / ((original - restored) ** 2).mean())
        assert image["restored"]["psnr"] == pytest.approx(field, abs=1e-3)
        files = (folders / folder / f"{image['name']}.{suffix}" for folder, suffix in (("restored", "png"),
                                                                                      ("gt", "bmp")))
        assert image["restored"]["ssim"] == pytest.approx(float(ssim(*map(str, files))), abs=1e-6)
        original, restored = original.round(), restored.round()  # pyiqa's SSIM rounds Y, as MATLAB's does
        whole = metrics.structural_similarity(original, restored, data_range=255, gaussian_weights=True,
                                              sigma=1.5,
                                              use_sample_covariance=False, full=True)[1]
        assert image["restored"]["ssim"] == pytest.approx(whole[5:-5, 5:-5].mean(), abs=0.001)
        assert 0 <= image["restored"]["piqe"] <= 100


def test_an_identical_image_has_80_db(folders: Path) -> None:
    for name, pixels in PHOTOS.items():
        Image.fromarray(pixels).save(folders / "restored" / f"{name}.png")
    result = run(folders)
    assert mean(result, "restored", "psnr") == pytest.approx(80) and mean(result, "restored", "ssim") == 1


def test_rows_for_the_input_and_the_mean_colour_stand_beside(folders: Path,
                                                             capsys: pytest.CaptureFixture) -> None:
    result = run(folders, "--lq", str(folders / "lq"))
    assert [row["name"] for row in result["rows"]] == ["LQ input", "mean colour", "restored"]
    flat = [metrics.peak_signal_noise_ratio(luma(pixels), luma(numpy.broadcast_to(
        pixels.mean((0, 1)).round().astype("uint8"), pixels.shape)), data_range=255)
        for pixels in PHOTOS.values()]
    assert mean(result, "mean colour", "psnr") == pytest.approx(numpy.mean(flat), abs=0.05)
    assert 15 < mean(result, "LQ input", "psnr") < mean(result, "restored", "psnr")
    printed = capsys.readouterr().out
    assert all(f"{mean(result, row['name'], 'psnr'):.2f}" in printed for row in result["rows"])


def test_the_result_says_how_each_metric_was_computed(folders: Path) -> None:
    found = run(folders, "--metrics", "psnr,ssim,nlpd")["metrics"]
    assert "YCbCr" in found["psnr"]["channel"] and found["psnr"]["rounding"] == "none"
    assert "whole steps" in found["ssim"]["rounding"] and found["ssim"]["note"] == ""
    assert "1e-8" in found["psnr"]["note"] and "above 43.6 dB" in found["psnr"]["note"]
    assert all(metric["border"] == 0 and metric["version"].startswith("pyiqa 0.")
               for metric in found.values())
    text = (folders / "out" / "metrics.md").read_text(encoding="utf-8")
    assert all(words in text for words in ("channel: Y of YCbCr", "rounded: Y to whole steps of 255",
                                           "above 43.6 dB"))


@pytest.mark.parametrize(("sigma", "is_exact"), [(4, True), (1, False), (0.3, False)])
def test_a_high_psnr_is_below_the_formulas_value_as_its_note_says(sigma: float, is_exact: bool) -> None:
    restored = noisy(PHOTOS["coffee"], sigma)
    formula = 10 * numpy.log10(255**2 / ((luma(PHOTOS["coffee"]) - luma(restored)) ** 2).mean())
    images = [[Image.fromarray(pixels)] for pixels in (restored, PHOTOS["coffee"])]
    found = load_metrics(["psnr"], "cpu")[0]["psnr"].scores(*images)[0]
    assert found == pytest.approx(-10 * numpy.log10(10 ** (-formula / 10) + 1e-8), abs=3e-4)
    assert (formula < 43.6) == is_exact == (formula - found < 0.001)


def test_a_border_is_cut_off_before_every_metric(folders: Path) -> None:
    result = run(folders, "--crop_border", "4", "--metrics", "psnr,piqe", "--lq", str(folders / "lq"))
    for image in result["images"]:
        original, restored = (luma(pixels)[4:-4, 4:-4] for pixels in (PHOTOS[image["name"]],
                                                                     noisy(PHOTOS[image["name"]])))
        field = 10 * numpy.log10(255**2 / ((original - restored) ** 2).mean())
        assert image["restored"]["psnr"] == pytest.approx(field, abs=1e-3)
    assert result["metrics"]["piqe"]["border"] == 4
    with pytest.raises(UserError, match=r"--crop_border 24 leaves nothing of astronaut .48x48 px."):
        run(folders, "--crop_border", "24", "--overwrite")


def test_json_and_csv_agree(folders: Path) -> None:
    result = run(folders, "--lq", str(folders / "lq"))
    with open(folders / "out" / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert list(rows) == [*sorted(PHOTOS), "mean"]
    for image in result["images"]:
        for metric in ("psnr", "ssim", "piqe"):
            assert float(rows[image["name"]][metric]) == image["restored"][metric]
            assert float(rows[image["name"]][f"LQ input {metric}"]) == image["LQ input"][metric]
    for metric in result["metrics"]:
        values = [image["restored"][metric] for image in result["images"]]
        assert float(rows["mean"][metric]) == mean(result, "restored",
                                                   metric) == pytest.approx(numpy.mean(values))
    assert {name: metric["lower_better"] for name, metric in result["metrics"].items()} == {
        "psnr": False, "ssim": False, "fsim": False, "gmsd": True, "vsi": False, "piqe": True}


def test_results_of_other_folders_or_metrics_are_replaced_only_if_asked(folders: Path) -> None:
    first = run(folders, "--metrics", "psnr")
    assert run(folders, "--metrics", "psnr") == first
    with pytest.raises(UserError, match="metrics.json is there.*--overwrite"):
        run(folders, "--metrics", "ssim")
    assert list(run(folders, "--metrics", "ssim", "--overwrite")["metrics"]) == ["ssim"]


def test_means_and_gains_over_the_input_have_bootstrap_intervals_over_photos(folders: Path) -> None:
    result = run(folders, "--lq", str(folders / "lq"))
    gains = result["paired"]["LQ input"]
    for name, gain in gains.items():
        differences = [image["restored"][name] - image["LQ input"][name] for image in result["images"]]
        assert gain["difference"] == pytest.approx(numpy.mean(differences))
        draws = [numpy.mean(draw) for draw in itertools.product(differences, repeat=3)]  # all that there are
        limits = numpy.percentile(draws, [2.5, 97.5], method="inverted_cdf")
        assert gain["ci95"] == pytest.approx(list(limits))
    assert set(gains) == set(result["metrics"])
    low, high = result["rows"][-1]["ci95"]["ssim"]
    assert min(image["restored"]["ssim"] for image in result["images"]) <= low < high < 1
    assert "bootstrap" in result["intervals"] and run(folders, "--overwrite")["paired"] == {}


def test_another_size_is_an_error_unless_it_may_be_resized(folders: Path) -> None:
    Image.fromarray(PHOTOS["coffee"]).resize((96, 96)).save(folders / "restored" / "coffee.png")
    with pytest.raises(UserError, match="coffee.png is 96x96 px and .*coffee.bmp 48x48 px; .*--resize"):
        run(folders)
    assert not (folders / "out").exists()
    assert run(folders, "--metrics", "psnr", "--skip_bad")["pairs"] == 2
    result = run(folders, "--metrics", "psnr", "--resize", "--overwrite")
    assert {image["name"]: image["resized"] for image in result["images"]} == {
        "astronaut": False, "chelsea": False, "coffee": True}
    assert any("1 of 3 restored images were resized" in note for note in result["notes"])


def test_an_image_below_a_metrics_window_gets_no_value(folders: Path) -> None:
    for name in ("restored", "gt"):
        suffix = "png" if name == "restored" else "bmp"
        Image.fromarray(PHOTOS["coffee"][:8, :8]).save(folders / name / f"coffee.{suffix}")
    result = run(folders)
    values = {image["name"]: image["restored"]["ssim"] for image in result["images"]}
    assert values["coffee"] is None and values["chelsea"] is not None
    assert next(row for row in result["rows"] if row["name"] == "restored")["count"]["ssim"] == 2
    assert any("ssim is not defined for 1 of 3" in note for note in result["notes"])


def test_metrics_without_weights_do_not_stop_the_rest(
        folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import pyiqa

    create, asked = pyiqa.create_metric, []

    def create_offline(name: str, **options: object) -> object:
        asked.append(name)
        if name not in ("psnr", "ssim", "piqe", "fid", "fsim", "gmsd", "vsi"):
            raise urllib.error.URLError("no network")
        return (lambda first, second, **_: 12.5) if name == "fid" else create(name, **options)

    monkeypatch.setattr(pyiqa, "create_metric", create_offline)
    result = run(folders, "--metrics", "all")
    assert asked == ["psnr", "ssim", "lpips", "dists", "fid", "niqe", "musiq", "maniqa-pipal", "clipiqa",
                     "topiq_nr", "topiq_nr-spaq", "piqe", "fsim", "gmsd", "vsi"]
    assert list(result["metrics"]) == ["psnr", "ssim", "fid", "piqe", "fsim", "gmsd", "vsi"]
    assert mean(result, "restored", "fid") == 12.5
    printed = capsys.readouterr().out
    for name in ("lpips", "dists", "niqe", "musiq", "maniqa-pipal", "clipiqa", "topiq_nr", "topiq_nr-spaq"):
        assert f"{name}: n/a (weights not available" in printed and name in result["unavailable"]
    with pytest.raises(UserError, match="none of the metrics"):
        run(folders, "--metrics", "lpips", "--overwrite")


def test_memory_that_is_too_small_is_no_score_that_isnt_defined() -> None:
    def network(*pixels: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    photo = Image.new("RGB", (128, 128))
    with pytest.raises(torch.OutOfMemoryError):  # kept as None it would never be asked again
        Scorer("psnr", network, "cpu").scores([photo], [photo])


def test_a_metric_is_known_in_any_spelling_of_its_letters() -> None:
    assert parse_metrics("CLIPIQA+_vitl14_512,PSNR") == ["clipiqa+_vitL14_512", "psnr"]


def test_a_large_photo_is_scored_in_tiles_and_says_so(folders: Path, monkeypatch) -> None:
    whole = run(folders, "--metrics", "psnr,fsim")
    monkeypatch.setattr("realsr_r1.measuring.metrics.LARGEST_TILE", 32)
    tiled = run(folders, "--metrics", "psnr,fsim")
    assert any("FSIM of astronaut, chelsea, coffee: means over tiles" in note for note in tiled["notes"])
    assert tiled["images"][0]["restored"]["psnr"] == whole["images"][0]["restored"]["psnr"]
    assert tiled["images"][0]["restored"]["fsim"] == pytest.approx(whole["images"][0]["restored"]["fsim"], abs=0.05)
    assert tiles_of((48, 20)) == [(0, 0, 24, 20), (24, 0, 48, 20)]


def test_photos_without_originals_are_judged_by_what_needs_none(folders: Path) -> None:
    whole = run(folders, "--lq", str(folders / "lq"))
    assert evaluate.main(["--restored", str(folders / "restored"), "--lq", str(folders / "lq"), "--output",
                          str(folders / "alone")]) == 0
    alone = json.loads((folders / "alone" / "metrics.json").read_text())
    assert list(alone["metrics"]) == ["piqe"] and [row["name"] for row in alone["rows"]] == ["LQ input", "restored"]
    assert mean(alone, "restored", "piqe") == mean(whole, "restored", "piqe")
    with pytest.raises(UserError, match="--metrics psnr compares with the original: give --gt"):
        evaluate.main(["--restored", str(folders / "restored"), "--output", str(folders / "none"), "--metrics",
                       "piqe,psnr"])


def test_any_metric_of_pyiqa_is_computed_by_its_name(folders: Path) -> None:
    result = run(folders, "--metrics", "nlpd,entropy")
    assert {name: metric["lower_better"] for name, metric in result["metrics"].items()} == {
        "nlpd": True, "entropy": False}
    assert all(image["restored"]["nlpd"] > 0 for image in result["images"])
    with pytest.raises(UserError, match="unknown metric 'nlp' .did you mean nlpd"):
        run(folders, "--metrics", "nlp")


def test_photos_without_a_partner_are_named_and_left_out_on_request(folders: Path) -> None:
    (folders / "restored" / "coffee.png").rename(folders / "restored" / "tea.png")
    with pytest.raises(UserError, match=r"1 photo\(s\) without a restored image .*: coffee; .*--skip_bad"):
        run(folders)
    result = run(folders, "--skip_bad", "--metrics", "psnr")
    assert result["pairs"] == 2
    assert any("coffee" in note for note in result["notes"]) and any("tea" in note
                                                                     for note in result["notes"])


def test_a_corrupt_image_is_named_and_left_out_on_request(folders: Path) -> None:
    (folders / "gt" / "coffee.bmp").write_bytes(b"BM not a picture")
    with pytest.raises(UserError, match="coffee.bmp can't be read"):
        run(folders)
    assert not (folders / "out").exists()
    assert run(folders, "--skip_bad", "--metrics", "psnr")["pairs"] == 2


@pytest.mark.parametrize(("arguments", "words"), [
    (["--metrics", "psnr,beauty"], "unknown metric 'beauty'; known are psnr, ssim, lpips"),
    (["--metrics", ""], "unknown metric"),
    (["--device", "abacus"], "--device abacus can't be used"),
    (["--gt", "{0}/nowhere"], "no such folder"),
    (["--gt", "{0}/empty"], "no images in"),
    (["--gt", "{0}/other"], "no name is in both"),
    (["--gt", "{0}/twice"], "have the same name up to the suffix"),
    (["--lq", "{0}/other"], "without an LQ image"),
    (["--lq", "{0}/other", "--skip_bad"], "no pair has an LQ image"),
    (["--output", "{0}/gt/coffee.bmp"], "is not a folder"),
])
def test_bad_input_is_one_error_and_nothing_is_written(folders: Path, arguments: list[str],
                                                       words: str) -> None:
    for name in ("empty", "other", "twice"):
        (folders / name).mkdir()
    Image.fromarray(PHOTOS["coffee"]).save(folders / "other" / "tea.png")
    for suffix in ("png", "bmp"):
        Image.fromarray(PHOTOS["coffee"]).save(folders / "twice" / f"coffee.{suffix}")
    with pytest.raises(UserError, match=re.escape(words)):
        run(folders, *(argument.format(folders) for argument in arguments))
    assert not (folders / "out").exists() and not list(folders.glob("**/*.partial"))
