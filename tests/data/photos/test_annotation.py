"""Promises of tags and descriptions from models: batched, retried when they fail, take too long or
talk nonsense, then listed.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from realsr_r1.core.errors import UserError, run
from realsr_r1.create_json import main
from realsr_r1.data.photos.annotation import AnnotationConfig
from realsr_r1.data.records import load_dataset_dict

ROOT = Path(__file__).parents[3]
TINY = ROOT / "configs" / "degradation" / "tiny.yaml"

# What each does is told by the width of the photo it is shown.
MODELS = '''
import os, subprocess, time
from pathlib import Path

LOG = Path(__file__).with_name("calls.txt")

def good(settings):
    def model(images):
        with open(LOG, "a") as log:
            log.write(f"{len(images)}\\n")
        return [[settings["word"], f"width {image.width}", settings["word"]] for image in images]
    return model

def captions(settings):
    return lambda images: [{key: f"{key} of {image.width}." for key in ("rough", "middle", "final")}
                           for image in images]

def troubled(settings):
    def model(images):
        with open(LOG, "a") as log:
            log.write(" ".join(str(image.width) for image in images) + "\\n")
        widths = [image.width for image in images]
        if 101 in widths:
            raise RuntimeError("out of memory")
        if 102 in widths:
            time.sleep(60)
        if 103 in widths:
            os._exit(9)
        if 106 in widths and LOG.read_text().count("106") < 3:
            raise RuntimeError("only at first")
        answers = {104: ["x" * 500], 105: [], 107: 3}
        return [answers.get(width, "cat, fur") for width in widths]
    return model

class Strange:
    def __reduce__(self):
        return (missing_here, ("no such answer",))

def missing_here(text):
    raise ValueError(text)

class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first}{second}")

def odd(settings):
    def model(images):
        width = images[0].width
        if width == 100:
            return [[Strange()]]
        if width == 101:
            return [TwoArguments("a", "b")]
        if width == 102:
            raise TwoArguments("a", "b")
        if width == 103:
            raise KeyboardInterrupt
        if width == 104:
            raise SystemExit(3)
        if width == 105:
            return (["cat"] for _ in images)
        return [("cat", "fur")] if width == 106 else ["</degradation>"]
    return model

def misbehaved(settings):
    os.chdir("/")
    def model(images):
        width = images[0].width
        if width == 100 and os.fork() == 0:
            return ["forked"]
        if width == 101:
            class Silent(Exception):
                def __str__(self):
                    raise RuntimeError
            raise Silent
        if width == 102:
            raise ValueError("red \\x1b[31m and \\0")
        if width == 103:
            import multiprocessing
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return [pool.apply(str, ("pooled",))]
        if width == 104:
            LOG.write_text(str(subprocess.Popen(["sleep", "300"], stdin=subprocess.DEVNULL).pid))
        return ["answered"]
    return model

def forked(settings):
    if os.fork() == 0:
        settings = {"word": "the copy"}
    return lambda images: [[settings.get("word", "the model")] for _ in images]

def dying(settings):
    subprocess.Popen(["sleep", "300"])  # which holds the connection's other end
    os._exit(3)

def broken(settings):
    raise ValueError("no weights")
'''


@pytest.fixture
def workplace(photos_dir, tmp_path, monkeypatch):
    """A folder with eight photos of 100 to 107 px width, the module `local_models`, and settings
    for it.
    """
    from PIL import Image

    (tmp_path / "images").mkdir()
    with Image.open(photos_dir / "chelsea.png") as photo:
        for width in range(100, 108):
            photo.crop((width, 0, 2 * width, 80)).save(tmp_path / "images" / f"{width}.png")
    (tmp_path / "local_models.py").write_text(textwrap.dedent(MODELS))
    (tmp_path / "asking.yaml").write_text("batch_size: 4\ntimeout_seconds: 10\nretries: 2\ntagger: {word: "
                                          "thing}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def flags(workplace, *more):
    return ["--images", str(workplace / "images"), "--output", str(workplace / "out"), "--crop_px", "48",
            "--degradation", str(TINY), "--num_proc", "1", "--annotation", str(workplace / "asking.yaml"),
            *more]


def test_answers_become_tags_and_descriptions_in_batches(workplace):
    assert main(flags(workplace, "--tagger", "local_models:good", "--captioner",
                      "local_models:captions")) == 0
    train = load_dataset_dict(workplace / "out")["train"]
    assert train[3]["tag"] == ["thing", "width 103"]
    assert train[3]["descriptions"] == ["rough of 103.", "middle of 103.", "final of 103."]
    assert (workplace / "calls.txt").read_text().split() == ["4", "4"]


def test_a_model_that_fails_hangs_dies_or_talks_nonsense_is_asked_again_and_then_listed(workplace):
    (workplace / "asking.yaml").write_text("batch_size: 1\ntimeout_seconds: 5\nretries: 2\n")
    with pytest.raises(SystemExit) as stopped:
        run(main, flags(workplace, "--tagger", "local_models:troubled"))
    assert stopped.value.code == 2
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (workplace / "out/rejected.jsonl").read_text().splitlines())}
    expected = {"101.png": "RuntimeError: out of memory", "102.png": "took longer than 5 s",
                "103.png": "ended its process",
                "104.png": "500 characters", "105.png": "is empty", "107.png": "has no tags"}
    assert set(listed) == set(expected)
    assert all(part in listed[name] and "tagger local_models:troubled" in listed[name]
               for name, part in expected.items())
    assert sorted(load_dataset_dict(workplace / "out")["train"]["source"]) == ["100.png", "106.png"]
    calls = (workplace / "calls.txt").read_text().split()
    assert {width: calls.count(width) for width in ("100", "101", "102", "106")} == {"100": 1, "101": 3,
                                                                                     "102": 3, "106": 3}


def test_answers_that_are_no_texts_and_whatever_a_model_raises_are_listed(workplace, capfd):
    (workplace / "asking.yaml").write_text("batch_size: 1\nretries: 0\n")
    assert main([*flags(workplace, "--tagger", "local_models:odd"), "--skip_bad"]) == 0
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (workplace / "out/rejected.jsonl").read_text().splitlines())}
    expected = {"100.png": "Strange is not JSON serializable",
                "101.png": "TwoArguments is not JSON serializable",
                "102.png": "TwoArguments: ab", "103.png": "KeyboardInterrupt", "104.png": "SystemExit: 3",
                "105.png": "generator is not JSON serializable", "107.png": "chain's own markup"}
    assert set(listed) == set(expected) and all(part in listed[name] for name, part in expected.items())
    assert load_dataset_dict(workplace / "out")["train"]["tag"][:] == [["cat", "fur"]]
    assert "Traceback" not in capfd.readouterr().err


def test_a_model_that_forks_wanders_or_cannot_say_what_is_wrong(workplace, monkeypatch, capfd):
    (workplace / "asking.yaml").write_text("batch_size: 1\nretries: 0\ntimeout_seconds: 30\n")
    (workplace / "images" / "105.png").write_bytes(b"")
    monkeypatch.chdir(workplace)
    argv = [word.replace(f"{workplace}/", "")
            for word in flags(workplace, "--tagger", "local_models:misbehaved", "--skip_bad")]
    assert main(argv) == 0
    listed = {item["name"]: item["reason"]
              for item in map(json.loads, (workplace / "out/rejected.jsonl").read_text().splitlines())}
    assert set(listed) == {"101.png", "102.png", "105.png"}
    assert ("Silent: (it can't be printed)" in listed["101.png"]
            and r"red \x1b[31m and \x00" in listed["102.png"])
    assert listed["105.png"] == "105.png is empty (0 bytes)"  # which isn't the model's fault
    train = load_dataset_dict(workplace / "out")["train"]
    assert dict(zip(train["source"], (tags[0] for tags in train["tag"]), strict=True)) == {
        "100.png": "answered", "103.png": "pooled", "104.png": "answered", "106.png": "answered",
        "107.png": "answered"}
    assert "Traceback" not in capfd.readouterr().err
    # of what it had started: gone with it
    status = Path("/proc", (workplace / "calls.txt").read_text(), "stat")
    assert not status.exists() or status.read_text().split(")")[1].split()[0] == "Z"


def test_an_unreadable_photo_spoils_no_batch_though_nothing_is_asked_again(workplace):
    (workplace / "asking.yaml").write_text("retries: 0\ntagger: {word: thing}\n")
    (workplace / "images" / "103.png").write_bytes(b"no photo")
    assert main([*flags(workplace, "--tagger", "local_models:good"), "--skip_bad"]) == 0
    (item,) = map(json.loads, (workplace / "out/rejected.jsonl").read_text().splitlines())
    assert item["name"] == "103.png" and "103.png can't be read as an image" in item["reason"]
    assert len(load_dataset_dict(workplace / "out")["train"]) == 7


def test_a_factory_that_forks_leaves_one_model(workplace):
    (workplace / "asking.yaml").write_text("batch_size: 2\ntagger: {}\n")
    assert main(flags(workplace, "--tagger", "local_models:forked")) == 0
    assert load_dataset_dict(workplace / "out")["train"]["tag"][:] == [["the model"]] * 8


def test_after_a_model_failed_on_all_photos_the_same_command_asks_again(workplace):
    module = (workplace / "local_models.py").read_text()
    (workplace / "local_models.py").write_text(module.replace("return model", "return lambda images: 3"))
    argv = flags(workplace, "--tagger", "local_models:good", "--skip_bad")
    with pytest.raises(UserError, match="no good item among 8"):
        main(argv)
    (workplace / "local_models.py").write_text(module)
    assert main(argv) == 0
    assert len(load_dataset_dict(workplace / "out")["train"]) == 8


def test_one_bad_photo_does_not_spoil_its_batch(workplace):
    for width in (102, 103, 104, 105, 107):
        (workplace / "images" / f"{width}.png").unlink()
    assert main([*flags(workplace, "--tagger", "local_models:troubled"), "--skip_bad"]) == 0
    assert sorted(load_dataset_dict(workplace / "out")["train"]["source"]) == ["100.png", "106.png"]


@pytest.mark.parametrize("spec, reason", [
    ("local_models:broken", "no weights"), ("local_models:dying", "its process ended while it was made"),
    ("local_models:missing", "missing"), ("no_such_module:model", "no_such_module"),
    ("no/such-model", "OSError")])
def test_a_model_that_cannot_be_made_is_named(workplace, spec, reason):
    with pytest.raises(UserError, match=f"tagger {spec} can't be used .*{reason}"):
        main(flags(workplace, "--tagger", spec))


def test_the_settings_in_the_repository_are_read():
    config = AnnotationConfig.from_yaml(ROOT / "configs" / "annotation" / "default.yaml")
    assert "commas" in config.tagger["prompt"] and {"rough", "middle", "final"} <= set(config.captioner)


@pytest.mark.parametrize("text, named", [
    ("tagger: {x: 2020-13-45}", "not valid YAML"), ("tagger: {x: !!int abc}", "not valid YAML"),
    ("[" * 20000, "not valid YAML"),
    ("batch: 3", "batch"), ("retries: -1", "retries"), ("tagger: 3", "tagger"), ("- 1", "it must hold keys"),
    *((f"{key}: {value}", key) for key, values in {
        "batch_size": ("2.5", ".inf", "true", "0"), "retries": ("1.5", ".nan"),
        "longest_side_px": (".inf", "768.5", "10"),
        "timeout_seconds": (".inf", ".nan", "10000000000", "0", "soon")}.items() for value in values)])
def test_wrong_settings_are_named(workplace, text, named):
    (workplace / "asking.yaml").write_text(text)
    with pytest.raises(UserError, match="asking.yaml") as error:
        main(flags(workplace, "--tagger", "local_models:good"))
    assert named in str(error.value)
