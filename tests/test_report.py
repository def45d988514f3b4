"""What `realsr-r1 report` promises: one page that needs nothing else, every part or how to make it,
clear errors.
"""

from __future__ import annotations

import html
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from PIL import Image
from skimage import data

from realsr_r1 import report
from realsr_r1.chain import text as chain
from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError
from realsr_r1.reporting.run_folder import read_run

REWARDS = ("format", "degradation", "understanding", "generation")
TRUTH = ["light blur", "downsample", "medium noise", "light compression", "upsample"]
ANSWER = ["medium blur", "downsample", "heavy noise", "light compression", "upsample"]
SECTIONS = ("before-after", "curves", "chains", "restored", "metrics")
PHOTOS = {"astronaut": data.astronaut()[40:136, 176:272], "coffee": data.coffee()[150:246, 250:346],
          "chelsea": data.chelsea()[90:186, 130:226]}


def save(pixels: numpy.ndarray, path: Path, side: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX).save(path)


def noisy(pixels: numpy.ndarray, sigma: float) -> numpy.ndarray:
    noise = numpy.random.default_rng(0).normal(0, sigma, pixels.shape)
    return (pixels + noise).clip(0, 255).astype("uint8")


def chain_text(name: str) -> str:
    return chain.render_chain({
        "degradation": ", ".join(ANSWER), "rough_understand": f"A photo of {name}, with <b>bold</b> & soft "
                                                              "light.",
        "middle_understand": f"The {name} is in the middle, before a blurred background.",
        "final_understand": f"A close photo of {name}: fine texture, warm colours, light from the left."})


def write_log(run: Path, steps: int = 60, rewards: bool = True) -> None:
    rng = numpy.random.default_rng(0)
    run.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(1, steps + 1):
        means = {name: 0.4 + 0.3 * (1 - math.exp(-step / 20)) + rng.normal(0, 0.05) for name in REWARDS}
        record = {"step": step, "loss": rng.normal(0, 0.01), "learning_rate": 2e-5}
        if rewards:
            record |= {f"rewards/{name}_reward/mean": value for name, value in means.items()}
            record |= {"reward": sum(means.values()), "completions/mean_length": 250 + rng.normal(0, 4)}
        lines.append(json.dumps(record))
    lines.append(json.dumps({"step": steps, "train_runtime": 512.0, "train_loss": 0.01}))
    (run / "log_history.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_the_time_of_a_run_in_several_sessions_is_that_of_all_its_steps(tmp_path):
    lines = [{"step": 1, "step_time": 40.0}, {"step": 2, "step_time": 50.0}, {"step": 2, "train_runtime": 51.0}]
    (tmp_path / "log_history.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_run(tmp_path).seconds == 90
    del lines[0]["step_time"]  # a cold start doesn't log it
    (tmp_path / "log_history.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert read_run(tmp_path).seconds == 51


def write_samples(run: Path, steps: tuple[int, ...] = (10, 20, 30, 40, 60)) -> None:
    for step, name in zip(steps, list(PHOTOS) * 2):
        folder, pixels = run / "samples" / f"step-{step:06d}", PHOTOS[name]
        save(noisy(pixels, 25), folder / "lq.png")
        save(pixels, folder / "hq.png")
        for size, picture in ((16, "rough"), (32, "middle"), (48, "final")):
            save(noisy(pixels, 8), folder / f"completion-0-{picture}.png", size)
        (folder / "completion-0.txt").write_text(chain_text(name), encoding="utf-8")
        rewards = {reward: [0.6, 0.2] for reward in REWARDS} | {"total": [2.4, 0.8]}
        (folder / "rewards.json").write_text(json.dumps(rewards), encoding="utf-8")
        prompt = {"source": f"{name}.jpg", "tag": ["cat, warm light"], "degradation": TRUTH,
                  "problem": ChainSpec.published().question}
        (folder / "prompt.json").write_text(json.dumps(prompt), encoding="utf-8")


def write_restored(folder: Path) -> None:
    for name, pixels in PHOTOS.items():
        save(noisy(pixels, 8), folder / "restored" / f"{name}.png")
        save(pixels, folder / "gt" / f"{name}.png")
        parts = folder / "restored" / "chains" / name
        for size, picture in ((48, "lq"), (16, "rough"), (32, "middle"), (48, "final")):
            save(noisy(pixels, 20), parts / f"{picture}.png", size)
        (parts / "chain.txt").write_text(chain_text(name), encoding="utf-8")


def write_results(folder: Path) -> None:
    """metrics.json in evaluate's form, and two files of reward means."""
    images = [{"name": name, "resized": False, "LQ input": {"psnr": 20.0}, "mean colour": {"psnr": 15.0},
               "restored": {"psnr": 22.5}} for name in PHOTOS]
    rows = [{"name": row, "mean": {"psnr": images[0][row]["psnr"]}, "count": {"psnr": 3}}
            for row in ("LQ input", "mean colour", "restored")]
    metric = {"label": "PSNR (Y)", "unit": "dB", "decimals": 2, "lower_better": False}
    metrics = {"pairs": 3, "metrics": {"psnr": metric}, "rows": rows, "images": images, "notes": [],
               "unavailable": {"lpips": "weights not available"}}
    (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    for label, shift in (("cold start", 0.0), ("after GRPO", 0.12)):
        means = {name: 0.55 + shift for name in REWARDS} | {"total": 2.2 + 4 * shift}
        result = {"label": label, "n": 256, "rewards": {
            name: {"mean": value, "ci95": [value - 0.03, value + 0.03]} for name, value in means.items()}}
        if shift:
            result["paired"] = {name: {"difference": shift, "ci95": [shift - 0.02, shift + 0.02]}
                                for name in means}
        (folder / f"{label.split()[0]}.json").write_text(json.dumps(result), encoding="utf-8")


class Page(HTMLParser):
    """Counts what a test asks about."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and all(found.get(key) == value for key, value in attributes.items())
                   for name, found in self.tags)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything, and its report."""
    folder = tmp_path_factory.mktemp("full")
    write_log(folder / "run-7")
    write_samples(folder / "run-7")
    write_restored(folder)
    write_results(folder)
    assert report.main(["--run", str(folder / "run-7"), "--restored", str(folder / "restored"),
                        "--gt", str(folder / "gt"), "--metrics", str(folder / "metrics.json"),
                        "--compare", str(folder / "cold.json"), str(folder / "after.json")]) == 0
    return folder / "run-7" / "report"


@pytest.fixture(scope="module")
def text(full: Path) -> str:
    return (full / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_for_no_other_file(text: str) -> None:
    page = Page(text)
    links = [value for _, attributes in page.tags for key, value in attributes.items()
             if key in ("src", "href", "xlink:href", "srcset", "action", "data")]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert "http" not in text.lower().replace("http-equiv", "") and "@import" not in text
    assert page.count("script") == page.count("link") == 0


def test_the_page_is_balanced_html_with_unique_ids(text: str) -> None:
    page = Page(text)
    assert page.unbalanced == [] and page.open == []
    ids = [attributes["id"] for tag, attributes in page.tags if "id" in attributes and tag == "section"]
    assert ids == list(SECTIONS)


def test_every_part_is_shown(text: str) -> None:
    page = Page(text)
    assert 'class="missing"' not in text
    assert page.count("svg") == 1 + len(REWARDS) + 2  # total, each reward, loss, length
    assert page.count("article", **{"class": "strip"}) == 3 + len(PHOTOS)
    assert page.count("img") == 5 * (3 + len(PHOTOS))
    assert [title in text for title in ("Step 10 ·", "Step 20 ·", "Step 30 ·", "Step 40 ·", "Step 60 ·")] == [
        True, False, True, False, True]
    for words in ("run-7", "60 steps", "cold start", "after GRPO", "+0.120", "22.50", "lpips: n/a"):
        assert words in text


def test_texts_of_chains_are_escaped(text: str) -> None:
    assert "<degradation>" not in text and "&lt;degradation&gt;" in text
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold&lt;/b&gt; &amp; soft light" in text


def test_named_degradations_are_checked_against_the_truth(text: str) -> None:
    assert text.count("✓") == 3 * 3 and text.count("✗") == 3 * 2  # 0.6 of the items, in each of three samples


def test_curves_and_strips_are_also_pictures(full: Path) -> None:
    for name, width in (("curves.png", 1000), ("strips.png", 5 * 144)):
        with Image.open(full / name) as picture:
            assert picture.width >= width and numpy.asarray(picture.convert("L")).std() > 10
    assert sorted(path.name for path in full.iterdir()) == ["curves.png", "report.html", "strips.png"]


def test_missing_parts_name_the_command_that_makes_them(tmp_path: Path) -> None:
    write_log(tmp_path / "run")
    report.main(["--run", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    missing = re.findall(r'<p class="missing">.*?<code><span>realsr-r1</span> <span>(\w+)', text)
    assert missing == ["report", "grpo", "restore", "evaluate"]
    assert (tmp_path / "curves.png").is_file() and not (tmp_path / "strips.png").exists()


def test_a_cold_start_run_shows_its_loss(tmp_path: Path) -> None:
    write_log(tmp_path / "run", steps=2, rewards=False)
    report.main(["--run", str(tmp_path / "run")])
    text = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert Page(text).count("svg") == 1 and "logged no rewards" in text


def test_a_run_that_was_stopped_says_why_and_shows_what_tells_of_a_collapse(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 0.0, "reward": 1.0, "repeated_rows": 0.3 * step, "spread/total": 0.1,
                "frac_reward_zero_std": 0.0, "entropy": 2.0 - 0.5 * step} for step in (1, 2, 3)]
    (tmp_path / "log_history.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    reason = "stopped at step 3 by --stop_if 'repeated_rows>0.8' (repeated_rows was 0.9)"
    (tmp_path / "stopped.json").write_text(json.dumps({
        "step": 3, "condition": "repeated_rows>0.8", "values": [0.9], "reason": reason,
        "best_checkpoint": None, "best_by": None}), encoding="utf-8")
    report.main(["--run", str(tmp_path)])
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert reason in html.unescape(text)
    for title in ("repeated rows of codes", "spread of the total", "groups without spread", "entropy"):
        assert f"<h3>{title}" in text


def test_the_log_of_the_last_checkpoint_serves_where_there_is_no_other(tmp_path: Path) -> None:
    for step in (9, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        history = [{"step": number, "reward": 0.1 * number, "loss": 0.0} for number in range(1, step + 1)]
        state = {"log_history": history, "max_steps": 10}
        (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    report.main(["--run", str(tmp_path)])
    assert "10 steps" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_a_completion_that_is_no_chain_and_lacks_pictures_is_shown_as_it_is(tmp_path: Path) -> None:
    write_log(tmp_path)
    write_samples(tmp_path, steps=(5,))
    folder = tmp_path / "samples" / "step-000005"
    (folder / "completion-0.txt").write_text("<degradation>light blur <script>alert(1)</script>",
                                             encoding="utf-8")
    (folder / "rewards.json").write_text('{"format": [0.0], "understanding": [null], "total": [0.0]}',
                                         encoding="utf-8")
    for name in ("hq.png", "completion-0-middle.png", "completion-0-final.png"):
        (folder / name).unlink()
    report.main(["--run", str(tmp_path)])
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "not well formed" in text and "<script" not in text and "&lt;script&gt;" in text
    assert text.count('class="none"') == 3


def test_a_line_cut_by_a_killed_run_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    write_log(tmp_path, steps=5)
    log = tmp_path / "log_history.jsonl"
    log.write_text(log.read_text(encoding="utf-8") + '{"step": 6, "lo', encoding="utf-8")
    report.main(["--run", str(tmp_path)])
    assert "5 steps" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    log.write_text("nonsense\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="line 1, "):
        report.main(["--run", str(tmp_path)])


def test_bad_input_is_one_error_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"a": 1}', encoding="utf-8")
    write_log(tmp_path / "run")
    save(PHOTOS["coffee"], tmp_path / "restored" / "coffee.png")
    (tmp_path / "restored" / "broken.png").write_bytes(b"not a picture")
    run, other = ["--run", str(tmp_path / "run")], str(tmp_path / "other.json")
    cases = [(["--run", str(tmp_path / "nowhere")], "no such folder"),
             (["--run", str(tmp_path / "empty")], "has no log"),
             ([*run, "--metrics", other], "other.json has no key 'pairs'; --metrics takes"),
             ([*run, "--metrics", str(tmp_path / "gone.json")], "no such file"),
             ([*run, "--compare", other, other], "other.json has no key 'rewards'; --compare takes"),
             ([*run, "--restored", str(tmp_path / "empty")], "no images in"),
             ([*run, "--restored", str(tmp_path / "restored")], "broken.png can't be read"),
             ([*run, "--gt", str(tmp_path / "restored")], "--restored"),
             ([*run, "--output", str(tmp_path / "empty")], "is a folder")]
    for arguments, words in cases:
        with pytest.raises(UserError, match=re.escape(words)):
            report.main(arguments)
    assert not (tmp_path / "run" / "report").exists() and not list(tmp_path.glob("**/*.partial"))


@pytest.mark.parametrize(("file", "change", "said"), [
    ("metrics.json", {"rows": [{"name": 5}]}, r"rows\[0\]"), ("metrics.json", {"rows": []}, "at least 1"),
    ("metrics.json", {"pairs": "3"}, "pairs is '3'; it must be a whole number"),
    ("metrics.json", {"metrics": {"psnr": {"label": "a", "unit": None, "decimals": 10**9,
                                           "lower_better": False}}}, "metrics.psnr.decimals is 1000000000"),
    ("metrics.json", {"images": [{"name": "a", "restored": 5}]}, "images"),
    ("cold.json", {"rewards": {"format": {"mean": math.inf}}}, "rewards.format.mean is inf"),
    ("cold.json", {"rewards": {"format": {"mean": 1, "ci95": [0]}}}, "ci95"),
    ("after.json", {"paired": {"format": 5}}, "paired.format"),
    ("run/samples/step-000010/rewards.json", {"format": 1.0}, "format is 1.0; it must be a list"),
    ("run/samples/step-000010/prompt.json", {"tag": 5}, "tag is 5; it must be a list or a text"),
    ("run/samples/step-000010/chain.json", {"sections": 5}, "sections is 5"),
    ("run/settings.json", {"a": "\ud800"}, "a is"), ("run/stopped.json", {"reason": "x"}, "no key"),
])
def test_a_file_of_another_form_is_one_line_that_names_file_and_place(file, change, said, tmp_path):
    write_log(tmp_path / "run", steps=2)
    write_samples(tmp_path / "run", steps=(10,))
    write_results(tmp_path)
    path = tmp_path / file
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**before, **change}))
    with pytest.raises(UserError, match=said) as refused:
        report.main(["--run", str(tmp_path / "run"), "--metrics", str(tmp_path / "metrics.json"),
                     "--compare", str(tmp_path / "cold.json"), str(tmp_path / "after.json")])
    assert path.name in str(refused.value) and "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "report").exists()


def test_metrics_have_their_intervals_and_paired_differences(tmp_path):
    write_log(tmp_path / "run", steps=2)
    write_results(tmp_path)
    path = tmp_path / "metrics.json"
    result = json.loads(path.read_text())
    result["rows"][-1]["ci95"] = {"psnr": [21.25, 23.75]}
    result |= {"methods": ["restored"],
               "paired": {"LQ input": {"psnr": {"difference": -2.5, "ci95": [-3.25, -1.5]}}}}
    path.write_text(json.dumps(result))
    report.main(["--run", str(tmp_path / "run"), "--metrics", str(path)])
    page = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert "restored − LQ input" in page and "[21.25, 23.75]" in page
    assert "−2.50" in page and "[−3.25, −1.50]" in page and 'title="worse"' in page


def test_what_only_looks_like_a_fault_is_shown(tmp_path):
    """A mean that isn't known, a name with two dollar signs, a log line that is no UTF-8 at its end."""
    write_log(tmp_path / "a$b$c", steps=3)
    write_results(tmp_path)
    for name in ("cold", "after"):
        path = tmp_path / f"{name}.json"
        values = json.loads(path.read_text())
        values["rewards"]["format"] = {"mean": None, "ci95": None}
        path.write_text(json.dumps({**values, "paired": {"format": {"difference": None, "ci95": None}}}))
    with open(tmp_path / "a$b$c" / "log_history.jsonl", "ab") as log:
        log.write(b'{"step": 4, "name": "caf\xe9')
    report.main(["--run", str(tmp_path / "a$b$c"), "--compare", str(tmp_path / "cold.json"),
                 str(tmp_path / "after.json")])
    text = (tmp_path / "a$b$c" / "report" / "report.html").read_text(encoding="utf-8")
    assert "a$b$c" in text and "<td>format</td><td>–</td><td>–</td><td>–</td>" in text
