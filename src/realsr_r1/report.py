"""`realsr-r1 report`: one HTML page about a training run, with curves.png and strips.png beside it.

The package `reporting` reads, draws and writes. The page shows what there is, and for what is
missing it names the command that makes it.
"""

from __future__ import annotations

from pathlib import Path

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, check_new_file
from realsr_r1.core.flags import Parser


def main(argv: list[str] | None = None) -> int:
    """Read everything, then write everything. Returns the exit code.

    Raises `UserError` on bad input; then nothing is written.
    """
    args = _parser().parse_args(argv)
    from realsr_r1.reporting import charts, page, run_folder, strips, tables

    if args.gt and not args.restored:
        raise UserError("--gt shows the originals beside restored photos; give those with --restored")
    training = run_folder.read_run(args.run)
    output = args.output or args.run / "report" / "report.html"
    check_new_file(output, "--output", "report.html")
    metrics = tables.read_metrics(args.metrics) if args.metrics else None
    restored, count = strips.restored_strips(args.restored, args.gt, metrics) if args.restored else ([], 0)
    content = page.Content(
        run=training, panels=charts.panels(training), samples=strips.sample_strips(args.run),
        restored=restored,
        restored_count=count, metrics=metrics,
        comparison=tables.read_comparison(*args.compare) if args.compare else None)
    written = [output]
    with atomic_file(output) as partial:
        partial.write_text(page.render_page(content), encoding="utf-8")
    if content.panels:
        written.append(output.with_name("curves.png"))
        with atomic_file(written[-1]) as partial:
            charts.save_png(content.panels, training.name, partial)
    if content.samples or content.restored:
        written.append(output.with_name("strips.png"))
        with atomic_file(written[-1]) as partial:
            strips.draw_strips(content.samples + content.restored, partial)
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="realsr-r1 report", description=(
        "Write one HTML page about a training run (no other file, no network needed to read it), with "
        "curves.png and strips.png beside it. Parts that aren't given are left out, with the command that "
        "makes them."))
    add = parser.add_argument
    add("--run", type=Path, required=True, help="output_dir of realsr-r1 grpo (or sft)")
    add("--output", type=Path, help="the page (default: report/report.html in the run's folder)")
    add("--restored", type=Path, help="folder of restored photos (realsr-r1 restore): adds strips of them")
    add("--gt", type=Path, help="folder of the originals, by the same names: the HQ column of those strips")
    add("--metrics", type=Path, help="metrics.json of realsr-r1 evaluate: adds its table")
    add("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"),
        help="two JSON files of reward means: adds the table before/after")
    return parser


if __name__ == "__main__":
    run(main)
