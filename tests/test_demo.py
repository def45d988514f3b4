"""`realsr-r1 demo`: the page answers on loopback, restores photos over HTTP and refuses in words."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from realsr_r1.core.errors import UserError
from realsr_r1.demo import main

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None,
                                  reason="gradio isn't installed (pip install '.[demo]')")
SETTINGS = [1.0, 0.7, 0, "shared", "model", 1]  # of `restore`, after the photo


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The address of a demo of the embedded model, which runs until the last test. It is ended while
    a photo is in work, and ends at once.
    """
    temporary = tmp_path_factory.mktemp("temporary")
    process = subprocess.Popen(
        [sys.executable, "-m", "realsr_r1.demo", "--device", "cpu", "--max_pixels", "40000",
         "--max_waiting", "1"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(temporary)})
    found, lines = None, []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"is at (http://127\.0\.0\.1:\d+)/; Ctrl-C ends it", line):
            break
    assert found, "".join(lines)
    yield found[1]
    from gradio_client import handle_file

    large = tmp_path_factory.mktemp("large") / "large.png"
    Image.new("RGB", (200, 190)).save(large)
    visit = client(found[1])
    job = visit.submit(handle_file(str(large)), *SETTINGS, api_name="/restore")
    while not any("data-section" in str(step) for step in job.outputs()):
        assert not job.done()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # as Ctrl-C, which a process started in the background ignores
    assert process.wait(timeout=60) == 0
    assert list(temporary.glob("realsr-r1-demo-*")) == [] == list(temporary.rglob("*.png"))  # no photo stays


@pytest.fixture(scope="module")
def photo(photos_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "coffee.png"
    with Image.open(photos_dir / "coffee.png") as image:
        image.convert("RGB").resize((54, 36)).save(path)
    return path


def client(address):
    from gradio_client import Client

    return Client(address, verbose=False)


def run_to_the_end(address, path):
    """Every text that the page shows on the way, and the names and sizes of the files at the end."""
    from gradio_client import handle_file

    job = client(address).submit(handle_file(str(path)), *SETTINGS, api_name="/restore")
    final = job.result(timeout=300)
    return ["\n".join(map(str, step)) for step in job.outputs()], final


@needs_gradio
def test_a_photo_is_restored_and_its_sections_arrive_in_order(address, photo):
    steps, final = run_to_the_end(address, photo)
    seen = []
    for step in steps:
        seen += [name for name in re.findall(r'data-section="(\w+)"', step) if name not in seen]
    assert seen == ["degradation", "rough_understand", "rough_image", "middle_understand", "middle_image",
                    "final_understand", "final_image"]
    first_image = next(number for number, step in enumerate(steps) if "data:image/png" in step)
    assert first_image < len(steps) - 1
    files = {Path(value).name: value for value in re.findall(r"/[^'\"\s,)]+\.(?:png|json)", str(final))}
    with Image.open(files["coffee-restored.png"]) as image:
        assert image.size == (54, 36) and "icc_profile" in image.info
    chain = json.loads(Path(files["coffee-chain.json"]).read_text())
    assert chain["photo"] == "coffee" and chain["settings"]["scale"] == 1
    assert "<rough_image><|image|></rough_image>" in chain["text"] and chain["settings"]["model"] == "tiny"


@needs_gradio
def test_what_cant_be_restored_is_refused_in_words(address, photo, tmp_path):
    (tmp_path / "notes.txt").write_text("no photo")
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:900])
    for name, reason in (("notes.txt", "none of the known formats"), ("bomb.png", "at most 64 million"),
                         ("cut.png", "image file is truncated")):
        steps, _ = run_to_the_end(address, tmp_path / name)
        assert reason.replace("'", "&#x27;") in steps[-1] and "message bad" in steps[-1] and name in steps[-1]
    Image.new("RGB", (300, 200)).save(tmp_path / "large.png")
    steps, _ = run_to_the_end(address, tmp_path / "large.png")
    assert "this page makes at most 0.0 million: choose ½ × or less" in steps[-1]


@needs_gradio
def test_a_second_visitor_waits_with_a_message_and_a_third_is_told_that_the_line_is_full(address, photo):
    with ThreadPoolExecutor(3) as pool:
        visits = [visit.result() for visit in [pool.submit(run_to_the_end, address, photo) for _ in range(3)]]
    ends = [steps[-1] for steps, _ in visits]
    assert sum("Restored in" in end for end in ends) == 2
    assert sum("1 more photo is waiting; try again" in end for end in ends) == 1
    assert any("yours is next" in step for steps, _ in visits for step in steps)


@needs_gradio
def test_the_page_asks_no_other_server(address):
    import httpx

    answer = httpx.get(address)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r'(?:src|href)="(?:https?:)?//(?!127\.0\.0\.1)', answer.text)
    assert "Nothing leaves this machine" in answer.text


@needs_gradio
def test_a_port_that_is_taken_is_named(tiny_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"can't be served on port {port}.*--port"):
            main(["--model", str(tiny_model), "--device", "cpu", "--port", str(port)])


@pytest.mark.parametrize("argv, reason", [
    (["--model", "nowhere"], "no such model folder: nowhere"), (["--port", "0"], "--port is 0; it must be from 1"),
    (["--max_pixels", "0"], "--max_pixels is 0; it must be from 1"),
    (["--max_waiting", "-1"], "--max_waiting is -1; it must be from 0")])
def test_bad_flags_are_refused_before_anything_is_loaded(argv, reason):
    with pytest.raises(UserError, match=reason):
        main(argv)


def test_without_gradio_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"needs gradio.*pip install '\.\[demo\]'"):
        main([])
