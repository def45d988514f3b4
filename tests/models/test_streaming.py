"""Under ZeRO-3 no rank holds the whole policy while it is loaded, and what is loaded is what the
files hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from realsr_r1.models import load_policy
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy

from ..end_to_end.processes import ROOT, free_port, start

RANKS = (0, 1)
SMALL = dict(hidden_size=48, intermediate_size=70, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, model_parallel_size=1)


def write_small(folder: Path, dtype: torch.dtype, **changes) -> None:
    """A small policy in several shards."""
    torch.manual_seed(1)
    policy = LuminaPolicy(LuminaConfig(**SMALL, **changes)).to(dtype)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    policy.generation_config.eos_token_id = 7
    policy.save_pretrained(folder, max_shard_size="20KB")


@pytest.fixture(scope="module")
def streamed(tmp_path_factory) -> SimpleNamespace:
    """Three folders, loaded by two processes under ZeRO-3: `facts[rank][name]`,
    `saved(name, rank)`, `bytes` of the big one.
    """
    sys.path.insert(0, str(ROOT / "scripts" / "benchmarks"))
    try:
        from benchmark_loading import make_checkpoint
    finally:
        sys.path.remove(str(ROOT / "scripts" / "benchmarks"))
    folder = tmp_path_factory.mktemp("streamed")
    parameters = make_checkpoint(folder / "big",
                                 SimpleNamespace(hidden_size=640, num_hidden_layers=6, vocab_size=16384))
    write_small(folder / "small", torch.bfloat16, vocab_size=103)
    write_small(folder / "tied", torch.float32, vocab_size=101, tie_word_embeddings=True)
    run = start([sys.executable, "scripts/tools/torchrun.py", "--nproc_per_node=2", "--master_addr=127.0.0.1",
                 f"--master_port={free_port()}", str(Path(__file__).parent / "streaming_worker.py"),
                 str(folder)],
                folder / "log.txt", {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'scripts' / 'benchmarks'}"})
    assert run.finish() == 0, run.output()[-6000:]
    (folder / "big" / "model.safetensors").unlink()
    return SimpleNamespace(
        folder=folder, float32_bytes=4 * parameters,
        facts=[json.loads((folder / f"found-{rank}.json").read_text()) for rank in RANKS],
        saved=lambda name, rank: torch.load(folder / f"{name}-{rank}.pt", weights_only=True))


@pytest.mark.parametrize("rank", RANKS)
def test_a_rank_takes_its_own_share_of_memory_and_little_more(streamed, rank):
    assert streamed.facts[rank]["peak"] <= 0.75 * streamed.float32_bytes
    assert 4 * sum(streamed.facts[rank]["big"]["here"].values()) < 0.51 * streamed.float32_bytes


@pytest.mark.parametrize("name", ["small", "tied", "copied"])
@pytest.mark.parametrize("rank", RANKS)
def test_every_rank_gathers_what_the_files_hold(streamed, name, rank):
    """`copied`: with a second copy of the weights on each machine (local_scripts/zero3_multinode.json)."""
    plain = load_policy(streamed.folder / ("tied" if name == "tied" else "small"))
    saved = streamed.saved(name, rank)
    expected = dict(plain.named_parameters())
    assert saved["weights"].keys() == expected.keys()
    for key, parameter in expected.items():
        assert torch.equal(saved["weights"][key], parameter), key
        assert streamed.facts[rank][name]["here"][key] == -(-parameter.numel() // 2)
    with torch.no_grad():
        logits = plain(torch.arange(12).view(2, 6)).logits.float()  # the rotary buffers are right, too
    torch.testing.assert_close(saved["logits"], logits, atol=1e-5 if name == "tied" else 2e-2, rtol=0)


@pytest.mark.parametrize("name, dtype", [("big", "float32"), ("tied", "float32"), ("small", "bfloat16")])
def test_a_streamed_policy_is_like_one_loaded_whole(streamed, name, dtype):
    facts = streamed.facts[1][name]
    assert facts["dtypes"] == [f"torch.{dtype}"]
    assert facts["buffers"] == ["torch.float32 cpu"]  # rotary frequencies stay precise under bf16
    assert facts["trainable"] and not facts["training"]
    assert facts["name_or_path"] == str(streamed.folder / name)
    assert facts["attention"] == ("eager" if name == "tied" else "sdpa")
    assert facts["tied"] == (name == "tied")
    assert name == "big" or facts["eos"] == 7
