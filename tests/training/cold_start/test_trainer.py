"""The cold start's trainer: packing changes no loss, losses are counted by section, orders come
back after a resume.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.spec import ChainSpec
from realsr_r1.data.tokens.cold_start import encode_records
from realsr_r1.data.tokens.samples import QUESTION
from realsr_r1.models import load_policy
from realsr_r1.models.lumina.layers import add_dropout
from realsr_r1.training.cold_start.samplers import EpochSampler
from realsr_r1.training.cold_start.throughput import Throughput
from realsr_r1.training.cold_start.trainer import IGNORED, ROW_TILE, TILE, ColdStartTrainer, pack_samples
from realsr_r1.training.config import ColdStartConfig

from ...small import records

Z_WEIGHT = 0.01


@pytest.fixture(scope="module")
def samples(processor) -> Dataset:
    """Six chains; the second has no more than its first sentence, so lengths differ much."""
    encoded = encode_records(records(6), list(range(6)), processor, seed=0)
    for column in (encoded[1].input_ids, encoded[1].sections):
        del column[encoded[1].sections.count(QUESTION) + 20:]
    return Dataset.from_dict({
        "input_ids": [sample.input_ids for sample in encoded],
        "sections": [sample.sections for sample in encoded],
        "length": [len(sample.input_ids) for sample in encoded]}).with_format("numpy")


def make_trainer(model: Path, processor: ChainProcessor, samples: Dataset, output: Path,
                 **settings: Any) -> ColdStartTrainer:
    args = ColdStartConfig(output_dir=str(output), dataset_name="unused", report_to="none",
                           disable_tqdm=True, logging_steps=1, save_strategy="no",
                           **{"peak_tflops": 1.0, **settings})
    return ColdStartTrainer(load_policy(model), processor, args, samples)


def alone(policy: torch.nn.Module, sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a sample on its own, by transformers' usual forward: each scored token's negative
    log-likelihood and log Z.
    """
    ids = torch.from_numpy(sample["input_ids"]).long()
    logits = policy(input_ids=ids[None]).logits[0, :-1]
    scored = torch.from_numpy(sample["sections"])[1:] != QUESTION
    nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
    return nll[scored], logits.logsumexp(-1)[scored]


def test_packing_changes_no_samples_loss(model, processor, samples, tmp_path):
    trainer = make_trainer(model, processor, samples, tmp_path)
    rows = [samples[number] for number in (3, 1, 0, 5, 2, 4)]
    batch = pack_samples(rows)
    assert batch["lengths"] == [len(row["input_ids"]) for row in rows]
    tokens = sum(-(-length // TILE) * TILE for length in batch["lengths"])
    assert batch["input_ids"].shape == (1, -(-tokens // ROW_TILE) * ROW_TILE) and tokens % ROW_TILE
    policy = trainer.model.eval()
    with torch.no_grad():
        logits = policy(input_ids=batch["input_ids"], shared_prompts=batch["layout"],
                        logits_to_keep=batch["where"]).logits[0]
        packed = torch.nn.functional.cross_entropy(logits, batch["labels"][0, batch["where"] + 1],
                                                   reduction="none")
        expected = [alone(policy, row)[0] for row in rows]
        assert len(packed) == int((batch["labels"] != IGNORED).sum())
        for number, own in enumerate(expected):
            torch.testing.assert_close(packed[batch["samples"] == number], own, rtol=0, atol=1e-5)
        loss = trainer.compute_loss(policy, batch)
    assert float(loss) == pytest.approx(float(torch.cat(expected).mean()), abs=1e-5)


def test_the_gradient_is_that_of_the_samples_alone(model, processor, samples, tmp_path):
    trainer = make_trainer(model, processor, samples, tmp_path, z_loss=Z_WEIGHT)
    policy, rows = trainer.model.train(), [samples[0], samples[1]]
    scored = [alone(policy, row) for row in rows]
    nll, log_z = (torch.cat(values) for values in zip(*scored, strict=True))
    expected = torch.autograd.grad(nll.mean() + Z_WEIGHT * log_z.square().mean(), list(policy.parameters()))
    loss = trainer.compute_loss(policy, pack_samples(rows))
    for mine, own in zip(torch.autograd.grad(loss, list(policy.parameters())), expected, strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-5 * float(own.abs().max()))


def test_operations_are_counted_where_they_are_made(model):
    policy = load_policy(model)
    found = []
    for scored in (0, 3):
        throughput = Throughput(policy, None)
        throughput.add([10], scored)
        found.append(throughput.operations)
    last = policy.model.layers[-1]
    weights = sum(module.weight.numel() for module in (policy.lm_head, last.self_attn.o_proj,
                                                       last.mlp.gate_proj, last.mlp.up_proj,
                                                       last.mlp.down_proj))
    assert found[1] - found[0] == 3 * 6 * weights  # forward, and the gradients of input and weights


def test_a_step_logs_losses_by_section_and_throughput(model, processor, samples, tmp_path):
    make_trainer(model, processor, samples, tmp_path, z_loss=Z_WEIGHT, max_steps=1,
                 per_device_train_batch_size=2, gradient_accumulation_steps=3, learning_rate=0.0).train()
    line = next(line for line in map(json.loads, (tmp_path / "log_history.jsonl").read_text().splitlines())
                if "loss" in line)
    policy = load_policy(model)
    with torch.no_grad():
        nll, log_z = (torch.cat(values) for values in zip(*(alone(policy, row) for row in samples),
                                                          strict=True))
    sections = torch.cat([torch.from_numpy(row["sections"]) for row in samples])
    sections = sections[sections != QUESTION]
    assert line["nll"] == pytest.approx(float(nll.mean()), abs=1e-4)
    assert line["z_loss"] == pytest.approx(float(log_z.square().mean()), rel=1e-4)
    assert line["loss"] == pytest.approx(line["nll"] + Z_WEIGHT * line["z_loss"], abs=2e-4)
    for number, name in enumerate(ChainSpec.published().parts[:8]):
        assert line[f"loss/{name}"] == pytest.approx(float(nll[sections == number].mean()), abs=1e-4), name
    assert "loss/text" not in line  # of conversations only
    assert line["tokens_per_second"] > 0 and 0 < line["mfu"] < 1


@pytest.mark.parametrize("swin_norm", [False, True])
def test_dropout_acts_on_what_layers_add_and_only_in_training(model, swin_norm):
    from realsr_r1.models.lumina.policy import LuminaPolicy

    policy = load_policy(model)
    policy.config.swin_norm = swin_norm
    policy = LuminaPolicy(policy.config)
    ids = torch.arange(4, 24)[None]
    expected = policy.eval()(input_ids=ids).logits
    embedded = policy.lm_head(policy.model.norm(policy.model.embed_tokens(ids)))
    add_dropout(policy, 1.0 - 1e-9)  # all of it
    assert torch.equal(policy(input_ids=ids).logits, expected)
    torch.testing.assert_close(policy.train()(input_ids=ids).logits, embedded)


@pytest.mark.parametrize("group", [None, 4])
def test_an_epochs_order_is_a_function_of_seed_and_epoch(group):
    lengths, now = [(7 * number) % 41 for number in range(40)], {"epoch": 0}

    def order(seed: int, epoch: int) -> list[int]:
        now["epoch"] = epoch
        return list(EpochSampler(lengths, seed, lambda: now["epoch"], group))

    first = order(0, 0)
    torch.rand(3)  # the global random state doesn't count
    assert order(0, 0) == first and sorted(first) == list(range(40))
    assert len({tuple(order(seed, epoch)) for seed in (0, 10) for epoch in range(3)}) == 6


def test_length_grouping_puts_similar_lengths_into_a_batch():
    lengths = [(7 * number) % 401 for number in range(400)]

    def spread(group: int | None) -> float:
        order = torch.tensor([lengths[number] for number in EpochSampler(lengths, 0, lambda: 0, group)]).view(
            -1, 4)
        return float((order.max(1).values - order.min(1).values).float().mean())

    assert spread(4) < spread(None) / 5
