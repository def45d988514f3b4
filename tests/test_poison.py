"""No file runs: scripts in names and texts stay texts on every page, and a model folder's Python stays
unread.

Each poison is tried where somebody else's text can stand. The tests fail if one of them could run.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from realsr_r1 import report
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.spec import ChainSpec
from realsr_r1.data.building.assembly import Contents
from realsr_r1.data.photos.sources import Item
from realsr_r1.reporting.dataset_page import write_dataset_page
from realsr_r1.showing.render import ChainView, html, message_html
from realsr_r1.showing.visit import Moment

from .small import write_dataset
from .test_report import write_log, write_restored, write_results, write_samples

SOURCE = Path(__file__).parents[1] / "src" / "realsr_r1"
POISON = "\"'><script>poison()</script><img src=x onerror=poison()><svg onload=poison()></svg>{{ 7 * 7 }}$a$"
FILE_NAME = POISON.replace("/", "|")
HARMLESS = {"a", "article", "b", "body", "br", "code", "dd", "details", "div", "dl", "dt", "figcaption", "figure",
            "footer", "h1", "h2", "h3", "head", "header", "html", "i", "img", "li", "main", "meta", "nav", "p",
            "pre", "section", "span", "style", "summary", "table", "td", "th", "title", "tr", "ul",
            "svg", "g", "path", "defs", "use", "text", "tspan", "clippath", "rect"}


class Seen(HTMLParser):
    """Collects what a browser could run or load of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        if tag not in HARMLESS:
            self.found.append(f"<{tag}>")
        for name, value in values.items():
            loads = name in ("src", "href", "xlink:href", "action", "data", "srcset")
            if name.startswith("on") or loads and not (value or "").startswith(("#", "data:image/")):
                self.found.append(f"{name}={value}")

    handle_startendtag = handle_starttag


def seen(text: str) -> Seen:
    assert "poison()" in text and "{{ 7 * 7 }}" in text  # it is there, as a text
    return Seen(text)


def poisoned(value: object) -> object:
    """The same value with poison at the end of every text and key that may be any."""
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return value + POISON if isinstance(value, str) else value


def test_a_script_in_anything_that_a_report_shows_stays_a_text(tmp_path):
    run = tmp_path / "run"
    write_log(run, steps=3)
    write_samples(run, steps=(1,))
    write_restored(tmp_path)
    write_results(tmp_path)
    log = run / "log_history.jsonl"
    log.write_text(log.read_text().replace("format_reward", json.dumps(f"f{POISON}")[1:-1]))
    (run / "settings.json").write_text(json.dumps({"run_name": POISON, POISON: [POISON, {POISON: POISON}]}))
    (run / "stopped.json").write_text(json.dumps({
        "step": 3, "condition": "a>1", "values": [1.0], "reason": POISON, "best_checkpoint": None,
        "best_by": None}))
    sample = run / "samples" / "step-000001"
    for name in ("prompt.json", "completion-0.txt"):
        path = sample / name
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))) if name.endswith("json")
                        else path.read_text().replace("light", f"light {POISON}"))
    (sample / "rewards.json").write_text(json.dumps({POISON: [0.5], "total": [0.5]}))
    for folder in ("restored", "gt"):
        (tmp_path / folder / "coffee.png").rename(tmp_path / folder / f"{FILE_NAME}.png")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    metrics["metrics"]["psnr"] = {**metrics["metrics"]["psnr"], "label": POISON, "unit": POISON}
    metrics["images"] = [{"name": FILE_NAME, "restored": {"psnr": 1.0}}]
    metrics |= {"notes": [POISON], "unavailable": {POISON: POISON}}
    metrics["rows"][0]["name"] = POISON
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    for name in ("cold", "after"):
        path = tmp_path / f"{name}.json"
        side = json.loads(path.read_text())
        side["rewards"][POISON] = side["rewards"]["format"]
        path.write_text(json.dumps({**side, "label": POISON, "n": POISON}))
    report.main(["--run", str(run), "--restored", str(tmp_path / "restored"), "--gt", str(tmp_path / "gt"),
                 "--metrics", str(tmp_path / "metrics.json"), "--compare", str(tmp_path / "cold.json"),
                 str(tmp_path / "after.json")])
    page = seen((run / "report" / "report.html").read_text(encoding="utf-8"))
    assert page.found == []
    assert "default-src 'none'" in page.policy and "script" not in page.policy


def test_pairs_that_are_a_text_are_refused(tmp_path):
    write_log(tmp_path / "run", steps=2)
    write_results(tmp_path)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pairs": POISON}))
    with pytest.raises(Exception, match="pairs is .* it must be a whole number"):
        report.main(["--run", str(tmp_path / "run"), "--metrics", str(path)])
    assert not (tmp_path / "run" / "report").exists()


def test_a_script_in_anything_that_a_datasets_page_shows_stays_a_text(tmp_path):
    import datasets

    folder = write_dataset(tmp_path / "dataset", test=1, train=2)
    split = datasets.load_from_disk(str(folder))["train"].map(lambda row: {
        "source": POISON, "tag": [POISON], "degradation": [POISON] * 5})
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "poisoned"))
    items = [Item(FILE_NAME, POISON)]
    write_dataset_page(tmp_path / "poisoned", Contents(
        {"train": 2}, {POISON: {POISON: 2}}, Counter({POISON: 1}), {"train": 1}, items, items))
    page = seen((tmp_path / "poisoned" / "dataset.html").read_text(encoding="utf-8"))
    assert page.found == [] and "default-src 'none'" in page.policy and "script" not in page.policy


def test_a_script_in_what_a_model_writes_or_a_visitor_names_stays_a_text():
    chain = ChainSpec.published()
    pieces = {section.name: SimpleNamespace(
        image=Image.new("RGB", (4, 4)) if section.is_image else None,
        text=f"a, {POISON}" if section.about == "degradation" else POISON) for section in chain.sections}
    shown = (ChainView(chain, (4, 4)).html(Moment(pieces=pieces)), message_html(POISON), html("caption", POISON),
             html("head", "Private.", POISON))
    assert [seen(fragment).found for fragment in shown] == [[]] * 4


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PreTrainedTokenizerFast, AutoConfig
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(AutoConfig): pass
"""


@pytest.mark.parametrize("named", ["tokenizer", "config", "both"])
def test_a_model_folders_python_never_runs_whatever_is_answered(named, tiny_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    mark = tmp_path / "it-ran"
    (folder / "evil.py").write_text(CODE.format(mark=str(mark)))
    if named != "config":
        file = folder / "tokenizer_config.json"
        values = {**json.loads(file.read_text()), "tokenizer_class": "Evil",
                  "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        file.write_text(json.dumps(values))
    if named != "tokenizer":
        file = folder / "config.json"
        values = {**json.loads(file.read_text()), "auto_map": {"AutoConfig": "evil.EvilConfig",
                                                               "AutoModelForCausalLM": "evil.Evil"}}
        file.write_text(json.dumps(values))
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    from realsr_r1.core.errors import UserError
    from realsr_r1.models import load_policy

    for load in (ChainProcessor.from_pretrained, load_policy):
        try:
            load(folder)
        except UserError as refused:
            assert re.search("tokenizer", str(refused))
    assert not mark.exists()


def test_every_loader_of_transformers_is_told_to_run_no_code():
    """`Auto...from_pretrained` and `pipeline` ask on the terminal, and take y, unless they are told."""
    found, told = 0, []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and re.fullmatch(r"Auto\w+\.from_\w+|pipeline", ast.unparse(node.func)):
                found += 1
                told += [keyword for keyword in node.keywords if keyword.arg == "trust_remote_code"
                         and isinstance(keyword.value, ast.Constant) and keyword.value.value is False]
    assert found == len(told) >= 3
