"""Small files in the layouts of the published checkpoints: text tokenizers with the real names and
ids, policies, tokenizers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.chain.tokens import code_name

from .conftest import ROOT

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from realsr_r1.models.image_tokenizer import ImageTokenizer

LUMINA_VOCABULARY, PURE_VOCABULARY = 65536, 73728
FIRST_CODE, LAST_OLD_CODE = 4, 8195  # ids; PURE's other codes come after Lumina-mGPT's vocabulary
WORDS = ("the", " the", " image", " light", " noise", " blur", " cat", "Perceive", " degradation", " content",
         " restore")
HEADS, HEAD_DIM = 4, 8
SHAPE = dict(vocab_size=96, hidden_size=HEADS * HEAD_DIM, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=256)


def vocabulary(codes: int) -> dict[str, int]:
    """Name -> id as Lumina-mGPT (8,192 codes) or PURE (16,384 codes) have them, with few words and
    many fillers for text.
    """
    from tokenizers import pre_tokenizers

    names = {name: token for token, name in enumerate(("<s>", "<pad>", "</s>", "<unk>"))}
    names |= {code_name(code): FIRST_CODE + code
              for code in range(min(codes, LAST_OLD_CODE - FIRST_CODE + 1))}
    names |= {"<eoss>": 8196, "<racm3:break>": 8197}
    names |= {f"<reserved{token - 4:05d}>": token for token in range(8198, 16384)}
    text = [*sorted(pre_tokenizers.ByteLevel.alphabet()),
            *(piece for word in WORDS for piece in _prefixes(word))]
    text = list(dict.fromkeys(text))
    names |= {piece: 16384 + place for place, piece in enumerate(text)}
    names |= {f"filler{token}": token for token in range(16384 + len(text), LUMINA_VOCABULARY)}
    names |= {code_name(code): LUMINA_VOCABULARY + place
              for place, code in enumerate(range(LAST_OLD_CODE - FIRST_CODE + 1, codes))}
    return names


def text_tokenizer(codes: int, without: str = "") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of that vocabulary;

    `without`: a name that it lacks (another takes its id).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {name if name != without else "<nothing>": token for name, token in vocabulary(codes).items()}
    merges = [(pieces[-2], pieces[-1][len(pieces[-2]):]) for word in WORDS
              for pieces in [_prefixes(word)[:end] for end in range(2, len(_prefixes(word)) + 1)]]
    tokenizer = Tokenizer(models.BPE(vocab=names, merges=list(dict.fromkeys(merges)), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([name for name in names if re.fullmatch(r"<\S+>|IMGIMG[A-J]+Z", name)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _prefixes(word: str) -> list[str]:
    spelled = word.replace(" ", "\u0120")  # how byte-level BPE writes a space
    return [spelled[:end] for end in range(1, len(spelled) + 1)]


def image_tokenizer(family: str, **changes: Any) -> ImageTokenizer:
    """A random image tokenizer of a published family: its codes and down-sampling, but narrow."""
    import torch

    from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

    shape = dict(base_channels=32, num_res_blocks=1, latent_channels=32, embed_dim=8,
                 channel_multiplier=[1] * (4 if family == "llamagen-vq8" else 5))
    if family == "chameleon":
        shape |= dict(num_embeddings=8192, l2_normalised_codes=False, attention_levels=[])
    torch.manual_seed(0)
    return ImageTokenizer(ImageTokenizerConfig(**{**shape, **changes})).eval()


def published_state(model: ImageTokenizer, family: str) -> dict[str, torch.Tensor]:
    """The model's weights under the publisher's names, with the tensors that only training uses."""
    import torch

    state = {}
    levels = len(model.config.channel_multiplier)
    for name, tensor in model.state_dict().items():
        if family == "chameleon":
            name = re.sub(r"decoder\.up\.(\d)",
                          lambda level: f"decoder.up.{levels - 1 - int(level[1])}", name)
        else:
            name = re.sub(r"(down|up)\.(\d)\.block\.", r"\1.\2.res.", name)
            name = re.sub(r"coder\.(down|up)\.", "coder.conv_blocks.", name)
            for number, block in enumerate(("block_1", "attn_1", "block_2")):
                name = name.replace(f"mid.{block}.", f"mid.{number}.")
        state[name] = tensor.contiguous()
    return state | ({"loss.discriminator.main.0.weight": torch.zeros(2)} if family == "chameleon" else
                    {"quantize.codebook_used": torch.zeros(65536)})


def lumina_folder(folder: Path, dtype: str = "float32", max_shard_size: str = "1GB", **changes: Any) -> Path:
    """A random policy as Lumina-mGPT publishes one: shared norms, a Chameleon config in the older
    spelling, keys of its own.

    `changes`: of the config (`rope_theta`, `rope_scaling` and other published keys among them).
    """
    import torch

    from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

    shape = {**SHAPE, "model_parallel_size": 1, "swin_norm": False, "rope_theta": 10000.0,
             "rope_scaling": None, **changes}
    torch.manual_seed(0)
    policy = LuminaPolicy(LuminaConfig(**shape))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    policy.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    config = {"architectures": ["ChameleonForConditionalGeneration"], "attention_bias": False,
              "attention_dropout": 0.0,
              "bos_token_id": 1, "dropout": 0.05, "eos_token_id": 2, "hidden_act": "silu",
              "initializer_range": 0.02,
              "mask_image_logits": False, "mlp_bias": False, "model_type": "chameleon", "rms_norm_eps": 1e-05,
              "tie_word_embeddings": False, "torch_dtype": dtype, "transformers_version": "4.44.2",
              "use_cache": True,
              "vocabulary_map": {"<image>": 7, "IMGIMGAZ": 4},
              "vq_config": {"resolution": 32, "embed_dim": 8},
              "z_loss_weight": 1e-05, **shape}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(
        {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "transformers_version": "4.44.2"}))
    return folder


def transformers_chameleon(folder: Path, **changes: Any) -> Any:
    """A random `ChameleonForConditionalGeneration`, saved to `folder`: one norm row a head, its
    image encoder inside.
    """
    import torch
    from transformers import ChameleonForConditionalGeneration
    from transformers.models.chameleon.configuration_chameleon import ChameleonConfig

    codes = {code_name(code): 8 + code for code in range(4)}
    encoder = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, latent_channels=8, embed_dim=8,
                   num_embeddings=4)
    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(ChameleonConfig(**{
        **SHAPE, "vocabulary_map": {"<image>": 7, **codes}, "vq_config": encoder, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.eval().save_pretrained(folder)
    return model


def write_published_files(folder: Path) -> Path:
    """Published files:

    `lumina` (policy of the real vocabulary), `tokenizer`, `vqgan.ckpt` with its yaml.
    """
    import torch
    import yaml

    lumina_folder(folder / "lumina", "bfloat16", vocab_size=LUMINA_VOCABULARY, num_hidden_layers=1,
                  model_parallel_size=2,
                  max_position_embeddings=2048)
    text_tokenizer(8192).save_pretrained(folder / "tokenizer")
    model = image_tokenizer("chameleon")
    torch.save({"state_dict": published_state(model, "chameleon")}, folder / "vqgan.ckpt")
    (folder / "vqgan.yaml").write_text(yaml.safe_dump({"model": {"params": {"embed_dim": 8, "n_embed": 8192,
                                                                            "ddconfig": dict(
        ch=32, ch_mult=[1] * 5, num_res_blocks=1, z_channels=32, resolution=64, attn_resolutions=[],
        in_channels=3, out_ch=3)}}}))
    return folder


def export_flags(files: Path, without: str = "") -> list[str]:
    """The flags of `export` that name these files."""
    flags = {"--image_tokenizer": files / "vqgan.ckpt", "--tokenizer": files / "tokenizer",
             "--chain_settings": ROOT / "configs" / "chain" / "lumina.yaml"}
    return [str(word) for flag, value in flags.items() if flag != without for word in (flag, value)]


def write_adapter(folder: Path, base: Path) -> Any:
    """A LoRA adapter of random numbers on the policy in `base`, saved to `folder`; returns the
    model it belongs to.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from realsr_r1.models import load_policy

    torch.manual_seed(2)
    model = get_peft_model(load_policy(base, dtype=torch.float32), LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False))
    model.save_pretrained(folder)
    return model
