"""The base models that a policy can be of, told by the `model_type` of its config.json, and new
policies of them.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from realsr_r1.models.lumina.policy import FAMILY as LUMINA
from realsr_r1.models.protocol import Family, PolicyConfig

FAMILIES: dict[str, Family] = {}  # model_type, ours or published -> family


def register_family(family: Family) -> None:
    """Let policies of this family be loaded, trained, exported and planned with.

    Raises `ValueError` for a type that is taken.
    """
    for kind in (family.config.model_type, *family.published):
        if kind in FAMILIES:
            raise ValueError(f"model_type {kind} belongs to another family")
        FAMILIES[kind] = family
    AutoConfig.register(family.config.model_type, family.config)
    AutoModelForCausalLM.register(family.config, family.policy)


register_family(LUMINA)


def known_types() -> str:
    """All registered types in words: each family's own, and who published the others."""
    named = {kind: f" ({family.published[kind]})" if kind in family.published else ""
             for kind, family in FAMILIES.items()}
    return " and ".join(kind + who for kind, who in named.items())


def new_config(**values: Any) -> PolicyConfig:
    """A config for a policy that begins from nothing (it is of the Lumina family); `values`: in
    transformers' names.
    """
    return LUMINA.config(**values)


def new_policy(config: PolicyConfig) -> PreTrainedModel:
    """A policy of this config with random weights, in float32: a function of torch's random state.
    """
    return FAMILIES[config.model_type].policy(config)
