"""A run of two processes under ZeRO-3 that is killed, signalled and damaged goes on, when the same
command is given again, from the last checkpoint that counts, and ends as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from realsr_r1.models import load_policy
from realsr_r1.training.checkpoints import complete_checkpoints

from .processes import Run, start

STEPS = 6
OUTLIVE = 5.0  # seconds


@dataclass
class Interrupted:
    """Two runs of the same command, one left alone, one hit again and again; and what its starts
    said: the step they began at, their output, their exit code, and the checkpoints they left.
    """

    whole: Path
    hit: Path
    began_at: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    kept: list[list[int]] = field(default_factory=list)
    outlived: list[int] = field(default_factory=list)


def launch(output: Path, dataset: Path, model: Path, seen: Path, stop: str | None = None,
           *more: str) -> Run:
    seen.mkdir()
    flags = ["--reward_funcs", "format", "probe:vowels", "--grammar", "image", "--max_completion_length",
             "16", "--num_generations", "3", "--per_device_train_batch_size", "1", "--loss_batch_size", "3",
             "--guidance_scale", "1", "--learning_rate", "1e-3", "--warmup_steps", "0", "--max_steps",
             str(STEPS), "--save_steps", "1", "--save_total_limit", "2", "--logging_steps", "1",
             "--sample_steps", "0", "--report_to", "none", "--seed", "3", *more]
    return start(["bash", "scripts/train_grpo.sh", *flags], seen / "log.txt",
                 {"NPROC": "2", "RECIPE": "configs/recipes/tiny_grpo.yaml", "MODEL": str(model),
                  "DATASET": str(dataset), "OUTPUT": str(output), "MASTER_PORT": "auto",
                  "PROBE_FOLDER": str(seen), "PROBE_STOP": stop})


def pids(seen: Path) -> list[int]:
    return [json.loads((seen / f"begin-rank{rank}.json").read_text())["pid"] for rank in (0, 1)]


def kill_rank_1(run: Run, seen: Path) -> int:
    run.wait_for(lambda: all((seen / f"stopped-rank{rank}.json").is_file() for rank in (0, 1)))
    os.kill(pids(seen)[1], signal.SIGKILL)
    return run.finish()


def signal_launcher(run: Run, seen: Path) -> int:
    run.wait_for((seen / "weights-step-4-rank0.pt").is_file)
    run.process.send_signal(signal.SIGTERM)
    return run.finish()


def leave_alone(run: Run, seen: Path) -> int:
    return run.finish()


# What is done to each start, and where it stops and waits for it.
HITS = [(kill_rank_1, "save 3"), (signal_launcher, None), (leave_alone, None)]


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.fixture(scope="module")
def interrupted(dataset, small_model, tmp_path_factory) -> Interrupted:
    folder = tmp_path_factory.mktemp("interrupted")
    facts = Interrupted(folder / "whole", folder / "hit")
    whole = launch(facts.whole, dataset, small_model, folder / "whole-seen")  # beside: there are two cores
    try:
        for number, (hit, stop) in enumerate(HITS):
            if hit is leave_alone:
                newest = max(complete_checkpoints(facts.hit))
                shard = next((facts.hit / f"checkpoint-{newest}").glob("global_step*/*_1_*optim_states.pt"))
                shard.write_bytes(shard.read_bytes()[:1000])
            seen = folder / f"hit-{number}"
            # Where the optimizer's states are meanwhile makes no difference, either.
            run = launch(facts.hit, dataset, small_model, seen, stop, "--offload_during_rollout", "true")
            try:
                facts.codes.append(hit(run, seen))
            finally:
                run.end()
            limit = time.monotonic() + OUTLIVE
            while any(map(is_alive, pids(seen))) and time.monotonic() < limit:
                time.sleep(0.02)
            facts.outlived += [pid for pid in pids(seen) if is_alive(pid)]
            facts.began_at.append(json.loads((seen / "begin-rank0.json").read_text())["step"])
            facts.outputs.append(run.output())
            facts.kept.append(sorted(complete_checkpoints(facts.hit)))
        assert whole.finish() == 0, whole.output()[-4000:]
    finally:
        whole.end()
    assert facts.codes[-1] == 0, facts.outputs[-1][-4000:]
    return facts


def test_it_goes_on_from_the_last_checkpoint_that_counts(interrupted):
    kept = interrupted.kept
    # killed in the save after step 3, told to stop, its newest damaged
    assert interrupted.began_at == [0, 2, kept[1][0]]


def test_there_is_a_complete_checkpoint_whenever_it_is_killed(interrupted):
    assert interrupted.kept[0] == [1, 2]


def test_no_rank_outlives_its_launcher(interrupted):
    assert interrupted.outlived == []


def test_exit_codes_say_how_it_ended(interrupted):
    assert interrupted.codes == [128 + signal.SIGKILL, 128 + signal.SIGTERM, 0]


def test_one_line_says_what_happened_and_how_it_goes_on(interrupted):
    said = [[line for line in output.splitlines()
             if any(word in line for word in ("set aside", "killed", "ended by", "Traceback", "gloo"))]
            for output in interrupted.outputs]
    assert said[0] == ["realsr-r1: error: rank 1 was killed by signal 9 (out of memory?); run the same "
                       "command again to go on from step 2"]
    assert "was only half written" in said[1][0]
    assert "ended by SIGTERM at step" in said[1][1] and len(said[1]) == 2
    (damaged,) = said[2]
    assert "is damaged (global_step" in damaged and "set aside" in damaged


def test_nothing_is_left_but_what_the_uninterrupted_run_leaves(interrupted):
    names = [sorted(path.name for path in run.iterdir()) for run in (interrupted.hit, interrupted.whole)]
    assert names[0] == names[1]


def test_final_weights_equal_those_of_an_uninterrupted_run(interrupted, small_model):
    first = load_policy(small_model).state_dict()
    whole, hit = (load_policy(folder).state_dict() for folder in (interrupted.whole, interrupted.hit))
    assert whole.keys() == hit.keys()
    assert max(float((whole[name] - first[name]).abs().max()) for name in whole) > 1e-3
    assert all(torch.equal(hit[name], whole[name]) for name in whole)


def test_the_log_has_every_step_once_with_the_same_numbers(interrupted):
    whole, hit = ([json.loads(line) for line in (folder / "log_history.jsonl").read_text().splitlines()]
                  for folder in (interrupted.whole, interrupted.hit))
    assert [line["step"] for line in hit if "loss" in line] == list(range(1, STEPS + 1))
    for name in ("reward", "learning_rate", "completions/mean_length"):
        assert [line[name] for line in hit
                if name in line] == pytest.approx([line[name] for line in whole if name in line])
