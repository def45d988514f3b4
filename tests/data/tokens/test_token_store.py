"""Shards of token ids: the same to the byte whoever makes them, and refused where another tokenizer
made them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from realsr_r1 import pretokenise
from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.core.errors import UserError
from realsr_r1.data.tokens import token_store
from realsr_r1.data.tokens.cold_start import encode_records
from realsr_r1.data.tokens.token_store import load_tokens, tokenizer_fingerprint
from realsr_r1.sft import main as sft

from ...small import exit_code, photo, records, write_dataset

RECORDS = 7
SMALL_SHARDS = """
from realsr_r1.data.tokens import token_store
from realsr_r1.data.tokens import tokenising
import time
token_store.SHARD_RECORDS = 2
write = tokenising.ShardWriter.write
def slowly(self, shard):  # so that it can be killed between two shards
    time.sleep(1)
    return write(self, shard)
tokenising.ShardWriter.write = slowly
from realsr_r1 import pretokenise
if __name__ == "__main__":  # its worker processes import this file, too
    pretokenise.main()
"""


@pytest.fixture(scope="module")
def processor(tiny_model):
    return ChainProcessor.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset", train=RECORDS, test=3)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(token_store, "SHARD_RECORDS", 2)


def argv(dataset: Path, model: Path, output: Path, *more: str) -> list[str]:
    folders = ["--dataset_name", str(dataset), "--model_name_or_path", str(model), "--output_dir",
               str(output)]
    return [*folders, "--num_proc", "1", *more]


@pytest.fixture(scope="module")
def store(dataset, tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_store, "SHARD_RECORDS", 2)
        pretokenise.main(argv(dataset, tiny_model, folder))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_split_is_its_records_chains_in_order(store, processor):
    tokens = load_tokens(store, "train", {"folder": "x", "fingerprint": tokenizer_fingerprint(processor)})
    assert sorted(content(store)) == ["test_crops-00000-of-00002.arrow", "test_crops-00001-of-00002.arrow",
                                      "tokens.json",
                                      *(f"train-{number:05d}-of-00004.arrow" for number in range(4))]
    expected = encode_records(records(RECORDS), range(RECORDS), processor, seed=0)
    assert len(tokens) == RECORDS and tokens.cache_files  # memory-mapped
    for found, sample in zip(tokens, expected, strict=True):
        assert (found["input_ids"].tolist() == sample.input_ids
                and found["sections"].tolist() == sample.sections)
        assert found["length"] == len(sample.input_ids)
    assert tokens["record"][:].tolist() == list(range(RECORDS))


def test_what_is_there_is_not_made_again(store, dataset, tiny_model, capsys):
    before = {path: path.stat().st_mtime_ns for path in store.iterdir()}
    pretokenise.main(argv(dataset, tiny_model, store))
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in store.iterdir()} == before


def test_parts_on_several_machines_make_the_same_bytes(store, dataset, tiny_model, tmp_path, capsys):
    pretokenise.main(argv(dataset, tiny_model, tmp_path / "parts", "--shard", "2/2"))
    assert "3 shards are left to the other parts" in capsys.readouterr().out
    pretokenise.main(argv(dataset, tiny_model, tmp_path / "parts", "--shard", "1/2"))
    assert content(tmp_path / "parts") == content(store)


def test_killed_and_started_again_it_makes_the_same_bytes_in_several_processes(store, dataset, tiny_model,
                                                                               tmp_path):
    folder = tmp_path / "killed"
    script = tmp_path / "small_shards.py"
    script.write_text(SMALL_SHARDS)
    command = [sys.executable, str(script), *argv(dataset, tiny_model, folder)]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 300
    while not list(folder.glob("*.arrow")) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < len(list(folder.glob("*.arrow"))) < 6, "it must be killed in the middle"
    (folder / ".train-00003-of-00004.arrow.1.partial").write_bytes(b"half")
    subprocess.run([*command[:-1], "2"], check=True, stdout=subprocess.DEVNULL)
    found = content(folder)
    found.pop(".train-00003-of-00004.arrow.1.partial", None)
    assert found == content(store)


def test_training_refuses_tokens_of_another_tokenizer_and_names_both(store, tiny_model, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    settings = json.loads((other / "chain_settings.json").read_text())
    (other / "chain_settings.json").write_text(json.dumps({**settings, "target_px": 32}))
    assert exit_code(sft, ["--dataset_name", str(store), "--model_name_or_path", str(other), "--output_dir",
                           str(tmp_path / "out"),
                           "--report_to", "none"]) == 2
    said = capsys.readouterr().err
    assert str(tiny_model) in said and str(other) in said
    assert "made with the tokenizers and the chain of" in said


def test_the_fingerprint_is_of_all_that_makes_ids(processor, tiny_model):
    first = tokenizer_fingerprint(processor)
    assert tokenizer_fingerprint(ChainProcessor.from_pretrained(tiny_model)) == first
    other = ChainProcessor.from_pretrained(tiny_model)
    weights = next(iter(other.image_tokenizer.state_dict().values()))
    weights.view(-1)[0] += 1e-3
    smaller = ChainProcessor(processor.tokenizer, processor.image_tokenizer,
                             dataclasses.replace(processor.settings, target_px=32))
    unscaled = ChainProcessor.from_pretrained(tiny_model)
    unscaled.image_tokenizer.config.l2_normalised_codes ^= True
    assert len({first, *map(tokenizer_fingerprint, (other, smaller, unscaled))}) == 4


def test_a_missing_shard_is_named(store, processor, tmp_path):
    folder = tmp_path / "tokens"
    shutil.copytree(store, folder)
    (folder / "train-00002-of-00004.arrow").unlink()
    tokenizer = {"folder": "x", "fingerprint": tokenizer_fingerprint(processor)}
    with pytest.raises(UserError, match="1 of 4 shards of train are missing, the first .*train-00002"):
        load_tokens(folder, "train", tokenizer)
    with pytest.raises(UserError, match="no split 'test'"):
        load_tokens(folder, "test", tokenizer)


@pytest.mark.parametrize("cut", ["inside a batch", "after a batch"])
def test_a_shard_that_was_cut_is_named(store, processor, tmp_path, monkeypatch, cut):
    folder = tmp_path / "tokens"
    shutil.copytree(store, folder)
    shard = folder / "train-00001-of-00004.arrow"
    if cut == "inside a batch":
        os.truncate(shard, shard.stat().st_size * 2 // 3)
    else:
        shutil.copy(folder / "train-00003-of-00004.arrow", shard)  # which holds one record less
    with pytest.raises(UserError, match="train-00001-of-00004.arrow .*remove it and run realsr-r1 "
                                        "pretokenise again"):
        load_tokens(folder, "train", {"folder": "x", "fingerprint": tokenizer_fingerprint(processor)})


@pytest.mark.parametrize(("change", "says"), [
    ({"format": 99}, f"not in the format {token_store.FORMAT}"),
    ({"format": None, "tokenizer": None}, "format is None; it must be a whole number")])
def test_tokens_of_another_version_are_refused(store, tiny_model, dataset, tmp_path, capsys, change, says):
    folder = tmp_path / "tokens"
    shutil.copytree(store, folder)
    description = json.loads((folder / "tokens.json").read_text())
    (folder / "tokens.json").write_text(json.dumps({**description, **change}))
    training = argv(folder, tiny_model, tmp_path / "run")[:-2]
    for main, arguments in ((sft, training), (pretokenise.main, argv(dataset, tiny_model, folder))):
        assert exit_code(main, arguments) == 2
        assert says in capsys.readouterr().err


def with_column(dataset: Path, output: Path, name: str, values: list, feature=None) -> Path:
    """A dataset with other values in the first records of a column of train."""
    splits = datasets.load_from_disk(str(dataset))
    column = [*values, *splits["train"].cast_column(name, feature)[name][len(values):]] if feature else [
        *values, *splits["train"].with_format(None)[name][len(values):]]
    train = splits["train"].remove_columns(name).add_column(name, column, feature=feature
                                                            or splits["train"].features[name])
    datasets.DatasetDict({"train": train, "test_crops": splits["test_crops"]}).save_to_disk(str(output))
    return output


BROKEN_PNG = {"bytes": b"\x89PNG\r\n\x1a\n and no more", "path": None}


@pytest.mark.parametrize("column, values, named", [
    ("hq", [None], "record 0 of {} (train) has no image in 'hq'"),
    ("degradation", [["light blur"]], "'degradation' in record 0 of {} (train) must be a list of five texts, "
                                      "not a list of 1"),
    ("descriptions", [["a", "b", "c"], ["a", "b"]],
     "record 1 of {} (train): it has 2 descriptions, and the chain has the levels rough, middle, final"),
    ("problem", ["<|image|> or <|image|>"], "record 0 of {} (train): the question '<|image|> or <|image|>' "
                                            "has 2 times"),
    ("image", [BROKEN_PNG], "record 0 of {} (train) can't be read")])
def test_a_record_that_makes_no_chain_is_named(dataset, tiny_model, tmp_path, capsys, column, values, named):
    feature = datasets.Image(decode=False) if column in ("image", "hq") else None
    bad = with_column(dataset, tmp_path / "bad", column, values, feature)
    if feature:
        bad = as_images(bad, tmp_path / "images", column)
    assert exit_code(pretokenise.main, argv(bad, tiny_model, tmp_path / "tokens")) == 2
    assert named.format(bad) in capsys.readouterr().err


def as_images(dataset: Path, output: Path, column: str) -> Path:
    splits = datasets.load_from_disk(str(dataset))
    splits["train"] = splits["train"].cast_column(column, datasets.Image())
    splits.save_to_disk(str(output))
    return output


def test_a_text_is_no_list_of_tags(tiny_model, tmp_path, capsys):
    columns = records(1)
    columns["tag"] = ["cat, dog"]
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).cast_column(
        "hq", datasets.Image())
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "bad"))
    assert exit_code(pretokenise.main, argv(tmp_path / "bad", tiny_model, tmp_path / "tokens")) == 2
    assert ("'tag' in record 0" in (said := capsys.readouterr().err)
            and "must be a list of texts, not 'cat, dog'" in said)


def test_a_split_without_records_is_named(dataset, tiny_model, tmp_path, capsys):
    splits = datasets.load_from_disk(str(dataset))
    datasets.DatasetDict({**splits, "test_crops": splits["test_crops"].select([])}).save_to_disk(
        str(tmp_path / "empty"))
    assert exit_code(pretokenise.main, argv(tmp_path / "empty", tiny_model, tmp_path / "tokens")) == 2
    assert f"{tmp_path / 'empty'} has a split without records" in capsys.readouterr().err


def test_conversations_whose_image_was_replaced_are_other_records(tiny_model, tmp_path, capsys):
    photo("coffee").save(tmp_path / "photo.png")
    talk = {"conversations": [{"from": "human", "value": "What is in <|image|>?"},
                              {"from": "gpt", "value": "A cup."}],
            "image": ["photo.png"]}
    (tmp_path / "talk.json").write_text(json.dumps([talk]))
    arguments = argv(tmp_path / "talk.json", tiny_model, tmp_path / "tokens")
    assert exit_code(pretokenise.main, arguments) == 0
    photo("chelsea").save(tmp_path / "photo.png")
    assert exit_code(pretokenise.main, arguments) == 2
    assert "holds tokens of other records" in capsys.readouterr().err


def test_other_records_or_files_of_others_are_refused(store, tiny_model, dataset, tmp_path, capsys):
    other = write_dataset(tmp_path / "other", train=2, test=1)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    for arguments, named in ((argv(other, tiny_model, store), "tokens of other records"),
                             (argv(dataset, tiny_model, store, "--seed", "1"), "another --seed"),
                             (argv(dataset, tiny_model, tmp_path / "taken"), "did not make"),
                             (argv(dataset, tiny_model, tmp_path / "new", "--shard", "3/2"),
                              "--shard is '3/2'"),
                             (argv(dataset, tiny_model, tmp_path / "new", "--num_proc", "0"),
                              "--num_proc is 0")):
        assert exit_code(pretokenise.main, arguments) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_records_that_make_no_chain_are_listed_and_the_others_are_done(dataset, tiny_model, processor,
                                                                       tmp_path, capsys):
    labels = list(datasets.load_from_disk(str(dataset))["train"]["degradation"][1])
    bad = with_column(dataset, tmp_path / "bad", "degradation",
                      [["light blur"], labels, [*labels[:4], "</degradation>"]])
    arguments = argv(bad, tiny_model, tmp_path / "tokens")
    for _ in range(2):  # the second time nothing is left to do
        assert exit_code(pretokenise.main, arguments) == 2
        assert ("2 of 10 records make no chain, the first: 'degradation' in record 0"
                in (said := capsys.readouterr().err))
        assert "tokens/rejected.jsonl" in said and "--skip_bad" in said
    assert exit_code(pretokenise.main, [*arguments, "--skip_bad"]) == 0
    listed = [json.loads(line) for line in (tmp_path / "tokens" / "rejected.jsonl").open()]
    assert [item["name"] for item in listed] == ["train:0", "train:2"]
    assert ("its texts put </degradation>, a chain's own markup, inside the section degradation"
            in listed[1]["reason"])
    tokens = load_tokens(tmp_path / "tokens", "train",
                         {"folder": "x", "fingerprint": tokenizer_fingerprint(processor)})
    assert tokens["record"][:].tolist() == [1, 3, 4, 5, 6]
    expected = encode_records(records(RECORDS), range(RECORDS), processor, seed=0)
    assert [row["input_ids"].tolist() for row in tokens] == [expected[number].input_ids
                                                             for number in (1, 3, 4, 5, 6)]


def test_why_an_image_is_no_record_is_said_alike_each_time(dataset, tiny_model, tmp_path, capsys):
    bad = as_images(with_column(dataset, tmp_path / "raw", "hq", [{"bytes": b"no photo", "path": None}],
                                datasets.Image(decode=False)), tmp_path / "bad", "hq")
    for name in ("one", "other"):
        assert exit_code(pretokenise.main, argv(bad, tiny_model, tmp_path / name)) == 2
    assert content(tmp_path / "one") == content(tmp_path / "other")
    assert "an image in none of the known formats" in (tmp_path / "one" / "rejected.jsonl").read_text()


def test_training_on_records_that_make_no_chain_says_the_way_out(dataset, tiny_model, tmp_path, capsys):
    bad = with_column(dataset, tmp_path / "bad", "degradation", [["light blur"]])
    training = argv(bad, tiny_model, tmp_path / "run")[:-2]
    assert exit_code(sft, [*training, "--report_to", "none"]) == 2
    assert ("1 records of" in (said := capsys.readouterr().err) and "pretokenise --skip_bad" in said
            and "record 0" in said)


def test_bad_conversations_are_listed_and_the_others_are_done(tiny_model, tmp_path, capsys):
    photo("coffee").save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:400])
    talks = [{"conversations": [{"from": "human", "value": "What is in <|image|>?"},
                                {"from": "gpt", "value": "A cup."}],
              "image": [name]} for name in ("good.png", "nowhere.png", "torn.png", "x" * 5000, "good.png")]
    (tmp_path / "talk.json").write_text(json.dumps([*talks, {"conversations": 3}]))
    assert exit_code(pretokenise.main, argv(tmp_path / "talk.json", tiny_model, tmp_path / "tokens")) == 2
    listed = {item["name"]: item["reason"] for item in map(json.loads,
                                                           (tmp_path / "tokens" / "rejected.jsonl").open())}
    expected = {"train:1": "no such image", "train:2": "torn.png can't be read", "train:3": "too long",
                "train:5": "'conversations'"}
    assert set(listed) == set(expected)
    assert all(part in listed[name] and f"record {name[-1]} of" in listed[name]
               for name, part in expected.items())
    (tmp_path / "bad.json").write_text(json.dumps([{"conversations": 3}]))
    capsys.readouterr()
    assert exit_code(pretokenise.main, argv(tmp_path / "bad.json", tiny_model, tmp_path / "none",
                                            "--skip_bad")) == 2
    assert "1 of 1 records make no chain" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(dataset, tiny_model, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for output, named in ((tmp_path / "file", "is not a folder (given by --output_dir)"),
                          ("/proc/tokens", "can't be written"),
                          (tmp_path / "file" / "tokens", "file is not a folder"),
                          (tmp_path / ("n" * 300), "too long")):
        assert exit_code(pretokenise.main, argv(dataset, tiny_model, output)) == 2
        assert named in capsys.readouterr().err
