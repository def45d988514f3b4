"""realsr-r1 score: the rewards a model earns, the same for the same seed, and fair pairs of two
models.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from realsr_r1.measuring.intervals import bootstrap_interval, mean_with_interval, paired_difference
from realsr_r1.score import main

from .small import exit_code, write_dataset, write_model

REWARDS = ["format", "degradation", "understanding", "generation"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", train=1, test=6)


@pytest.fixture(scope="module")
def models(tiny_model, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(write_model(folder / f"model-{seed}", tiny_model, seed=seed) for seed in (0, 1))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text("max_completion_length: 400\nmax_text_tokens: 6\n")
    return path


@pytest.fixture(scope="module")
def argv(dataset, recipe):
    """A function that makes the command line for a model and an output file."""
    return lambda model, output, *more: ["--model", str(model), "--dataset_name", str(dataset), "--recipe",
                                         str(recipe),
                                         "--samples", "5", "--grammar", "chain", "--output", str(output),
                                         *more]


@pytest.fixture(scope="module")
def result(argv, models, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("scores") / "first.json"
    assert exit_code(main, argv(models[0], path)) == 0
    return path


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_reward_has_a_score_for_every_prompt(result):
    scores = read(result)
    assert (scores["label"], scores["n"], scores["split"], scores["grammar"]) == ("model-0", 5, "test_crops",
                                                                                  "chain")
    assert list(scores["rewards"]) == list(scores["scores"]) == [*REWARDS, "total"]
    for values in scores["scores"].values():
        assert len(values) == 5 and all(0 <= value <= 4 for value in values)
    assert scores["rewards"]["format"]["mean"] == 1.0  # the grammar sees to it
    assert scores["scores"]["total"] == pytest.approx([sum(row) for row in zip(
        *(scores["scores"][name] for name in REWARDS), strict=True)])


def test_options_and_held_out_experts_come_from_the_recipe(argv, models, recipe, tmp_path, capsys):
    more = tmp_path / "more.yaml"
    more.write_text(recipe.read_text() + "reward_funcs: [understanding, fidelity, progress]\n"
                    "experts: [ssim]\nmonitor_experts: [gmsd]\ntag_precision: true\n")
    assert exit_code(main, argv(models[0], tmp_path / "score.json", "--recipe", str(more), "--samples",
                               "2")) == 0
    scores = read(tmp_path / "score.json")
    assert list(scores["rewards"]) == ["understanding", "fidelity", "progress", "total"]
    assert all(0 < value < 1 for value in scores["scores"]["fidelity"])
    assert set(scores["scores"]["progress"]) <= {0.0, 0.5, 1.0}
    assert list(scores["monitor"]) == ["gmsd"] and len(scores["monitor_scores"]["gmsd"]) == 2
    assert 0 < scores["monitor"]["gmsd"]["mean"] < 1
    assert "monitor gmsd" in capsys.readouterr().out


def test_means_of_each_photo_are_those_of_its_prompts(result):
    scores = read(result)
    sources, totals = scores["sources"], scores["scores"]["total"]
    assert len(sources) == 5 and set(scores["per_photo"]) == set(sources)
    for photo, means in scores["per_photo"].items():
        own = [value for value, source in zip(totals, sources, strict=True) if source == photo]
        assert means["total"] == pytest.approx(sum(own) / len(own))


def test_the_same_seed_gives_the_same_scores_and_another_does_not(argv, models, result, tmp_path):
    assert exit_code(main, argv(models[0], tmp_path / "again.json")) == 0
    assert read(tmp_path / "again.json")["scores"] == read(result)["scores"]
    assert exit_code(main, argv(models[0], tmp_path / "other.json", "--seed", "1")) == 0
    assert read(tmp_path / "other.json")["scores"]["total"] != read(result)["scores"]["total"]


def test_a_file_that_holds_something_else_is_replaced_only_if_asked(argv, models, result, tmp_path, capsys):
    kept = {path: path.read_bytes() for path in (result, tmp_path / "photo.png")
            if path == result or path.write_bytes(b"a photo")}
    for path in kept:
        assert exit_code(main, argv(models[1], path)) == 2
        assert f"{path} is there, and holds something else" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in kept}


def test_a_model_paired_with_itself_differs_by_nothing(argv, models, result, tmp_path, capsys):
    assert exit_code(main, argv(models[0], tmp_path / "self.json", "--compare", str(result), "--label",
                                "same")) == 0
    paired = read(tmp_path / "self.json")["paired"]
    assert paired == {name: {"difference": 0.0, "ci95": [0.0, 0.0]} for name in [*REWARDS, "total"]}
    table = capsys.readouterr().out
    assert "model-0" in table and "same" in table and "+0.000" in table


def test_another_model_is_paired_prompt_by_prompt(argv, models, result, tmp_path):
    assert exit_code(main, argv(models[1], tmp_path / "second.json", "--compare", str(result))) == 0
    second, first = read(tmp_path / "second.json"), read(result)
    differences = [new - old for old, new in zip(first["scores"]["total"], second["scores"]["total"],
                                                 strict=True)]
    paired = second["paired"]["total"]
    assert paired["difference"] == pytest.approx(sum(differences) / 5)
    low, high = paired["ci95"]
    limits = [min(differences) - 1e-9, low, paired["difference"], high, max(differences) + 1e-9]
    assert limits == sorted(limits)


@pytest.mark.parametrize("more, key", [(["--seed", "1"], "seed"), (["--grammar", "image"], "grammar"),
                                       (["--split", "train"], "split"), (["--samples", "4"], "sources")])
def test_a_wrong_pair_is_refused(argv, models, result, tmp_path, capsys, more, key):
    assert exit_code(main, argv(models[1], tmp_path / "wrong.json", "--compare", str(result), *more)) == 2
    assert f"{result} (--compare) can't be paired: its {key} differs" in capsys.readouterr().err
    assert not (tmp_path / "wrong.json").exists()


def test_other_rewards_are_no_pair(argv, models, result, recipe, tmp_path, capsys):
    fewer = tmp_path / "fewer.yaml"
    fewer.write_text(recipe.read_text() + "reward_funcs: [format]\n")
    more = ["--compare", str(result), "--recipe", str(fewer)]
    assert exit_code(main, argv(models[0], tmp_path / "wrong.json", *more)) == 2
    assert "its rewards differs" in capsys.readouterr().err


def test_bad_input_is_named(argv, models, tmp_path, capsys):
    (tmp_path / "list.json").write_text("[1]")
    for more, named in ((["--split", "test"], "has no split 'test'; it has train, test_crops"),
                        (["--samples", "0"], "--samples"),
                        (["--compare", str(tmp_path / "nowhere.json")],
                         f"no such file: {tmp_path / 'nowhere.json'}"),
                        (["--compare", str(tmp_path / "list.json")], f"{tmp_path / 'list.json'} holds [1]"),
                        (["--recipe", "nowhere.yaml"], "no such file: nowhere.yaml"),
                        (["--model", str(tmp_path / "nowhere")],
                         f"no such model folder: {tmp_path / 'nowhere'}")):
        assert exit_code(main, argv(models[0], tmp_path / "out.json", *more)) == 2, named
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_intervals_are_those_of_the_mean_over_photos():
    values, each = [0.0, 1.0] * 200, [str(number) for number in range(400)]
    low, high = bootstrap_interval(values, each)
    assert low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004) and high == pytest.approx(0.5 + 1.96 * 0.025,
                                                                                         abs=0.004)
    assert bootstrap_interval([0.3, 0.3], ["a", "b"]) == pytest.approx([0.3, 0.3])
    # Ten copies of a photo's prompt say no more than one.
    tenfold = [value for value in values[:40] for _ in range(10)]
    photos = [str(number) for number in range(40) for _ in range(10)]
    assert bootstrap_interval(tenfold, photos) == pytest.approx(bootstrap_interval(values[:40], each[:40]))
    assert bootstrap_interval(values, ["one"] * 400) == pytest.approx([low, high])


def test_prompts_without_a_truth_are_left_out_of_means_and_pairs():
    assert mean_with_interval([None, 1.0, 1.0], "abc") == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert mean_with_interval([None], "a") == {"mean": None, "ci95": None}
    assert paired_difference([None, 0.25, 0.5], [1.0, 0.75, None], "abc")["difference"] == 0.5
    assert paired_difference([None], [1.0], "a") == {"difference": None, "ci95": None}


def test_a_model_is_asked_what_it_was_trained_with(argv, dataset, models, result, tmp_path, capsys):
    import datasets

    def asking(record: dict) -> dict:
        return {**record, "problem": "Something else?"}

    splits = datasets.load_from_disk(str(dataset))
    splits.map(asking).save_to_disk(str(tmp_path / "other"))
    line = [str(tmp_path / "other") if word == str(dataset) else word
            for word in argv(models[0], tmp_path / "score.json")]
    assert exit_code(main, line) == 0
    assert "asks 'Something else?'" in capsys.readouterr().out
    assert read(tmp_path / "score.json")["scores"] == read(result)["scores"]
