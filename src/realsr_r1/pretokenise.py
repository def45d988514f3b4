"""Turns records into token ids, once for any number of training runs.

`realsr-r1 pretokenise --dataset_name DATASET ...` is a command of its own because it needs other
machines than training: many processes or GPUs with an image tokenizer each, no policy and no
process group. `realsr-r1 sft` takes its folder as `--dataset_name` (or takes a dataset, and
tokenises it itself).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from realsr_r1.core.errors import UserError, run
from realsr_r1.core.files import check_new_folder
from realsr_r1.core.flags import Parser
from realsr_r1.core.import_named import load_module
from realsr_r1.core.processes import MOST_PROCESSES
from realsr_r1.core.settings import SEEDS, check_ranges

if TYPE_CHECKING:
    from realsr_r1.data.photos.sources import Item
    from realsr_r1.data.tokens.token_store import Shard

MadeWith = tuple[str, str | None]  # the model's folder, and the value of --chain_settings
SPLITS = ("train", "test_crops")  # the cold start trains on the first and evaluates on the second


def main(argv: list[str] | None = None) -> None:
    """Plan the shards, make those that are missing, and print what there is.

    Raises `UserError` where records give no valid chain.
    """
    args = _parser().parse_args(argv)
    part, parts = _part(args.shard)
    check_ranges(args, {"num_proc": (1, MOST_PROCESSES), "seed": SEEDS})
    check_new_folder(args.output_dir, "--output_dir")

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.chain.settings import question_in
    from realsr_r1.data.building.assembly import REJECTED_FILE, write_items
    from realsr_r1.data.records import load_dataset_dict
    from realsr_r1.data.tokens.token_store import (
        clear_partials,
        describe,
        missing_shards,
        plan_shards,
        rejected_records,
        tokenizer_fingerprint,
    )
    from realsr_r1.data.tokens.tokenising import open_source

    processor = ChainProcessor.from_pretrained(args.model_name_or_path, chain_settings=args.chain_settings)
    fingerprint = tokenizer_fingerprint(processor)
    question = question_in(args.chain_settings)
    is_json = Path(args.dataset_name).suffix == ".json"
    splits = ["train"] if is_json else [split for split in SPLITS
                                        if split in load_dataset_dict(args.dataset_name)]
    if not splits:
        raise UserError(f"{args.dataset_name} has none of the splits {', '.join(SPLITS)}")
    sources = {split: open_source(args.dataset_name, split, args.seed, question=question) for split in splits}
    missing = missing_shards(args.output_dir, sources,
                             describe(sources, args.model_name_or_path, fingerprint))
    mine = [shard for shard in missing if shard.number % parts == part - 1]
    clear_partials(mine)
    processes = min(args.num_proc or _processes(), len(mine))
    if mine:
        made_with = args.model_name_or_path, args.chain_settings
        _progress(mine, _in_processes(mine, made_with, processes) if processes > 1
                  else _here(mine, made_with))
    counts = ", ".join(f"{split} {len(source.numbers)}" for split, source in sources.items())
    others = ("" if len(mine) == len(missing)
              else f"; {len(missing) - len(mine)} shards are left to the other parts")
    print(f"{args.output_dir}: {counts} records, {len(mine)} shards made now{others}" if missing else
          f"{args.output_dir} is up to date, nothing to do: {counts} records")
    rejected = rejected_records(plan_shards(args.output_dir, sources))
    write_items(args.output_dir / REJECTED_FILE, rejected)
    if rejected:
        _complain_of(rejected, sum(len(source.numbers) for source in sources.values()), bool(missing), args)


def _complain_of(rejected: Sequence[Item], records: int, made_now: bool, args: argparse.Namespace) -> None:
    """Raise `UserError` for records that give no valid chain.

    It doesn't where that is accepted and there are other records.
    """
    from realsr_r1.data.building.assembly import REJECTED_FILE

    said = (f"{len(rejected)} of {records} records make no chain, the first: {rejected[0].reason}; all are "
            f"listed in {args.output_dir / REJECTED_FILE}"
            + ("" if made_now else f"; remove {args.output_dir} to try them again"))
    if len(rejected) == records:
        raise UserError(said)
    if not args.skip_bad:
        raise UserError(f"{said}, the others are done (--skip_bad accepts that)")
    print(said)


def _parser() -> Parser:
    parser = Parser(prog="realsr-r1 pretokenise", description=(
        "Turn the chains of a dataset (its splits train and test_crops), or conversations in Lumina-mGPT's "
        "JSON, into shards of token ids that realsr-r1 sft reads. Started again after an interruption it "
        "makes what is missing."))
    add = parser.add_argument
    add("--dataset_name", required=True, help="folder of a prepared dataset (realsr-r1 create-json), or a "
                                              "conversation JSON")
    add("--model_name_or_path", required=True,
        help="folder with the tokenizers: a model folder, or one of train-tokenizer")
    add("--chain_settings", help="YAML or JSON file of chain settings (configs/chain) that count instead of "
                                 "the folder's: sections, sizes, and the question (problem), which all "
                                 "records are asked where the file has one")
    add("--output_dir", type=Path, required=True, help="folder to make")
    add("--seed", type=int, default=0, help="seed of the chains' wordings (default: 0)")
    add("--num_proc", type=int,
        help="processes, spread over the GPUs (default: one for each GPU, or all cores); the result doesn't "
             "depend on it")
    add("--skip_bad", action="store_true", help="exit 0 although records make no chain and were left out")
    add("--shard", default="1/1", metavar="I/N",
        help="do part I of N, each on a machine of its own (default: 1/1)")
    return parser


def _processes() -> int:
    import torch

    return torch.cuda.device_count() or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                                         else 1)


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--shard is {text!r}; it must be I/N with I from 1 to N, as in 1/4")
    return int(part), int(parts)


def _progress(shards: Sequence[Shard], done: Iterator[int]) -> None:
    """Show a bar of records while `done` yields how many were tokenised."""
    from tqdm import tqdm

    with tqdm(total=sum(shard.stop - shard.start for shard in shards), unit=" records",
              desc="pretokenise") as bar:
        for records in done:
            bar.update(records)


def _here(shards: Sequence[Shard], made_with: MadeWith, worker: int = 0) -> Iterator[int]:
    """Make shards in this process, on a GPU if there is one; yields the records of each."""
    load_module("realsr_r1.models")
    import torch

    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.data.tokens.tokenising import ShardWriter

    device = f"cuda:{worker % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    model, chain_settings = made_with
    writer = ShardWriter(ChainProcessor.from_pretrained(model, device, chain_settings))
    for shard in shards:
        yield writer.write(shard)


def _in_processes(shards: Sequence[Shard], made_with: MadeWith, num_proc: int) -> Iterator[int]:
    """Make shards in several processes; yields the number of records of each shard.

    Raises `UserError` when one of them fails.
    """
    context = multiprocessing.get_context("spawn")
    readers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    for worker in range(num_proc):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(shards[worker::num_proc], made_with, worker, writer),
                                  daemon=True)
        process.start()
        writer.close()  # so that the reader sees the end when the process has ended
        readers[reader] = process
    while readers:
        for reader in wait(list(readers)):
            try:
                said = reader.recv()
            except EOFError:
                process = readers.pop(reader)
                process.join()
                if process.exitcode:
                    raise UserError(f"a process of --num_proc ended with code {process.exitcode} (-9: "
                                    "killed, maybe out of memory); the same command goes on from here, maybe "
                                    "with fewer processes") from None
                continue
            if isinstance(said, str):
                raise UserError(said)
            yield said


def _work(shards: Sequence[Shard], made_with: MadeWith, worker: int, writer: Connection) -> None:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)  # the processes are the threads
    try:
        for records in _here(shards, made_with, worker):
            writer.send(records)
            # The parent was killed. Its next run must be the only one that makes its shards.
            if not multiprocessing.parent_process().is_alive():
                return
    except UserError as error:
        writer.send(str(error))


if __name__ == "__main__":
    run(main)
