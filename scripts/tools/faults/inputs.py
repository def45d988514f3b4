"""Bad input to every command by generator: damaged files, odd settings, odd flags, odd names.

A command is described by arguments that work, the parts of the workplace that it reads, and the
files in them that are damaged. Its flags are asked of its own parser, so a new one is tried, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from write_flags import parser_of

from . import values, workplace
from .forks import Case

ODD_WORDS = ("", "-1", "0", "nan", "inf", "1e999", "1000000000000", "9" * 400, "x", "1.5", "0x10", "a,b",
             "no/such", "\udcff", "x" * 5000, "/proc/self/mem", "/dev/null", "..", "{photo}", "{empty}",
             "$a$ $b$",
             "a:b", "None", "[1, 2", "\u202e")


@dataclass(frozen=True)
class Command:
    """A command.

    `argv`: arguments that work; {w} stands for the case's copy of the workplace, {o} for the output
    that is to be made, {p} for a port that is taken. `reads`: parts of the workplace. `texts`: JSON
    or YAML files in them; `binaries`: others, by pattern. `fields`: the only flags to try, where
    most are another library's.
    """

    name: str
    argv: tuple[str, ...]
    reads: tuple[str, ...]
    texts: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()


MODEL = ("model/config.json", "model/chain_settings.json", "model/generation_config.json",
         "model/tokenizer.json", "model/tokenizer_config.json", "model/image_tokenizer/config.json")
WEIGHTS = ("model/model.safetensors", "model/image_tokenizer/model.safetensors")
DATASET = ("dataset/dataset_dict.json", "dataset/train/state.json", "dataset/train/dataset_info.json")
ARROW = ("dataset/train/*.arrow",)
SAMPLE = "run/samples/step-000008"
RUN = ("run/settings.json", "run/checkpoint-8/trainer_state.json", "run/stopped.json",
       f"{SAMPLE}/prompt.json", f"{SAMPLE}/rewards.json", f"{SAMPLE}/chain.json")
GRPO = ("num_generations", "max_completion_length", "rollout_temperature", "guidance_scale", "text_top_k",
        "image_top_k_min", "image_top_k_max", "grammar", "max_text_tokens", "reward_funcs", "reward_weights",
        "experts", "monitor_experts", "expert_device", "tag_synonyms", "neighbour_credit", "batch_unit",
        "loss_batch_size", "per_device_train_batch_size", "max_prompt_length", "max_samples", "stop_if",
        "credit", "chain_settings", "sample_steps", "dataset_train_split", "learning_rate", "beta",
        "deepspeed")
SFT = ("max_samples", "chain_settings", "z_loss", "dropout", "sample_steps", "peak_tflops", "max_length",
       "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "learning_rate",
       "per_device_train_batch_size", "dataset_test_split", "deepspeed", "save_total_limit")
TRAIN = ("--output_dir", "{o}", "--report_to", "none", "--max_steps", "1", "--save_strategy", "no")
COMMANDS = (
    Command("create-json", (
        "--images", "{w}/photos", "--tags", "{w}/tags", "--descriptions", "{w}/descriptions", "--degradation",
        "{w}/degradation.yml", "--annotation", "{w}/annotation.yml", "--chain_settings", "{w}/chain.yml",
        "--crop_px", "32", "--crops_per_photo", "1", "--test_crops_per_photo", "0", "--num_proc", "1",
        "--output", "{o}"),
        ("photos", "tags", "descriptions", "degradation.yml", "annotation.yml", "chain.yml"),
        ("degradation.yml", "annotation.yml", "chain.yml", "descriptions/coffee.json"),
        ("photos/coffee.png", "tags/coffee.txt")),
    Command("create-json --json", ("--json", "{w}/list/train.json", "--num_proc", "1", "--output", "{o}"),
            ("list",), ("list/train.json",)),
    Command("train-tokenizer", (
        "--config", "{w}/tokenizer.yml", "--dataset_name", "{w}/dataset", "--chain_settings",
        "{w}/chain.yml", "--max_steps", "1", "--output_dir", "{o}"),
        ("dataset", "chain.yml", "tokenizer.yml"), (*DATASET, "chain.yml", "tokenizer.yml"), ARROW),
    Command("pretokenise", ("--dataset_name", "{w}/dataset", "--model_name_or_path", "{w}/model",
                            "--chain_settings", "{w}/chain.yml", "--num_proc", "1", "--output_dir", "{o}"),
            ("dataset", "model", "chain.yml"), (*DATASET, *MODEL, "chain.yml"), (*ARROW, *WEIGHTS)),
    Command("sft", ("--config", "{w}/sft.yml", "--dataset_name", "{w}/tokens", "--model_name_or_path",
                    "{w}/model", *TRAIN), ("tokens", "model", "sft.yml"),
            ("sft.yml", "tokens/tokens.json", *MODEL), WEIGHTS, SFT),
    Command("sft of conversations", ("--dataset_name", "{w}/conversations.json", "--model_name_or_path",
                                     "{w}/model", *TRAIN), ("conversations.json", "photos", "model"),
            ("conversations.json",), ("photos/coffee.png",), ("max_samples",)),
    Command("grpo", ("--config", "{w}/grpo.yml", "--dataset_name", "{w}/dataset", "--model_name_or_path",
                     "{w}/model", "--reward_funcs", "format", "understanding", "--tag_synonyms",
                     "{w}/synonyms.yml", *TRAIN),
            ("dataset", "model", "grpo.yml", "synonyms.yml"),
            ("grpo.yml", "synonyms.yml", *DATASET, *MODEL), (*ARROW, *WEIGHTS), GRPO),
    Command("export", ("--checkpoint", "{w}/model", "--chain_settings", "{w}/chain.yml", "--metrics",
                       "{w}/evaluation/metrics.json", "--licences", "{w}/licences.yml", "--output", "{o}"),
            ("model", "chain.yml", "evaluation", "licences.yml"),
            (*MODEL, "chain.yml", "evaluation/metrics.json", "licences.yml"), WEIGHTS),
    Command("restore", ("--model", "{w}/model", "--input", "{w}/lq", "--output", "{o}"), ("model", "lq"),
            MODEL, (*WEIGHTS, "lq/coffee.png")),
    Command("evaluate", ("--restored", "{w}/restored", "--gt", "{w}/gt", "--lq", "{w}/lq", "--output", "{o}"),
            ("restored", "gt", "lq"), (), ("restored/coffee.png", "gt/coffee.png", "lq/coffee.png")),
    Command("benchmark", ("--suite", "{w}/suite.yml", "--data", "{w}", "--model", "{w}/model", "--output",
                          "{o}"), ("suite.yml", "lq", "gt", "model"), ("suite.yml", *MODEL),
            (*WEIGHTS, "lq/coffee.png", "gt/coffee.png")),
    Command("score", ("--model", "{w}/model", "--dataset_name", "{w}/dataset", "--samples", "1", "--recipe",
                      "{w}/grpo.yml", "--compare", "{w}/before.json", "--output", "{o}/score.json"),
            ("model", "dataset", "grpo.yml", "before.json"), ("grpo.yml", "before.json", *DATASET, *MODEL),
            WEIGHTS),
    Command("report", ("--run", "{w}/run", "--restored", "{w}/restored", "--gt", "{w}/gt", "--metrics",
                       "{w}/evaluation/metrics.json", "--compare", "{w}/before.json", "{w}/after.json",
                       "--output", "{o}/report.html"),
            ("run", "restored", "gt", "evaluation", "before.json", "after.json"),
            (*RUN, "evaluation/metrics.json", "before.json", "after.json", "run/log_history.jsonl"),
            (f"{SAMPLE}/lq.png", f"{SAMPLE}/completion-0.txt", "run/log_history.jsonl")),
    Command("plan", ("--config", "{w}/grpo.yml", "--model_name_or_path", "{w}/model", "--machine",
                     "{w}/machine.yml", "--deepspeed", "{w}/zero.json", "--chain_settings", "{w}/chain.yml",
                     "--json", "{o}/plan.json"),
            ("model", "grpo.yml", "machine.yml", "zero.json", "chain.yml"),
            ("grpo.yml", "machine.yml", "zero.json", "chain.yml", "model/config.json",
             "model/image_tokenizer/config.json")),
    # The port is taken, so that a demo that finds no fault ends, too.
    Command("demo", ("--model", "{w}/model", "--port", "{p}"), ("model",), MODEL, WEIGHTS,
            ("max_pixels", "max_file_mb", "max_waiting", "device", "model")),
    Command("doctor", ("{w}/run", "{w}/model", "{w}/dataset", "{w}/tokens"),
            ("run", "model", "dataset", "tokens"), (*RUN, *MODEL, *DATASET, "tokens/tokens.json"),
            (*WEIGHTS, *ARROW, "tokens/train-*.arrow")),
)


def cases(place: Path, folder: Path, each: int, seed: int) -> Iterator[Case]:
    """Yield `each` cases of every command, drawn with `seed`, and before them one that is good.

    A case is made when it is asked for.

    `place`: the workplace. `folder`: where the cases' own folders are made.
    """
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        commands = [replace(command, argv=tuple(word.replace("{p}", port) for word in command.argv))
                    for command in COMMANDS]
        draws = [random.Random(f"{seed} {number}") for number in range(len(commands))]
        for number, command in enumerate(commands):
            good = folder / f"{number:02d}-good"
            workplace.copy(place, good / "w", set(command.reads))
            yield Case(command.name, "nothing", _filled(command.argv, good, command.name), good,
                       is_good="{p}" not in COMMANDS[number].argv)
        for index in range(each):  # one of each in turn, so that a campaign that is cut short has all
            for number, command in enumerate(commands):
                made = _case(command, place, folder / f"{number:02d}-{index:03d}", draws[number])
                if made is not None:
                    yield made


def _case(command: Command, place: Path, folder: Path, rng: random.Random) -> Case | None:
    workplace.copy(place, folder / "w", set(command.reads))
    draw = rng.random()
    if command.binaries and draw < 0.2:
        file = rng.choice(command.binaries)
        damages = values.damages_of_bytes(rng, 1)
    elif command.texts and draw < 0.7:
        file = rng.choice(command.texts)
        damages = values.damages_of_text(_value(folder / "w" / file), rng, 1, file.endswith(".yml"))
    elif draw < 0.75:
        return _odd_name(command, folder, rng)
    else:
        return _odd_flag(command, folder, rng)
    what, damage = next(damages)
    damage(sorted((folder / "w").glob(file))[0])
    return Case(command.name, f"{file} {what}", _filled(command.argv, folder, command.name), folder)


def _value(file: Path) -> object:
    text = file.read_text(encoding="utf-8")
    return json.loads(text.splitlines()[0] if file.suffix == ".jsonl" else text)


def _filled(argv: Sequence[str], folder: Path, name: str) -> list[str]:
    filled = [word.replace("{w}", str(folder / "w")).replace("{o}", str(folder / "output")) for word in argv]
    return [name.split(" ")[0], *filled]


def _odd_name(command: Command, folder: Path, rng: random.Random) -> Case | None:
    """A file that isn't called as files are, beside those that the command reads."""
    inside = [folder / "w" / part for part in command.reads if (folder / "w" / part).is_dir()]
    if not inside:
        return None
    target = rng.choice(inside)
    kind, make = rng.choice((
        ("a name that is not UTF-8", lambda: _linked(target, os.fsdecode(b"\xff\xfe.png"))),
        ("a folder called NAME.png", lambda: (target / "folder.png").mkdir()),
        ("a link in a circle", lambda: (target / "loop.png").symlink_to("loop.png")),
        ("a name with a line end", lambda: _linked(target, "a\nb.png")),
        ("no rights", lambda: target.chmod(0o000)), ("nothing in it", lambda: _emptied(target))))
    make()
    return Case(command.name, f"{target.name}: {kind}", _filled(command.argv, folder, command.name), folder)


def _linked(folder: Path, name: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if files:
        os.link(files[0], folder / name)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _odd_flag(command: Command, folder: Path, rng: random.Random) -> Case:
    known = flags_of(command.name.split(" ")[0])
    flags = [f"--{name}" for name in command.fields] or known
    flag = rng.choice([flag for flag in flags if flag in known and flag not in ("--help", "--share")])
    (folder / "empty").mkdir()
    photo = next(iter(sorted((folder / "w").rglob("*.png"))), folder / "w")
    word = rng.choice(ODD_WORDS).replace("{photo}", str(photo)).replace("{empty}", str(folder / "empty"))
    argv = _filled(command.argv, folder, command.name)
    if flag in argv:
        argv[argv.index(flag) + 1] = word
    else:
        argv += [flag, word]
    return Case(command.name, f"{flag} {word!r:.40}", argv, folder)


@cache
def flags_of(name: str) -> list[str]:
    """Return the flags of a command, as its own parser has them."""
    return sorted(flag for flag in parser_of(name)._option_string_actions if flag.startswith("--"))
