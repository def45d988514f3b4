"""The understanding reward: how many of the photo's tags the rough description names.

As an option, how few others it names counts, too. What names a tag is said in tags.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.chain.text import parse_chain
from realsr_r1.core.errors import UserError
from realsr_r1.rewards.reward import Reward, RewardFunc, bound
from realsr_r1.rewards.settings import RewardSettings
from realsr_r1.rewards.tags import Tags, first_tags, read_synonyms, tags_of


def understanding_reward(completions: Sequence[str], tag: Sequence[Sequence[str] | str | None] | None = None,
                         spec: ChainSpec | None = None, names: Tags | None = None,
                         precision: bool = False, rule: str = "words",
                         **columns: Any) -> list[float | None]:
    """Return the share of the record's tags that the first description names (0..1).

    3 of 4 tags give 0.75. The first description of the published chain, which is the default
    `spec`, is `<rough_understand>`.

    `tag`: the tags of each completion. They are a list of strings, each with one tag or several
    (the published code's form; `core.texts.split_tags`), or one such string. A tag counts as a whole
    word or phrase, in singular or plural, and case doesn't matter. A tag that is listed twice counts
    once. An answer without such a section scores 0.0. A record without tags gets None.

    `names`: synonyms and the tags that a photo can have, by default none. `precision`: the share
    above is the recall R, and the precision P is the share that the photo has of the tags which the
    description names (1 - CHAIR_i, arXiv 1809.02156); the reward is their harmonic mean
    2PR / (P + R), F1, which naming everything doesn't raise.

    `rule`: with "substring", as in the published code, the tags are those of the first entry of the
    record's list, divided by commas, and one that is listed twice counts twice. A tag counts
    wherever its letters stand: "cat" in "education". `names` and `precision` don't matter then.
    """
    section = (spec or ChainSpec.published()).about("description")[0]
    records = [None] * len(completions) if tag is None else tag
    names = names or Tags()
    bodies = [parse_chain(text, spec).sections.get(section.name, "") for text in completions]
    if rule == "substring":
        return [_share_written(body.lower(), first_tags(tags))
                for body, tags in zip(bodies, records, strict=True)]
    return [_score(body.lower(), names.things(tags_of(tags)), names, precision)
            for body, tags in zip(bodies, records, strict=True)]


def _score(description: str, tags: list[str], names: Tags, precision: bool) -> float | None:
    if not tags:
        return None
    right = sum(names.names(description, tag) for tag in tags)
    if not precision:
        return right / len(tags)
    wrong = len(names.claims(description).difference(tags))
    return 2 * right / (len(tags) + right + wrong)  # 2PR / (P + R), for P = right / (right + wrong)


def _share_written(description: str, tags: list[str]) -> float | None:
    return sum(tag in description for tag in tags) / len(tags) if tags else None


def _build(settings: RewardSettings) -> RewardFunc:
    if settings.tag_precision and not settings.tag_vocabulary:
        raise UserError("--tag_precision needs the tags of the dataset, and it has none; leave it out")
    vocabulary = settings.tag_vocabulary if settings.tag_precision else ()
    return bound(understanding_reward, spec=settings.chain, precision=settings.tag_precision,
                 rule=settings.tag_rule, names=Tags(read_synonyms(settings.tag_synonyms), vocabulary))


UNDERSTANDING = Reward("understanding", "description", lambda settings: ("tag",), _build,
                       ("tag_precision", "tag_synonyms", "tag_rule"))
