"""Cold start: supervised fine-tuning of a policy on chains, the answer only. `realsr-r1 sft --config FILE.yaml`.

Takes a model folder (goes on from its policy) or a processor folder (`realsr-r1 train-tokenizer`; then a new policy of
the shape in the recipe is made) and leaves a complete model folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realsr_r1.errors import UserError, run

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from realsr_r1.processing import ChainProcessor
    from realsr_r1.training.config import ColdStartConfig

TOKENS_FOLDER = "tokens"
IGNORED = -100  # label that transformers' loss leaves out


def main(argv: list[str] | None = None) -> None:
    """Tokens, policy, training, model folder."""
    from trl import ModelConfig

    from realsr_r1.settings import parse
    from realsr_r1.training.adapters import adapter_config, quantization_config, with_adapter
    from realsr_r1.training.config import ColdStartConfig
    from realsr_r1.training.launch import prepare_process

    args, model_args = parse((ColdStartConfig, ModelConfig), argv, "realsr-r1 sft")
    if not model_args.model_name_or_path:
        raise UserError("--model_name_or_path must name a model folder to go on from, or the tokenizers of a new policy "
                        "(a folder from realsr-r1 train-tokenizer)")
    adapters, quantization = adapter_config(model_args), quantization_config(model_args)
    prepare_process(args)
    from transformers import Trainer

    from realsr_r1.processing import ChainProcessor
    from realsr_r1.training.callbacks import JsonLog
    from realsr_r1.training.checkpoints import CompletionMarker, last_checkpoint
    from realsr_r1.training.launch import is_finished, save_model_folder
    from realsr_r1.training.rendering import RenderingTokenizer

    if is_finished(args.output_dir):
        if args.process_index == 0:
            print(f"{args.output_dir} holds a finished run already; nothing to do")
        return
    checkpoint = last_checkpoint(args.output_dir, set_aside=args.process_index == 0)
    processor = ChainProcessor.from_pretrained(model_args.model_name_or_path, device=str(args.device))
    with args.main_process_first(local=False, desc="tokenising"):
        train = tokenised(args, processor, "train")
        evaluation = tokenised(args, processor, "test_crops") if args.eval_strategy != "no" else None
    policy = make_policy(args, model_args, quantization, processor)
    if adapters is not None:
        policy = with_adapter(policy, adapters, args)
    trainer = Trainer(model=policy, args=args, train_dataset=train, eval_dataset=evaluation,
                      data_collator=Collator(processor.layout.pad),
                      processing_class=RenderingTokenizer.of(processor), callbacks=[JsonLog(), CompletionMarker()])
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save_model_folder(trainer, processor, args.output_dir)


def make_policy(args: ColdStartConfig, model_args: ModelConfig, quantization: Any, processor: ChainProcessor) -> Any:
    """The folder's policy, or a new one of the recipe's shape where the folder has none."""
    import torch

    from realsr_r1.models import load_policy
    from realsr_r1.models.policy import LuminaConfig, LuminaPolicy

    folder = Path(model_args.model_name_or_path)
    if (folder / "config.json").is_file():
        return load_policy(folder, dtype=model_args.dtype, attn_implementation=model_args.attn_implementation,
                           quantization_config=quantization)
    if model_args.use_peft:
        raise UserError(f"{folder} holds no policy, and --use_peft trains adapters on one; name a model folder")
    layout = processor.layout
    torch.manual_seed(args.seed)
    return LuminaPolicy(LuminaConfig(
        vocab_size=layout.vocab_size, hidden_size=args.hidden_size, intermediate_size=args.intermediate_size,
        num_hidden_layers=args.num_hidden_layers, num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_attention_heads, max_position_embeddings=args.max_length,
        pad_token_id=layout.pad, bos_token_id=layout.bos, eos_token_id=layout.end_of_turn))


def tokenised(args: ColdStartConfig, processor: ChainProcessor, split: str) -> Dataset:
    """A split as `input_ids` and `prompt_length`; made once in `output_dir/tokens`, then read from there."""
    from realsr_r1.data.cold_start import COLUMNS, encode_records
    from realsr_r1.data.dataset import select_records
    from realsr_r1.data.stored import stored

    records = select_records(args.dataset_name, split, {"the cold start": COLUMNS},
                             args.max_samples if split == "train" else None, args.seed)

    def encode(fingerprint: str) -> Dataset:
        return records.map(encode_records, batched=True, batch_size=64, with_indices=True, desc=f"tokenising {split}",
                           remove_columns=records.column_names, keep_in_memory=True,
                           new_fingerprint=fingerprint, fn_kwargs={"processor": processor, "seed": args.seed})

    encoded = stored(Path(args.output_dir) / TOKENS_FOLDER / split, records, processor, encode, args.seed)
    longest = max((len(ids) for ids in encoded.with_format("numpy")["input_ids"]), default=0)
    if longest > args.max_length:
        raise UserError(f"the longest chain of {split} has {longest} tokens, more than --max_length {args.max_length}")
    return encoded


class Collator:
    """Rows of ids -> a right-padded batch whose labels leave out the prompt (and the padding)."""

    def __init__(self, pad: int):
        self.pad = pad

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        length = max(len(row["input_ids"]) for row in rows)
        ids = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), IGNORED)
        mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            tokens = torch.as_tensor(row["input_ids"])
            ids[index, :len(tokens)] = tokens
            labels[index, row["prompt_length"]:len(tokens)] = tokens[row["prompt_length"]:]
            mask[index, :len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


if __name__ == "__main__":
    run(main)
