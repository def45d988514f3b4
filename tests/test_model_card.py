"""The model card of an exported folder, and sending the folder to (a stand-in for) the Hugging Face Hub."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from realsr_r1 import export, restore
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import CARD_FILE

from .small import photo, write_model

ODD = "a|b <img src=x> {{ 7 * 7 }} `*_[c](d)"
SETTINGS = {"model_name_or_path": "models/base", "dataset_name": "sets/photos", "learning_rate": 2e-6,
            "reward_funcs": ["format", "generation"], "grammar": ODD, "seed": 3}
METRICS = {"pairs": 3, "methods": ["restored"], "metrics": {"psnr": {
    "label": "PSNR (Y)", "unit": "dB", "decimals": 2, "lower_better": False, "channel": "Y of YCbCr",
    "rounding": "none", "border": 0, "version": "pyiqa 0.1.16, psnr"}}, "intervals": "bootstrap",
    "rows": [{"name": "restored", "mean": {"psnr": 23.456}, "ci95": {"psnr": [22.5, 24.5]}}], "paired": {},
    "images": [], "notes": ["left out, 1 restored image(s) of /home/jane/secret"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "small", tiny_model)


@pytest.fixture
def run(tmp_path: Path, model: Path, monkeypatch) -> Path:
    """The folder of a finished GRPO run, with its base and its dataset where its settings say."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "run")
    write("run/settings.json", json.dumps(SETTINGS))
    write("run/checkpoint-40/trainer_state.json", json.dumps({"global_step": 40}))
    write("models/base/README.md", "---\nlicense: mit\n---\n# Base\n")
    write("sets/photos/create_json.json", json.dumps({
        "fingerprint": {"format": 1}, "summary": "train 312, test 48\n  blur: light", "records": 360,
        "bad": [], "bad_count": 0, "left_out_count": 0}))
    write("metrics.json", json.dumps(METRICS))
    return tmp_path / "run"


def write(path: str, text: str) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def exported(*more: str, source: str = "run", output: str = "out") -> str:
    export.main(["--checkpoint", source, "--output", output, *more])
    return (Path(output) / CARD_FILE).read_text(encoding="utf-8")


def metadata(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_names_base_data_recipe_differences_metrics_and_licences(run):
    write("run/differences.json", json.dumps({"profile": "published", "rows": [
        {"setting": "learning_rate", "what": "learning rate", "ours": "2e-6", "theirs": "2e-5"}]}))
    card = exported("--metrics", "metrics.json")
    for part in ("| base | base |", "| data | photos: train 312, test 48 |", "| stage | GRPO, 40 steps |",
                 "| learning\\_rate | 2e-06 |", "| reward\\_funcs | format, generation |",
                 "| learning rate | 2e-6 | 2e-5 |", "23.46", "\\[22.50, 24.50\\]", "| base (base) | mit |",
                 "| photos of photos | not known here |", "PolyForm Noncommercial", "rough\\_image"):
        assert part in card, part
    assert str(run.parent) not in card and "/home/jane" not in card  # nobody's folders
    assert metadata(card)["license"] == "other" and metadata(card)["licences"]["base (base)"] == "mit"


def test_whatever_stands_in_a_run_is_shown_as_it_is(run):
    card = exported()
    assert r"a\|b &lt;img src=x> \{\{ 7 \* 7 \}\} \`\*\_\[c\](d)" in card and "<img" not in card
    rows = [line.replace(r"\|", "") for line in card.splitlines() if line.startswith("| grammar")]
    assert [row.count("|") for row in rows] == [3]


def test_what_is_not_known_is_said_so(run):
    write("models/base/README.md", "# Somebody's model\n")
    of_before = {key: METRICS[key] for key in ("pairs", "rows", "images")}  # an older version's file
    psnr = {"label": "PSNR", "unit": None, "decimals": 2, "lower_better": False}
    write("metrics.json", json.dumps({**of_before, "metrics": {"psnr": psnr}}))
    card = exported("--metrics", "metrics.json", output="of_less")
    assert "| base (base) | not known here |" in card and "| PSNR ↑ | 23.46" in card
    Path("sets/photos/create_json.json").unlink()
    note = {"dataset": "d", "seed": 0, "fingerprint": "f"}
    write("sets/photos/tokens.json", json.dumps({
        "format": 2, "tokenizer": {"folder": "f", "fingerprint": "f"},
        "splits": {"train": {**note, "records": 30}, "test": {**note, "records": 4}}}))
    assert "| data | photos: train 30, test 4 |" in exported(output="of_tokens")
    shutil.rmtree("sets")
    card = exported()
    assert "photos, whose counts are not known here" in card and "the run was not compared" in card
    assert "None given (`realsr-r1 export --metrics" in card
    assert "its weights as they are" in exported(source="out", output="again")


def test_licences_pass_from_card_to_card_and_may_be_given(run):
    write("licences.yaml", "photographs: CC0-1.0\n")
    shutil.rmtree("models/base")
    exported("--licences", "licences.yaml", output="models/base")
    write("run/differences.json", "[]")
    with pytest.raises(UserError, match="differences.json holds"):
        exported(output="grandchild")
    assert not Path("grandchild").exists()
    Path("run/differences.json").unlink()
    card = exported(output="grandchild")
    assert metadata(card)["licences"]["photographs"] == "CC0-1.0" and "| photographs | CC0-1.0 |" in card
    write("licences.yaml", "photographs: [1]\n")
    with pytest.raises(UserError, match="licences.yaml .given by --licences.*photographs is"):
        exported("--licences", "licences.yaml", output="refused")
    assert not Path("refused").exists()


def test_the_photos_own_licence_stays_beside_what_is_given(run):
    write("licences.yaml", "experts' weights: see pyiqa\n")
    licences = metadata(exported("--licences", "licences.yaml"))["licences"]
    assert licences["photos of photos"] == "not known here" and licences["experts' weights"] == "see pyiqa"
    write("licences.yaml", "photos of photos: CC0-1.0\n")
    assert "| photos of photos | CC0-1.0 |" in exported("--licences", "licences.yaml")


def test_the_first_base_is_named_and_licensed_over_runs_and_exports(run, model):
    shutil.copytree(model, "cold")
    write("cold/settings.json", json.dumps({"model_name_or_path": "models/base",
                                            "dataset_name": "sets/chains"}))
    write("run/settings.json", json.dumps({**SETTINGS, "model_name_or_path": "cold"}))
    card = exported()
    assert "| base | cold, made from base |" in card and "| base (base) | mit |" in card
    assert "| photos of photos | not known here |" in card and "| photos of chains |" in card
    assert "PolyForm" in card
    shutil.rmtree("models/base")  # it is named, whether it is still there or not
    exported(source="cold", output="exported")
    write("run/settings.json", json.dumps({**SETTINGS, "model_name_or_path": "exported"}))
    shutil.rmtree("cold")
    card = exported(output="second")
    assert "| base | exported, made from base |" in card and "| photos of chains |" in card
    assert "second (its weights as they are), made from exported, made from base" in exported(source="second",
                                                                                             output="third")


def test_a_card_that_is_written_anew_keeps_what_it_was_given(run):
    write("licences.yaml", "photographs: CC0-1.0\n")
    first = exported("--licences", "licences.yaml", "--metrics", "metrics.json")
    write("licences.yaml", "experts: theirs\n")
    second = exported("--licences", "licences.yaml")
    assert "23.46" in second and metadata(second)["licences_given"] == {"experts": "theirs"}
    assert "photographs" not in second and "photographs" in first
    write("metrics.json", json.dumps({**METRICS, "pairs": 4}))
    third = exported("--metrics", "metrics.json")
    assert third.replace("4 photo", "3 photo") == second
    (run.parent / "out" / CARD_FILE).unlink()
    assert "None given" in exported() and "None given" in exported("--licences", "licences.yaml")


def test_differences_go_with_the_export_and_its_export(run):
    found = {"profile": "published", "rows": [
        {"setting": "z_loss", "what": "z-loss", "ours": "0", "theirs": "1"}]}
    write("run/differences.json", json.dumps(found))
    exported()
    assert "| z-loss | 0 | 1 |" in exported(source="out", output="again")
    assert json.loads(Path("again/differences.json").read_text()) == found


def test_an_older_export_is_told_that_it_was_trained(run):
    exported()
    record = json.loads(Path("out/export.json").read_text())
    write("out/export.json", json.dumps({"made_from": record["made_from"]}))
    exported()
    assert json.loads(Path("out/export.json").read_text()) == record and "trained" in record


def test_a_card_that_is_written_anew_disturbs_nothing(run, capsys):
    exported()
    write("low/coffee.png", "")
    photo("coffee", 32).save("low/coffee.png")
    argv = ["--model", "out", "--input", "low", "--output", "restored", "--device", "cpu"]
    restore.main(argv)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*") if path.name != CARD_FILE}
    assert "23.46" in exported("--metrics", "metrics.json")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    restore.main(argv)
    assert "1 of 1 photos are restored" in capsys.readouterr().out


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub's API does, and keeps what is committed."""

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            self._answer([{"type": "file", "path": path, "size": len(content), "oid": "1"}
                          for path, content in self.server.files.items()])
            return
        known = self.headers.get("Authorization") == "Bearer hf_good"
        self._answer({"name": "me", "type": "user", "sha": "0" * 40, "id": "me/model"} if known else
                     {"error": "Invalid user token."}, 200 if known else 401)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        hub = self.server
        hub.asked.append(self.path)
        if hub.lost and hub.lost in self.path:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self._answer({"url": f"{hub.address}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            self._answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                    for file in json.loads(body)["files"]]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] != "header":
                    hub.others.append(line)
            self._answer({"success": True, "commitOid": "1" * 40, "hookOutput": "",
                          "commitUrl": f"{hub.address}/me/model/commit/1"})
        else:
            self._answer({"errors": [], "warnings": []})

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        return data

    def _answer(self, value: dict | list, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.files, server.created, server.others, server.asked, server.lost = {}, [], [], [], None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def pushed(hub: ThreadingHTTPServer, folder: Path, token: str = "hf_good") -> subprocess.CompletedProcess:
    """Export in a process of its own: the Hub's client reads where the Hub is when it is imported."""
    command = [sys.executable, "-m", "realsr_r1.export", "--checkpoint", "run", "--output", "out"]
    return subprocess.run(
        [*command, "--push_to_hub", "me/model"], cwd=folder,
        env={**os.environ, "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token,
             "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, timeout=180)


def test_the_push_sends_exactly_the_folders_files_and_only_when_asked(run, hub, monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("check_hub", "push_folder"):
            patch.setattr(export, name, pytest.fail)
        exported()
    done = pushed(hub, run.parent)
    assert done.returncode == 0, done.stderr
    out = run.parent / "out"
    assert hub.files == {path.relative_to(out).as_posix(): path.read_bytes()
                         for path in out.rglob("*") if path.is_file()}
    assert CARD_FILE in hub.files and hub.others == []
    assert [repo["visibility"] for repo in hub.created] == ["private"]
    assert "nothing to do" in done.stdout and f"{hub.address}/me/model" in done.stdout


def test_a_connection_that_is_lost_is_one_line_and_the_same_command_sends_the_rest(run, hub):
    hub.lost = "/commit/"
    done = pushed(hub, run.parent)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "out could not be sent to me/model (--push_to_hub): " in line
    assert "start the same command again" in line
    hub.lost = None
    done = pushed(hub, run.parent)
    assert done.returncode == 0 and "nothing to do" in done.stdout and CARD_FILE in hub.files


def test_files_that_only_the_repository_has_stay_and_are_named(run, hub):
    hub.files.update({".gitattributes": b"", "model-00001-of-00002.safetensors": b"old",
                      "my/photo.png": b"mine"})
    done = pushed(hub, run.parent)
    assert ("has files besides, which stay: model-00001-of-00002.safetensors, my/photo.png; delete there"
            in done.stdout), done.stderr
    assert hub.files["my/photo.png"] == b"mine" and hub.others == []


def test_who_may_not_push_is_told_before_anything_is_made(run, hub):
    done = pushed(hub, run.parent, token="hf_bad")
    assert done.returncode == 2 and not (run.parent / "out").exists() and hub.asked == []
    line = done.stderr.strip().splitlines()[-1]
    assert "nothing can be sent to me/model (--push_to_hub)" in line and "hf auth login" in line
    with pytest.raises(UserError, match="nothing can be sent to a/b/c"):
        exported("--push_to_hub", "a/b/c")
