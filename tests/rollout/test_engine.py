"""The engine writes what the simple reference writes, whatever is computed beside it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.models.protocol import LAYER_MATRICES
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from .helpers import make_layout, make_policy, make_prompts
from .reference import ReferenceEngine

LAYOUT = make_layout()
PROMPTS = make_prompts(LAYOUT)
CHAIN = RolloutConfig(num_generations=2, max_new_tokens=135, image_top_k_max=200, grammar="chain",
                      max_text_tokens=6, seed=11)


def compare(policy, config, prompts, step=0):
    """Engine and reference agree on ids, mask and log-probabilities of every row of a batch."""
    rollout = RolloutEngine(policy, LAYOUT, config).generate(prompts, step=step)
    reference = ReferenceEngine(policy, LAYOUT, config)
    assert len(rollout.completion_ids) == len(prompts) * config.num_generations
    for row, (ids, mask, log_q) in enumerate(zip(rollout.completion_ids, rollout.sampled_mask, rollout.log_q,
                                                 strict=True)):
        expected, sampled, drawn_with = reference.generate(prompts[row // config.num_generations], step, row)
        assert ids == expected, row
        assert mask == sampled, row
        assert log_q == pytest.approx(drawn_with, rel=1e-4, abs=1e-5), row
    return rollout


@pytest.mark.parametrize("guidance", [0.8, 1.0, 3.0])
@pytest.mark.parametrize("grammar", ["image", "chain"])
def test_at_top_k_1_the_engine_equals_the_reference_in_mixed_batches(grammar, guidance):
    config = RolloutConfig(num_generations=1, max_new_tokens=60 if grammar == "image" else 135,
                           guidance_scale=guidance, text_top_k=1, image_top_k_max=1, grammar=grammar,
                           max_text_tokens=6)
    policy, prompts = make_policy(7), PROMPTS
    if grammar == "image":
        prompts = [*PROMPTS, *([LAYOUT.bos, 26 + number, 30, LAYOUT.end_of_turn] for number in range(3))]
        with torch.no_grad():  # a policy that writes images and ends
            policy.lm_head.weight[LAYOUT.image_start] *= 2
            policy.lm_head.weight[LAYOUT.end_of_turn] *= 1.5
    rollout = compare(policy, config, prompts)
    if grammar == "image":
        assert any({"text", "done"} < now and len(now) >= 4 for now in states_at_once(rollout))


def states_at_once(rollout) -> list[set]:
    """What the rows of a batch are in at each position: "text", an image's (height, width), or
    "done".
    """
    longest, rows = max(map(len, rollout.completion_ids)), []
    for ids in rollout.completion_ids:
        states = ["text"] * len(ids) + ["done"] * (longest - len(ids))
        for span in LAYOUT.find_spans(ids):
            size = (len(span.codes), len(span.codes[0]))
            states[span.start:span.stop] = [size] * (span.stop - span.start)
        rows.append(states)
    return [set(states) for states in zip(*rows, strict=True)]


@pytest.mark.parametrize("grammar", ["image", "chain"])
def test_sampled_completions_equal_the_references_draw_by_draw(grammar):
    config = dataclasses.replace(CHAIN, grammar=grammar, max_new_tokens=135 if grammar == "chain" else 60)
    compare(make_policy(1), config, PROMPTS, step=4)


def test_rows_that_end_early_leave_the_batch_and_the_others_go_on_unchanged():
    policy = make_policy(2)
    with torch.no_grad():
        policy.lm_head.weight[LAYOUT.end_of_turn] *= 3
    config = RolloutConfig(num_generations=3, max_new_tokens=50, image_top_k_max=200, seed=3, text_top_k=40)
    rollout = compare(policy, config, PROMPTS)
    lengths = [len(ids) for ids in rollout.completion_ids]
    assert len(set(lengths)) > 3
    assert all(ids[-1] == LAYOUT.end_of_turn for ids in rollout.completion_ids if len(ids) < 50)


def test_the_other_layer_order_shared_norms_and_untied_heads_are_followed_too():
    policy = make_policy(3, swin_norm=True, model_parallel_size=2)
    compare(policy, dataclasses.replace(CHAIN, num_generations=1, image_sizes=[(1, 1), (1, 2), (1, 1)]),
            PROMPTS[:2])


def test_a_completion_does_not_depend_on_its_neighbours():
    policy, config = make_policy(4), dataclasses.replace(CHAIN, num_generations=3)
    together = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS)
    alone = RolloutEngine(policy, LAYOUT, dataclasses.replace(config, num_generations=1))
    for row, ids in enumerate(together.completion_ids):
        assert alone.generate(PROMPTS[row // 3], first_row=row).completion_ids == [ids]
    last_two = RolloutEngine(policy, LAYOUT, config).generate(PROMPTS[1:], first_row=3)
    assert last_two.completion_ids == together.completion_ids[3:]
    repeated = alone.generate([prompt for prompt in PROMPTS for _ in range(3)])
    assert repeated.completion_ids == together.completion_ids


def test_another_step_row_or_seed_gives_other_completions_and_the_same_ones_the_same():
    policy = make_policy(4)
    first = RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0])
    assert RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0]) == first
    others = [RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0], step=1),
              RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0], first_row=2),
              RolloutEngine(policy, LAYOUT, dataclasses.replace(CHAIN, seed=12)).generate(PROMPTS[0])]
    written = [tuple(ids) for rollout in [first, *others] for ids in rollout.completion_ids]
    assert len(set(written)) == len(written)


def test_the_policys_modes_come_back_and_gradient_checkpointing_changes_nothing():
    policy = make_policy(5, attention_dropout=0.5)
    expected = RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0])
    policy.activation_checkpointing_enable()
    policy.config.use_cache = False  # as trl and transformers set it with gradient checkpointing
    policy.train()
    policy.model.layers[0].eval()
    assert RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0]) == expected
    with pytest.raises(UserError):
        RolloutEngine(policy, LAYOUT, dataclasses.replace(CHAIN, max_new_tokens=5)).generate(PROMPTS[0])
    assert policy.training and policy.model.layers[1].training and not policy.model.layers[0].training
    assert policy.is_activation_checkpointing and all(parameter.requires_grad
                                                      for parameter in policy.parameters())


@pytest.mark.parametrize("changes", [
    {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    {"target_modules": list(LAYER_MATRICES), "lora_alpha": 3},
    {"target_modules": list(LAYER_MATRICES), "use_dora": True}], ids=["some matrices", "all", "DoRA"])
def test_a_lora_policy_writes_what_its_merged_policy_writes(changes):
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(make_policy(6), LoraConfig(**{"r": 2, **changes}))
    for name, parameter in policy.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    policy = policy.double()
    written = RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[:2])
    assert written.completion_ids == RolloutEngine(policy.merge_and_unload(), LAYOUT,
                                                   CHAIN).generate(PROMPTS[:2]).completion_ids


def test_an_adapter_too_small_for_bfloat16_weights_still_counts_in_a_rollout():
    """It changes weights of 0.5 by 0.0005, a quarter of their step: merged it is rounded away."""
    from peft import LoraConfig, get_peft_model

    base = make_policy(6, torch.bfloat16)
    for layer in base.model.layers:
        layer.self_attn.o_proj.weight.data.sign_().mul_(0.5)
    expected = RolloutEngine(base, LAYOUT, CHAIN).generate(PROMPTS[0])
    policy = get_peft_model(base, LoraConfig(target_modules=["o_proj"], r=2, lora_alpha=8))
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            torch.nn.init.constant_(parameter, 0.008)
    found = RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0])
    merged = RolloutEngine(policy.merge_and_unload(), LAYOUT, CHAIN).generate(PROMPTS[0])
    assert merged.log_q == expected.log_q and found.log_q != expected.log_q


def test_matrices_beside_adapters_that_are_trained_whole_are_used_as_they_are():
    from peft import LoraConfig, get_peft_model

    base = make_policy(6)
    policy = get_peft_model(base, LoraConfig(target_modules=["v_proj"], modules_to_save=["q_proj"], r=2))
    for name, parameter in policy.named_parameters():
        if "modules_to_save" in name:
            parameter.data *= 1.5
    written = RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0])
    for layer in base.model.layers:
        layer.self_attn.q_proj.modules_to_save.default.weight.data /= 1.5
    assert RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0]).log_q != written.log_q


def test_bfloat16_policies_write_well_formed_chains():
    rollout = RolloutEngine(make_policy(7, torch.bfloat16), LAYOUT, CHAIN).generate(PROMPTS)
    assert all(len(LAYOUT.find_spans(ids)) == 3 for ids in rollout.completion_ids)
    assert all(map(math.isfinite, sum(rollout.log_q, [])))


def test_a_policy_that_has_diverged_is_named_as_such():
    policy = make_policy(8)
    with torch.no_grad():
        policy.model.norm.weight[0] = float("nan")
    with pytest.raises(UserError, match="diverged"):
        RolloutEngine(policy, LAYOUT, CHAIN).generate(PROMPTS[0])


@pytest.mark.parametrize("shares", [(None, 1.0), (None, 0.5, None, 1.0, None), (0.5, 1.0)])
@pytest.mark.parametrize("budget", [95, 120])
@pytest.mark.parametrize("jacobi", [1, 4])
def test_a_chain_without_tags_ends_its_texts_where_the_next_image_begins(shares, budget, jacobi):
    """`budget`: one that leaves next to no room for texts, and one that leaves some."""
    layout = make_layout(untagged=shares)
    config = dataclasses.replace(CHAIN, max_new_tokens=budget, jacobi=jacobi)
    policy, prompts = make_policy(), make_prompts(layout)
    rollout = RolloutEngine(policy, layout, config).generate(prompts)
    for row, ids in enumerate(rollout.completion_ids):
        assert len(layout.find_spans(ids)) == sum(share is not None for share in shares)
        assert ids[-1] == layout.end_of_turn and ids.count(layout.end_of_turn) == 1
        if jacobi == 1:
            expected = ReferenceEngine(policy, layout,
                                       config).generate(prompts[row // config.num_generations], 0, row)
            assert (ids, rollout.sampled_mask[row]) == expected[:2]


def texts_of(layout, ids) -> list[list[int]]:
    """The ids of the texts of a chain."""
    sections, bodies = layout.chain_form.sections, layout.chain_bodies(ids)
    return [body for section, body in zip(sections, bodies, strict=True) if not section.is_image]


@pytest.mark.parametrize("guidance", [0.8, 1.0])
@pytest.mark.parametrize("jacobi", [1, 4])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_rows_write_the_texts_they_are_given_and_choose_only_their_images(guidance, jacobi, cuda_graphs):
    config = dataclasses.replace(CHAIN, guidance_scale=guidance, jacobi=jacobi, cuda_graphs=cuda_graphs,
                                 num_generations=1)
    engine = RolloutEngine(make_policy(1), LAYOUT, config)
    free = engine.generate(PROMPTS)
    given = [texts_of(LAYOUT, ids) for ids in free.completion_ids]
    # A row that is given its own texts writes the same images, since its random numbers are the same.
    again = engine.generate(PROMPTS, given=given)
    assert again.completion_ids == free.completion_ids
    assert sum(again.forwards) < sum(free.forwards)
    for ids, mask in zip(again.completion_ids, again.sampled_mask, strict=True):
        chosen = {token for token, was_chosen in zip(ids, mask, strict=True) if was_chosen}
        assert chosen and chosen <= set(LAYOUT.code_ids)
    given = [given[2], [[], [26] * 99, [27], [28]], given[0]]  # longer than max_new_tokens allows
    assert [texts_of(LAYOUT, ids) for ids in engine.generate(PROMPTS, given=given).completion_ids] == given


def test_rows_of_equal_size_with_given_texts_take_known_tokens_in_one_pass():
    config = dataclasses.replace(CHAIN, num_generations=2, guidance_scale=1.0)
    engine = RolloutEngine(make_policy(1), LAYOUT, config)
    prompts, given = [PROMPTS[1], PROMPTS[1]], [[[26] * 5, [27] * 4, [28] * 3, [29] * 2]] * 2
    rollout = engine.generate(prompts, given=given)
    assert len(set(map(tuple, rollout.completion_ids))) == 4
    # Texts, seven pairs of tags, three image starts and the end of turn come in four runs. The first
    # of them follows from the prompt. The two sizes of each of three images are a run of their own.
    in_runs = 14 + 7 * 5 + 3 + 1 - 1
    assert rollout.forwards == [len(ids) - (in_runs - 4) - 3 for ids in rollout.completion_ids]


def test_rows_have_the_numbers_they_are_given():
    engine = RolloutEngine(make_policy(4), LAYOUT, CHAIN)
    expected = engine.generate(PROMPTS, first_row=10).completion_ids
    chosen = engine.generate(PROMPTS[::-1], rows=[14, 15, 12, 13, 10, 11]).completion_ids
    assert chosen == [*expected[4:], *expected[2:4], *expected[:2]]
    with pytest.raises(ValueError, match="1 row numbers"):
        engine.generate(PROMPTS, rows=[1])


def test_given_texts_that_dont_belong_to_the_chain_are_refused():
    engine = RolloutEngine(make_policy(), LAYOUT, CHAIN)
    with pytest.raises(UserError, match="3 texts are given; the chain has 4"):
        engine.generate(PROMPTS[0], given=[[[26], [27], [28]]])
    image = RolloutEngine(make_policy(), LAYOUT, dataclasses.replace(CHAIN, grammar="image"))
    with pytest.raises(UserError, match='given texts need the grammar "chain"'):
        image.generate(PROMPTS[0], given=[[[26]] * 4])


@pytest.mark.parametrize("jacobi", [1, 4])
def test_a_stream_grows_into_the_completion(jacobi):
    engine = RolloutEngine(make_policy(1), LAYOUT, dataclasses.replace(CHAIN, num_generations=1,
                                                                       jacobi=jacobi))
    stream = list(engine.stream(PROMPTS[1], first_row=3))
    assert stream[-1] == engine.generate(PROMPTS[1], first_row=3).completion_ids[0]
    assert len(stream) > 10 and all(stream[-1][:len(ids)] == ids for ids in stream)
