"""`realsr-r1 evaluate`: compares restored photos with the originals, or judges them without.

It averages over photos, prints a table, and writes metrics.json and metrics.csv. Which files belong
together is in measuring/pairing.py, which regions are compared in measuring/regions.py, and the
metrics are in measuring/metrics.py.
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, check_new_folder, check_replaced
from realsr_r1.core.flags import Parser
from realsr_r1.core.images import load_image
from realsr_r1.core.pictures import READ
from realsr_r1.measuring.metrics import (
    BASELINE_METRICS,
    FID_FEATURES,
    LARGEST_TILE,
    METRICS,
    OFFLINE_METRICS,
    Scorer,
    load_metrics,
    metric_of,
    parse_metrics,
    tiles_of,
)
from realsr_r1.measuring.pairing import Triple, find_triples, listed
from realsr_r1.measuring.regions import find_way, same_shape

if TYPE_CHECKING:
    from PIL import Image

LQ, MEAN_COLOUR, RESTORED = "LQ input", "mean colour", "restored"


def main(argv: list[str] | None = None) -> int:
    """Pair the files, score them, print and write the results. Returns the exit code.

    Raises `UserError` on bad input; then nothing is written.
    """
    args = _parser().parse_args(argv)
    names = parse_metrics(args.metrics, args.gt is not None)
    device = pick_device(args.device)
    check_new_folder(args.output, "--output")
    made_from = {"restored": str(args.restored), "gt": str(args.gt), "lq": str(args.lq), "metrics": list(names)}
    check_replaced(args.output / "metrics.json", made_from, args.overwrite)
    triples, notes = find_triples(args.restored, args.gt, args.lq, args.skip_bad, args.recursive)
    scorers, unavailable = load_metrics(names, device)
    if not scorers:
        raise UserError(f"none of the metrics {', '.join(names)} can be had here; these need no weights: "
                        f"{', '.join(OFFLINE_METRICS)}")
    triples, unreadable = score(triples, scorers, args.skip_bad)
    rows = ([LQ] if args.lq else []) + (
        [MEAN_COLOUR] if args.gt and set(BASELINE_METRICS) & set(scorers) else []) + [RESTORED]
    result = summarise(triples, rows, scorers, notes + unreadable)
    result |= {"unavailable": unavailable, "made_from": made_from}
    write_results(args.output, result)
    print_table(result)
    print(f"written: {args.output / 'metrics.json'}, {args.output / 'metrics.csv'}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="realsr-r1 evaluate", description=(
        "Compare restored photos with the originals, or judge them without. Files are paired by name without suffix; a restored (or "
        "LQ) image of another size is resized to the original's (bicubic). One of another shape is compared "
        "on the region that both show, at its own size, or refused where none is found. " + READ))
    add = parser.add_argument
    add("--restored", type=Path, required=True, help="folder of restored photos")
    add("--gt", type=Path, help="folder of originals (HQ); without it only metrics that need none are computed")
    add("--lq", type=Path, help="folder of the degraded inputs, to add a row for them")
    add("--output", type=Path, required=True, help="folder for metrics.json and metrics.csv")
    add("--metrics", help=(
        f"comma-separated, or all (default: {', '.join(OFFLINE_METRICS)}, which need no weights). Known: "
        f"{', '.join(METRICS)}, and any other metric of pyiqa that judges one image"))
    add("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    add("--recursive", action="store_true", help=(
        "pair photos in subfolders, too, by their places in the folders"))
    add("--skip_bad", action="store_true", help=(
        "leave out photos that lack a partner or can't be read, instead of stopping"))
    add("--overwrite", action="store_true", help="replace the results of other folders or metrics in --output")
    return parser


# --- Scoring ---

def score(triples: list[Triple], scorers: dict[str, Scorer],
          skip_bad: bool) -> tuple[list[Triple], list[str]]:
    """Fill in `scores`.

    Returns the triples that could be read, and a note for each of the others. Raises `UserError`
    that names an unreadable file, unless `skip_bad` is true.
    """
    from tqdm import tqdm

    good, notes, large = [], [], []
    each = {name: scorer for name, scorer in scorers.items() if metric_of(name).kind != "set"}
    with tqdm(total=len(triples) * max(1, len(each)), desc="evaluate", unit=" score") as bar:
        for number, triple in enumerate(triples, start=1):
            bar.set_postfix_str(f"photo {number} of {len(triples)}", refresh=False)
            try:
                original, images = _load(triple)
            except UserError as error:
                if not skip_bad:
                    raise
                notes.append(f"left out: {error}")
                bar.update(len(each))
                continue
            triple.scores = {row: {} for row in images}
            for name, scorer in each.items():
                for row, image in images.items():
                    if row != MEAN_COLOUR or name in BASELINE_METRICS:
                        triple.scores[row][name] = scorer.score(image, original)
                bar.update()
            large += [triple.name] * (len(tiles_of(original.size)) > 1)
            good.append(triple)
    if not good:
        raise UserError(f"none of the photos can be read; the first: {notes[0]}")
    tiled = [metric_of(name).label for name in each if metric_of(name).in_tiles]
    if large and tiled:
        notes.append(f"{', '.join(tiled)} of {listed(large)}: means over tiles of at most {LARGEST_TILE} px")
    return good, notes


def _load(triple: Triple) -> tuple[Image.Image, dict[str, Image.Image]]:
    """Return the original, and the images to compare with it by row name, at its size.

    Where the restored image shows a part of the original, all are cut to that part, and have the
    restored image's size. Without an original the restored image stands for it, and each image has
    its own size. Raises `UserError` where a file can't be read or compared.
    """
    from PIL import Image

    restored = load_image(triple.restored)
    if triple.gt is None:
        return restored, {RESTORED: restored, **({LQ: load_image(triple.lq)} if triple.lq else {})}
    original = load_image(triple.gt)
    triple.resized = restored.size != original.size
    way = find_way(restored, original, str(triple.restored))
    triple.region = None if way.is_whole else way.name
    reference = way.original(original)
    images = {MEAN_COLOUR: reference.resize((1, 1), Image.Resampling.BOX).resize(reference.size)}
    if triple.lq:
        lq = load_image(triple.lq)
        if same_shape(lq.size, original.size):  # it shows what the original shows
            images[LQ] = way.original(lq.resize(original.size, Image.Resampling.BICUBIC))
        elif same_shape(lq.size, restored.size):  # or what the restored image shows
            images[LQ] = way.restored(lq.resize(restored.size, Image.Resampling.BICUBIC))
        else:
            raise UserError(f"{triple.lq} has another shape ({lq.width}x{lq.height} px) than "
                            f"{triple.restored} and {triple.gt}; give the whole degraded photo, or leave it "
                            "out with --skip_bad")
    images[RESTORED] = way.restored(restored)
    return reference, images


def summarise(triples: list[Triple], rows: list[str], scorers: dict[str, Scorer],
              notes: list[str]) -> dict[str, Any]:
    """Return the content of metrics.json.

    It has the metrics, each row's means and counts, and each photo's values.
    """
    notes = list(notes)
    resized = sum(triple.resized and triple.region is None for triple in triples)
    if resized:
        notes.append(f"{resized} of {len(triples)} restored images were resized to the original's size "
                     "(bicubic)")
    for region in sorted({triple.region for triple in triples if triple.region}):
        names = [triple.name for triple in triples if triple.region == region]
        notes.append(f"{len(names)} of {len(triples)} restored images have another shape than the original, "
                     f"and are compared on what both show ({region}): {listed(names)}")
    summary = []
    for row in rows:
        mean: dict[str, float | None] = {}
        count: dict[str, int] = {}
        for name, scorer in scorers.items():
            if row == MEAN_COLOUR and name not in BASELINE_METRICS:
                continue
            if metric_of(name).kind == "set":
                mean[name] = scorer.score_set((_load(triple)[1][row] for triple in triples),
                                              (_load(triple)[0] for triple in triples))
                count[name] = len(triples)
                continue
            values = [value for triple in triples if (value := triple.scores[row][name]) is not None]
            mean[name] = sum(values) / len(values) if values else None
            count[name] = len(values)
            if row == RESTORED and len(values) < len(triples):
                notes.append(f"{name} is not defined for {len(triples) - len(values)} of {len(triples)} "
                             "restored images (too small or flat); its mean leaves them out")
        summary.append({"name": row, "mean": mean, "count": count})
    if "fid" in scorers and len(triples) < FID_FEATURES:
        notes.append(f"fid of {len(triples)} images is rough: below {FID_FEATURES} images it depends on "
                     "their number")
    return {
        "pairs": len(triples),
        "metrics": {name: {"label": metric_of(name).label, "unit": metric_of(name).unit,
                           "decimals": metric_of(name).decimals,
                           "lower_better": metric_of(name).lower_better} for name in scorers},
        "rows": summary,
        "gain": gains(triples, scorers) if LQ in rows else {},
        "images": [{"name": triple.name, "resized": triple.resized, "region": triple.region,
                    **{row: triple.scores[row] for row in rows}} for triple in triples],
        "notes": notes,
    }


def gains(triples: list[Triple], scorers: dict[str, Scorer]) -> dict[str, dict[str, float]]:
    """Return by how much the restored images differ from their inputs: metric -> mean, interval.

    `interval` is half of the 95 % interval of the mean over photos (1.96 standard errors). Metrics
    of whole sets, and those that fewer than two photos have, are left out.
    """
    found = {}
    for name, scorer in scorers.items():
        if metric_of(scorer.name).kind == "set":
            continue
        pairs = [(triple.scores[RESTORED][name], triple.scores[LQ][name]) for triple in triples]
        differences = [after - before for after, before in pairs if None not in (after, before)]
        if len(differences) > 1:
            found[name] = {"mean": statistics.fmean(differences),
                           "interval": 1.96 * statistics.stdev(differences) / len(differences) ** 0.5}
    return found


# --- Output ---

def write_results(folder: Path, result: dict[str, Any]) -> None:
    """Write metrics.json and metrics.csv (a line for each photo, then `mean`): both or neither."""
    import json

    rows = [row["name"] for row in result["rows"]]
    columns = [(row, name) for row in reversed(rows) for name in result["metrics"]
               if row != MEAN_COLOUR or name in BASELINE_METRICS]  # the restored image's columns first
    means = {row["name"]: row["mean"] for row in result["rows"]}
    with atomic_file(folder / "metrics.json") as json_file, atomic_file(folder / "metrics.csv") as csv_file:
        json_file.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
                             encoding="utf-8")
        with open(csv_file, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            headings = [name if row == RESTORED else f"{row} {name}" for row, name in columns]
            writer.writerow(["name", "resized", *headings])
            for image in result["images"]:
                values = [image[row].get(name) for row, name in columns]
                writer.writerow([image["name"], int(image["resized"]), *values])
            writer.writerow(["mean", "", *(means[row].get(name) for row, name in columns)])


def print_table(result: dict[str, Any]) -> None:
    """Print the means, one line for each metric, and the notes."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"mean of {result['pairs']} photo(s)")
    table.add_column("metric")
    for row in result["rows"]:
        table.add_column(row["name"], justify="right", style="bold" if row["name"] == RESTORED else None)
    if result["gain"]:
        table.add_column("restored - LQ, 95 %", justify="right")
    for name, metric in result["metrics"].items():
        values = [row["mean"].get(name) for row in result["rows"]]
        unit, digits = f", {metric['unit']}" if metric["unit"] else "", metric["decimals"]
        gain = result["gain"].get(name)
        table.add_row(f"{metric['label']}{unit} {'↓' if metric['lower_better'] else '↑'}",
                      *("–" if value is None else f"{value:.{digits}f}" for value in values),
                      *([f"{gain['mean']:+.{digits}f} ± {gain['interval']:.{digits}f}"] if gain else []))
    for name in result["unavailable"]:
        table.add_row(metric_of(name).label, *("" for _ in result["rows"][1:]), "n/a")
    console = Console()
    console.print(table)
    for name, reason in result["unavailable"].items():
        console.print(f"{name}: n/a ({reason})", markup=False, highlight=False, soft_wrap=True)
    for note in result["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
