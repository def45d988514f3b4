"""The policy is Chameleon's decoder with shared q/k norms and image logits: it agrees with
transformers' own class.
"""

from __future__ import annotations

import pytest
import torch
from transformers import ChameleonForConditionalGeneration
from transformers.models.chameleon.configuration_chameleon import ChameleonConfig

from realsr_r1.chain.tokens import code_name
from realsr_r1.models.lumina.policy import LuminaConfig, LuminaPolicy
from realsr_r1.models.lumina.projections import Projection

HEADS, HEAD_DIM, VOCABULARY = 4, 16, 96
IMAGE_TOKENS = list(range(8, 40))
SHAPE = dict(vocab_size=VOCABULARY, hidden_size=HEADS * HEAD_DIM, intermediate_size=96, num_hidden_layers=2,
             num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=256)
VARIANTS = [dict(model_parallel_size=1), dict(model_parallel_size=2), dict(model_parallel_size=4),
            dict(model_parallel_size=1, swin_norm=True), dict(model_parallel_size=2, num_key_value_heads=2),
            dict(model_parallel_size=1, rope_theta=100.0)]


def make_policy(attn_implementation: str = "sdpa", **changes) -> LuminaPolicy:
    torch.manual_seed(0)
    policy = LuminaPolicy(LuminaConfig(**{**SHAPE, **changes}, attn_implementation=attn_implementation))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


def published_class(policy: LuminaPolicy, attn_implementation: str = "sdpa",
                    **changes) -> ChameleonForConditionalGeneration:
    """transformers' class with the policy's weights: each norm repeated for the heads that share
    it.
    """
    vocabulary = {code_name(code): token for code, token in enumerate(IMAGE_TOKENS)}
    image_tokenizer = dict(base_channels=32, channel_multiplier=[1], num_res_blocks=1, latent_channels=8,
                           embed_dim=8, num_embeddings=32)
    config = ChameleonConfig(**{**SHAPE, **changes}, attn_implementation=attn_implementation,
                             vocabulary_map={"<image>": 7, **vocabulary}, vq_config=image_tokenizer)
    model = ChameleonForConditionalGeneration(config)
    state = policy.state_dict()
    for name, tensor in state.items():
        if ".q_norm." in name or ".k_norm." in name:
            heads = config.num_attention_heads if ".q_norm." in name else config.num_key_value_heads
            state[name] = tensor.repeat_interleave(heads // tensor.shape[0], dim=0)
    lost = model.load_state_dict(state, strict=False)
    assert not lost.unexpected_keys and all(name.startswith("model.vqmodel.") for name in lost.missing_keys)
    return model.eval()


def left_padded_batch() -> dict[str, torch.Tensor]:
    """Two rows of 12 tokens, the second with five of padding in front."""
    ids = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    ids[ids == 7] = 6  # transformers puts images where it sees its <image>
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def compare(policy: LuminaPolicy, published: ChameleonForConditionalGeneration) -> None:
    """Logits of real tokens agree; transformers' image logits are masked, so there its hidden
    states are projected.
    """
    batch = left_padded_batch()
    with torch.no_grad():
        ours, theirs = policy(**batch).logits, published(**batch).logits
        unmasked = published.lm_head(published.model(**batch).last_hidden_state)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(ours[real], unmasked[real], atol=1e-3, rtol=0)
    text = [token for token in range(VOCABULARY) if token not in IMAGE_TOKENS]
    torch.testing.assert_close(ours[real][:, text], theirs[real][:, text], atol=1e-3, rtol=0)
    assert (theirs[:, :, IMAGE_TOKENS] == torch.finfo(torch.float32).min).all()


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_logits_are_those_of_transformers_class_image_logits_included(changes, attn_implementation):
    policy = make_policy(attn_implementation, **changes)
    compare(policy, published_class(policy, attn_implementation, **changes))


def test_padding_on_the_left_changes_nothing():
    policy, batch = make_policy(), left_padded_batch()
    with torch.no_grad():
        padded = policy(**batch).logits[1, 5:]
        alone = policy(input_ids=batch["input_ids"][1:, 5:]).logits[0]
    torch.testing.assert_close(padded, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rows", [1, 2])
def test_heads_that_share_a_norm_share_it_after_training_too(rows):
    policy = make_policy(model_parallel_size=rows)
    norms = {name: parameter for name, parameter in policy.named_parameters()
             if ".q_norm." in name or ".k_norm." in name}
    assert len(norms) == 2 * 2 * 2 and all(parameter.shape == (rows, HEAD_DIM)
                                           for parameter in norms.values())
    before = {name: parameter.detach().clone() for name, parameter in norms.items()}
    ids = left_padded_batch()["input_ids"]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)
    policy(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in norms.items())
    compare(policy, published_class(policy, model_parallel_size=rows))


def test_norms_that_heads_cannot_share_evenly_are_refused():
    with pytest.raises(ValueError, match="4 heads can't share 3 norms"):
        make_policy(model_parallel_size=3)


def test_the_loss_leaves_out_ignored_labels():
    policy = make_policy()
    ids = left_padded_batch()["input_ids"][:1]
    labels = ids.clone()
    labels[:, :6] = -100
    with torch.no_grad():
        output = policy(input_ids=ids, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, 5:-1], ids[0, 6:])
    torch.testing.assert_close(output.loss, expected)


def test_only_the_asked_positions_are_projected():
    policy, ids = make_policy(), left_padded_batch()["input_ids"]
    with torch.no_grad():
        everything = policy(input_ids=ids).logits
        for keep, positions in ((3, [-3, -2, -1]), (torch.tensor([2, 5]), [2, 5])):
            kept = policy(input_ids=ids, logits_to_keep=keep).logits
            torch.testing.assert_close(kept, everything[:, positions])


def test_no_image_tokenizer_is_inside():
    assert not [name for name, _ in make_policy().named_parameters() if "vqmodel" in name]


def test_checkpointing_switched_off_and_on_leaves_no_hooks_behind():
    policy = make_policy()
    for _ in range(4):  # as TRL does around every rollout
        policy.gradient_checkpointing_enable()
        policy.gradient_checkpointing_disable()
    policy.gradient_checkpointing_enable()
    assert len(policy.get_input_embeddings()._forward_hooks) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_decoder_scores_all_ids_of_a_large_vocabulary(dtype):
    """A CPU multiplies a large head in blocks, and 1,300 rows are ten blocks and a rest."""
    policy = make_policy(vocab_size=1300).to(dtype)
    codes = torch.arange(40, 1290)
    decoder = policy.make_decoder([[1, 2, 3]], torch.tensor([0, 0]), 4, 4, codes)
    states = torch.randn(5, policy.config.hidden_size, dtype=dtype)
    expected = states @ policy.lm_head.weight.T
    torch.testing.assert_close(decoder.logits(states), expected)
    torch.testing.assert_close(decoder.code_logits(states), expected[:, codes])


def test_a_head_in_float32_scores_the_states_of_a_bfloat16_policy():
    """As `--cast_lm_head_to_fp32` leaves them."""
    policy = make_policy().to(torch.bfloat16)
    policy.lm_head.float()
    decoder = policy.make_decoder([[1, 2, 3]], torch.tensor([0]), 4, 4, torch.arange(10, 20))
    states = torch.randn(2, policy.config.hidden_size, dtype=torch.bfloat16)
    expected = states.float() @ policy.lm_head.weight.T
    torch.testing.assert_close(decoder.logits(states), expected)
    torch.testing.assert_close(decoder.code_logits(states), expected[:, 10:20])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_large_matrix_gives_what_a_linear_layer_gives(dtype):
    """Also in bfloat16 under autocast, where states that are added to stay float32."""
    matrix, states = torch.nn.Linear(32, 1300, bias=False), torch.randn(5, 1300)
    inside, projection = torch.randn(5, 32, dtype=dtype), Projection(matrix, torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = matrix(inside)
        assert projection(inside).dtype == dtype
        torch.testing.assert_close(projection(inside), expected)
        torch.testing.assert_close(projection.added(states, inside), states + expected)
