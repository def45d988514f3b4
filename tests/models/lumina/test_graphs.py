"""Recorded steps: the same completions, and nothing in a step that a graph could not repeat.

No CUDA here: where it would record a graph, a step is traced into its tensor operations, with every
number that Python computed fixed, and the trace is run instead. So a step that asked the device for
a number, or that took one along from its first token, would fail or write something else.
"""

from __future__ import annotations

import dataclasses

import pytest
from torch.fx.experimental.proxy_tensor import make_fx

from realsr_r1.models.lumina import graphs
from realsr_r1.rollout import RolloutConfig, RolloutEngine

from ...rollout.helpers import make_layout, make_policy, make_prompts

LAYOUT = make_layout()
CHAIN = RolloutConfig(num_generations=2, max_new_tokens=135, image_top_k_max=200, grammar="chain",
                      max_text_tokens=6, seed=11)
IMAGE = RolloutConfig(num_generations=3, max_new_tokens=60, image_top_k_max=200, seed=5)


@pytest.fixture
def traces(monkeypatch) -> list[int]:
    """Trace steps where they would be recorded; how often each trace was run.

    Short steps of columns, so that a run has several.
    """
    runs: list[int] = []

    def trace(step, inputs, pool):
        traced, number = make_fx(step)(*inputs), len(runs)
        runs.append(0)

        def repeat(*values):
            runs[number] += 1
            return traced(*values)

        return repeat

    monkeypatch.setattr(graphs, "record", trace)
    monkeypatch.setattr(graphs, "COLUMN_STEP", 64)
    return runs


@pytest.mark.parametrize("config", [CHAIN, dataclasses.replace(CHAIN, guidance_scale=1.0), IMAGE,
                                    dataclasses.replace(CHAIN, jacobi=4),
                                    dataclasses.replace(CHAIN, cache_dtype="int8")],
                         ids=["chain", "unguided", "image", "jacobi", "int8 caches"])
def test_completions_are_the_same_with_recorded_steps(config, traces):
    engine, prompts = RolloutEngine(make_policy(3), LAYOUT, config), make_prompts(LAYOUT)[::2]
    expected = engine.generate(prompts)
    engine.config = dataclasses.replace(config, cuda_graphs=True)
    found = engine.generate(prompts)
    assert found.completion_ids == expected.completion_ids and found.forwards == expected.forwards
    assert [value for row in found.log_q
            for value in row] == pytest.approx([value for row in expected.log_q for value in row])
    assert len(traces) > 1 and sum(traces) > len(traces)


def test_most_steps_are_repeated(traces):
    """Of one prompt's group, whose rows go side by side."""
    config = dataclasses.replace(CHAIN, num_generations=5, cuda_graphs=True)
    rollout = RolloutEngine(make_policy(3), LAYOUT, config).generate(make_prompts(LAYOUT)[0])
    assert sum(traces) > 0.5 * max(map(len, rollout.completion_ids))


def test_without_cuda_they_run_as_they_are():
    engine = RolloutEngine(make_policy(3), LAYOUT, CHAIN)
    expected = engine.generate(make_prompts(LAYOUT)).completion_ids
    engine.config = dataclasses.replace(CHAIN, cuda_graphs=True)
    assert engine.generate(make_prompts(LAYOUT)).completion_ids == expected
