"""How fast create-json makes crops, how that grows with its processes, and the memory each takes.

No GPU is needed.

    .venv/bin/python scripts/benchmarks/benchmark_data.py \\
        --images outputs/quickstart/photos

Makes `--crops` crops of 512 px with the published degradation, `--repeats` times with each number
of processes, in turn, start-up included, and prints as JSON: `crops_per_second` (medians),
`speedup` (of the most processes to one, median over the turns), `share` (of linear), `apart` (the
speedup of as many commands of one process each, started together: what the machine allows),
`crops_per_cpu_second` (which other programs disturb less) and `worker_MiB`: the most memory that a
worker held.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
INTERVAL = 0.1  # seconds between two looks at memory


def main() -> None:
    """Run create-json again and again, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", required=True, type=Path, help="folder of photos of at least 512 px")
    parser.add_argument("--crops", type=int, default=500, help="of a run (default: 500)")
    parser.add_argument("--crop_px", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="of each run (default: 3)")
    parser.add_argument("--num_proc", type=int, nargs="+", default=[1, 2],
                        help="numbers of processes (default: 1 2)")
    args = parser.parse_args()
    from realsr_r1.data.photos.decoding import decode
    from realsr_r1.data.photos.sources import list_photos

    photos = [photo for photo in list_photos(args.images, None, "").photos
              if min(decode(photo).size) >= args.crop_px]
    runs: dict[int, list[dict[str, float]]] = {count: [] for count in args.num_proc}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "images").mkdir()
        for photo in photos:
            (work / "images" / photo.name.replace("/", "-")).symlink_to(Path(photo.place.path).resolve())
        (work / "tags.jsonl").write_text("".join(json.dumps({"image": photo.name.replace("/", "-"),
                                                             "tag": "photo"}) + "\n"
                                                 for photo in photos))
        each = -(-args.crops // len(photos))
        few, many = min(runs), max(runs)
        apart = []
        with tqdm(total=args.repeats * (len(runs) + 1), unit="run") as bar:
            for _ in range(args.repeats):
                for count in runs:
                    runs[count].append(one_run(work, each, args.crop_px, count))
                    bar.update()
                apart.append(one_run(work, each, args.crop_px, few, copies=many // few))
                bar.update()
    crops = each * len(photos)
    rates = {count: [crops / run["seconds"] for run in done] for count, done in runs.items()}
    speedup = median(more / one for more, one in zip(rates[many], rates[few], strict=True))
    allowed = median(many // few * one["seconds"] / together["seconds"]
                     for one, together in zip(runs[few], apart, strict=True))
    print(json.dumps({
        "crops": crops, "photos": len(photos), "load_average": round(os.getloadavg()[0], 1),
        "crops_per_second": {count: round(median(rate), 2) for count, rate in rates.items()},
        "crops_per_cpu_second": {count: round(median(crops / run["cpu_seconds"] for run in done), 2)
                                 for count, done in runs.items()},
        "speedup": round(speedup, 2), "share": round(speedup / (many / few), 2), "apart": round(allowed, 2),
        "worker_MiB": {count: round(max(run["worker_MiB"] for run in done))
                       for count, done in runs.items()}}))


def one_run(work: Path, crops_per_photo: int, crop_px: int, num_proc: int,
            copies: int = 1) -> dict[str, float]:
    """Seconds, CPU seconds and the largest worker of `copies` runs started together, whose outputs
    are deleted.
    """
    shutil.rmtree(work / "out", ignore_errors=True)
    command = [sys.executable, "-m", "realsr_r1.create_json", "--images", "images", "--tags", "tags.jsonl",
               "--crop_px", str(crop_px), "--crops_per_photo", str(crops_per_photo), "--num_proc",
               str(num_proc)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    processes = [subprocess.Popen([*command, "--output", f"out/{copy}"], cwd=work, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL,
                                  env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
                 for copy in range(copies)]
    largest = [0.0]
    watcher = threading.Thread(target=watch, args=(processes[0], num_proc > 1, largest))
    watcher.start()
    if any([process.wait() for process in processes]):  # a list: wait for all
        raise SystemExit(f"create-json failed: {' '.join(command)}")
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    watcher.join()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "worker_MiB": largest[0]}


def watch(process: subprocess.Popen, of_children: bool, largest: list[float]) -> None:
    """Put the highest resident memory (MiB) of the process, or of its children, into `largest`
    (Linux).
    """
    while process.poll() is None:
        workers = children(process.pid) if of_children else [process.pid]
        largest[0] = max([largest[0], *map(peak_memory, workers)])
        time.sleep(INTERVAL)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak_memory(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")),
                0.0)


if __name__ == "__main__":
    main()
