"""One page about a dataset: its size, the balance of its labels, its tags, and LQ and HQ crops.

The page needs no script and no other file. It holds nothing that changes from run to run (no date),
so the same data give the same bytes.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.files import atomic_file, read_json
from realsr_r1.core.pictures import decode_picture
from realsr_r1.reporting.strips import CELL, contained
from realsr_r1.reporting.style import CSS

if TYPE_CHECKING:
    from realsr_r1.data.building.assembly import Contents

PAGE_FILE = "dataset.html"
PAIRS, TAGS, ITEMS = 12, 40, 50  # the page shows at most so many
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
    sections = [
        ("labels", "Degradation labels", _labels(contents.labels)),
        ("tags", "Tags", _tags(contents)),
        ("pairs", "LQ and HQ", _pairs(folder)),
        ("not-in-it", "Not in it", _items("Rejected", contents.rejected)
         + _items("Left out", contents.left_out)),
    ]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in sections)
    body = "".join(f'<section id="{anchor}"><h2>{title}</h2>{inner}</section>'
                   for anchor, title, inner in sections)
    tiles = "".join(f'<div class="tile"><b>{value:,}</b><span>{label}</span></div>'
                    for label, value in _figures(contents))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Dataset · RealSR-R1</title>\n<style>{CSS}{OWN_CSS}</style>\n</head>\n<body>\n<main>\n"
        f'<div class="kicker">RealSR-R1 dataset</div><h1>What this dataset holds</h1><div '
        f'class="tiles">{tiles}</div>'
        f"<nav>{links}</nav>\n{body}\n<footer>Written by <code>realsr-r1 create-json</code>.</footer>\n"
        "</main>\n</body>\n</html>\n")


def _figures(contents: Contents) -> list[tuple[str, int]]:
    figures = [(f"records of {split}, from {contents.photos.get(split, 0):,} photos", count)
               for split, count in contents.counts.items() if count]
    near = sum("near-duplicate" in item.reason for item in contents.left_out)
    return [*figures, ("near-duplicates of photos to evaluate on, kept out", near),
            ("rejected", len(contents.rejected))]


def _bars(values: Iterable[tuple[str, int]], whole: int, largest: int) -> str:
    """Return one list item for each value: its name, its bar, and its share of `whole`.

    A bar is full at `largest`.
    """
    return "".join(
        f'<ul class="scores"><li><span class="name">{html.escape(name)}</span>'
        f'<span class="bar"><i style="width:{100 * value / max(largest, 1):.1f}%"></i></span>'
        f'<span class="value">{100 * value / max(whole, 1):.1f} %</span></li></ul>' for name, value in values)


def _labels(labels: Mapping[str, Mapping[str, int]]) -> str:
    if not labels:
        return '<p class="missing">The records have no degradation labels.</p>'
    cards = "".join(f'<div '
                    f'class="card"><h3>{html.escape(item)}</h3>{_bars(words.items(), count, count)}</div>'
                    for item, words in labels.items() for count in [sum(words.values())])
    return f"<p>Shares of the records of train.</p><div class=columns>{cards}</div>"


def _tags(contents: Contents) -> str:
    if not contents.tags:
        return '<p class="missing">The photos of train have no tags.</p>'
    shown = sorted(contents.tags.items(), key=lambda item: (-item[1], item[0]))[:TAGS]
    photos = contents.photos.get("train", 0)
    which = (f"The {len(shown)} most frequent of {len(contents.tags):,} tags"
             if len(shown) < len(contents.tags) else "All tags")
    return (f'<p>{which}: share of the photos of train.</p><div class="card '
            f'tags">{_bars(shown, photos, shown[0][1])}</div>')


def _pairs(folder: Path) -> str:
    import pyarrow

    split = folder / read_json(folder / "dataset_dict.json")["splits"][0]
    records = pyarrow.concat_tables(pyarrow.ipc.open_stream(pyarrow.memory_map(str(file))).read_all()
                                    # without `datasets`, whose import takes a second
                                    for file in sorted(split.glob("*.arrow")))
    count = min(PAIRS, len(records))
    places = [round(number * (len(records) - 1) / max(count - 1, 1)) for number in range(count)]
    shown = "".join(_pair(records.slice(place, 1).to_pylist()[0]) for place in places)
    return (f"<p>{count} of {len(records):,} records, evenly spaced, not chosen.</p>"
            f"<div class=pairs>{shown}</div>")


def _pair(record: Mapping[str, Any]) -> str:
    pictures = "".join(f'<img src="{_data_uri(record[column])}" alt="{column}">' for column in ("image", "hq")
                       if column in record)
    lines = [record.get("source", ""), ", ".join(record.get("degradation", [])), ", ".join(record["tag"])]
    caption = "<br>".join(html.escape(line) for line in lines if line)
    return f'<figure class="card pair">{pictures}<figcaption>{caption}</figcaption></figure>'


def _data_uri(file: Mapping[str, Any]) -> str:
    """Return an image as a data URI. `file`: the image as `datasets` stores it (its bytes)."""
    buffer = io.BytesIO()
    picture = decode_picture(io.BytesIO(file["bytes"]), "a record's image").image
    contained(picture, 2 * CELL, enlarge=False).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _items(title: str, items: list[Any]) -> str:
    if not items:
        return f"<p>{title}: none.</p>"
    lines = "".join(f"<li>{html.escape(str(item))}</li>" for item in items[:ITEMS])
    more = f"<li>and {len(items) - ITEMS:,} more</li>" if len(items) > ITEMS else ""
    return f"<p>{title}: {len(items):,}</p><ul class=notes>{lines}{more}</ul>"
