"""The base models that a policy can have, found by the `model_type` of its config.json.

It also makes new policies.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from realsr_r1.core.cpu import suit_cpu
from realsr_r1.models.lumina.policy import FAMILY as LUMINA
from realsr_r1.models.protocol import Family, PolicyConfig

FAMILIES: dict[str, Family] = {}  # model_type (ours or a published one) -> family


def register_family(family: Family) -> None:
    """Register a family, so that its policies can be loaded, trained, exported and planned with.

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
    """Return all registered types in words, with the publishers of those that aren't ours."""
    named = {kind: f" ({family.published[kind]})" if kind in family.published else ""
             for kind, family in FAMILIES.items()}
    return " and ".join(kind + who for kind, who in named.items())


def new_config(**values: Any) -> PolicyConfig:
    """Return a config for a policy with random weights, which is of the Lumina family.

    `values`: in transformers' names. Raises `UserError` for sizes that no policy has.
    """
    config = LUMINA.config(**values)
    config.shape.check()
    return config


def new_policy(config: PolicyConfig) -> PreTrainedModel:
    """Return a policy of this config with random weights, in float32.

    The weights depend on torch's random state only.
    """
    policy = FAMILIES[config.model_type].policy(config)
    suit_cpu(sum(parameter.numel() for parameter in policy.parameters()))
    return policy
