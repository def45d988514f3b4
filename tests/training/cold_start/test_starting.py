"""The head's rows of image codes start at zero on request, but not where a run has trained them."""

from __future__ import annotations

import shutil

import pytest
import torch

from realsr_r1 import export
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.core.errors import UserError
from realsr_r1.core.run_files import was_trained
from realsr_r1.models import load_policy
from realsr_r1.sft import main
from realsr_r1.training.cold_start.starting import zero_image_head

from ...small import exit_code, write_dataset


def test_all_codes_are_equally_likely_and_no_other_score_changes(model, processor):
    policy, before = load_policy(model), load_policy(model)
    zero_image_head(policy, processor, model)
    codes = torch.tensor(sorted(processor.layout.code_ids))
    others = torch.tensor(sorted(set(range(processor.layout.vocab_size)) - set(processor.layout.code_ids)))
    ids = torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        scores, usual = policy(ids).logits[0, -1], before(ids).logits[0, -1]
    # Scores of codes are 0 and not masked.
    assert (scores[codes] == 0).all() and usual[codes].std() > 0
    assert torch.equal(scores[others], usual[others])


@pytest.mark.parametrize("file", ["log_history.jsonl", "trainer_state.json"])
def test_what_a_run_has_left_keeps_its_rows_and_one_line_says_so(file, model, processor, tmp_path, capsys):
    run = shutil.copytree(model, tmp_path / "run")
    (run / file).write_text("{}\n")
    policy = load_policy(run)
    zero_image_head(policy, processor, run)
    assert torch.equal(policy.lm_head.weight, load_policy(model).lm_head.weight)
    assert capsys.readouterr().out.count(f"--zero_image_head: {run} is what a run has left") == 1


def test_the_export_of_a_run_keeps_its_rows_and_that_of_other_weights_does_not(model, tmp_path):
    run = shutil.copytree(model, tmp_path / "run")
    (run / "log_history.jsonl").write_text("{}\n")
    export.main(["--checkpoint", str(run), "--output", str(tmp_path / "exported")])
    export.main(["--checkpoint", str(tmp_path / "exported"), "--output", str(tmp_path / "again")])
    export.main(["--checkpoint", str(model), "--output", str(tmp_path / "other")])
    assert [was_trained(tmp_path / name) for name in ("run", "exported", "again", "other")] == [
        True, True, True, False]
    for name, is_kept in (("again", True), ("other", False)):
        policy = load_policy(tmp_path / name)
        zero_image_head(policy, ChainProcessor.from_pretrained(tmp_path / name), tmp_path / name)
        assert torch.equal(policy.lm_head.weight, load_policy(model).lm_head.weight) == is_kept


def test_a_head_that_is_the_embedding_too_is_refused(model, processor):
    policy = load_policy(model)
    policy.config.tie_word_embeddings = True
    with pytest.raises(UserError, match="is its embedding, too"):
        zero_image_head(policy, processor, model)


def test_a_cold_start_begins_so_and_its_table_of_differences_is_kept(model, tmp_path, capsys):
    dataset = write_dataset(tmp_path / "dataset", train=2)
    flags = ["--dataset_name", str(dataset), "--model_name_or_path", str(model), "--output_dir",
             str(tmp_path / "run"), "--config", "published_sft", "--bf16", "false", "--dtype", "float32",
             "--learning_rate", "0", "--max_steps", "1", "--zero_image_head", "true", "--compare_with",
             "published"]
    assert exit_code(main, flags) == 0
    printed = capsys.readouterr().out
    assert "6 settings differ from published:" in printed
    assert "  learning rate: 0 (published: 2e-05)" in printed
    assert (tmp_path / "run" / "differences.json").is_file()
    trained = ChainProcessor.from_pretrained(tmp_path / "run")
    assert not load_policy(tmp_path / "run").lm_head.weight[list(trained.layout.code_ids)].any()
    assert trained.settings.fit == "random_crop" and trained.settings.pixels == "cut"
    assert exit_code(main, [*flags[:4], "--output_dir", str(tmp_path / "other"), "--zero_image_head", "true",
                            "--use_peft", "true"]) == 2
