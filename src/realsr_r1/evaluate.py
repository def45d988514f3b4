"""`realsr-r1 evaluate`: compares restored photos with the originals, or judges them without.

It averages over photos, prints a table, and writes it as JSON, CSV, Markdown and LaTeX. The package
`measuring` pairs, reads and scores; the tables are in reporting/text_tables.py.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, check_new_folder, check_replaced
from realsr_r1.core.flags import Parser
from realsr_r1.core.pictures import READ
from realsr_r1.core.settings import check_ranges
from realsr_r1.measuring.images import LQ, MEAN_COLOUR, RESTORED
from realsr_r1.measuring.metrics import (
    BASELINE_METRICS,
    METRICS,
    OFFLINE_METRICS,
    load_metrics,
    parse_metrics,
)
from realsr_r1.measuring.pairing import find_triples
from realsr_r1.measuring.score_store import ScoreStore
from realsr_r1.measuring.scoring import Scoring
from realsr_r1.measuring.summary import summarise
from realsr_r1.reporting.text_tables import metrics_csv, metrics_table

SCORES_FILE = "scores.jsonl"
NO_METHODS = (LQ, MEAN_COLOUR, "name", "resized", "region")  # keys of a photo in metrics.json


def main(argv: list[str] | None = None) -> int:
    """Pair the files, score them, print and write the results. Returns the exit code.

    Raises `UserError` on bad input; then nothing is written.
    """
    args = _parser().parse_args(argv)
    check_ranges(args, {"crop_border": (0, 4096)})
    if args.resize and args.gt is None:
        raise UserError("--resize brings restored photos to the size of originals: give --gt, or drop it")
    methods = named_folders(args.restored)
    names = parse_metrics(args.metrics, args.gt is not None)
    device = pick_device(args.device)
    check_new_folder(args.output, "--output")
    folders = {method: str(folder) for method, folder in methods.items()}
    made_from = {"restored": folders, "gt": args.gt and str(args.gt), "lq": args.lq and str(args.lq),
                 "metrics": names, "crop_border": args.crop_border, "resize": args.resize}
    check_replaced(args.output / "metrics.json", made_from, args.overwrite)
    triples, notes = find_triples(methods, args.gt, args.lq, args.skip_bad, args.recursive)
    scorers, unavailable = load_metrics(names, device)
    if not scorers:
        raise UserError(f"none of the metrics {', '.join(names)} can be had here; these need no weights: "
                        f"{', '.join(OFFLINE_METRICS)}")
    scoring = Scoring(scorers, ScoreStore(args.output / SCORES_FILE), args.resize, args.crop_border)
    triples, unusable = scoring.usable(triples, args.skip_bad)
    notes += unusable + scoring.score(triples)
    rows = ([LQ] if args.lq else []) + (
        [MEAN_COLOUR] if args.gt and set(BASELINE_METRICS) & set(scorers) else []) + list(methods)
    result = summarise(triples, rows, list(methods), list(scorers), args.crop_border,
                       lambda name, row: scoring.score_set(name, row, triples), notes)
    result |= {"unavailable": unavailable, "made_from": made_from}
    files = write_results(args.output, result)
    print_table(result)
    print(f"written: {', '.join(map(str, files))}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="realsr-r1 evaluate", description=(
        "Compare restored photos with the originals, or judge them without. Files are paired by name without "
        "suffix. Each mean has its 95 % interval, by bootstrap over the photos. An evaluation that was "
        "stopped goes on where it was, with the same result. " + READ))
    add = parser.add_argument
    add("--restored", nargs="+", required=True, metavar="[NAME=]DIR", help=(
        "folder of restored photos; or folders of several methods with their names (ours=DIR other=DIR), "
        "which stand side by side, with the first one's paired differences to the others"))
    add("--gt", type=Path, help=(
        "folder of originals (HQ); without it only metrics that need none are computed"))
    add("--lq", type=Path, help=(
        "folder of the degraded inputs, to add a row for them; they are resized to the originals' size "
        "(bicubic)"))
    add("--output", type=Path, required=True, help=(
        "folder for metrics.json, .csv, .md and .tex, and for the scores that a repeated evaluation takes up "
        f"({SCORES_FILE})"))
    add("--metrics", help=(
        f"comma-separated, or all (default: {', '.join(OFFLINE_METRICS)}, which need no weights). Known: "
        f"{', '.join(METRICS)}, and any other metric of pyiqa that judges one image"))
    add("--crop_border", type=int, default=0, metavar="PX", help=(
        "px that are cut off at each side of every image before any metric (default: 0, as the published "
        "evaluation)"))
    add("--resize", action="store_true", help=(
        "compare restored photos of another size than the original's, too: they are resized to it (bicubic), "
        "and those of another shape are compared on the region that both show, at their own size, or refused "
        "where none is found (default: another size is an error)"))
    add("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    add("--recursive", action="store_true", help=(
        "pair photos in subfolders, too, by their places in the folders"))
    add("--skip_bad", action="store_true", help=(
        "leave out photos that lack a partner or can't be read or compared, instead of stopping"))
    add("--overwrite", action="store_true", help=(
        "replace the results of other folders or metrics in --output"))
    return parser


def named_folders(words: list[str]) -> dict[str, Path]:
    """Return name -> folder from `NAME=DIR` words; one folder alone needs no name.

    Raises `UserError` for names that are missing, given twice, or have a meaning of their own.
    """
    folders: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).is_dir():
            name, folder = RESTORED, word
        name = name.strip()
        if not name or not folder or not name.isprintable() or name in NO_METHODS:
            raise UserError(f"--restored {word}: use NAME=DIR, with a name other than "
                            f"{', '.join(NO_METHODS)}")
        if name in folders:
            raise UserError(f"--restored gives {folders[name]} and {folder} the same name ({name}); name "
                            "each: --restored ours=DIR other=DIR")
        folders[name] = Path(folder)
    return folders


def write_results(folder: Path, result: dict[str, Any]) -> list[Path]:
    """Write metrics.json, .csv, .md and .tex: all or none. Returns their paths."""
    table = metrics_table(result)
    texts = {"json": json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
             "csv": metrics_csv(result), "md": table.text("md"), "tex": table.text("tex")}
    files = [folder / f"metrics.{suffix}" for suffix in texts]
    with contextlib.ExitStack() as stack:
        for file, text in zip(files, texts.values(), strict=True):
            stack.enter_context(atomic_file(file)).write_text(text, encoding="utf-8", newline="")
    return files


def print_table(result: dict[str, Any]) -> None:
    """Print the means, one line for each metric, and the notes."""
    metrics_table(result, in_full=False).print()


if __name__ == "__main__":
    run(main)
