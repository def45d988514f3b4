"""`realsr-r1 benchmark`: a model on a test set of the field, beside the published results.

It checks that the folder holds what the suite says, restores, evaluates and prints the table. Each
step is the command of its own name, so the figures are those of the steps by hand, and a run that
was stopped goes on where it was.
"""

from __future__ import annotations

from pathlib import Path

from realsr_r1 import evaluate, restore
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, check_new_folder, existing_folder, write_json
from realsr_r1.core.flags import Parser
from realsr_r1.core.json_yaml import read_json
from realsr_r1.core.presets import PRESETS
from realsr_r1.measuring.metrics import parse_metrics
from realsr_r1.measuring.suites import Suite, check_data
from realsr_r1.reporting.published_rows import beside_published, published_rows
from realsr_r1.reporting.tables import MetricsFile

SUITES = sorted(file.stem for file in (PRESETS / "configs" / "suites").glob("*.yaml"))
OF_THE_SUITE = ("--model", "--input", "--output", "--scale", "--format", "--recursive", "--skip_bad")


def main(argv: list[str] | None = None) -> int:
    """Check the photos, restore and evaluate them, and write the table. Returns the exit code."""
    args = _parser().parse_args(argv)
    suite = Suite.from_yaml(args.suite)
    metrics = parse_metrics(args.metrics or ",".join(suite.metrics), suite.hq is not None,
                            "--metrics" if args.metrics else f"{args.suite}, metrics",
                            f"name a folder of originals (hq) in {args.suite}")
    published = published_rows(suite.published, suite.differs)
    existing_folder(args.model, "--model", "model folder")
    check_new_folder(args.output, "--output")
    refused = [word for word in args.restoring if word.partition("=")[0] in OF_THE_SUITE]
    if refused:
        raise UserError(f"{refused[0]} is the suite's, or the benchmark's own; drop it behind the --")
    photos = check_data(suite, args.data, args.output)
    device = ["--device", args.device] if args.device else []
    restored, evaluation = args.output / "restored", args.output / "evaluation"
    restore.main(["--model", str(args.model), "--input", str(photos.lq), "--output", str(restored), "--scale",
                  f"{suite.scale:g}", *device, *args.restoring])
    evaluate.main(["--restored", str(restored), *(["--gt", str(photos.hq)] if photos.hq else []), "--lq",
                   str(photos.lq), "--output", str(evaluation), "--metrics", ",".join(metrics), "--overwrite",
                   *device])
    result = read_json(evaluation / "metrics.json", MetricsFile)
    own = args.model.resolve().name
    table = beside_published(f"{suite.name}, {result['pairs']} photos", own, result, published, suite.differs)
    write_json(args.output / "benchmark.json", {
        "suite": suite.name, "model": own, "differs": suite.differs, "published": published,
        "own": next(row for row in result["rows"] if row["name"] == result["methods"][0])})
    for suffix in ("md", "tex"):
        with atomic_file(args.output / f"benchmark.{suffix}") as partial:
            partial.write_text(table.text(suffix), encoding="utf-8")
    table.print()
    print(f"written: {args.output / 'benchmark.json'}, benchmark.md and benchmark.tex beside it")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="realsr-r1 benchmark", description=(
        "Restore and evaluate a test set of the field as the field does, and print the result beside the "
        "published ones. Nothing is downloaded: what is missing is named, with where to get it. Started "
        "again after an interruption, it goes on where it was. Further flags of restore may follow behind "
        "--, e.g. -- --num_samples 4."))
    add = parser.add_argument
    add("--suite", type=Path, required=True, help=(
        f"the test set: {', '.join(SUITES)}, or your own as FILE.yaml (configs/suites shows how)"))
    add("--data", type=Path, required=True, help="folder that holds its photos")
    add("--model", type=Path, required=True, help="model folder; tiny is the embedded one")
    add("--output", type=Path, required=True, help=(
        "folder for restored/, evaluation/ and the table (benchmark.json, .md, .tex)"))
    add("--metrics", help="comma-separated, in place of the suite's, as evaluate's flag of that name")
    add("--device", help="cuda, cpu, ... (default: cuda where there is one)")
    add("restoring", nargs="*", metavar="-- FLAG", help="further flags of restore")
    return parser


if __name__ == "__main__":
    run(main)
