"""What a policy writes: the question it is asked, and the sections of its chain in order, as data.

A `ChainSpec` comes from a YAML file (`configs/chain`) or from a model folder
(`chain_settings.json`). The parser, the grammar, the sizes of images, the cold start, the rewards
and the pages about runs all ask it, and none of them names a section. Knows texts and numbers: no
tokens, no images, no torch.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from realsr_r1.core.errors import UserError
from realsr_r1.core.json_yaml import read_yaml
from realsr_r1.core.schema import Ge, Json, Le, MinLen, Text, TypedDict, checked
from realsr_r1.core.texts import is_text

IMAGE = "<|image|>"  # the place of an image in a text
KINDS = ("text", "image")
ABOUT = ("degradation", "description", "restoration")  # a text has one of the first two, an image the last
CHAIN_FILE = "chain.json"  # lies beside written chains, so that pages about them know their sections
COLOR_FIXES = ("none", "wavelet", "adain")
MOST_PX = 4096  # of a final image's side: at 8 pixels a code it has a quarter of a million tokens
# Tokens of an answer that belong to no section's body: tags, and text and images of what is no
# chain.
OTHER_PARTS = ("tags", "text", "image")
PUBLISHED_FILE = Path(__file__).with_name("published.yaml")

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PLACES = {"Text", "text", "tags"}  # the names that a wording may have in braces


class SettingsFile(TypedDict, total=False, closed=True):
    """The keys of a file of chain settings; `ChainSettings` says what they are."""

    problem: Text
    sections: Annotated[list[Any], MinLen(1)]
    target_px: Annotated[int, Ge(1), Le(MOST_PX)]
    grid_unit_px: Annotated[int, Ge(1), Le(MOST_PX)]
    fit: Literal["crop", "random_crop", "stretch"]
    pixels: Literal["rounded", "cut"]
    color_fix: Literal[*COLOR_FIXES]
    fidelity: Annotated[float, Ge(0), Le(1)]
    experts: list[Text]
    sampling: dict[Text, Json]


@dataclass(frozen=True)
class Section:
    """One section of a chain.

    `name`: the name in its tags; lower-case letters, digits and underscores. `kind`: "text" or
    "image". `about`: the subject of a text, "degradation" (the five items) or "description"
    (of what the photo shows); an image always has "restoration". `level`: which of a record's
    descriptions this section tells (its name by default). `share`: the image's sides as a share of
    the final image's sides, above 0 and at most 1. `tagged`: whether the body stands between
    `<name>` and `</name>`.

    The cold start writes a description from these texts. `wordings` have `{Text}` for the
    description as the dataset has it, `{text}` for the same with a small first letter, and `{tags}`
    for "a, b and c". `tags_only` are texts with `{tags}` for a record without descriptions.
    `unknown` is the text for a record with neither descriptions nor tags.
    """

    name: str
    kind: str
    about: str = ""
    level: str = ""
    share: float | None = None
    tagged: bool = True
    wordings: tuple[str, ...] = ()
    tags_only: tuple[str, ...] = ()
    unknown: str = ""

    @property
    def is_image(self) -> bool:
        """Whether the section holds one image."""
        return self.kind == "image"

    @property
    def label(self) -> str:
        """The name in files and on pages: `rough_image` and `rough_understand` become `rough`."""
        return self.name.removesuffix("_image").removesuffix("_understand") or self.name

    @property
    def opening(self) -> str:
        """`<name>`, or an empty text where the section isn't tagged."""
        return open_tag(self.name) if self.tagged else ""

    @property
    def closing(self) -> str:
        """`</name>`, or an empty text where the section isn't tagged."""
        return close_tag(self.name) if self.tagged else ""


@dataclass(frozen=True)
class ChainSpec:
    """A question and the sections of its answer.

    `question`: what the policy is asked, with `<|image|>` where the photo stands
    (by default at the end). `sections`: what it answers, in order. Raises `UserError` for a chain
    that can't be read back from its text, or that restores nothing.
    """

    question: str
    sections: tuple[Section, ...]

    @classmethod
    def published(cls) -> ChainSpec:
        """RealSR-R1's chain of seven sections (arXiv 2506.16796, Figure 2), the default."""
        return _published()

    @classmethod
    def from_yaml(cls, path: str | Path) -> ChainSpec:
        """Read the chain (`problem`, `sections`) in a file of chain settings.

        Its other settings don't matter here, and what the file doesn't say comes from the published
        chain.
        Raises `UserError` that names the file and the key at fault.
        """
        return cls.from_dict(read_yaml(path, SettingsFile), str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str, default: ChainSpec | None = None) -> ChainSpec:
        """Read `problem` and `sections` of chain settings, and take what is missing from `default`.

        `source` names the settings in errors.
        """
        default = default or cls.published()
        values = checked(SettingsFile, values, source)
        if "sections" in values and "problem" not in values:
            raise UserError(f"{source} has sections and no problem; give the question that they answer")
        try:
            sections = default.sections
            if "sections" in values:
                sections = tuple(_section(section, number)
                                 for number, section in enumerate(values["sections"], 1))
            return cls(values.get("problem", default.question), sections)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return `problem` and `sections` as plain values: the inverse of `from_dict`.

        Fields of a section that have their default values are left out.
        """
        return {"problem": self.question, "sections": [_plain(section) for section in self.sections]}

    def __post_init__(self) -> None:
        if not is_text(self.question) or self.question.count(IMAGE) > 1 or not self.question.strip():
            raise UserError(f"problem is {self.question!r}; it must be a text with {IMAGE} at most once")
        names = [section.name for section in self.sections]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two sections are called {name!r}; every section needs a name of its own")
        labels = ["lq", "hq", *self.labels]
        for label in labels:
            if labels.count(label) > 1:
                raise UserError(f"two images would be called {label!r}; give their sections other names")
        if not self.images:
            raise UserError("no section is an image, so this chain restores nothing; add one with `kind: "
                            "image`")
        if self.images[-1].share != 1:
            raise UserError(f"the last image, {self.images[-1].name}, has the share {self.images[-1].share}; "
                            "it must be 1, for it is what restore gives back")
        for one, other in zip(self.sections, self.sections[1:], strict=False):
            if not (one.tagged or other.tagged or one.is_image or other.is_image):
                raise UserError(f"{one.name} and {other.name} are two texts without tags side by side, which "
                                "nobody could tell apart; give one of them its tags")

    def names(self) -> tuple[str, ...]:
        """The names of the sections, in order."""
        return tuple(section.name for section in self.sections)

    @cached_property
    def images(self) -> tuple[Section, ...]:
        """The sections with an image, in order."""
        return tuple(section for section in self.sections if section.is_image)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the images in files and on pages, in order.

        They are rough, middle and final in the published chain.
        """
        return tuple(section.label for section in self.images)

    @cached_property
    def levels(self) -> tuple[str, ...]:
        """The descriptions that a record may have for this chain, in order, without repeats."""
        return tuple(dict.fromkeys(section.level for section in self.about("description")))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that tokens of an answer can belong to, in the order of their numbers.

        They are the bodies of the sections, then the tags, then texts and images that belong to no
        chain.
        """
        return (*self.names(), *OTHER_PARTS)

    def about(self, subject: str) -> tuple[Section, ...]:
        """The sections about `subject`, one of `ABOUT`, in order."""
        return tuple(section for section in self.sections if section.about == subject)

    def image_sizes(self, rows: int, columns: int) -> tuple[tuple[int, int], ...]:
        """Call the function `image_sizes` with the shares of this chain's images."""
        return image_sizes([section.share for section in self.images], rows, columns)


def image_sizes(shares: Sequence[float], rows: int, columns: int) -> tuple[tuple[int, int], ...]:
    """Return the sizes of a chain's images as (rows, columns) in grid units, at least 1 each.

    `shares`: of each image, its sides as a share of the input's, which has `rows` x `columns`
    units. The published code's 128, 256 and 512 px are a quarter, a half and the whole of 512.
    """
    return tuple((max(1, round(rows * share)), max(1, round(columns * share))) for share in shares)


def open_tag(section: str) -> str:
    """`<section>`."""
    return f"<{section}>"


def close_tag(section: str) -> str:
    """`</section>`."""
    return f"</{section}>"


@cache
def _published() -> ChainSpec:
    values = read_yaml(PUBLISHED_FILE, SettingsFile)
    return ChainSpec(values["problem"], tuple(_section(section, number)
                                              for number, section in enumerate(values["sections"], 1)))


def _section(values: Any, number: int) -> Section:
    """Check what a file says about section `number` (from 1), and fill in what it leaves out."""
    if not isinstance(values, Mapping) or not isinstance(values.get("name"),
                                                         str) or not _NAME.fullmatch(values["name"]):
        raise UserError(f"section {number} needs a name of small letters, digits and underscores that begins "
                        "with a letter")
    where = f"section {values['name']}"
    if values["name"] in OTHER_PARTS:
        raise UserError(f"{where} needs another name: {', '.join(OTHER_PARTS)} are what the cold start's log "
                        "calls tokens outside sections")
    known = [field.name for field in fields(Section)]
    for key in values:
        if key not in known:
            raise UserError(f"{where} has the unknown key {key!r}; known are {', '.join(known)}")
    if values.get("kind") not in KINDS:
        raise UserError(f"{where}: kind is {values.get('kind')!r}; it must be one of {', '.join(KINDS)}")
    if not isinstance(values.get("tagged", True), bool):
        raise UserError(f"{where}: tagged is {values['tagged']!r}; it must be true or false")
    return _image_section(values, where) if values["kind"] == "image" else _text_section(values, where)


def _image_section(values: Mapping[str, Any], where: str) -> Section:
    _refuse(values, ("level", "wordings", "tags_only", "unknown"), where, "an image")
    if values.get("about", "restoration") != "restoration":
        raise UserError(f"{where}: about is {values['about']!r}; an image is about restoration")
    share = values.get("share")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
        raise UserError(f"{where}: share is {share!r}; an image needs its sides' share of the final image's, "
                        "above 0 and at most 1")
    return Section(values["name"], "image", "restoration", share=float(share),
                   tagged=values.get("tagged", True))


def _text_section(values: Mapping[str, Any], where: str) -> Section:
    _refuse(values, ("share",), where, "a text")
    about, tagged = values.get("about"), values.get("tagged", True)
    if about not in ("degradation", "description"):
        raise UserError(f"{where}: about is {about!r}; a text is about degradation or description")
    if about == "degradation":
        _refuse(values, ("level", "wordings", "tags_only", "unknown"), where, "a text about degradation")
        return Section(values["name"], "text", about, tagged=tagged)
    level = values.get("level", values["name"])
    if not is_text(level) or not level.strip():
        raise UserError(f"{where}: level is {level!r}; it must be the name of a description")
    unknown = values.get("unknown", "A photo.")
    if not is_text(unknown) or not unknown.strip():
        raise UserError(f"{where}: unknown is {unknown!r}; it must be a text, and not empty")
    return Section(values["name"], "text", about, level, None, tagged,
                   _wordings(values.get("wordings", ["{Text}"]), f"{where}: wordings", _PLACES, ""),
                   _wordings(values.get("tags_only", ["A photo of {tags}."]), f"{where}: tags_only", {"tags"},
                             "tags"),
                   unknown)


def _refuse(values: Mapping[str, Any], keys: Sequence[str], where: str, what: str) -> None:
    for key in keys:
        if key in values:
            raise UserError(f"{where} has the key {key!r}, which {what} doesn't have")


def _wordings(values: Any, where: str, places: set[str], needed: str) -> tuple[str, ...]:
    """Check texts with names from `places` in braces; each text must have the name `needed`."""
    if not isinstance(values, list) or not values or not all(map(is_text, values)):
        raise UserError(f"{where} must be a list of texts")
    for text in values:
        try:
            places_in = [place for place in string.Formatter().parse(text) if place[1] is not None]
            found = {name if not (form or conversion) else f"{name}:{form}"
                     for _, name, form, conversion in places_in}
        except ValueError as error:
            raise UserError(f"{where}: {text!r} can't be filled in ({error})") from error
        if not found <= places or (needed and needed not in found):
            raise UserError(f"{where}: {text!r} may have "
                            f"{', '.join(f'{{{name}}}' for name in sorted(places))} in it"
                            + (f", and must have {{{needed}}}" if needed else ""))
    if not needed and all("{tags}" in text for text in values):
        raise UserError(f"{where} need one without {{tags}}, for records without tags")
    return tuple(values)


def _plain(section: Section) -> dict[str, Any]:
    values = {field.name: getattr(section, field.name) for field in fields(Section)}
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
             if value not in ("", (), None)}
    if section.tagged:
        plain.pop("tagged")
    if section.is_image:
        plain.pop("about")
    return plain
