"""The VQ image tokenizer: any grid, codes by cosine (LlamaGen) or distance (Chameleon), and
gradients for training.
"""

from __future__ import annotations

import pytest
import torch

from realsr_r1.models import image_tokenizer
from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

SHAPE = dict(num_embeddings=64, embed_dim=8, base_channels=32, channel_multiplier=[1, 2, 2], num_res_blocks=1,
             latent_channels=32)


def make(**changes) -> ImageTokenizer:
    torch.manual_seed(0)
    return ImageTokenizer(ImageTokenizerConfig(**{**SHAPE, **changes})).eval()


def make_pixels(height: int, width: int, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture(scope="module")
def tokenizer():
    return make()


@pytest.mark.parametrize("height, width", [(64, 64), (64, 96), (16, 4)])
def test_any_grid_is_encoded_and_decoded(tokenizer, height, width):
    pixels = make_pixels(height, width)
    ids = tokenizer.encode(pixels)
    assert (tokenizer.downsample, tokenizer.codebook_size) == (4, 64)
    assert ids.shape == (2, height // 4, width // 4) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < 64
    assert tokenizer.decode(ids).shape == pixels.shape


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16), (1, 3, 18, 16)])
def test_pixels_of_a_wrong_shape_are_refused(tokenizer, shape):
    with pytest.raises(ValueError, match="multiples of 4"):
        tokenizer.encode(torch.zeros(shape))


def test_a_batch_equals_its_images_one_by_one(tokenizer):
    pixels = make_pixels(32, 48, count=3)
    ids = tokenizer.encode(pixels)
    assert torch.equal(ids, torch.cat([tokenizer.encode(image[None]) for image in pixels]))
    alone = torch.cat([tokenizer.decode(row[None]) for row in ids])
    torch.testing.assert_close(tokenizer.decode(ids), alone, atol=1e-5, rtol=0)


def test_the_nearest_code_is_that_of_the_largest_cosine(tokenizer):
    latents = torch.randn(2, 8, 5, 7)
    cosines = torch.nn.functional.cosine_similarity(latents.permute(0, 2, 3, 1)[..., None, :],
                                                    tokenizer.quantize.embedding.weight, dim=-1)
    assert torch.equal(tokenizer.quantize.nearest(latents), cosines.argmax(-1))


def test_lengths_of_codes_and_latents_change_nothing():
    tokenizer, pixels = make(), make_pixels(32, 32)
    ids, decoded = tokenizer.encode(pixels), tokenizer.decode(tokenizer.encode(pixels))
    with torch.no_grad():
        tokenizer.quantize.embedding.weight *= torch.rand(64, 1) * 5 + 0.1
        tokenizer.quant_conv.weight *= 3
        tokenizer.quant_conv.bias *= 3
    assert torch.equal(tokenizer.encode(pixels), ids)
    torch.testing.assert_close(tokenizer.decode(ids), decoded, atol=1e-4, rtol=0)


def test_without_normalisation_the_nearest_code_is_that_of_the_smallest_distance():
    tokenizer = make(l2_normalised_codes=False)
    latents = torch.randn(2, 8, 5, 7) * 2
    distances = torch.cdist(latents.permute(0, 2, 3, 1).reshape(-1, 8), tokenizer.quantize.embedding.weight)
    assert torch.equal(tokenizer.quantize.nearest(latents).flatten(), distances.argmin(-1))
    codes = tokenizer.quantize.lookup(torch.arange(6).reshape(1, 2, 3))
    torch.testing.assert_close(codes[0, :, 1, 2], tokenizer.quantize.embedding.weight[5])


def places_of_attention(**changes) -> set[str]:
    return {name.partition(".attn")[0] for name, _ in make(**changes).named_parameters() if ".attn" in name}


def test_attention_is_in_the_levels_that_the_config_names():
    middle = {"encoder.mid", "decoder.mid"}
    assert places_of_attention() == places_of_attention(attention_levels=[2]) == {"encoder.down.2",
                                                                                  "decoder.up.0", *middle}
    assert places_of_attention(attention_levels=[]) == middle
    assert places_of_attention(attention_levels=[0, 1]) == {"encoder.down.0", "encoder.down.1",
                                                            "decoder.up.1", "decoder.up.2", *middle}
    assert places_of_attention(attention_levels=[], middle_attention=False) == set()


@pytest.mark.parametrize("changes",
                         [dict(attention_levels=[0, 2]), dict(attention_levels=[], middle_attention=False)])
def test_a_tokenizer_works_wherever_its_attention_is(changes):
    tokenizer, pixels = make(**changes), make_pixels(16, 24)
    assert tokenizer.decode(tokenizer.encode(pixels)).shape == pixels.shape


def test_many_latents_find_the_same_codes_as_few(tokenizer, monkeypatch):
    latents = torch.randn(2, 8, 5, 7)
    ids = tokenizer.quantize.nearest(latents)
    monkeypatch.setattr(image_tokenizer, "MAX_SIMILARITIES", 3 * 64)
    assert torch.equal(tokenizer.quantize.nearest(latents), ids)


def test_a_reconstruction_loss_reaches_every_part_but_only_the_used_codes():
    tokenizer, pixels = make().train(), make_pixels(16, 16)
    reconstruction, ids, loss, latents = tokenizer(pixels)
    assert reconstruction.shape == pixels.shape and latents.shape == (2, 8, 4, 4)
    assert torch.equal(ids, tokenizer.encode(pixels))
    torch.nn.functional.mse_loss(reconstruction, pixels).backward()
    for part in (tokenizer.encoder.conv_in, tokenizer.quant_conv, tokenizer.decoder.conv_out):
        assert part.weight.grad.abs().max() > 0
    assert tokenizer.quantize.embedding.weight.grad is None  # the quantizer loss moves the codes
    tokenizer(pixels)[2].backward()
    moved = tokenizer.quantize.embedding.weight.grad.abs().sum(-1) > 0
    assert set(moved.nonzero().flatten().tolist()) == set(ids.flatten().tolist())


def test_training_decodes_what_encoding_and_decoding_would(tokenizer):
    pixels = make_pixels(16, 24)
    with torch.no_grad():
        torch.testing.assert_close(tokenizer(pixels)[0], tokenizer.decode(tokenizer.encode(pixels)),
                                   atol=1e-5, rtol=0)


def test_bfloat16_works(tokenizer):
    half = make().to(torch.bfloat16)
    ids = half.encode(make_pixels(16, 16))
    assert half.decode(ids).dtype == torch.bfloat16
    assert (ids == tokenizer.encode(make_pixels(16, 16))).float().mean() > 0.5
