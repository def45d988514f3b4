"""The cold start: supervised fine-tuning of a policy on the answers of chains.

`realsr-r1 sft --config FILE.yaml` takes a model folder, whose policy it trains on, or a processor
folder (from `realsr-r1 train-tokenizer`), for which it makes a new policy with the recipe's sizes.
Its records are a dataset, the dataset's tokens from `realsr-r1 pretokenise`, or conversations. It
leaves a complete model folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import check_new_folder, write_json
from realsr_r1.core.import_named import load_module
from realsr_r1.core.settings import check_folders, parse

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig
    from trl import ModelConfig

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.training.config import ColdStartConfig

TOKENS_FOLDER = "tokens"
LOOKED_AT = 256  # samples that are looked at to find the question that they ask
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")  # of a new policy
# These settings must be the same when a run resumes.
LASTING = ("records", "chain_settings", "max_samples", "samples_per_step", "train_sampling_strategy",
           "seed", "data_seed", "optim", "use_peft", "lora_r", "lora_alpha", "lora_target_modules",
           "load_in_4bit", *SHAPE)


def main(argv: list[str] | None = None) -> int | None:
    """Go from arguments to the saved model; returns the exit code of a run that a signal ended."""
    check_folders(argv)
    load_module("realsr_r1.training.config")
    from trl import ModelConfig

    from realsr_r1.training.adapters import adapter_config, quantization_config
    from realsr_r1.training.config import ColdStartConfig
    from realsr_r1.training.launch import is_finished, only_run_in, prepare_process
    from realsr_r1.training.without_effect import refuse_without_effect

    args, model_args = parse((ColdStartConfig, ModelConfig), argv, "realsr-r1 sft")
    refuse_without_effect(args, model_args)
    if not model_args.model_name_or_path:
        raise UserError("--model_name_or_path must name a model folder to go on from, or the tokenizers of a "
                        "new policy (a folder from realsr-r1 train-tokenizer)")
    adapters, quantization = adapter_config(model_args), quantization_config(model_args)
    prepare_process(args)
    from realsr_r1.training.resuming import is_more_asked

    output = Path(args.output_dir)
    more = is_finished(output) and is_more_asked(output, args)
    if is_finished(output) and not more:
        if args.process_index == 0:
            print(f"{output} holds a finished run already; nothing to do (a larger --max_steps or "
                  "--num_train_epochs goes on)")
        return None
    check_new_folder(args.output_dir, "--output_dir")
    with only_run_in(output, args):
        return train_run(args, model_args, adapters, quantization)


def train_run(args: ColdStartConfig, model_args: ModelConfig, adapters: PeftConfig | None,
              quantization: Any) -> int:
    """Make tokens, load the policy, train it, and write the model folder. Returns the exit code."""
    load_module("realsr_r1.training.cold_start.trainer")
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.training.adapters import with_adapter
    from realsr_r1.training.checkpoints import SETTINGS_FILE, require_same_run
    from realsr_r1.training.cold_start.starting import zero_image_head
    from realsr_r1.training.cold_start.trainer import ColdStartTrainer
    from realsr_r1.training.comparison import compared, keep
    from realsr_r1.training.launch import is_finished, train_and_save
    from realsr_r1.training.resetting import weights_of
    from realsr_r1.training.resuming import (
        checkpoint_to_go_on_from,
        is_more_asked,
        reopen,
        require_checkpoint,
        require_same_setting,
    )

    output = Path(args.output_dir)
    going_on = require_checkpoint(output) if is_finished(output) and is_more_asked(output, args) else None
    if going_on and args.process_index == 0:
        print(going_on)
    check_start(args, model_args)
    checkpoint = checkpoint_to_go_on_from(output, args)
    lasting = [name for name in LASTING if name != "optim" or not args.reset_optimizer]
    if checkpoint:
        require_same_setting(checkpoint, args, model_args.use_peft)
    processor = ChainProcessor.from_pretrained(model_args.model_name_or_path, str(args.device),
                                               args.chain_settings)
    differing = compared(args, model_args, processor.settings, "sft")
    train, evaluation, records = tokenised(args, model_args.model_name_or_path, processor)
    processor = asking_as_trained(processor, train, args)
    settings = {"records": records, **shown_settings(args, model_args)}
    if checkpoint:
        require_same_run(args.output_dir, settings, lasting)
    with weights_of(checkpoint if args.reset_optimizer else None, model_args.model_name_or_path,
                    args.process_index == 0) as folder:
        policy = make_policy(args, model_args, quantization, processor, folder)
        if args.zero_image_head and checkpoint is None:
            zero_image_head(policy, processor, model_args.model_name_or_path, args.process_index == 0)
    if adapters is not None:
        policy = with_adapter(policy, adapters, args)
    trainer = ColdStartTrainer(policy, processor, args, train, evaluation)
    if args.process_index == 0:
        reopen(output)
        write_json(output / SETTINGS_FILE, settings)
        keep(differing, output)
    return train_and_save(trainer, processor, output, checkpoint)


def shown_settings(args: ColdStartConfig, model_args: ModelConfig) -> dict[str, Any]:
    """Return the settings that a run was started with, as plain values."""
    from realsr_r1.models.loading import is_new

    names = ["run_name", "dataset_name", "chain_settings", "max_samples", "train_sampling_strategy", "seed",
             "data_seed", "learning_rate", "max_steps", "num_train_epochs", "z_loss", "dropout",
             "zero_image_head", "bf16", "world_size"]
    if is_new(Path(model_args.model_name_or_path)):
        names += SHAPE
    adapters = ["lora_r", "lora_alpha", "lora_target_modules", "load_in_4bit"] if model_args.use_peft else []
    return {"model_name_or_path": model_args.model_name_or_path,
            **{name: getattr(args, name) for name in names},
            "samples_per_step": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            "optim": args.optim.value, "use_peft": model_args.use_peft,
            **{name: getattr(model_args, name) for name in adapters}}


def check_start(args: ColdStartConfig, model_args: ModelConfig) -> None:
    """Say where a new policy is made, and raise `UserError` where the folder's can't be loaded.

    Both come before anything is made or tokenised.
    """
    from realsr_r1.models.loading import is_new, policy_config, tensor_shapes

    folder = Path(model_args.model_name_or_path)
    if args.zero_image_head and model_args.use_peft:
        raise UserError("--zero_image_head true and --use_peft: adapters leave the head as it is, so no "
                        "image could be learned; leave one of them out")
    if not folder.is_dir() or not is_new(folder):
        policy_config(folder)
        tensor_shapes(folder)
    elif model_args.use_peft:
        raise UserError(f"{folder} holds no policy, and --use_peft trains adapters on one; name a model "
                        "folder")
    elif args.process_index == 0:
        shape = ", ".join(f"{name} {getattr(args, name)}" for name in SHAPE)
        print(f"{folder} holds no weights: this run trains a new policy from random ones ({shape})")


def make_policy(args: ColdStartConfig, model_args: ModelConfig, quantization: Any,
                processor: ChainProcessor, folder: Path) -> Any:
    """Load the policy in `folder`, or make a new one with the recipe's sizes where it has none."""
    import torch

    from realsr_r1.models import load_policy, new_config, new_policy
    from realsr_r1.models.loading import is_new

    if not is_new(folder):
        return load_policy(folder, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation,
                           quantization_config=quantization)
    layout = processor.layout
    torch.manual_seed(args.seed)
    return new_policy(new_config(
        vocab_size=layout.vocab_size, **{name: getattr(args, name) for name in SHAPE},
        num_key_value_heads=args.num_attention_heads, max_position_embeddings=args.max_length,
        pad_token_id=layout.pad, bos_token_id=layout.bos, eos_token_id=layout.end_of_turn))


def tokenised(args: ColdStartConfig, model: str, processor: ChainProcessor) -> tuple[Dataset, Dataset | None,
                                                                                     str]:
    """Return tokens to train on, tokens to evaluate on (or None), and the records' name.

    The tokens are read where `--dataset_name` is a folder of tokens. Otherwise all ranks make them
    together in `output_dir/tokens` first. The name stands for the records to train on.
    """
    from realsr_r1.data.tokens.token_store import (
        is_store,
        load_tokens,
        records_fingerprint,
        tokenizer_fingerprint,
    )
    from realsr_r1.data.tokens.tokenising import drawn

    splits = ["train"] if args.eval_strategy == "no" else ["train", "test_crops"]
    tokenizer = {"folder": model, "fingerprint": tokenizer_fingerprint(processor)}
    folder = Path(args.dataset_name)
    if is_store(folder):
        found = [load_tokens(folder, split, tokenizer) for split in splits]
        found[0] = found[0].select(drawn(len(found[0]), args.max_samples, args.seed))
    else:
        folder = _make_tokens(args, splits, tokenizer, processor)
        found = [load_tokens(folder, split, tokenizer) for split in splits]
    for split, tokens in zip(splits, found, strict=True):
        _check_lengths(tokens, split, args.max_length)
    return found[0], found[1] if len(found) > 1 else None, records_fingerprint(folder, "train")


def asking_as_trained(processor: ChainProcessor, tokens: Dataset, args: ColdStartConfig) -> ChainProcessor:
    """Return the processor with the question that most of the tokens ask.

    So the model folder keeps the question that its policy learns. Conversations that don't have a
    chain's form change nothing.
    """
    from collections import Counter

    from realsr_r1.chain.settings import question_in
    from realsr_r1.data.tokens.samples import QUESTION

    asked: Counter[str] = Counter()
    images = {number for number, section in enumerate(processor.chain.sections) if section.is_image}
    for number in range(0, len(tokens), max(1, len(tokens) // LOOKED_AT)):
        parts = tokens[number]["sections"].tolist()
        if images <= set(parts):
            prompt = next(place for place, part in enumerate(parts) if part != QUESTION)
            asked[processor.question_of(tokens[number]["input_ids"][:prompt].tolist())] += 1
    question = asked.most_common(1)[0][0] if asked else processor.chain.question
    if question == processor.chain.question:
        return processor
    if question_in(args.chain_settings) is not None:
        raise UserError(f"the tokens in {args.dataset_name} ask {question!r}, not what --chain_settings "
                        f"{args.chain_settings} asks; make them with realsr-r1 pretokenise --chain_settings")
    if args.process_index == 0:
        print(f"{args.dataset_name} asks {question!r}, and the model folder has "
              f"{processor.chain.question!r}. This run asks the former, and its model folder keeps it; "
              "--chain_settings FILE asks the file's")
    return processor.with_settings(processor.settings.asking(question))


def _check_lengths(tokens: Dataset, split: str, max_length: int) -> None:
    """Raise `UserError` that names the records whose chains are too long."""
    import numpy

    lengths = tokens["length"][:]
    too_long = numpy.flatnonzero(lengths > max_length)
    if len(too_long):
        worst = too_long[numpy.argsort(-lengths[too_long], kind="stable")[:5]]
        named = ", ".join(f"record {record} ({length})"
                          for record, length in zip(tokens["record"][:][worst], lengths[worst],
                                                                                  strict=True))
        raise UserError(f"{len(too_long)} of {len(tokens)} chains of {split} have more tokens than "
                        f"--max_length {max_length}, the longest: {named}; give a larger one, or take their "
                        "records out of the dataset")


def _make_tokens(args: ColdStartConfig, splits: list[str], tokenizer: dict[str, str],
                 processor: ChainProcessor) -> Path:
    """Make this rank's shards; returns the folder when all shards are there.

    Raises `UserError` where a record gives no valid chain.
    """
    from realsr_r1.data.tokens.token_store import (
        clear_partials,
        describe,
        missing_shards,
        name_of,
        plan_shards,
        rejected_records,
    )
    from realsr_r1.data.tokens.tokenising import ShardWriter, open_source
    from realsr_r1.training.agreement import Agreement

    agreement, folder = Agreement(), Path(args.output_dir)
    from realsr_r1.chain.settings import question_in

    question = question_in(args.chain_settings)
    with agreement:
        sources = {split: open_source(args.dataset_name, split, args.seed,
                                      args.max_samples if split == "train" else None,
                                      question) for split in splits}
        description = describe(sources, tokenizer["folder"], tokenizer["fingerprint"])
        folder = folder / TOKENS_FOLDER / name_of(description)
        mine = [shard for shard in missing_shards(folder, sources, description)
                if shard.number % args.world_size == args.process_index]
        clear_partials(mine)
        writer = ShardWriter(processor)
        for shard in mine:
            writer.write(shard)
    agreement.settle()
    rejected = rejected_records(plan_shards(folder, sources))
    if rejected:
        raise UserError(f"{len(rejected)} records of {args.dataset_name} make no chain, the first: "
                        f"{rejected[0].reason}; realsr-r1 pretokenise --skip_bad leaves them out, and its "
                        "folder is a --dataset_name, too")
    return folder


if __name__ == "__main__":
    run(main)
