"""Advice holds: what it calls largest fits and one more doesn't, and following it makes a run fit.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from realsr_r1.planning.advice import advice, fits, largest, ways
from realsr_r1.planning.machines import GIB, machine
from realsr_r1.planning.memory import peak
from realsr_r1.planning.workload import Sharding


@pytest.fixture
def seven_billion(make_work):
    """The paper's run, on six GPUs."""
    return make_work(hidden=4096, intermediate=11_008, layers=32, heads=32, kv_heads=32, vocabulary=73_728,
                     prompt=4214, completion=7000, expected=5800, images=(276, 1060, 4164), span=7000,
                     generations=5, micro=5, weight_bytes=2, sharding=Sharding(3), world=6,
                     checkpointing=True, triton=True, flash=True)


def gpu(gib: float):
    return machine("a100-80gb", 6, measured={"memory_gib": gib})


def test_the_largest_group_fits_and_one_more_does_not(seven_billion):
    count = largest(seven_billion, gpu(80))["num_generations"]
    assert fits(replace(seven_billion, generations=count, micro=count), gpu(80))
    assert not fits(replace(seven_billion, generations=count + 1, micro=count + 1), gpu(80))
    assert largest(seven_billion, gpu(10))["num_generations"] is None


@pytest.mark.parametrize("gib, says", [
    (80, "It fits"), (60, "Each of these alone"), (40, "Together these"), (6, "No change of settings")])
def test_the_less_memory_the_more_must_change(gib, says, seven_billion):
    assert any(line.startswith(says) for line in advice(seven_billion, gpu(gib)))


def test_what_is_said_to_fit_alone_does(seven_billion):
    (line,) = [line for line in advice(seven_billion, gpu(72)) if line.startswith("Each")]
    assert "--grammar chain" in line and fits(replace(seven_billion, span=4164), gpu(72))


def test_every_way_says_what_it_needs_and_whether_it_fits(seven_billion):
    found = {way.name: way for way in ways(seven_billion, gpu(80))}
    assert len(found) == 6 and all(way.fits == (way.bytes <= 0.9 * 80 * GIB) for way in found.values())
    assert found["all weights, ZeRO-3"].bytes == peak(replace(seven_billion,
                                                              sharding=Sharding(3, overlap=True)))[1]
    assert found["QLoRA (4 bits), ZeRO-2"].bytes < found["LoRA, ZeRO-2"].bytes < found[
        "all weights, ZeRO-2"].bytes
