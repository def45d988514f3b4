"""Machines by name, by numbers of one's own, and what is refused."""

from __future__ import annotations

import pytest

from realsr_r1.core.errors import UserError
from realsr_r1.planning.machines import BANDWIDTH_SHARE, COMPUTE_SHARE, GIB, GPUS, machine, read_measured


@pytest.mark.parametrize("name", GPUS)
def test_a_named_gpu_has_its_data_sheets_numbers(name):
    sheet, found = GPUS[name], machine(name.upper(), gpus=6)
    assert found.memory == sheet.memory_gib * GIB and found.flops == sheet.tflops * 1e12 * COMPUTE_SHARE
    assert found.bandwidth == sheet.bandwidth_gb * 1e9 * BANDWIDTH_SHARE
    assert found.world == 6 and sheet.source in found.source


def test_measured_numbers_are_taken_as_they_are_and_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("memory_gib: 24\ntflops: 40\nbandwidth_gb: 700\n", encoding="utf-8")
    own = machine(None, measured=read_measured(file))
    assert (own.memory, own.flops, own.bandwidth) == (24 * GIB, 40e12, 700e9)
    assert machine("a100-80gb", measured={"tflops": 170}).flops == 170e12


def test_several_machines_are_as_fast_as_their_network():
    one, two = machine("a100-80gb", 8), machine("a100-80gb", 8, nodes=2, measured={"network_gb": 20})
    assert one.gather_rate == one.link and two.gather_rate == 20e9 / 8 and two.world == 16


@pytest.mark.parametrize("values, named", [
    ({"gpu": "a1000"}, "--gpu a1000"), ({"gpu": None}, "--memory_gib"),
    ({"gpu": "h200", "gpus": 0}, "--gpus 0"), ({"gpu": "h200", "measured": {"speed": 3}}, "speed"),
    ({"gpu": "h200", "measured": {"tflops": -1}}, "tflops"),
    ({"gpu": "h200", "measured": {"tflops": "fast"}}, "tflops")])
def test_what_is_unknown_or_missing_is_named(values, named):
    with pytest.raises(UserError, match=named):
        machine(**values)


@pytest.mark.parametrize("text, named", [(None, "no such file"), ("- 3", "key: value"), ("a: [", "YAML")])
def test_a_broken_file_of_numbers_is_named(text, named, tmp_path):
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=named):
        read_measured(file)
