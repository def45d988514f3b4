"""Published policies load as they are: Lumina-mGPT's and PURE's layout, and transformers'
Chameleon, its class the reference.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy

from ..published import HEAD_DIM, HEADS, PURE_VOCABULARY, lumina_folder, transformers_chameleon

VARIANTS = [{}, dict(swin_norm=True), dict(num_key_value_heads=2), dict(attention_bias=True, mlp_bias=True),
            dict(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0})]
LUMINA_VARIANTS = [{}, dict(model_parallel_size=2), dict(model_parallel_size=4), dict(swin_norm=True),
                   dict(model_parallel_size=2, num_key_value_heads=2), dict(attention_bias=True),
                   dict(rope_theta=100.0)]


def batch(vocabulary: int = 96) -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, the second left-padded by five."""
    ids = torch.randint(0, vocabulary, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def logits(policy: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval()(**(inputs or {"input_ids": batch()["input_ids"]})).logits


def unmasked_logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits of transformers' class before it masks image tokens."""
    with torch.no_grad():
        return model.lm_head(model.model(**inputs).last_hidden_state)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_a_folder_of_transformers_gives_the_logits_of_its_class(changes, attn_implementation, tmp_path):
    model = transformers_chameleon(tmp_path, attn_implementation=attn_implementation, **changes)
    policy = load_policy(tmp_path, attn_implementation=attn_implementation)
    for inputs in (batch(), {"input_ids": batch()["input_ids"]}):
        used = inputs.get("attention_mask", torch.ones(2, 12)).bool()
        expected = unmasked_logits(model, **inputs)
        torch.testing.assert_close(logits(policy, **inputs)[used], expected[used], atol=1e-4, rtol=0)


def test_a_folder_of_transformers_keeps_one_norm_row_a_head_and_loses_its_image_encoder(tmp_path):
    transformers_chameleon(tmp_path, num_key_value_heads=2)
    policy = load_policy(tmp_path)
    attention = policy.model.layers[1].self_attn
    assert attention.q_norm.weight.shape == (HEADS,
                                             HEAD_DIM) and attention.k_norm.weight.shape == (2, HEAD_DIM)
    stored = {name: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()
              if "vqmodel" not in name}
    assert policy.state_dict().keys() == stored.keys()
    assert all(torch.equal(policy.state_dict()[name], tensor) for name, tensor in stored.items())


def test_what_was_loaded_from_transformers_is_loaded_again(tmp_path):
    transformers_chameleon(tmp_path / "published", num_key_value_heads=2)
    policy = load_policy(tmp_path / "published")
    policy.save_pretrained(tmp_path / "ours")
    again = load_policy(tmp_path / "ours")
    assert torch.equal(logits(again), logits(policy))
    assert again.config.published_config == json.loads((tmp_path / "published" / "config.json").read_text())


@pytest.mark.parametrize("changes", LUMINA_VARIANTS, ids=str)
def test_shared_norms_give_the_logits_of_norms_repeated_for_each_head(changes, tmp_path):
    policy = load_policy(lumina_folder(tmp_path / "lumina", **changes))
    rows = changes.get("model_parallel_size", 1)
    assert policy.model.layers[0].self_attn.k_norm.bias.shape == (rows, HEAD_DIM)
    names = {key: value for key, value in changes.items() if key not in ("model_parallel_size", "rope_theta")}
    if "rope_theta" in changes:
        names["rope_parameters"] = {"rope_type": "default", "rope_theta": changes["rope_theta"]}
    model = transformers_chameleon(tmp_path / "class", **names)
    state = policy.state_dict()
    for name, tensor in state.items():
        if "_norm." in name:
            heads = HEADS if ".q_norm." in name else changes.get("num_key_value_heads", HEADS)
            state[name] = tensor.repeat_interleave(heads // rows, dim=0)
    model.load_state_dict(state, strict=False)
    used = batch()["attention_mask"].bool()
    torch.testing.assert_close(logits(policy, **batch())[used], unmasked_logits(model, **batch())[used],
                               atol=1e-4, rtol=0)


@pytest.mark.parametrize("old, new", [
    (dict(rope_theta=500.0, rope_scaling=None), {"rope_type": "default", "rope_theta": 500.0}),
    (dict(rope_theta=500.0, rope_scaling={"type": "linear", "factor": 4.0}),
     {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}),
    (dict(rope_theta=500.0, rope_scaling={"type": "dynamic", "factor": 4.0}),
     {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 500.0})])
def test_rotary_settings_mean_the_same_in_their_old_and_new_spelling(old, new, tmp_path):
    folder = lumina_folder(tmp_path / "old", **old)
    shutil.copytree(folder, tmp_path / "new")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items()
              if not key.startswith("rope")} | {"rope_parameters": new}
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    plain = load_policy(lumina_folder(tmp_path / "plain"))
    assert torch.equal(logits(load_policy(folder)), logits(load_policy(tmp_path / "new")))
    assert not torch.allclose(logits(load_policy(folder)), logits(plain), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_file_and_shards_load_in_their_own_type(dtype, tmp_path):
    whole, shards = (load_policy(lumina_folder(tmp_path / size, dtype, max_shard_size=size))
                     for size in ("1GB", "20KB"))
    assert len(list((tmp_path / "20KB").glob("*.safetensors"))) > 1
    assert whole.dtype == shards.dtype == getattr(torch, dtype)
    assert torch.equal(logits(whole), logits(shards))


def test_of_several_types_the_widest_is_taken(tmp_path):
    path = lumina_folder(tmp_path / "mixed", "bfloat16") / "model.safetensors"
    tensors = {name: tensor.float() if "norm" in name else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    assert load_policy(tmp_path / "mixed").dtype == torch.float32
    save_file({**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int8)}, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"tensor model\.norm\.weight is stored as I8"):
        load_policy(tmp_path / "mixed")


def test_extra_keys_of_the_published_config_stay_in_memory_and_on_disk_but_out_of_what_trackers_log(tmp_path):
    folder = lumina_folder(tmp_path / "lumina", apply_lora=False)
    published = json.loads((folder / "config.json").read_text())
    policy = load_policy(folder)
    extra = {"mask_image_logits": False, "dropout": 0.05, "z_loss_weight": 1e-5, "apply_lora": False}
    assert {key: getattr(policy.config, key) for key in extra} == extra
    policy.save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert {key: saved[key] for key in extra} == extra
    for config in (policy.config, copy.deepcopy(policy.config), load_policy(tmp_path / "ours").config):
        assert config.published_config == published
        assert "vocabulary_map" not in str({key: value for key, value in config.to_dict().items() if value})


@pytest.mark.parametrize("heads", [None, HEADS])
def test_no_number_of_key_heads_means_as_many_as_heads(heads, tmp_path):
    folder = lumina_folder(tmp_path / "lumina")
    expected = logits(load_policy(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": heads}))
    assert torch.equal(logits(load_policy(folder)), expected)


def test_a_policy_of_pures_vocabulary_loads(tmp_path):
    policy = load_policy(lumina_folder(tmp_path / "pure", "bfloat16", vocab_size=PURE_VOCABULARY,
                                       num_hidden_layers=1))
    assert logits(policy).shape == (2, 12, PURE_VOCABULARY)


@pytest.mark.parametrize("tie", [False, True])
def test_a_head_that_is_the_embedding_may_be_left_out_of_the_file(tie, tmp_path):
    folder = lumina_folder(tmp_path / "lumina", tie_word_embeddings=tie)
    stored = load_file(folder / "model.safetensors")
    if tie:
        assert "lm_head.weight" not in stored
        policy = load_policy(folder)
        assert torch.equal(policy.lm_head.weight, stored["model.embed_tokens.weight"])
        return
    save_file({name: tensor for name, tensor in stored.items() if name != "lm_head.weight"},
              folder / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor lm_head\.weight is missing"):
        load_policy(folder)


@pytest.mark.parametrize("make", [lumina_folder, transformers_chameleon])
def test_one_line_says_what_was_loaded_and_nothing_warns(make, tmp_path, capfd, caplog):
    make(tmp_path / "model")
    capfd.readouterr()
    with caplog.at_level(logging.INFO, logger="realsr_r1"), warnings.catch_warnings():
        warnings.simplefilter("error")
        load_policy(tmp_path / "model")
    (record,) = [record for record in caplog.records if record.name.startswith("realsr_r1")]
    assert all(words in record.message for words in (str(tmp_path / "model"), "vocabulary 96", "float32"))
    assert ("image encoder" in record.message) == (make is transformers_chameleon)
    assert capfd.readouterr() == ("", "")


def test_norm_rows_that_heads_cannot_share_are_refused(tmp_path):
    path = lumina_folder(tmp_path / "lumina") / "model.safetensors"
    tensors = {name: torch.ones(3, HEAD_DIM) if "_norm." in name else tensor
               for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(UserError, match=r"config\.json describes no policy that can be built: 4 heads can't "
                                        r"share 3 norms evenly"):
        load_policy(path.parent)


@pytest.mark.parametrize("change", [dict(hidden_size="wide"), dict(hidden_act="none such"),
                                    dict(num_attention_heads=5)])
def test_a_config_of_nonsense_is_named(change, tmp_path):
    path: Path = lumina_folder(tmp_path / "lumina") / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"{path} describes no policy"):
        load_policy(path.parent)


def test_an_index_without_a_map_is_named(tmp_path):
    folder = lumina_folder(tmp_path / "lumina", max_shard_size="20KB")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json has no key 'weight_map'"):
        load_policy(folder)


def test_a_policy_knows_its_folder_by_which_adapters_name_their_base(tmp_path):
    folder = lumina_folder(tmp_path / "lumina")
    assert load_policy(folder).name_or_path == str(folder)
