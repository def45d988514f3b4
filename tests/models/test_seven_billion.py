"""The 7B policies in the published layout, on the meta device: their sizes, and every tensor's name
and shape.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from realsr_r1.models.loading import policy_config
from realsr_r1.models.lumina.policy import LuminaPolicy

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"
VOCABULARIES = {"lumina_7b": 65_536, "pure_7b": 73_728}
WIDTH, MLP_WIDTH, LAYERS, HEAD_DIM = 4096, 11_008, 32, 128


def published_shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    """The published checkpoint's tensors, written down by hand."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, WIDTH),
                                          "model.norm.weight": (WIDTH,),
                                          "lm_head.weight": (vocabulary, WIDTH)}
    layer = {**{f"self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"},
             **{f"self_attn.{name}_norm.{part}": (1, HEAD_DIM) for name in "qk"
                for part in ("weight", "bias")},
             "mlp.gate_proj.weight": (MLP_WIDTH, WIDTH), "mlp.up_proj.weight": (MLP_WIDTH, WIDTH),
             "mlp.down_proj.weight": (WIDTH, MLP_WIDTH), "input_layernorm.weight": (WIDTH,),
             "post_attention_layernorm.weight": (WIDTH,)}
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


@pytest.fixture(scope="module", params=VOCABULARIES)
def model(request) -> tuple[str, LuminaPolicy]:
    config = policy_config(MODELS / request.param)
    with torch.device("meta"):
        return request.param, LuminaPolicy(config)


def test_every_tensor_has_its_published_name_and_shape(model):
    name, policy = model
    assert {key: tuple(tensor.shape)
            for key, tensor in policy.state_dict().items()} == published_shapes(VOCABULARIES[name])


def test_the_policies_have_7_billion_parameters(model):
    name, policy = model
    numbers = {"lumina_7b": 7_013_158_912, "pure_7b": 7_080_267_776}
    assert policy.num_parameters() == numbers[name]
    assert all(parameter.is_meta for parameter in policy.parameters())


def test_the_position_frequencies_are_the_published_ones(model):
    _, policy = model
    assert policy.config.rope_parameters["rope_theta"] == 10_000 and policy.config.rope_parameters[
        "rope_type"] == "default"
    assert not policy.config.swin_norm and policy.config.rms_norm_eps == 1e-5
