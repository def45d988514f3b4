"""Write a split of a prepared dataset as photos: OUTPUT/lq/NAME.png and OUTPUT/hq/NAME.png.

For `realsr-r1 restore --input OUTPUT/lq` and `realsr-r1 evaluate --gt OUTPUT/hq`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_folder


def main(argv: list[str] | None = None) -> None:
    """Draw records, write their photos."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dataset_name", required=True, help="folder of a prepared dataset")
    parser.add_argument("--split", default="test_crops", help="default: test_crops")
    parser.add_argument("--samples", type=int, default=64, help="records, drawn with seed 0 (default: 64)")
    parser.add_argument("--output", required=True, help="folder to make")
    args = parser.parse_args(argv)
    if Path(args.output).is_dir():
        print(f"{args.output} is there already; nothing to do")
        return
    from realsr_r1.data.records import load_dataset_dict, require_columns

    dataset = load_dataset_dict(args.dataset_name)
    if args.split not in dataset:
        raise UserError(f"{args.dataset_name} has no split {args.split!r}; it has {', '.join(dataset)}")
    records = dataset[args.split].shuffle(seed=0)
    require_columns(records, ("image", "hq", "source"), "the photos are written from it")
    with atomic_folder(args.output) as folder:
        for kind in ("lq", "hq"):
            (folder / kind).mkdir()
        for index, record in enumerate(records.select(range(min(args.samples, len(records))))):
            name = f"{Path(record['source']).stem}-{index:03d}.png"
            record["image"].save(folder / "lq" / name)
            record["hq"].save(folder / "hq" / name)
    print(f"{args.output}: {min(args.samples, len(records))} photos of {args.split}")


if __name__ == "__main__":
    run(main)
