"""Whether a folder that commands read is whole: a dataset, tokens, a model, a run or its checkpoint.

All is checked that can be without a GPU: every key of its settings, the names, shapes and values of
all weights, the shards of tokens, records of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from realsr_r1.chain.settings import SETTINGS_FILE as CHAIN_SETTINGS
from realsr_r1.core.errors import UserError
from realsr_r1.core.run_files import LOG_FILE, SETTINGS_FILE, STATE_FILE
from realsr_r1.data.records import DATASET_FILE
from realsr_r1.data.tokens.token_store import STORE_FILE
from realsr_r1.inspecting.finding import FAULT, NOTE, OK, Finding, found


def folder_findings(folder: Path) -> Iterator[Finding]:
    """Check a folder as what it is, by the files in it."""
    if not folder.is_dir():
        yield Finding(FAULT, "folder", f"no such folder: {folder}")
        return
    checks = list(_checks(folder))
    if not checks:
        yield Finding(FAULT, "folder", f"{folder} is no dataset, no tokens, no model and no run")
    for check in checks:
        yield from check(folder)


def _checks(folder: Path) -> Iterator[Callable[[Path], Iterator[Finding]]]:
    has = {path.name for path in folder.iterdir()}
    if DATASET_FILE in has:
        yield _dataset
    if STORE_FILE in has:
        yield _tokens
    if LOG_FILE in has or any(name.startswith("checkpoint-") for name in has):
        yield _run
    if CHAIN_SETTINGS in has:
        yield _processor
    if STATE_FILE in has:
        yield _checkpoint
    elif has & {"config.json", "model.safetensors", "model.safetensors.index.json"}:
        yield _policy


def _dataset(folder: Path) -> Iterator[Finding]:
    from realsr_r1.data.records import load_dataset_dict, read_rows

    def check() -> str:
        splits = load_dataset_dict(folder)
        for name, records in splits.items():
            read_rows(records, sorted({0, len(records) - 1}), f"{name} of {folder}")
        counts = ", ".join(f"{name} {len(records):,}" for name, records in splits.items())
        return f"{folder}: {counts} records; the first and last of each can be read"

    yield found("dataset", check)


def _tokens(folder: Path) -> Iterator[Finding]:
    from realsr_r1.data.tokens.token_store import check_store

    yield found("tokens", lambda: f"{folder}: {check_store(folder)}")


def _processor(folder: Path) -> Iterator[Finding]:
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.rollout import RolloutConfig

    def check() -> str:
        processor = ChainProcessor.from_pretrained(folder)
        settings, layout = processor.settings, processor.layout
        RolloutConfig.from_settings(settings.sampling, str(folder / CHAIN_SETTINGS))
        return (f"{folder}: {len(settings.chain.sections)} sections, {settings.target_px} px, "
                f"{layout.vocab_size:,} tokens, {len(layout.code_ids):,} of them codes")

    yield found("tokenizers", check)


def _policy(folder: Path) -> Iterator[Finding]:
    from realsr_r1.models.loading import check_policy

    yield found("policy", lambda: f"{check_policy(folder)}; all weights are there and finite")


def _run(folder: Path) -> Iterator[Finding]:
    from realsr_r1.reporting.run_folder import read_run
    from realsr_r1.training.checkpoints import complete_checkpoints
    from realsr_r1.training.launch import is_finished

    def check() -> str:
        run = read_run(folder)
        return f"{folder}: {run.steps} steps logged; " + ("it has ended" if is_finished(folder) else
                                                          "it has not ended, or is being written")

    yield found("run", check)
    complete = complete_checkpoints(folder)
    half = sorted(path.name for path in folder.glob("*checkpoint-*") if path not in complete.values())
    if half:
        yield Finding(NOTE, "checkpoints", f"only half written: {', '.join(half)}")
    if complete:
        yield from _checkpoint(complete[max(complete)])
    elif not is_finished(folder):
        yield Finding(NOTE, "checkpoints", "none is complete; the run would begin anew")


def _checkpoint(folder: Path) -> Iterator[Finding]:
    from realsr_r1.models.checking import WEIGHTS, WEIGHTS_INDEX
    from realsr_r1.training import manifest
    from realsr_r1.training.checkpoints import require_state
    from realsr_r1.training.manifest import MARKER

    if not (folder / MARKER).is_file():
        yield Finding(FAULT, "checkpoint", f"{folder} has no file {MARKER!r}: it was only half written")
        return
    if not any((folder / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        yield Finding(NOTE, "checkpoint", f"{folder}: complete; its weights are DeepSpeed's shards or an "
                      "adapter, which realsr-r1 export puts together and checks")
    else:
        yield from _policy(folder)
    if folder.parent.joinpath(SETTINGS_FILE).is_file():
        def check() -> str:
            listed = manifest.read(folder)
            wrong = listed and manifest.difference(folder, listed, list(listed))
            if wrong:
                raise UserError(f"{folder}: {wrong}; the run goes on from the checkpoint before")
            require_state(folder)
            return f"{folder}: complete, the run can go on from it"

        yield found("checkpoint", check)
    else:
        yield Finding(OK, "checkpoint", f"{folder}: complete")
