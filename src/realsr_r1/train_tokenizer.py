"""Trains the tokenizers of a small model: a VQ image tokenizer and a BPE text tokenizer.

It uses a prepared dataset, and writes a processor folder (tokenizers + chain settings) in which
`realsr-r1 sft` starts a policy. The published policies bring their own tokenizers and don't need
this step. It trains on the `train` split only, and measures `test_crops` and `test`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from realsr_r1.chain.spec import MOST_PX
from realsr_r1.core.cpu import suit_cpu
from realsr_r1.core.devices import pick_device
from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import atomic_file, check_new_folder
from realsr_r1.core.processes import MOST_PROCESSES
from realsr_r1.core.schema import Ge, Le, checked, fields_of
from realsr_r1.core.settings import SEEDS, parse

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader

    from realsr_r1.chain.settings import ChainSettings
    from realsr_r1.models.image_tokenizer import ImageTokenizer

STATE_FILE = "training_state.pt"
# What may be other when a run goes on; of the dataset only the path may.
CHANGEABLE = ("dataset_name", "output_dir", "num_workers", "save_steps")
SMALLER_SHARE = 0.2  # the share of batches that have one of the chain's smaller image sizes
WORDING_SAMPLES = 4  # the number of chains of each record that the text tokenizer is trained on


@dataclass
class TokenizerTrainingConfig:
    """The settings of `realsr-r1 train-tokenizer`."""

    dataset_name: str = field(metadata={"help": "Folder of a prepared dataset (realsr-r1 create-json)."})
    output_dir: str = field(metadata={
        "help": "Folder for tokenizers and chain settings. Started again there, it resumes."})
    target_px: Annotated[int, Ge(1), Le(MOST_PX)] = field(default=48,
                           metadata={"help": "Photos and final images have about target_px^2 pixels."})
    grid_unit_px: Annotated[int, Ge(1), Le(MOST_PX)] = field(
        default=16, metadata={"help": "Pixels one size unit stands for."})
    chain_settings: str | None = field(default=None, metadata={
        "help": "YAML or JSON file of chain settings (configs/chain), but for sizes and experts; by default "
                "the published one."})
    max_units: Annotated[int, Ge(1), Le(4096)] = field(
        default=16, metadata={"help": "Largest size, in grid units, that has a token."})
    experts: list[str] = field(default_factory=lambda: ["piqe", "ssim"],
                               metadata={"help": "Default experts of the generation reward."})
    text_vocab_size: Annotated[int, Ge(260), Le(2**20)] = field(
        default=768, metadata={"help": "Text tokens of the BPE tokenizer."})
    num_embeddings: int = field(default=512, metadata={"help": "Codes of the image tokenizer."})
    embed_dim: int = field(default=8, metadata={"help": "Dimension of a code (LlamaGen: 8)."})
    base_channels: int = field(default=32,
                               metadata={"help": "Channels of the first level, a multiple of 32."})
    channel_multiplier: list[int] = field(default_factory=lambda: [1, 2, 2],
                                          metadata={"help": "One entry a level; n levels down-sample by "
                                                            "2^(n-1)."})
    num_res_blocks: int = field(default=1, metadata={"help": "Residual blocks a level."})
    latent_channels: int = field(default=64, metadata={"help": "Channels between encoder and quantizer."})
    max_steps: Annotated[int, Ge(1), Le(10**9)] = field(default=4000, metadata={"help": "Training steps."})
    batch_size: Annotated[int, Ge(1), Le(2**16)] = field(
        default=16, metadata={"help": "Images of target_px a step (more of the smaller sizes)."})
    learning_rate: float = field(default=1e-3, metadata={
        "help": "Peak of AdamW's rate; warm-up of 100 steps, then cosine to 5 %."})
    lq_share: Annotated[float, Ge(0), Le(1)] = field(default=0.3, metadata={
        "help": "Share of batches of degraded images, so that codes carry degradation."})
    bf16: bool = field(default=False, metadata={
        "help": "Convolutions in bfloat16: faster where CPU or GPU has it."})
    restart_every: Annotated[int, Ge(1)] = field(default=50, metadata={
        "help": "Steps after which codes nobody used are moved onto latents."})
    num_workers: Annotated[int, Ge(0), Le(MOST_PROCESSES)] = field(default=0, metadata={
        "help": "Processes that read images for the training (0: the training itself does)."})
    save_steps: Annotated[int, Ge(1)] = field(default=250, metadata={
        "help": "Steps between saved training states."})
    seed: Annotated[int, Ge(SEEDS[0]), Le(SEEDS[1])] = field(default=0, metadata={
        "help": "Seed of weights, order and flips."})

    def __post_init__(self) -> None:
        """Raise `UserError` for values that can't work, before hours of training."""
        from realsr_r1.models.image_tokenizer import ConfigValues

        checked(fields_of(type(self)), vars(self), "train-tokenizer")
        checked(ConfigValues, self.image_tokenizer, "train-tokenizer")
        downsample = 2 ** (len(self.channel_multiplier) - 1)
        if self.target_px < self.grid_unit_px or self.grid_unit_px % downsample:
            raise UserError(f"--grid_unit_px {self.grid_unit_px} must be at most --target_px "
                            f"{self.target_px} and a multiple of {downsample}, by which the "
                            f"{len(self.channel_multiplier)} levels of --channel_multiplier down-sample")
        if self.base_channels % 32:
            raise UserError(f"--base_channels {self.base_channels} must be a multiple of 32 (the norms have "
                            "32 groups)")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"--learning_rate {self.learning_rate} must be a finite number above 0")

    @property
    def image_tokenizer(self) -> dict[str, Any]:
        """The fields that are keys of `ImageTokenizerConfig`."""
        return {name: getattr(self, name) for name in ("num_embeddings", "embed_dim", "base_channels",
                                                       "channel_multiplier", "num_res_blocks",
                                                       "latent_channels")}


def main(argv: list[str] | None = None) -> None:
    """Train or resume training, then write the processor folder."""

    (config,) = parse((TokenizerTrainingConfig,), argv, "realsr-r1 train-tokenizer")
    from realsr_r1.chain.settings import SETTINGS_FILE
    from realsr_r1.data.records import load_dataset_dict, require_columns
    from realsr_r1.data.tokens.cold_start import COLUMNS, chain_texts

    output = Path(config.output_dir)
    if (output / SETTINGS_FILE).is_file():
        print(f"{output} is complete already; nothing to do (more steps need a new run, with another "
              "--output_dir: no optimizer's state is kept)")
        return
    check_new_folder(output, "--output_dir")
    dataset = load_dataset_dict(config.dataset_name)
    require_columns(dataset["train"], COLUMNS, "train-tokenizer")
    settings = settings_of(config)
    # A dataset of another chain is found now, and not after the training.
    chain_texts(dataset["train"].remove_columns(["hq", "image"])[0], config.seed, 0, settings.chain)
    output.mkdir(parents=True, exist_ok=True)
    image_tokenizer = train_image_tokenizer(config, dataset, output)
    save_processor(config, dataset, image_tokenizer, output)
    (output / STATE_FILE).unlink(missing_ok=True)


def save_processor(config: TokenizerTrainingConfig, dataset: Any, image_tokenizer: ImageTokenizer,
                   output: Path) -> None:
    """Train the text tokenizer on the dataset's chains, and write the complete folder."""
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.chain.text import render_chain
    from realsr_r1.chain.text_tokenizer import train_text_tokenizer
    from realsr_r1.data.tokens.cold_start import chain_texts

    texts = dataset["train"].remove_columns(["hq", "image"])
    settings = settings_of(config)
    chain = settings.chain
    chains = (render_chain(chain_texts(record, config.seed, index * WORDING_SAMPLES + sample, chain), chain)
              + record["problem"]
              for index, record in enumerate(texts) for sample in range(WORDING_SAMPLES))
    tokenizer = train_text_tokenizer(chains, config.text_vocab_size, config.num_embeddings, config.max_units)
    ChainProcessor(tokenizer, image_tokenizer, settings).save_pretrained(output)


def settings_of(config: TokenizerTrainingConfig) -> ChainSettings:
    """The chain settings of the folder that is made: those of `--chain_settings`, with the flags'
    sizes and experts.
    """
    from realsr_r1.chain.settings import ChainSettings

    settings = ChainSettings.read(config.chain_settings, "--chain_settings") if config.chain_settings else (
        ChainSettings())
    return replace(settings, target_px=config.target_px, grid_unit_px=config.grid_unit_px,
                   experts=tuple(config.experts))


def train_image_tokenizer(config: TokenizerTrainingConfig, dataset: Any, output: Path) -> ImageTokenizer:
    """Train the VQ model; resumes from the state saved in `output`, with the same result.

    Prints the PSNR on all splits at the end. Raises `UserError` where the state was saved with
    other settings or another dataset.
    """
    import torch
    from tqdm import tqdm

    from realsr_r1.models.image_tokenizer import ImageTokenizer, ImageTokenizerConfig

    torch.manual_seed(config.seed)
    device = pick_device()
    model = ImageTokenizer(ImageTokenizerConfig(**config.image_tokenizer)).to(device)
    suit_cpu(sum(parameter.numel() for parameter in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, betas=(0.9, 0.95),
                                  weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer,
                                                 lambda step: learning_rate_share(step, config.max_steps))
    first, used = 0, torch.zeros(config.num_embeddings, dtype=torch.bool, device=device)
    made_with = {name: value for name, value in asdict(config).items() if name not in CHANGEABLE}
    made_with["dataset_name"] = dataset["train"]._fingerprint
    made_with["chain_settings"] = settings_of(config).to_dict()
    if (output / STATE_FILE).is_file():
        try:
            state = torch.load(output / STATE_FILE, weights_only=True, map_location="cpu")
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            used.copy_(state["used"])
            first, saved = int(state["step"]), dict(state["made_with"])
        except Exception as error:  # a damaged file, or one of other settings, can raise anything
            raise UserError(f"{output / STATE_FILE} can't be gone on from ({str(error).splitlines()[:1]}); "
                            "remove it to begin anew, or give another --output_dir") from error
        changed = [name for name, value in made_with.items() if saved.get(name) != value]
        if changed:
            raise UserError(f"{output / STATE_FILE} was saved with another --{', --'.join(changed)}; go on "
                            "as it was begun, remove the file to begin anew, or give another --output_dir")
        print(f"resuming at step {first} of {config.max_steps}")
    progress = tqdm(batches(config, dataset["train"], first), initial=first, total=config.max_steps,
                    desc="image tokenizer", mininterval=5)
    for step, pixels in enumerate(progress, start=first + 1):
        pixels = pixels.to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=config.bf16):
            reconstruction, ids, quantizer_loss, latents = model(pixels)
        reconstruction = reconstruction.float()
        squared_error = torch.nn.functional.mse_loss(reconstruction, pixels)
        loss = squared_error + torch.nn.functional.l1_loss(reconstruction, pixels) + quantizer_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        used[ids.flatten()] = True
        if step % config.restart_every == 0:
            if step <= 0.8 * config.max_steps:
                restart_dead_codes(model, used, latents.detach().float(), (config.seed << 32) + step)
            progress.set_postfix(psnr=f"{-10 * torch.log10(squared_error / 4).item():.2f}",
                                 codes=int(used.sum()))
            used.zero_()
        if step % config.save_steps == 0:
            with atomic_file(output / STATE_FILE) as partial:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(), "step": step, "used": used,
                            "made_with": made_with}, partial)
    model.eval()
    for name, split in dataset.items():
        if len(split):
            psnr, codes = measure(model, split, config)
            print(f"{name}: PSNR {psnr:.2f} dB over {min(len(split), 256)} HQ images, "
                  f"{codes} of {config.num_embeddings} codes in use")
    return model.cpu()


def learning_rate_share(step: int, max_steps: int, warm_up: int = 100) -> float:
    """Return the share of the peak rate at `step`: linear warm-up, then cosine to 5 %."""
    import math

    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0,
                                                           (step - warm_up) / max(1, max_steps - warm_up))))


class StepImages:
    """The images of each training step: pixels (B, 3, H, W) float32 in [-1, 1].

    What a step gets depends only on (seed, step), so neither resuming nor the number of workers
    changes it.
    """

    def __init__(self, config: TokenizerTrainingConfig, split: Any):
        self.config = config
        self.unit = config.grid_unit_px
        self.side = config.target_px // self.unit * self.unit
        sizes = settings_of(config).chain.image_sizes(self.side // self.unit, self.side // self.unit)
        self.smaller = sorted({rows * self.unit for rows, _ in sizes} - {self.side})
        self.columns = {name: split.select_columns(name) for name in ("image", "hq")}

    def __getitem__(self, step: int) -> torch.Tensor:
        import random

        from realsr_r1.core.images import fit_image, resize_to_cover, to_pixels

        choose = random.Random(f"{self.config.seed}:{step}")
        px = (choose.choice(self.smaller) if choose.random() < SMALLER_SHARE and self.smaller
              else self.side)
        rows = [choose.randrange(len(self.columns["hq"]))
                for _ in range(self.config.batch_size * (self.side // px) ** 2)]
        column = "image" if choose.random() < self.config.lq_share else "hq"
        images = []
        for row in self.columns[column][rows][column]:
            image = resize_to_cover(fit_image(row, self.config.target_px, self.unit), (px, px))
            images.append(image.transpose(0) if choose.random() < 0.5 else image)  # 0: mirror left and right
        return to_pixels(images)


def batches(config: TokenizerTrainingConfig, split: Any, first: int) -> DataLoader:
    """Yield the pixels of the steps from `first` on (`StepImages`)."""
    from torch.utils.data import DataLoader

    return DataLoader(StepImages(config, split), batch_size=None, sampler=range(first, config.max_steps),
                      num_workers=config.num_workers, pin_memory=pick_device().startswith("cuda"))


def restart_dead_codes(model: ImageTokenizer, used: torch.Tensor, latents: torch.Tensor, seed: int) -> None:
    """Move the codes that nobody used onto random latents of the batch (B, C, h, w).

    `used` (codes,) bool: whether a code was used. `seed` chooses the latents.
    """
    import torch

    dead = (~used).nonzero().squeeze(1)
    candidates = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    chosen = order[:len(dead)].to(candidates.device)
    model.quantize.embedding.weight.data[dead[:len(chosen)]] = torch.nn.functional.normalize(
        candidates[chosen], dim=-1)


def measure(model: ImageTokenizer, split: Any, config: TokenizerTrainingConfig) -> tuple[float, int]:
    """Return the mean PSNR in dB of a split's reconstructed HQ images.

    The second value is the number of codes they use. At most 256 images are measured.
    """
    import torch

    from realsr_r1.core.images import fit_image, to_pixels

    ratios, codes = [], set()
    for image in split.select(range(min(len(split), 256)))["hq"]:
        pixels = to_pixels([fit_image(image, config.target_px, config.grid_unit_px)]).to(model.device)
        ids = model.encode(pixels)
        codes.update(ids.flatten().tolist())
        error = (model.decode(ids).clamp(-1, 1) - pixels).square().mean()
        ratios.append(-10 * torch.log10(error / 4).item())
    return sum(ratios) / len(ratios), len(codes)


if __name__ == "__main__":
    run(main)
