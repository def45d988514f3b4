"""realsr-r1 benchmark on a small suite of test photos: the same figures as the steps by hand, the published
rows beside them, what is wrong with a folder by name, and a killed run that goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from realsr_r1 import benchmark, evaluate, restore
from realsr_r1.cli import dispatch
from realsr_r1.core.errors import UserError
from realsr_r1.core.images import load_image
from realsr_r1.measuring.suites import Suite, check_data, spelled_out

from .small import photo, write_model

SUITES = Path(__file__).parents[1] / "configs" / "suites"
NAMES = ("coffee_1", "coffee_2", "chelsea_1")
SUITE = {"name": "Small", "where": "https://example.org/small", "lq": "low", "hq": "high", "scale": 2,
         "names": ["coffee_{1..2}", "chelsea_{1}"], "lq_px": [16, 16], "hq_px": [32, 32],
         "metrics": ["psnr", "ssim", "piqe", "lpips"], "published": "RealSR",
         "differs": {"PSNR": "of other photos"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """data/ with the suite's photos, and suite.yaml."""
    for name in NAMES:
        stem, number = name.split("_")
        for folder, px in (("low", 16), ("high", 32)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            photo(stem, px, zoom=float(number)).save(tmp_path / "data" / folder / f"{name}.png")
    write_suite(tmp_path)
    return tmp_path


def write_suite(place: Path, **changes: object) -> Path:
    values = {key: value for key, value in {**SUITE, **changes}.items() if value is not None}
    (place / "suite.yaml").write_text(yaml.safe_dump(values))
    return place / "suite.yaml"


def flags(place: Path, model: Path, *more: str) -> list[str]:
    return ["--suite", str(place / "suite.yaml"), "--data", str(place / "data"), "--model", str(model),
            "--output", str(place / "out"), "--device", "cpu", *more]


def row(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["rows"][-1]


def test_a_killed_run_goes_on_and_has_the_figures_of_the_steps_by_hand(place, model, capsys):
    command = [sys.executable, "-m", "realsr_r1.benchmark", *flags(place, model), "--", "--batch_size", "1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    first = place / "out" / "restored" / "chelsea_1.png"  # the photos' names in order
    until = time.monotonic() + 120
    while not first.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()[1]
    assert first.is_file() and not (place / "out" / "benchmark.json").exists(), said
    written = first.stat().st_mtime_ns
    assert not benchmark.main([*flags(place, model), "--", "--batch_size", "1"])
    assert first.stat().st_mtime_ns == written  # it was not restored again
    low, high = (str(place / "data" / side) for side in ("low", "high"))
    restore.main(["--model", str(model), "--input", low, "--output", str(place / "hand"), "--scale", "2",
                  "--device", "cpu", "--batch_size", "1"])
    evaluate.main(["--restored", str(place / "hand"), "--gt", high, "--output", str(place / "by_hand"),
                   "--metrics", "psnr,ssim,piqe", "--device", "cpu"])
    found = json.loads((place / "out" / "benchmark.json").read_text())
    assert found["own"] == row(place / "out" / "evaluation") == row(place / "by_hand")
    printed = capsys.readouterr().out
    table = (place / "out" / "benchmark.md").read_text()
    assert "22.89" in printed and "22.89*" in table.replace("\\", "") and "0.6146" in table  # of RealSR-R1
    assert "PSNR: of other photos" in table and f"{found['own']['mean']['psnr']:.2f}" in table
    assert "arXiv 2506.16796, Table 1" in table and "lpips: n/a" in printed


def test_a_replaced_photo_gives_the_figures_of_the_new_one(place, model):
    write_suite(place, metrics=["psnr"])
    benchmark.main(flags(place, model))
    for side, px in (("low", 16), ("high", 32)):
        photo("retina", px).save(place / "data" / side / "coffee_2.png")
    benchmark.main(flags(place, model))
    again = [*flags(place, model)[:-4], "--output", str(place / "anew"), "--device", "cpu"]
    benchmark.main(again)
    found, anew = (json.loads((place / out / "benchmark.json").read_text()) for out in ("out", "anew"))
    assert found["own"] == anew["own"]


def test_only_values_of_one_protocol_are_compared_for_the_bold(place, model):
    write_suite(place, metrics=["psnr", "ssim"])
    benchmark.main(flags(place, model))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]]
            for line in (place / "out" / "benchmark.md").read_text().splitlines() if line.startswith("|")]
    psnr, ssim = ([row[number] for row in rows[2:]] for number in (1, 2))
    assert not any("**" in cell for cell in psnr) and sum("**" in cell for cell in ssim) == 1
    assert all(cell.replace("\\", "").endswith("*") for cell in psnr[:-1])


WRONG = {
    "a missing photo": (lambda data: (data / "high" / "chelsea_1.png").unlink(), "high lacks chelsea_1;"),
    "a renamed photo": (lambda data: (data / "low" / "coffee_2.png").rename(data / "low" / "coffee_two.png"),
                        "low lacks coffee_2 and has coffee_two besides;"),
    "a photo of another size": (lambda data: photo("coffee", 40).save(data / "high" / "coffee_1.png"),
                                "high/coffee_1.png is 40x40 px, not 32x32 px;"),
    "another folder": (lambda data: (data / "low").rename(data / "lr"), "it has no folder low;"),
}


@pytest.mark.parametrize("names", ["named", "paired"])
@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_with_the_folder_is_named_with_where_to_get_it(fault, names, place, model):
    write_suite(place, names=SUITE["names"] if names == "named" else None, count=3)
    change, words = WRONG[fault]
    change(place / "data")
    if names == "paired" and fault == "a renamed photo":
        words = "low lacks coffee_2;"
    with pytest.raises(UserError, match="is not the suite Small: .*https://example.org/small") as refused:
        benchmark.main(flags(place, model))
    assert words in str(refused.value)
    assert not (place / "out").exists()


def test_larger_photos_are_cut_at_their_centre_and_once(place):
    for side, px in (("low", 21), ("high", 42)):
        photo("coffee", px).save(place / "data" / side / "coffee_1.png")
    suite = Suite.from_yaml(write_suite(place, crop=True))
    cut = check_data(suite, place / "data", place / "out")
    assert load_image(cut.hq / "coffee_1.png").tobytes() == photo("coffee", 42).crop((4, 4, 36, 36)).tobytes()
    assert load_image(cut.lq / "coffee_1.png").tobytes() == photo("coffee", 21).crop((2, 2, 18, 18)).tobytes()
    written = (cut.lq / "coffee_1.png").stat().st_mtime_ns
    assert check_data(suite, place / "data", place / "out") == cut
    assert (cut.lq / "coffee_1.png").stat().st_mtime_ns == written
    photo("coffee", 12).save(place / "data" / "low" / "coffee_1.png")
    with pytest.raises(UserError, match="coffee_1.png is 12x12 px, not at least 16x16 px"):
        check_data(suite, place / "data", place / "out")


def test_a_suite_without_originals_is_judged_by_what_needs_none(place, model):
    write_suite(place, hq=None, hq_px=None, names=None, count=3, metrics=["piqe"], published=None,
                differs=None)
    assert not benchmark.main(flags(place, model))
    found = json.loads((place / "out" / "benchmark.json").read_text())
    assert list(found["own"]["mean"]) == ["piqe"] and found["published"] == {}
    assert "no rows for this suite" in (place / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(("changes", "more", "words"), [
    ({"metrics": ["beauty"]}, [], "suite.yaml, metrics: unknown metric 'beauty'"),
    ({"scale": 0}, [], "scale is 0; it must be above 0"), ({"where": None}, [], "has no key 'where'"),
    ({"colour": 1}, [], "unknown key 'colour'"),
    ({"published": "Set5"}, [], "is 'Set5'; Table 1 has rows of OST-Val"),
    ({"differs": {"psnr": "a"}}, [], "`differs` has 'psnr'"),
    ({"published": None}, [], "`differs` has 'PSNR'"),
    ({"scale": 1.5, "hq_px": [24, 24], "crop": True}, [], "crop with the scale 1.5"),
    ({"hq": None, "hq_px": None, "metrics": ["piqe"]}, ["--metrics", "psnr"],
     "--metrics psnr compares with the original: name a folder of originals (hq) in "),
    ({"hq_px": [48, 48]}, [], "hq_px is not lq_px times the scale 2"),
    ({"names": ["a_{0..999999999}"]}, [], "at most 100,000"), ({"hq": "../high"}, [], "hq is '../high'"),
    ({}, ["--", "--scale", "4"], "--scale is the suite's"), ({}, ["--metrics", "psrn"], "did you mean psnr"),
])
def test_a_suite_that_says_something_else_is_refused(changes, more, words, place, model):
    write_suite(place, **changes)
    with pytest.raises(UserError) as refused:
        benchmark.main(flags(place, model, *more))
    assert words in str(refused.value), refused.value


def test_the_suites_of_the_package_are_short_and_found_by_name(tmp_path, model):
    counts = {}
    for file in SUITES.glob("*.yaml"):
        assert len(file.read_text().splitlines()) < 20
        suite = Suite.from_yaml(file)
        names = {name for part in suite.names or [] for name in spelled_out(part)}
        counts[file.stem] = len(names) or suite.count
    assert counts == {"realsr": 100, "drealsr": 93, "reallq250": 250, "ost_val": None}
    for suite, words in (("realsr", "RealSR: it has no folder test_LR; get it from https://huggingface.co"),
                         ("set5", "no such suite: set5 .*; known are drealsr, ost_val")):
        with pytest.raises(UserError, match=words):
            dispatch(["benchmark", "--suite", suite, "--data", str(tmp_path), "--model", str(model),
                      "--output", str(tmp_path / "out")])
