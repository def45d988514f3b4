"""Drive `realsr-r1 demo` as its visitors do, in a browser, and say what was seen.

    pip install playwright      (and a Chromium, of Debian say)
    python scripts/tools/drive_demo.py --photo PHOTO --output FOLDER [--chromium /usr/bin/chromium]

It starts a demo of its own and ends it. At 1440 and at 390 px: a photo is uploaded, the sections
come in order, an image comes before the chain ends, the slider moves, the downloads are right. Then
files that are no photos or too large, and three visitors at a time. Prints a line a check, writes
screenshots into FOLDER to be looked at, and ends with exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.images import load_image

SECONDS = 240  # for anything that is waited for
STATUS = "document.querySelector('#status').innerText"


class Checks:
    """What was seen, a line each."""

    def __init__(self) -> None:
        self.failed = 0

    def see(self, what: str, is_right: bool, seen: object = "") -> None:
        """Print whether a check held, and what was seen."""
        self.failed += not is_right
        print(f"{'ok  ' if is_right else 'FAIL'} {what}{f': {seen}' if seen != '' else ''}", flush=True)


def main() -> int:
    """Serve, drive, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photo", required=True, help="a photo; it is made 180 px wide")
    parser.add_argument("--output", required=True, help="folder for screenshots")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    output, checks = Path(args.output), Checks()
    output.mkdir(parents=True, exist_ok=True)
    photo = output / "photo.png"
    whole = load_image(args.photo)
    whole.resize((180, round(180 * whole.height / whole.width))).save(photo)
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for width in (1440, 390):
            one_visit(open_page(browser, address, width), photo, output, width, checks)
        bad_files(open_page(browser, address, 1440), output, checks)
        three_visitors(browser, address, output, checks)
        browser.close()
    return min(checks.failed, 1)


@contextmanager
def served() -> Iterator[str]:
    """Run a demo of the embedded model; yields its address."""
    process = subprocess.Popen([sys.executable, "-m", "realsr_r1.demo", "--device", "cpu"],
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"is at (http://127\.0\.0\.1:\d+)/", line):
                yield found[1]
                break
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=SECONDS)


def open_page(browser: Any, address: str, width: int) -> Any:
    """Return a visitor's page, loaded."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(SECONDS * 1000)
    page.goto(address)
    page.wait_for_selector("#run")
    time.sleep(1.5)  # until gradio listens
    return page


def one_visit(page: Any, photo: Path, output: Path, width: int, checks: Checks) -> None:
    """Upload, watch, compare, download."""
    page.set_input_files("#upload input[type=file]", str(photo))
    page.wait_for_selector("#photo img")
    page.click("#run")
    sections: list[str] = []
    image_at = None
    started = time.monotonic()
    while not page.is_visible("#slider") and time.monotonic() < started + SECONDS:
        for name in page.eval_on_selector_all("[data-section]", "all => all.map(e => e.dataset.section)"):
            if name not in sections:
                sections.append(name)
        if image_at is None and page.query_selector("img[data-section]"):
            image_at = time.monotonic() - started
            page.screenshot(path=output / f"writing_{width}.png", full_page=True)
        time.sleep(0.1)
    taken = time.monotonic() - started
    wanted = [section.name for section in ChainSpec.published().sections]
    checks.see(f"{width} px: the sections come in order", sections == wanted, ", ".join(sections))
    checks.see(f"{width} px: an image comes before the end", image_at is not None and image_at < 0.8 * taken,
               f"after {image_at or 0:.1f} of {taken:.1f} s")
    time.sleep(1)
    page.screenshot(path=output / f"done_{width}.png", full_page=True)
    moved(page, output, width, checks)
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(output / "download.png")
    sizes = [load_image(path).size for path in (output / "download.png", photo)]
    checks.see(f"{width} px: the downloaded image has the photo's size", sizes[0] == sizes[1], sizes[0])
    with page.expect_download() as download:
        page.click("#download-chain")
    download.value.save_as(output / "chain.json")
    chain = json.loads((output / "chain.json").read_text(encoding="utf-8"))
    checks.see(f"{width} px: so is the chain", set(wanted) <= set(re.findall(r"<(\w+)>", json.dumps(chain))))
    page.close()


def moved(page: Any, output: Path, width: int, checks: Checks) -> None:
    """Drag the slider from the middle to the right."""
    slider = page.query_selector("#slider")
    slider.scroll_into_view_if_needed()
    box, shots = slider.bounding_box(), []
    for name in ("middle", "right"):
        shots.append(output / f"slider_{name}_{width}.png")
        if name == "right":
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            page.mouse.move(box["x"] + 0.8 * box["width"], y, steps=8)
            page.mouse.up()
            time.sleep(0.5)
        slider.screenshot(path=shots[-1])
    middle, right = (load_image(path) for path in shots)
    changed = ImageChops.difference(middle, right).getbbox()
    is_wide = changed is not None and changed[2] - changed[0] > box["width"] / 5
    checks.see(f"{width} px: the slider moves", is_wide, changed)


def bad_files(page: Any, output: Path, checks: Checks) -> None:
    """Upload what is no photo, and a picture of 100 megapixels."""
    (output / "notes.txt").write_text("no photo\n", encoding="utf-8")
    (output / "fake.png").write_text("no picture", encoding="utf-8")
    Image.new("1", (10000, 10000)).save(output / "bomb.png")
    for name in ("notes.txt", "fake.png", "bomb.png"):
        page.set_input_files("#upload input[type=file]", str(output / name))
        page.wait_for_function(f"name => {STATUS}.includes(name)", arg=Path(name).stem)
        checks.see(f"{name} is refused in words", not page.is_enabled("#run"), page.inner_text("#status"))
    page.screenshot(path=output / "refused_1440.png", full_page=True)
    page.close()


def three_visitors(browser: Any, address: str, output: Path, checks: Checks) -> None:
    """One is served, the others are told how many are ahead, and begin by themselves."""
    pages = [open_page(browser, address, 390) for _ in range(3)]
    for number, page in enumerate(pages):
        page.click(f"#examples .thumbnail-item >> nth={number % 2}")
        page.wait_for_selector("#photo img")
    time.sleep(0.5)
    # One right after the other, for a fast machine restores an example within seconds.
    for number, (page, said) in enumerate(zip(pages, ("Writing|Drawing", "next", "ahead"), strict=True)):
        page.click("#run")
        page.wait_for_function(f"said => new RegExp(said).test({STATUS})", arg=said)
        checks.see(f"visitor {number + 1} is told", True, page.inner_text("#status"))
    pages[1].screenshot(path=output / "waiting_390.png", full_page=True)
    pages[0].click("#stop")
    pages[1].wait_for_function(f"() => /Writing|Drawing/.test({STATUS})")
    checks.see("the second begins when the first stops", True, pages[1].inner_text("#status"))
    pages[1].close()
    pages[2].wait_for_function(f"() => /Writing|Drawing/.test({STATUS})")
    checks.see("the third begins when the second has left", True, pages[2].inner_text("#status"))


if __name__ == "__main__":
    sys.exit(main())
