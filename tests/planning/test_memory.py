"""The plan's bytes are those that torch allocates, on small models, and at the 7B's width without
its memory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trl.trainer.utils import add_fused_lm_head

from realsr_r1.models import new_policy
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from realsr_r1.models.loading import policy_config
from realsr_r1.models.protocol import PackedRow
from realsr_r1.planning import memory
from realsr_r1.planning.workload import PUBLISHED_TOKENIZERS, Sharding, TokenizerShape

ROOT = Path(__file__).resolve().parents[2]


def storages(tensors) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize("folder, parameters", [
    ("configs/models/pure_7b", 7_080_267_776), ("configs/models/lumina_7b", 7_013_158_912),
    ("assets/tiny", None)])
def test_parameters_are_the_policys(folder, parameters):
    config = policy_config(ROOT / folder)
    with torch.device("meta"):
        policy = new_policy(config)
    assert config.shape.parameters == policy.num_parameters() == (parameters or policy.num_parameters())


def test_weights_gradients_and_adamws_states_are_torchs(make_work, make_policy):
    work = make_work()
    policy = make_policy(work)
    optimizer = torch.optim.AdamW(policy.parameters())
    policy(torch.arange(2, 12)[None]).logits.sum().backward()
    optimizer.step()
    # But for the counters
    states = [state for values in optimizer.state.values() for state in values.values() if state.ndim]
    held = memory.resident(work)
    assert held["weights"] == storages(policy.parameters())
    assert held["gradients"] == storages(parameter.grad for parameter in policy.parameters())
    assert held["optimizer"] == storages(states)


def test_zero_spreads_what_its_stage_says(make_work):
    whole = memory.resident(make_work(weight_bytes=2, sharding=Sharding(2)))
    for stage, spread in ((2, {"gradients", "optimizer"}), (3, {"gradients", "optimizer", "weights"})):
        held = memory.resident(make_work(weight_bytes=2, sharding=Sharding(stage), world=4))
        assert all(held[part] == whole[part] / (4 if part in spread else 1)
                   for part in ("weights", "gradients", "optimizer"))
    parameters = make_work().policy.parameters
    assert (whole["weights"], whole["gradients"],
            whole["optimizer"]) == (2 * parameters, 2 * parameters, 12 * parameters)
    offloaded = memory.resident(make_work(sharding=Sharding(3, offload_optimizer=True,
                                                            offload_parameters=True), world=4))
    assert not any(offloaded[part] for part in ("weights", "gradients", "optimizer"))
    assert memory.gathered(make_work(weight_bytes=2, sharding=Sharding(3),
                                     world=4))["gathered weights"] == whole["weights"]


def test_states_that_leave_take_nothing_while_completions_are_written(make_work):
    for stage, size in ((0, 8), (3, 12)):
        work = make_work(sharding=Sharding(stage), states_leave=True, world=2 if stage else 1)
        stay, leave = (memory.phases(one) for one in (dataclasses.replace(work, states_leave=False), work))
        for phase in stay:
            gone = size * work.trained / work.world if phase in ("prefill", "rollout") else 0
            assert sum(stay[phase].values()) - sum(leave[phase].values()) == gone


def test_gradients_of_several_microbatches_are_float32_under_deepspeed(make_work):
    for stage, size in ((0, 2), (2, 4), (3, 4)):
        work = make_work(weight_bytes=2, sharding=Sharding(stage), accumulates=True)
        assert memory.resident(work)["gradients"] == work.trained * size


def test_a_second_copy_of_the_weights_is_spread_over_a_machine(make_work):
    file = ROOT / "local_scripts" / "zero3{}.json"
    one, two = (memory.resident(make_work(world=64, sharding=Sharding.read(str(file).format(kind))))
                for kind in ("", "_multinode"))
    weights = make_work().policy.parameters * 4
    assert two["weights"] == pytest.approx(weights / 64 + weights / 8) and one["weights"] == weights / 64
    assert {**one, "weights": 0} == {**two, "weights": 0}


def test_four_bits_a_weight_are_bitsandbytes_layout(make_work):
    functional = pytest.importorskip("bitsandbytes").functional
    work = make_work(hidden=1024, intermediate=0, layers=1, quantised_bits=4, nested=True, weight_bytes=2)
    packed, state = functional.quantize_4bit(torch.randn(1024, 1024), quant_type="nf4",
                                             compress_statistics=True)
    rest = 2 * (work.policy.parameters - work.policy.matrix_parameters)
    matrix = storages([packed, state.absmax, state.state2.absmax])
    assert memory.base_bytes(work) - rest == 4 * matrix  # q, k, v and o


@pytest.mark.parametrize("int8_caches", [False, True])
def test_the_decoders_caches_are_predicted_to_the_byte(int8_caches, make_work, make_policy):
    work = make_work(prompts=2, generations=3, prompt=50, completion=70, span=20, kv_heads=2,
                     int8_caches=int8_caches)
    prompts = [[2 + number] * 50 for number in range(2)]
    decoder = make_policy(work).eval().make_decoder(prompts, torch.arange(2).repeat_interleave(3), 70, 20,
                                                    torch.arange(4, 40), int8_caches=int8_caches)
    parts = memory.rollout(work)
    for part, caches in (("cache: prompts", decoder.shared), ("cache: completions", decoder.own),
                         ("cache: unconditional", decoder.unconditional)):
        assert parts[part] == storages(tensor for cache in caches for tensor in cache.tensors())


@pytest.mark.parametrize("int8_caches", [False, True])
@pytest.mark.parametrize("prompts", [1, 3])
def test_computing_prompts_takes_what_the_plan_says(prompts, int8_caches, make_work, make_policy, live_bytes):
    work = make_work(**LONG, prompts=prompts, int8_caches=int8_caches)
    policy = make_policy(work).eval()
    with live_bytes() as live, torch.no_grad():
        policy.make_decoder([[2 + number] * 300 for number in range(prompts)], torch.arange(prompts), 0, 0,
                            torch.arange(4, 5), int8_caches=int8_caches)
    assert live.peak == pytest.approx(sum(memory.prefill(work).values()), rel=0.1)


@pytest.mark.parametrize("values", [{}, {"weight_bytes": 2}, {"micro": 1},
                                    {"completion": 90, "intermediate": 256}])
def test_what_a_layer_saves_is_what_autograd_keeps(values, make_work, make_policy):
    def kept(layers: int) -> int:
        work = make_work(**values, layers=layers)
        policy = make_policy(work)
        own = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        layout, tokens = _layout(work)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            # Its graph keeps what is saved.
            outputs = policy.model(input_ids=tokens, shared_prompts=layout)  # noqa: F841
        return sum(saved.values())

    work = make_work(**values)
    assert kept(3) - kept(2) == pytest.approx(memory.saved_by_a_layer(work, work.completion), rel=0.01)


def _layout(work) -> tuple[PackedRow, torch.Tensor]:
    layout = PackedRow(((work.prompt, work.micro),), work.completion)
    return layout, torch.randint(2, work.policy.vocabulary, (1, work.packed(work.completion)))


def peak_of_a_step(work, policy, live_bytes) -> int:
    """Bytes that one forward and backward of the loss make, beside weights and gradients, as the
    trainer runs it.
    """
    policy.train()
    if work.checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
    for parameter in policy.parameters():  # from the microbatches before
        parameter.grad = torch.zeros_like(parameter)
    layout, tokens = _layout(work)
    labels = torch.randint(2, work.policy.vocabulary, (work.micro, work.completion + 1))
    with live_bytes() as live:
        policy(input_ids=tokens, shared_prompts=layout, shift_labels=labels,
               fused_lm_head=True).log_probs.sum().backward()
    return live.peak


def peak_without_memory(work, make_policy, live_bytes) -> int:
    """The same on fake tensors: torch's own operations, on storages without memory."""
    with FakeTensorMode():
        return peak_of_a_step(work, make_policy(work), live_bytes)


def predicted_step(work) -> float:
    return sum(memory.loss(work).values())


LONG = {"prompt": 300, "completion": 400, "layers": 4}
SEVEN_BILLION = {"hidden": 4096, "intermediate": 11_008, "heads": 32, "kv_heads": 32, "layers": 2,
                 "vocabulary": 73_728, "prompt": 4214, "completion": 7000, "generations": 5,
                 "weight_bytes": 2, "checkpointing": True}


def test_the_peak_of_the_loss_is_within_a_twentieth_of_torchs(make_work, make_policy, live_bytes):
    work = make_work(**LONG)
    assert predicted_step(work) == pytest.approx(peak_of_a_step(work, make_policy(work), live_bytes),
                                                 rel=0.05)


@pytest.mark.parametrize("values", [
    {**LONG, "checkpointing": True, "micro": 1},
    {**LONG, "vocabulary": 40_000, "micro": 1, "completion": 100},
    {**LONG, "weight_bytes": 2, "intermediate": 2560, "layers": 2, "vocabulary": 64},
    {**SEVEN_BILLION, "micro": 1}, {**SEVEN_BILLION, "micro": 5}])
def test_it_holds_for_other_sizes_and_at_the_7bs_width_and_length(values, make_work, make_policy, live_bytes):
    work = make_work(**values)
    assert predicted_step(work) == pytest.approx(peak_without_memory(work, make_policy, live_bytes), rel=0.05)


def test_no_memory_grows_with_length_times_vocabulary(make_work, make_policy, live_bytes):
    def growth(vocabulary: int, peak) -> float:
        short, long = (make_work(vocabulary=vocabulary, completion=length, micro=1, layers=1)
                       for length in (100, 4000))
        return peak(long) - peak(short)

    for peak in (lambda work: peak_without_memory(work, make_policy, live_bytes), predicted_step):
        narrow, wide = growth(memory.TILE_COLUMNS, peak), growth(2 * memory.TILE_COLUMNS, peak)
        assert wide == pytest.approx(narrow, rel=0.02)


@pytest.mark.parametrize("vocabulary", PUBLISHED_TOKENIZERS)
def test_decoding_images_takes_what_the_plan_says(vocabulary, make_work, live_bytes):
    values = {**PUBLISHED_TOKENIZERS[vocabulary], "base_channels": 32, "latent_channels": 32,
              "num_res_blocks": 2, "num_embeddings": 64}
    tokenizer = ImageTokenizer(ImageTokenizerConfig(**values)).eval()
    side = 128 // tokenizer.downsample
    with live_bytes() as live:
        tokenizer.decode(torch.zeros(2, side, side, dtype=torch.int64))
    work = make_work(tokenizer=TokenizerShape.of(values, 128), largest_px=128, prompts=1, generations=2)
    assert memory.decoding(work)["activations"] == pytest.approx(live.peak, rel=0.15)
    assert work.tokenizer.parameters == sum(parameter.numel() for parameter in tokenizer.parameters())
