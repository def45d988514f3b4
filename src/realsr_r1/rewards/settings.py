"""The settings that all rewards are made with: defaults, help texts and checks, in one place.

GRPO's flags repeat these fields (`reward_field`), and each reward's factory takes what it reads.
Knows no reward and no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from typing import Any

from realsr_r1.chain.spec import ChainSpec
from realsr_r1.core.errors import UserError

# The four experts of the published code; all of them download weights.
DEFAULT_EXPERTS = ("topiq_nr", "musiq", "maniqa-pipal", "clipiqa")


# How strictly three rewards read a completion; the first of each is the default.
RULES = {"format_rule": ("exact", "lazy"), "tag_rule": ("words", "substring"),
         "image_rule": ("chain", "last")}


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _rule(name: str, text: str) -> Any:
    return field(default=RULES[name][0], metadata={"help": text, "choices": list(RULES[name])})


@dataclass(frozen=True)
class RewardSettings:
    """What the rewards are made with. Raises `UserError` for a value out of range.

    `chain`: the chain of the completions, by default the published one. `target_px`: the side of
    their final images, as in the chain settings. `device`: the run's own. `tag_vocabulary`: all
    tags that a photo can have, for `tag_precision`. The others are flags.
    """

    chain: ChainSpec = field(default_factory=ChainSpec.published)
    target_px: int = 512
    device: str = "cpu"
    tag_vocabulary: Sequence[str] = ()
    experts: Sequence[str] = _setting(
        DEFAULT_EXPERTS, "Visual experts of the rewards generation and progress: NAME[:WEIGHT[:WORST:BEST]] "
                         "with a metric of pyiqa, or package.module:factory[:WEIGHT]; by default those in "
                         "the model folder's chain settings, each with weight 1 and pyiqa's range.")
    expert_weights: str | None = _setting(
        None, "Folder where the experts' weights are looked for, and downloaded to, in place of torch's and "
              "the hub's caches; laid out as ~/.cache/torch/hub. pyiqa unpickles them: use only files that "
              "you trust.")
    expert_device: str | None = _setting(
        None, "Device of the experts (cpu, cuda:1 ...); by default the run's. PIQE and VIF run on the CPU.")
    monitor_experts: Sequence[str] | None = _setting(
        None, "Held-out experts, named as in --experts without weights: scored at each evaluation "
              "(monitor/NAME) and by realsr-r1 score, and never trained on.")
    tag_precision: bool = _setting(
        False, "Understanding is the F1 of recall (as published, alone) and precision: of the dataset's tags "
               "that the description names, the share that the photo has.")
    tag_synonyms: str | None = _setting(
        None, "YAML or JSON file, TAG: [WORD, ...]: in the understanding reward all of them are one thing.")
    neighbour_credit: float = _setting(
        0.0, "What an item of the degradation reward earns for the level beside the right one (light blur "
             "for medium blur), from 0 (as published) to below 1.")

    format_rule: str = _rule(
        "format_rule", "What the format reward asks for. exact: each section once, in order, with one image "
                       "in an image and none in a text; lazy: the sections' tags in order with anything "
                       "inside, as the published code.")
    tag_rule: str = _rule(
        "tag_rule", "How the understanding reward finds tags. words: each of a record's tags once, as whole "
                    "words, in singular or plural; substring: the tags of the first entry of its list, "
                    "repeats too, anywhere in the text, as the published code.")
    image_rule: str = _rule(
        "image_rule", "Which image the generation reward scores. chain: the final one of a well-formed "
                      "chain; last: the last one of any completion, as the published code.")

    def __post_init__(self) -> None:
        if not 0 <= self.neighbour_credit < 1:
            raise UserError(f"--neighbour_credit {self.neighbour_credit} must be from 0 to below 1")
        for name, known in RULES.items():
            if getattr(self, name) not in known:
                raise UserError(f"--{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        if self.format_rule == "lazy" and not any(section.opening for section in self.chain.sections):
            raise UserError("--format_rule lazy looks for the sections' tags, and this chain has none; leave "
                            "it out")
        if self.tag_rule != "words" and (self.tag_precision or self.tag_synonyms):
            raise UserError(f"--tag_precision and --tag_synonyms go with --tag_rule words, not with "
                            f"{self.tag_rule}")

    @property
    def place(self) -> str:
        """The device of the experts."""
        return self.expert_device or self.device


def reward_field(name: str) -> Any:
    """Repeat a flag of `RewardSettings` in another dataclass: default and help.

    `experts` are None there, for a model folder's chain settings have their default.
    """
    setting = _field(name)
    return field(default=None if name == "experts" else setting.default, metadata=dict(setting.metadata))


def _field(name: str) -> Field:
    return next(item for item in fields(RewardSettings) if item.name == name)
