# SPDX-License-Identifier: Apache-2.0
"""The run folder: nothing half-written, nothing lost, damage explained."""

import json
from pathlib import Path

import pytest
import torch

from rzero.config import load_config
from rzero.engine.errors import InputError
from rzero.journals import JOURNALS, read_journal
from rzero.run_folder import RunFolder, State, read_config

CONFIG = load_config("tiny")


def state(units: int, value: float) -> State:
    tensors = {"solver": {"weight.a": torch.full((3,), value)}, "challenger": {"weight.b": torch.zeros(2)}}
    return State(units, f"unit {units}", tensors, {"optimizer_steps": {"solver": units}})


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG, {"model_sha256": "abc"})


def reopened(folder: RunFolder) -> RunFolder:
    folder.close()
    return RunFolder.open(folder.path)


def test_a_state_comes_back_with_its_journals_cut_to_it(folder: RunFolder) -> None:
    folder.append("metrics.jsonl", [{"step": 1}])
    folder.save_state(state(1, 1.0), ["solver", "challenger"])
    folder.append("metrics.jsonl", [{"step": 2}])
    folder.append("questions.jsonl", [{"question": "lost"}])
    again = reopened(folder)
    loaded = again.load_state(pytest.fail)
    assert loaded is not None
    assert (loaded.units, loaded.unit, loaded.facts) == (1, "unit 1", {"optimizer_steps": {"solver": 1}})
    assert torch.equal(loaded.tensors["solver"]["weight.a"], torch.ones(3))
    assert list(again.read("metrics.jsonl")) == [{"step": 1}]
    assert list(again.read("questions.jsonl")) == []


def test_without_a_state_the_journals_begin_anew(folder: RunFolder) -> None:
    folder.append("metrics.jsonl", [{"step": 1}])
    again = reopened(folder)
    assert again.load_state(pytest.fail) is None
    assert list(again.read("metrics.jsonl")) == []


def test_only_changed_roles_are_written_and_old_files_go(folder: RunFolder) -> None:
    folder.save_state(state(1, 1.0), ["solver", "challenger"])
    for units in (2, 3, 4):
        folder.save_state(state(units, float(units)), ["solver"])
    names = {path.name for path in (folder.path / "state").glob("*.safetensors")}
    assert names == {
        "challenger-000001.safetensors",
        "solver-000003.safetensors",
        "solver-000004.safetensors",
    }
    loaded = reopened(folder).load_state(pytest.fail)
    assert loaded is not None and loaded.tensors["solver"]["weight.a"][0] == 4


@pytest.mark.parametrize("damage", ["cut", "garbage", "missing", "state", "format", "journals"])
def test_a_damaged_state_is_explained_and_the_one_before_it_used(folder: RunFolder, damage: str) -> None:
    folder.append("metrics.jsonl", [{"step": 1}])
    folder.save_state(state(1, 1.0), ["solver", "challenger"])
    folder.append("metrics.jsonl", [{"step": 2}])
    folder.save_state(state(2, 2.0), ["solver"])
    tensors, record = (
        folder.path / "state" / "solver-000002.safetensors",
        folder.path / "state" / "state.json",
    )
    match damage:
        case "cut":
            tensors.write_bytes(tensors.read_bytes()[:-1])
        case "garbage":
            tensors.write_bytes(bytes(len(tensors.read_bytes())))
        case "missing":
            tensors.unlink()
        case "state":
            record.write_text(record.read_text()[:50])
        case "format":
            record.write_text(json.dumps({**json.loads(record.read_text()), "format": 99}))
        case "journals":
            for journal in (folder.path / "metrics.jsonl", folder.path / "state/journals/metrics.jsonl"):
                journal.write_bytes(journal.read_bytes().replace(b"2", b"3"))
    said: list[str] = []
    again = reopened(folder)
    loaded = again.load_state(said.append)
    assert loaded is not None and loaded.units == 1
    assert torch.equal(loaded.tensors["solver"]["weight.a"], torch.ones(3))
    assert list(again.read("metrics.jsonl")) == [{"step": 1}]
    [sentence] = said
    assert "going on from the state before" in sentence and str(folder.path) in sentence
    # What it went on from is what stays behind, whatever was damaged.
    for units in (2, 3):
        again.append("metrics.jsonl", [{"step": units}])
        again.save_state(state(units, float(units)), ["solver"])
        (folder.path / "state" / "state.json").write_text("{")
        again = reopened(again)
        after = again.load_state(lambda text: None)
        assert after is not None and after.units == units - 1
        again.append("metrics.jsonl", [{"step": units}])
        again.save_state(state(units, float(units)), ["solver"])
    assert list(again.read("metrics.jsonl")) == [{"step": 1}, {"step": 2}, {"step": 3}]


@pytest.mark.parametrize("damage", ["bit", "shorter", "missing"])
@pytest.mark.parametrize("place", ["", "state/journals"])
def test_a_damaged_journal_is_put_right_by_its_copy(folder: RunFolder, damage: str, place: str) -> None:
    for units in (1, 2, 3):
        folder.append("metrics.jsonl", [{"step": units}])
        folder.append("questions.jsonl", [{"question": "ü" * units}])
        folder.save_state(state(units, float(units)), ["solver", "challenger"])
    journal = folder.path / place / "metrics.jsonl"
    match damage:
        case "bit":
            journal.write_bytes(journal.read_bytes().replace(b"1", b"9"))
        case "shorter":
            journal.write_bytes(journal.read_bytes()[:-3])
        case "missing":
            journal.unlink()
    folder.append("metrics.jsonl", [{"step": "lost"}])
    said: list[str] = []
    again = reopened(folder)
    loaded = again.load_state(said.append)
    assert loaded is not None and loaded.units == 3
    assert [str(journal) in text for text in said] == ([] if place else [True])
    again.append("metrics.jsonl", [{"step": 4}])
    again.save_state(state(4, 4.0), [])
    rows = [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4}]
    assert list(read_journal(folder.path / "metrics.jsonl")) == rows
    assert list(read_journal(folder.path / "state/journals/metrics.jsonl")) == rows


def test_a_model_whose_replacement_was_killed_halfway_is_back(folder: RunFolder) -> None:
    """Between its two renames nothing stood in the model's place."""
    place = folder.model_folder(1, "solver")
    (place.parent / ".solver.old").mkdir()
    (place.parent / ".solver.old" / "config.json").write_text("old")
    (place.parent / ".solver.partial").mkdir()
    reopened(folder).close()
    assert (place / "config.json").read_text() == "old"
    assert [path.name for path in place.parent.iterdir()] == ["solver"]


def test_when_both_states_are_damaged_nothing_is_touched(folder: RunFolder) -> None:
    folder.append("metrics.jsonl", [{"step": 1}])
    for units in (1, 2):
        folder.save_state(state(units, 1.0), ["solver", "challenger"])
    for path in (folder.path / "state").glob("*.json"):
        path.write_text("{")
    with pytest.raises(InputError, match="no usable state"):
        reopened(folder).load_state(pytest.fail)
    assert list(read_journal(folder.path / "metrics.jsonl")) == [{"step": 1}]


def test_a_run_with_other_settings_is_refused_by_name(folder: RunFolder) -> None:
    folder.close()
    RunFolder.open(folder.path, load_config("tiny", overrides=["checkpoint_every=3"])).close()
    with pytest.raises(
        InputError, match=rf"seed: 1 there, 2 now; solver\.steps: {CONFIG.solver.steps} there, 3 now"
    ):
        RunFolder.open(folder.path, load_config("tiny", overrides=["solver.steps=3", "seed=2"]))


def test_a_run_goes_on_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_config("tiny", overrides=["data=sets"])
    (tmp_path / "elsewhere").mkdir()
    RunFolder.create("run", settings.model_copy(update={"data": "sets"}), {}).close()
    monkeypatch.chdir("elsewhere")
    opened = RunFolder.open(tmp_path / "run")
    assert opened.config.data == str(tmp_path / "sets")
    opened.close()
    with pytest.raises(InputError, match="elsewhere/sets"):
        RunFolder.open(tmp_path / "run", settings.model_copy(update={"data": "sets"}))


def test_other_weights_are_refused(folder: RunFolder) -> None:
    folder.check_model("abc")
    with pytest.raises(InputError, match="not those that"):
        folder.check_model("abd")


def test_a_folder_holds_one_run_in_one_process(folder: RunFolder) -> None:
    with pytest.raises(InputError, match="in use by another"):
        RunFolder.open(folder.path)
    folder.close()
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder.create(folder.path, CONFIG, {})


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: [")
    with pytest.raises(InputError, match="damaged"):
        read_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_the_last_state_stays(folder: RunFolder) -> None:
    folder.save_state(state(1, 1.0), ["solver", "challenger"])
    # Writing to this device fails as a full disk does.
    (folder.path / "state" / "state.json.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"disk is full: .*--resume"):
        folder.save_state(state(2, 2.0), ["solver"])
    (folder.path / "state" / "state.json.partial").unlink()
    journal = folder.path / "metrics.jsonl"
    journal.unlink()
    journal.symlink_to("/dev/full")
    with pytest.raises(InputError, match="disk is full"):
        folder.append("metrics.jsonl", [{"step": 2}])
    journal.unlink()
    journal.touch()
    loaded = reopened(folder).load_state(pytest.fail)
    assert loaded is not None and loaded.units == 1


def test_tensors_that_do_not_fit_the_disk(folder: RunFolder) -> None:
    (folder.path / "state").mkdir()
    (folder.path / "state" / "solver-000001.safetensors.partial").symlink_to("/dev/full")
    with pytest.raises(InputError, match="disk is full"):
        folder.save_state(state(1, 1.0), ["solver", "challenger"])
    assert not (folder.path / "state" / "state.json").exists()


def test_a_damaged_line_of_a_journal_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2\n{"a": 3}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is damaged"):
        list(read_journal(path))
    path.write_text('{"a": 1}\n{"a": ')
    assert list(read_journal(path)) == [{"a": 1}]
    assert list(read_journal(tmp_path / "missing.jsonl")) == []


def test_what_a_model_wrote_comes_back(folder: RunFolder) -> None:
    rows = [{"question": text} for text in ("\ud800", "\n\r\u2028", '"\\', "🙂\x00", "")]
    folder.append("questions.jsonl", rows)
    assert list(folder.read("questions.jsonl")) == rows


def test_all_journals_exist_from_the_start(folder: RunFolder) -> None:
    assert all((folder.path / name).exists() for name in JOURNALS)
