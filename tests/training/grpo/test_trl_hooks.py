"""Where TRL changed what we rely on, one line names the hook before a trainer is made."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from dataclasses import make_dataclass
from pkgutil import resolve_name
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from realsr_r1.core.errors import UserError
from realsr_r1.training.grpo.trl_hooks import (
    HOOKS,
    TRAINER,
    as_rows,
    check_hooks,
    from_row,
    microbatches,
    result_of,
)

# hook -> a function of TRL, and a word in it (parameter, field, method) that a new version renames
RENAMED = {
    "rollout_func": (f"{TRAINER}.__init__", "rollout_func"),
    "logprobs": (f"{TRAINER}._generate_and_score_completions", "sampling_per_token_logps"),
    "extra fields": (f"{TRAINER}._generate", "extra_fields"),
    "env_mask": (f"{TRAINER}._generate", "env_mask"),
    "batch_decode": (f"{TRAINER}._generate", "batch_decode"),
    "eos_token_id": (f"{TRAINER}._generate", "eos_token_ids"),
    "_calculate_rewards": (f"{TRAINER}._calculate_rewards", "completion_ids_list"),
    "_generate_and_score_completions": (f"{TRAINER}._generate_and_score_completions", "advantages"),
    "_prepare_inputs": (f"{TRAINER}._prepare_inputs", "shuffle_sequence_dict"),
    "split_tensor_dict": ("trl.trainer.utils:split_tensor_dict", "num_chunks"),
    "_get_per_token_logps_and_entropies": (f"{TRAINER}._get_per_token_logps_and_entropies", "logits_to_keep"),
    "fused_lm_head": ("trl.trainer.utils:add_fused_lm_head", "shift_labels"),
    "_compute_loss": (f"{TRAINER}.compute_loss", "_compute_loss"),
    "_metrics": (f"{TRAINER}.log", "_metrics"),
    "_logs": (f"{TRAINER}.log", "_logs"),
    "create_model_from_path": (f"{TRAINER}.__init__", "create_model_from_path"),
    "unwrap_model_for_generation": ("trl.models.utils:unwrap_model_for_generation", "accelerator"),
    "create_model_card": (f"{TRAINER}._save_checkpoint", "create_model_card"),
    "_run_epoch": ("transformers.trainer:Trainer._run_epoch", "_maybe_log_save_evaluate"),
    "log_history": ("transformers.trainer:Trainer.log", "log_history"),
    "callback_handler": ("transformers.trainer:Trainer.__init__", "callback_handler"),
}
# hook -> a function or method that is gone
REMOVED = {
    "global_then_local_main_first": "trl.trainer.utils:global_then_local_main_first",
    "split_tensor_dict": "trl.trainer.utils:split_tensor_dict",
    "create_model_from_path": "trl.trainer.grpo_trainer:create_model_from_path",
    "unwrap_model_for_generation": "trl.models.utils:unwrap_model_for_generation",
    "_calculate_rewards": f"{TRAINER}._calculate_rewards",
    "_get_per_token_logps_and_entropies": f"{TRAINER}._get_per_token_logps_and_entropies",
    "_prepare_inputs": f"{TRAINER}._prepare_inputs",
    "_compute_loss": f"{TRAINER}._compute_loss",
}


def owner_of(where: str) -> tuple[Any, str]:
    """What holds the object at `module:name`, and its last name."""
    module, _, names = where.partition(":")
    parent, _, name = names.rpartition(".")
    return resolve_name(f"{module}:{parent}" if parent else module), name


def with_another_word(where: str, word: str) -> Any:
    """The function at `where` as if its authors had written something else for `word`."""
    function = inspect.unwrap(resolve_name(where))
    source = re.sub(rf"\b{word}\b", f"{word}_of_old", textwrap.dedent(inspect.getsource(function)))
    assert source.count(f"{word}_of_old")
    namespace = dict(vars(sys.modules[function.__module__]))
    exec(compile(source, where, "exec"), namespace)
    return namespace[function.__name__]


def test_the_installed_trl_keeps_all_contracts_and_no_random_number_is_drawn():
    state = torch.random.get_rng_state()
    check_hooks()
    assert torch.equal(state, torch.random.get_rng_state())
    assert len({hook.name for hook in HOOKS}) == len(HOOKS)
    assert all(hook.gives and hook.expects and hook.ours and hook.needs for hook in HOOKS)


def test_each_hook_has_a_stand_in_for_a_changed_trl():
    assert RENAMED.keys() | REMOVED.keys() == {hook.name for hook in HOOKS}


@pytest.mark.parametrize("hook", RENAMED)
def test_a_renamed_parameter_field_or_method_is_named_with_its_hook(hook, monkeypatch):
    where, word = RENAMED[hook]
    monkeypatch.setattr(*owner_of(where), with_another_word(where, word))
    assert f"({where} " in complaint_about(hook)


@pytest.mark.parametrize("hook", REMOVED)
def test_a_function_that_is_gone_is_named_with_its_hook(hook, monkeypatch):
    owner, name = owner_of(REMOVED[hook])
    monkeypatch.delattr(owner, name)
    complaint_about(hook)
    monkeypatch.setattr(owner, name, "something else", raising=False)
    assert f"there is no function {REMOVED[hook]}" in complaint_about(hook)


def test_a_field_that_is_gone_from_what_the_fused_head_returns_is_named(monkeypatch):
    another = make_dataclass("Output", ["loss", "log_probs"])
    monkeypatch.setattr("trl.trainer.utils.FusedCausalLMOutput", another)
    assert "FusedCausalLMOutput takes no entropy" in complaint_about("fused_lm_head")


def complaint_about(hook: str) -> str:
    """The line that names `hook`, and says which TRL is there and which one it should be."""
    with pytest.raises(UserError) as raised:
        check_hooks()
    line = str(raised.value)
    assert "\n" not in line and line.startswith(f"TRL {trl.__version__} ") and "trl==1.16.0" in line
    named = re.search(r"relies on: (.*?) \(", line)[1].split(", ")
    assert hook in named and len(named) <= 4
    return line


def test_a_trainer_is_not_made_with_a_changed_trl(make_trainer, monkeypatch):
    where, word = RENAMED["env_mask"]
    monkeypatch.setattr(*owner_of(where), with_another_word(where, word))
    with pytest.raises(UserError, match="relies on: env_mask "):
        make_trainer()


def test_trl_shuffles_microbatches_as_a_whole():
    batch = {"ids": torch.arange(12).view(6, 2), "count": torch.tensor(6), "texts": list("abcdef")}
    chunks = microbatches(batch, 3)
    torch.manual_seed(0)
    shuffled = [from_row(row) for row in split_tensor_dict(shuffle_sequence_dict(as_rows(chunks)), 3)]
    assert sorted(chunk["texts"] for chunk in shuffled) == [["a", "b"], ["c", "d"], ["e", "f"]]
    assert {chunk["count"].item() for chunk in shuffled} == {6}
    assert from_row(batch) is batch


def test_a_result_in_the_middle_is_handed_out_and_nothing_stays_behind():
    class Trainer(SimpleNamespace):
        def inner(self, value):
            return value + 1

        def outer(self, value):
            return self.inner(value) * 10

    trainer = Trainer()
    with result_of(trainer, "inner") as outside, result_of(trainer, "inner") as results:
        assert trainer.outer(2) == 30
    assert results == outside == [3] and not vars(trainer)
    with pytest.raises(KeyError), result_of(trainer, "inner"):
        raise KeyError
    assert not vars(trainer)
    with pytest.raises(UserError, match="does not call the hook inner"), result_of(trainer, "inner"):
        pass
