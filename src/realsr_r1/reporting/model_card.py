"""The card of an exported folder: what it was made from, how, how good it is, and under which licences.

It is read from the run that the weights come from, its data and its bases, as far as they are there. It
names folders, never where they lie. The text is in templates/model_card.md. What a card was given before
(licences, metrics) stands in it, and is taken up when it is written anew.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from realsr_r1.chain.settings import SETTINGS_FILE as CHAIN_FILE
from realsr_r1.chain.settings import ChainSettings
from realsr_r1.core.errors import UserError
from realsr_r1.core.files import CARD_FILE, atomic_file
from realsr_r1.core.json_yaml import parsed_yaml, read_json
from realsr_r1.core.run_files import (
    STATE_FILE,
    Settings,
    differences_of,
    export_record,
    lineage,
    run_of,
)
from realsr_r1.core.run_files import StateFile as TrainerFile
from realsr_r1.core.schema import Json, Text, TypedDict
from realsr_r1.core.templates import template
from realsr_r1.data.building.build import STATE_FILE as DATASET_STATE
from realsr_r1.data.building.build import StateFile
from realsr_r1.data.tokens.token_store import STORE_FILE, StoreFile
from realsr_r1.models.checking import tensor_shapes
from realsr_r1.reporting.run_folder import HEADLINE_SETTINGS
from realsr_r1.reporting.text_tables import TextTable, metrics_table

UNKNOWN = "not known here"
FOLDERS = ("model_name_or_path", "dataset_name")  # settings that are said as base and data


class Metadata(TypedDict, total=False, extra_items=Json):
    """The metadata at the head of a card, as far as another card takes them up."""

    license: Json
    licences: dict[Text, Text]
    licences_given: dict[Text, Text]


@dataclass(frozen=True)
class ModelCard:
    """What is known of an exported folder before it is written.

    `values`: what the template shows. `licences`: of the parts, as far as they are known. `given`: those
    of `--licences`. `bases`: names of what the weights were trained from, back to the first base.
    """

    values: dict[str, Any]
    licences: dict[str, str]
    given: dict[str, str] | None
    bases: list[str]

    @classmethod
    def of(cls, source: Path, software: str, metrics: Mapping[str, Any] | None = None,
           licences: Mapping[str, str] | None = None) -> ModelCard:
        """Read what is known of `source`, the folder with the weights that are exported.

        `software`: what exports them, with its version. `metrics`: the content of metrics.json.
        `licences`: part -> licence, beside those that are known. Raises `UserError` for a file of the
        run that has another form.
        """
        run, places, found = run_of(source), lineage(source), differences_of(source)
        (_, settings), (last, _) = places[0], places[-1]
        data = _data_of(settings)
        bases = [place.name for place, _ in places[1:]] + export_record(last).get("bases", [])
        names = bases if run else [f"{source.name} (its weights as they are)", *bases]
        return cls({
            "software": software, "base": ", made from ".join(names) or UNKNOWN,
            "data": _data(data), "stage": _stage(run, source, settings), "recipe": _recipe(settings),
            "differences": found and found["rows"], "profile": found and found["profile"],
            "metrics": _metrics(metrics) if metrics else None,
        }, _licences(places), dict(licences) if licences is not None else None, bases)

    def write(self, folder: Path, name: str) -> None:
        """Write the card into the exported `folder`, which it calls `name`.

        Where none were given, those of the card that is there stay: licences and metrics.
        """
        given = read_metadata(folder).get("licences_given", {}) if self.given is None else self.given
        licences = {**self.licences, **given}
        values = {**self.values, "metrics": self.values["metrics"] or _metrics_in(folder)}
        chain = ChainSettings.read(folder / CHAIN_FILE) if (folder / CHAIN_FILE).is_file() else None
        text = template("realsr_r1.reporting", "model_card.md").render(
            metadata=Markup(_metadata(licences, given)), name=name, licences=licences, **values,
            parameters=sum(map(math.prod, tensor_shapes(folder).values())), is_ours=chain is not None,
            sections=[section.name for section in chain.chain.sections] if chain else [],
            target_px=chain.target_px if chain else None)
        with atomic_file(folder / CARD_FILE) as partial:
            partial.write_text(text, encoding="utf-8")


def read_metadata(folder: Path) -> Metadata:
    """Return the metadata of the card in `folder`; none where there is no card with such."""
    # It may be anybody's README: without metadata, in another encoding, below a path that can't be one.
    with contextlib.suppress(UserError, OSError, ValueError):
        _, head, _ = (folder / CARD_FILE).read_text(encoding="utf-8").split("---\n", 2)
        return parsed_yaml(head, CARD_FILE, Metadata)
    return {}


def _metrics(metrics: Mapping[str, Any]) -> Markup:
    return Markup(_without_places(metrics_table(metrics)).text("md").strip())


def _metrics_in(folder: Path) -> Markup | None:
    """Return the metrics in the card in `folder`, as they stand there; None where it has none."""
    card = folder / CARD_FILE
    if not card.is_file():
        return None
    section = card.read_text(encoding="utf-8", errors="replace").partition("\n## Metrics\n")[2]
    table = section.partition("\n## Licences")[0].strip()
    return Markup(table) if "|" in table else None


def _licences(places: list[tuple[Path, Settings]]) -> dict[str, str]:
    """Part -> licence: of the code, of all that the weights come from (see `lineage`), and of the experts.

    A base's card that is ours says what that base was made from.
    """
    before: dict[str, str] = {}
    bases = places[1:] or places
    runs = [settings for _, settings in places]
    for number, (base, settings) in enumerate(bases, start=1):
        card = read_metadata(base)
        if "licences" in card or card.get("license") or not settings.get("model_name_or_path"):
            stated = card.get("license")
            before = card.get("licences") or {
                f"base ({base.name})": stated if isinstance(stated, str) else UNKNOWN}
            runs = runs[:number]
            break
    parts = {"code (realsr-r1)": "Apache-2.0", **before}
    for settings in runs:
        data, rewards = _data_of(settings), settings.get("reward_funcs")
        if data is not None:
            parts.setdefault(f"photos of {data.name}", UNKNOWN)
        if isinstance(rewards, list) and "generation" in rewards:
            parts["pyiqa (experts of the generation reward)"] = (
                "PolyForm Noncommercial 1.0.0; the experts' weights have their own")
    return parts


def _metadata(licences: Mapping[str, str], given: Mapping[str, str]) -> str:
    from huggingface_hub import ModelCardData

    return ModelCardData(
        license="other", license_name="several", library_name="realsr-r1", pipeline_tag="image-to-image",
        tags=["image-restoration", "super-resolution", "grpo", "vlcot"],
        licences=dict(licences), licences_given=dict(given)).to_yaml() + "\n"


def _without_places(table: TextTable) -> TextTable:
    """Return a table without the notes that say where files lie."""
    return replace(table, notes=[note for note in table.notes if not note.startswith("left out")])


def _data_of(settings: Settings) -> Path | None:
    return Path(str(settings["dataset_name"])) if settings.get("dataset_name") else None


def _data(data: Path | None) -> str:
    if data is None:
        return UNKNOWN
    if (data / DATASET_STATE).is_file():
        summary = read_json(data / DATASET_STATE, StateFile)["summary"]
        return f"{data.name}: {summary.splitlines()[0]}"
    if (data / STORE_FILE).is_file():  # a cold start's chains as token ids
        splits = read_json(data / STORE_FILE, StoreFile)["splits"]
        counts = ", ".join(f"{split} {note['records']}" for split, note in splits.items())
        return f"{data.name}: {counts}"
    return f"{data.name}, whose counts are {UNKNOWN}"


def _stage(run: Path | None, source: Path, settings: Settings) -> str:
    if run is None:
        return "none: weights that were there are exported"
    stage = "GRPO" if "reward_funcs" in settings else "cold start"
    places = [run, *run.glob("checkpoint-*")] if source == run else [source]
    steps = [read_json(place / STATE_FILE, TrainerFile).get("global_step", 0) for place in places
             if (place / STATE_FILE).is_file()]
    return f"{stage}, {max(steps):,} steps" if steps else stage


def _recipe(settings: Settings) -> dict[str, str]:
    return {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            for key in HEADLINE_SETTINGS if key not in FOLDERS and (value := settings.get(key)) is not None}
