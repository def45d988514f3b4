"""One page about a dataset: its size, the balance of its labels, its tags, and LQ and HQ crops.

The page needs no script and no other file. It holds nothing that changes from run to run (no date),
so the same data give the same bytes. The HTML is in templates/dataset.html.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.files import atomic_file
from realsr_r1.core.pictures import decode_picture
from realsr_r1.data.records import splits_of
from realsr_r1.reporting.rendering import data_uri, render
from realsr_r1.reporting.strips import CELL
from realsr_r1.reporting.style import CSS

if TYPE_CHECKING:
    from realsr_r1.data.building.assembly import Contents

PAGE_FILE = "dataset.html"
PAIRS, TAGS, ITEMS = 12, 40, 50  # the page shows at most so many
SECTIONS = {"labels": "Degradation labels", "tags": "Tags", "pairs": "LQ and HQ", "not-in-it": "Not in it"}
OWN_CSS = """
.columns { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 14px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.card h3 { margin-bottom: 8px; }
.columns .scores { grid-template-columns: 84px minmax(40px, 1fr) 60px; }
.tags { columns: 3 280px; column-gap: 32px; }
.tags .scores { break-inside: avoid; grid-template-columns: 112px minmax(40px, 1fr) 60px;
  margin-bottom: 5px; }
.tags .name { overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr));
  gap: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; }
.pair img { display: block; width: 100%; border-radius: 5px; }
.pair figcaption { grid-column: 1 / -1; text-align: left; }
"""


def write_dataset_page(folder: Path, contents: Contents) -> None:
    """Write the page about the dataset saved in `folder` into that folder."""
    with atomic_file(folder / PAGE_FILE) as partial:
        partial.write_text(_page(folder, contents), encoding="utf-8")


def _page(folder: Path, contents: Contents) -> str:
    tags = sorted(contents.tags.items(), key=lambda item: (-item[1], item[0]))
    pairs, records = _pairs(folder)
    return render("dataset.html", CSS + OWN_CSS, title="Dataset", sections=SECTIONS.items(),
                  figures=_figures(contents), labels=contents.labels, tags=tags[:TAGS], tag_count=len(tags),
                  photos=contents.photos.get("train", 0), pairs=pairs, records=records, most=ITEMS,
                  rejected=list(map(str, contents.rejected)), left_out=list(map(str, contents.left_out)))


def _figures(contents: Contents) -> list[tuple[str, int]]:
    figures = [(f"records of {split}, from {contents.photos.get(split, 0):,} photos", count)
               for split, count in contents.counts.items() if count]
    near = sum("near-duplicate" in item.reason for item in contents.left_out)
    return [*figures, ("near-duplicates of photos to evaluate on, kept out", near),
            ("rejected", len(contents.rejected))]


def _pairs(folder: Path) -> tuple[list[tuple[list[tuple[str, str]], list[str]]], int]:
    """Return pictures and lines of some records of the first split, and the number of its records.

    A picture is (column, data URI). The lines are source, degradation and tags.
    """
    import pyarrow

    split = folder / splits_of(folder)[0]
    records = pyarrow.concat_tables(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
                                    # without `datasets`, whose import takes a second
                                    for file in sorted(split.glob("*.arrow")))
    count = min(PAIRS, len(records))
    places = [round(number * (len(records) - 1) / max(count - 1, 1)) for number in range(count)]
    return [_pair(records.slice(place, 1).to_pylist()[0]) for place in places], len(records)


def _pair(record: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    pictures = [(column, _shown(record[column])) for column in ("image", "hq") if column in record]
    lines = [record.get("source", ""), ", ".join(record.get("degradation", [])), ", ".join(record["tag"])]
    return pictures, [line for line in lines if line]


def _shown(file: Mapping[str, Any]) -> str:
    """Return an image as a data URI. `file`: the image as `datasets` stores it (its bytes)."""
    picture = decode_picture(io.BytesIO(file["bytes"]), "a record's image").image
    return data_uri(picture, 2 * CELL, compress_level=1)
