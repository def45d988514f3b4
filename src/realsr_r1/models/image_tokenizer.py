"""The image tokenizer: LlamaGen's and Chameleon's VQ architecture, made of `JanusVQVAE`'s parts.

Its convolutional parts are transformers'. Only the quantizer is ours, because transformers' own
doesn't l2-normalise what it encodes, and decodes square grids of one size only. Knows pixels and
codes; `realsr_r1.chain.tokens` knows the names of codes in a vocabulary, and `models.loading` reads
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder, JanusVQVAEEncoder

from realsr_r1.core.errors import UserError
from realsr_r1.core.schema import Ge, Json, Le, Len, TypedDict, checked

COMMITMENT_WEIGHT = 0.25  # beta of VQ-VAE (arXiv 1711.00937)
MAX_SIMILARITIES = 2**25  # latents x codes that are compared at the same time: 128 MiB in float32


class ImageTokenizerConfig(JanusVQVAEConfig):
    """`JanusVQVAEConfig` under a `model_type` of our own.

    The important fields are `num_embeddings` (codes), `embed_dim` (size of a code), `base_channels`
    (a multiple of 32), `channel_multiplier` (one entry for each level; n levels down-sample by
    2^(n-1)), `num_res_blocks` and `latent_channels`. LlamaGen (arXiv 2406.06525) l2-normalises
    codes and has attention after each residual block of the deepest level; Chameleon
    (arXiv 2405.09818) does neither. `attention_levels`: the levels with attention, 0 is full
    resolution (None: the deepest level). `middle_attention`: whether there is attention between the
    two residual blocks in the middle.
    """

    model_type = "realsr_r1_image_tokenizer"

    l2_normalised_codes: bool = True
    attention_levels: list[int] | tuple[int, ...] | None = None
    middle_attention: bool = True


class ConfigValues(TypedDict, total=False, extra_items=Json):
    """What decides the size of an image tokenizer, within what a machine can hold."""

    num_embeddings: Annotated[int, Ge(1), Le(2**22)]
    embed_dim: Annotated[int, Ge(1), Le(2**14)]
    base_channels: Annotated[int, Ge(1), Le(2**12)]
    channel_multiplier: Annotated[list[Annotated[int, Ge(1), Le(64)]], Len(1, 8)]
    num_res_blocks: Annotated[int, Ge(1), Le(64)]
    latent_channels: Annotated[int, Ge(1), Le(2**14)]
    l2_normalised_codes: bool
    attention_levels: list[int] | None
    middle_attention: bool


class Quantizer(nn.Module):
    """Finds the nearest code by distance.

    With `normalised`, latents and codes are both l2-normalised first (LlamaGen).
    """

    def __init__(self, num_embeddings: int, embed_dim: int, normalised: bool):
        super().__init__()
        self.embedding = nn.Embedding(num_embeddings, embed_dim)
        self.normalised = normalised

    def scaled(self, vectors: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Return latents or codes in the scale in which they are compared and decoded."""
        return F.normalize(vectors, dim=dim) if self.normalised else vectors

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the ids (B, h, w) of the codes that are nearest to latents (B, C, h, w)."""
        with torch.autocast(latents.device.type, enabled=False):
            flat = self.scaled(latents.permute(0, 2, 3, 1).float())
            codebook = self.scaled(self.embedding.weight.float())
            offset = codebook.square().sum(-1) / 2
            rows = max(1, MAX_SIMILARITIES // len(codebook))
            ids = [(part @ codebook.T - offset).argmax(-1) for part in flat.flatten(0, 2).split(rows)]
            return torch.cat(ids).view(flat.shape[:3])

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the codes (B, C, h, w) of ids (B, h, w)."""
        return self.scaled(self.embedding(ids)).permute(0, 3, 1, 2)

    def forward(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantise latents (B, C, h, w) in training.

        Returns straight-through codes, ids, and the sum of codebook and commitment loss.
        """
        latents = latents.float()  # in bfloat16 different codes would have equal distances
        ids = self.nearest(latents)
        codes = self.lookup(ids)
        scaled = self.scaled(latents, dim=1)
        loss = F.mse_loss(codes, scaled.detach()) + COMMITMENT_WEIGHT * F.mse_loss(scaled, codes.detach())
        return scaled + (codes - scaled).detach(), ids, loss


class ImageTokenizer(PreTrainedModel):
    """Pixels to codes and back, on a grid of any height and width.

    `encode(pixels (B, 3, H, W) in [-1, 1]) -> ids (B, H/f, W/f)`,
    `decode(ids (B, h, w)) -> pixels (B, 3, h*f, w*f)` with f = `downsample`. Both run without
    gradients; training calls the module itself.
    """

    config_class = ImageTokenizerConfig
    base_model_prefix = "image_tokenizer"
    main_input_name = "pixels"

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__(config)
        self.encoder = JanusVQVAEEncoder(config)
        self.decoder = JanusVQVAEDecoder(config)
        self.quantize = Quantizer(config.num_embeddings, config.embed_dim, config.l2_normalised_codes)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self._place_attention()
        self.post_init()

    def _place_attention(self) -> None:
        """Put attention where the config wants it.

        transformers' parts have it in the deepest level and in the middle.
        """
        levels = self.config.attention_levels
        if levels is not None:
            for number, level in [*enumerate(self.encoder.down), *enumerate(reversed(self.decoder.up))]:
                blocks = level.block if number in levels else ()
                level.attn = nn.ModuleList([JanusVQVAEAttnBlock(block.out_channels) for block in blocks])
        if not self.config.middle_attention:
            self.encoder.mid.attn_1 = self.decoder.mid.attn_1 = nn.Identity()

    def _init_weights(self, module: nn.Module) -> None:
        """Keep torch's own initial values of convolutions and norms.

        A VQ model that starts from them learns faster.
        """
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
        elif isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.reset_parameters()

    @property
    def downsample(self) -> int:
        """The number of pixels along each side that one code stands for."""
        return 2 ** (len(self.config.channel_multiplier) - 1)

    @property
    def codebook_size(self) -> int:
        """The number of codes."""
        return self.config.num_embeddings

    def latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) into latents (B, embed_dim, h, w), before the quantizer.

        Raises `ValueError` for a wrong shape.
        """
        fits = pixels.ndim == 4 and pixels.shape[1] == 3
        if not fits or any(side % self.downsample for side in pixels.shape[2:]):
            raise ValueError(f"pixels must be (B, 3, H, W) with H and W multiples of {self.downsample}, "
                             f"not {tuple(pixels.shape)}")
        return self.quant_conv(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] into ids (B, H/f, W/f), int64."""
        return self.quantize.nearest(self.latents(pixels.to(self.device, self.dtype)))

    @torch.no_grad()
    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        """Decode ids (B, h, w) into pixels (B, 3, h*f, w*f), about [-1, 1] (not clamped)."""
        return self.decoder(self.post_quant_conv(self.quantize.lookup(ids.to(self.device))))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run one training pass with gradients.

        Returns the reconstruction, ids, the quantizer's loss, and latents.
        """
        latents = self.latents(pixels)
        codes, ids, loss = self.quantize(latents)
        return self.decoder(self.post_quant_conv(codes)), ids, loss, latents


AutoConfig.register(ImageTokenizerConfig.model_type, ImageTokenizerConfig)
AutoModel.register(ImageTokenizerConfig, ImageTokenizer)


def empty_tokenizer(values: Mapping[str, Any], where: str, why: str = "") -> ImageTokenizer:
    """Make an image tokenizer without weights, on torch's meta device, of its config's keys and values.

    Raises `UserError` that names `where` the values are from, and the key at fault or what can't be
    built. `why`: how shapes were found, for that message.
    """
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    plain = checked(ConfigValues, plain, where)
    try:
        with torch.device("meta"):
            return ImageTokenizer(ImageTokenizerConfig.from_dict(plain))
    except Exception as error:  # bad values can fail anywhere in transformers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: these shapes make no image tokenizer{why}: {reason}") from error
