"""`realsr-r1 plan`: tables, JSON and advice for recipes on machines, and errors that name what is
wrong.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from realsr_r1.plan import main

from .small import exit_code

ROOT = Path(__file__).resolve().parents[1]
PURE = str(ROOT / "configs/models/pure_7b")
SEVEN_BILLION = ["--config", str(ROOT / "configs/recipes/pure_7b_grpo.yaml"), "--model_name_or_path", PURE]
GIB = 2**30


def planned(tmp_path: Path, *flags: str, deepspeed: str = "zero3") -> dict:
    file = tmp_path / "plan.json"
    main([*SEVEN_BILLION, "--deepspeed", str(ROOT / "local_scripts" / f"{deepspeed}.json"), "--json",
          str(file), *flags])
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def six(tmp_path_factory) -> dict:
    """The paper's run on the paper's machine."""
    return planned(tmp_path_factory.mktemp("plan"), "--gpu", "a100-80gb", "--gpus", "6")


def test_the_papers_run_on_six_a100s(six):
    """By hand: 7.08e9 parameters of 2 bytes, a sixth on each GPU; 12 bytes of AdamW; 7,000 tokens
    of 2 x 32 x 4,096 x 2 bytes for each of 5 rows.
    """
    rollout = six["memory_bytes"]["rollout"]
    assert six["parameters"] == {"policy": 7_080_267_776, "trained": 7_080_267_776}
    assert (rollout["weights"] == pytest.approx(7_080_267_776 * 2 / 6)
            and rollout["gathered weights"] == 7_080_267_776 * 2)
    assert rollout["optimizer"] == pytest.approx(7_080_267_776 * 12 / 6)
    assert rollout["cache: completions"] == 5 * 7000 * 2 * 32 * 4096 * 2
    assert six["peak"]["phase"] == "rollout" and 60 * GIB < six["peak"]["bytes"] < 75 * GIB


def test_a_rollout_is_most_of_a_step_and_every_part_says_what_limits_it(six):
    seconds = {part["part"]: part["seconds"] for part in six["time"]}
    assert max(seconds,
               key=seconds.get) == "rollout" and six["seconds"] == pytest.approx(sum(seconds.values()))
    assert all(part["seconds"] == pytest.approx(part["limits"][part["limit"]]) for part in six["time"])


def test_the_tables_show_what_the_json_holds(tmp_path, capsys):
    result = planned(tmp_path, "--gpu", "a100-80gb", "--gpus", "6")
    shown = capsys.readouterr().out
    for phase, parts in result["memory_bytes"].items():
        assert phase in shown and f"{sum(parts.values()) / GIB:.2f}" in shown
        assert all(part in shown for part in parts)
    assert all(part["part"] in shown and part["limit"] in shown for part in result["time"])
    assert all(line in shown for line in result["advice"])


def test_what_does_not_fit_gets_a_way_out(tmp_path):
    result = planned(tmp_path, "--gpu", "a100-40gb", "--gpus", "6")
    assert not result["peak"]["fits"] and result["advice"][0].startswith("It doesn't fit")
    assert any("--" in line for line in result["advice"][1:])


def test_the_files_of_other_ways_exist(six):
    files = [word for way in six["ways"] for word in way["flags"].split() if not word.startswith("--")]
    assert len(files) == 9 and all((ROOT / file).is_file() for file in files)


def test_flags_change_the_plan_as_they_change_the_run(six, tmp_path):
    def rollout(*flags: str) -> dict:
        return planned(tmp_path, "--gpu", "a100-80gb", "--gpus", "6", *flags)["memory_bytes"]["rollout"]

    assert "cache: unconditional" not in rollout("--guidance_scale", "1")
    # the final image
    assert rollout("--grammar", "chain")["cache: unconditional"] == 5 * 4164 * 2 * 32 * 4096 * 2
    assert rollout("--num_generations",
                   "4")["cache: completions"] * 5 == six["memory_bytes"]["rollout"]["cache: completions"] * 4
    with_reference = rollout("--beta", "0.04")
    assert with_reference["reference"] == with_reference["weights"]


def test_adapters_and_four_bits_need_less(tmp_path):
    def recipe(name: str, deepspeed: str) -> dict:
        file = tmp_path / "plan.json"
        main(["--config", str(ROOT / "configs/recipes" / name), "--model_name_or_path", PURE, "--gpu",
              "a100-80gb", "--gpus", "2",
              "--deepspeed", str(ROOT / "local_scripts" / deepspeed), "--json", str(file)])
        return json.loads(file.read_text(encoding="utf-8"))

    lora, qlora = recipe("lora_grpo.yaml", "zero2.json"), recipe("qlora_grpo.yaml", "zero2.json")
    # the recipe's "80 million"
    assert lora["parameters"]["trained"] == qlora["parameters"]["trained"] == 79_953_920
    assert qlora["memory_bytes"]["loss"]["weights"] < 0.35 * lora["memory_bytes"]["loss"]["weights"]


def test_a_whole_model_folder_brings_its_own_image_tokenizer_and_sizes(tiny_model, tmp_path):
    file = tmp_path / "plan.json"
    main(["--config", str(ROOT / "configs/recipes/tiny_grpo.yaml"), "--model_name_or_path", str(tiny_model),
          "--deepspeed", "none",
          "--memory_gib", "8", "--tflops", "0.1", "--bandwidth_gb", "10", "--json", str(file)])
    result = json.loads(file.read_text(encoding="utf-8"))
    assert (result["run"]["tokenizer"]["downsample"] == 4 and result["run"]["largest_px"] == 48
            and result["peak"]["fits"])


@pytest.mark.parametrize("changes, named", [({"num_hidden_layers": "hot"}, "num_hidden_layers"),
                                            ({"base_channels": 33}, "(33) must be divisible"),
                                            ({"embed_dim": 0}, "embed_dim")])
def test_an_image_tokenizer_that_cant_be_is_one_line(tiny_model, tmp_path, changes, named, capsys):
    shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "model" / "image_tokenizer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert exit_code(main, ["--config", str(ROOT / "configs/recipes/tiny_grpo.yaml"), "--model_name_or_path",
                            str(tmp_path / "model"), "--deepspeed", "none", "--gpu", "h200"]) == 2
    err = capsys.readouterr().err
    assert named in err and str(config.parent) in err and err.count("\n") == 1


@pytest.mark.parametrize("flags, named", [
    (["--gpu", "a1000"], "a1000"), ([], "--gpu"),
    (["--gpu", "h200", "--deepspeed", "nowhere.json"], "nowhere.json"),
    (["--gpu", "h200", "--deepspeed", "none", "--chain_settings", "nowhere.yaml"], "nowhere.yaml"),
    (["--gpu", "h200", "--deepspeed", "none", "--num_generations", "1"], "--num_generations 1"),
    (["--gpu", "h200", "--deepspeed", str(ROOT / "local_scripts/zero3.json"), "--use_peft", "true",
      "--load_in_4bit", "true"],
     "zero2.json")])
def test_bad_input_is_one_line_and_exit_code_2(flags, named, capsys):
    assert exit_code(main, [*SEVEN_BILLION, *flags]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count("\n") == 1


CARDS = re.findall(r"^\| (\d) of (\d+) GB \(`(.+?)`\) \| `(.+?)` \| (?:`(.+?)`)? ?\| (\d+) \|$",
                   (ROOT / "docs" / "plan.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("count, memory, gpu, recipe, flags, peak", CARDS,
                         ids=[" ".join(row[:4]) for row in CARDS])
def test_what_the_docs_say_of_cards_is_what_is_planned(count, memory, gpu, recipe, flags, peak, tmp_path):
    """A plan fits below nine tenths of the memory."""
    file = tmp_path / "plan.json"
    more = [str(ROOT / flag) if flag.startswith("local_scripts/") else flag for flag in flags.split()]
    deepspeed = [] if "--deepspeed" in more else ["--deepspeed", str(ROOT / "local_scripts/zero3.json")]
    main(["--config", str(ROOT / f"configs/recipes/{recipe}.yaml"), "--model_name_or_path", PURE, "--gpu",
          gpu, "--gpus", count, "--json", str(file), *more, *deepspeed])
    found = json.loads(file.read_text(encoding="utf-8"))["peak"]["bytes"] / GIB
    assert found == pytest.approx(float(peak), abs=0.6) and found < 0.9 * float(memory)


def test_the_docs_plan_cards_of_80_48_and_24_gb():
    assert {row[:2] for row in CARDS} >= {("8", "80"), ("6", "80"), ("4", "80"), ("2", "48"), ("1", "48"),
                                          ("2", "24"), ("1", "24")}
