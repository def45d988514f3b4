"""Batches get smaller when the memory is full, and what comes out stays the same."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from realsr_r1.core.errors import UserError
from realsr_r1.restoring.batches import Batches, rows_that_fit
from realsr_r1.rollout import RolloutConfig

from ..small import write_model


class Memory:
    """Work on at most `room` items at a time; more raise what a full GPU raises."""

    def __init__(self, room: int):
        self.room, self.sizes = room, []

    def __call__(self, items, check):
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return [item * 10 for item in items]


def test_a_full_gpu_halves_the_batch_and_goes_on_with_one_line_each(capsys):
    work, batches = Memory(room=3), Batches(16)
    assert list(batches.run(range(20), 1, work)) == [item * 10 for item in range(20)]
    assert work.sizes == [16, 8, 4, *[2] * 10] and batches.size == 2
    assert capsys.readouterr().out.splitlines() == [
        f"the GPU's memory is full; going on with {rows} rows at a time" for rows in (8, 4, 2)]
    assert list(batches.run(range(4), 1, work)) == [0, 10, 20, 30] and work.sizes[-2:] == [2, 2]  # it stays


def test_samples_count_as_rows():
    work = Memory(room=5)
    assert len(list(Batches(10).run(range(9), 4, work))) == 9
    assert work.sizes == [2, 2, 2, 2, 1]
    work = Memory(room=1)
    batches = Batches(12)
    assert len(list(batches.run(range(5), 4, work))) == 5
    assert work.sizes == [3, 1, 1, 1, 1, 1] and batches.size == 4


def test_workers_share_the_rows_evenly_in_order_and_compute_with_one_thread_each():
    seen = []

    def work(items, check):
        seen.append((len(items), torch.get_num_threads()))
        time.sleep(0.05 * (items[0] == 0))  # the first batch ends last
        return [item * 10 for item in items]

    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(Batches(8, workers=2).run(range(18), 1, work)) == [item * 10 for item in range(18)]
        assert sorted(seen) == [(3, 1)] * 6 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_batches_nobody_waits_for_any_more_end_at_their_next_check():
    ended, both_began = [], threading.Barrier(2)

    def work(items, check):
        both_began.wait(60)
        if items[0] == 0:
            return items
        try:
            while True:
                check()
                time.sleep(0.01)
        except RuntimeError:
            ended.append(items[0])
            raise

    results = Batches(2, workers=2).run(range(2), 1, work)
    assert next(results) == 0
    results.close()
    assert ended == [1]


def test_one_item_that_doesnt_fit_is_an_error_with_the_way_out():
    with pytest.raises(UserError, match="memory is full with 4 rows at a time; try --load_in_4bit"):
        list(Batches(16).run(range(3), 4, Memory(room=0)))
    with pytest.raises(UserError, match="--batch_size 0"):
        Batches(0)


def test_larger_budgets_and_guidance_leave_room_for_fewer_rows(tiny_model, tmp_path):
    from realsr_r1.chain.processor import ChainProcessor
    from realsr_r1.models import load_policy

    policy = load_policy(write_model(tmp_path / "model", tiny_model))
    processor = ChainProcessor.from_pretrained(tmp_path / "model")
    small, long, guided = (rows_that_fit(policy, processor, RolloutConfig(**values)) for values in (
        {"max_new_tokens": 4000, "guidance_scale": 1.0}, {"max_new_tokens": 16000, "guidance_scale": 1.0},
        {"max_new_tokens": 16000}))
    assert 256 >= small > long >= guided >= 1
