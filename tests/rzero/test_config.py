# SPDX-License-Identifier: Apache-2.0
"""Settings: what is refused and how it is said, what is merged, printed and compared."""

from pathlib import Path

import pytest
import yaml

from rzero.config import (
    differences,
    fingerprint,
    flatten,
    from_dict,
    load_config,
    nearest,
    preset_names,
    to_yaml,
)
from rzero.engine.errors import InputError
from rzero.settings import Section, Settings


def sections(section: Section) -> list[Section]:
    inner = [value for value in section.__dict__.values() if isinstance(value, Section)]
    return [section, *(deeper for one in inner for deeper in sections(one))]


def test_every_field_has_a_text() -> None:
    for section in sections(Settings()):
        for name, field in type(section).model_fields.items():
            assert field.description, f"{type(section).__name__}.{name}"


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_and_print_as_what_they_are(name: str) -> None:
    config = load_config(name)
    for texts in (False, True):
        assert from_dict(yaml.safe_load(to_yaml(config, texts=texts))) == config


def test_recommended_defaults() -> None:
    """Rows of the comparison between paper and code that the defaults decide."""
    config = Settings()
    challenger, pool, solver = config.challenger, config.pool, config.solver
    assert (challenger.reward_scale, challenger.repetition_weight, challenger.reward_floor) == (1, 1, None)
    assert (challenger.invalid_reward, challenger.votes, pool.votes) == (-1, 10, 10)
    assert (pool.keep_low, pool.keep_high, pool.candidates) == (3, 7, 8000)
    assert (pool.sampling.temperature, pool.sampling.top_p) == (1.0, 0.95)
    assert (config.voting.temperature, config.voting.top_p, config.voting.top_k) == (1.0, 1.0, 40)
    assert challenger.sampling.top_p == solver.sampling.top_p == 1.0
    assert (challenger.group, solver.samples, solver.questions_per_step) == (4, 5, 512)
    assert challenger.questions_per_step == 512 * 4
    assert (challenger.updates_per_step, solver.updates_per_step) == (32, 4)
    assert (challenger.steps, solver.steps, config.iterations) == (5, 15, 3)
    for phase in (challenger, solver):
        assert (phase.learning_rate, phase.weight_decay, phase.grad_clip) == (1e-6, 0.01, 1.0)
        assert (phase.kl_coef, phase.kl_estimator, phase.kl_reference) == (0.01, "k3", "phase")
        assert (phase.clip_low, phase.clip_high, phase.clip_dual) == (0.2, 0.3, 3.0)
        assert (phase.advantage, phase.loss_mean, phase.keep_optimizer) == ("std", "sequence", False)


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("seed: 5\nsolver: {steps: 3, samples: 4}\n")
    config = load_config("tiny", file, ["solver.samples=6"], {"seed": 7, "engine.threads": 1})
    assert (config.seed, config.solver.steps, config.solver.samples, config.engine.threads) == (7, 3, 6, 1)
    assert config.solver.learning_rate == load_config("tiny").solver.learning_rate


def test_files_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here / "sub", there / "weights"):
        folder.mkdir(parents=True)
    (there / "own.yaml").write_text("{model: weights, task: 'own.py:Own', anchors: few.jsonl, data: /sets}")
    monkeypatch.chdir(here)
    config = load_config(file=Path("../there/own.yaml"), options={"data": "sub"})
    assert Path(config.model).samefile(there / "weights")
    assert config.task == f"{here}/../there/own.py:Own" and config.anchors == f"{here}/../there/few.jsonl"
    assert config.data == str(here / "sub")
    assert load_config(file=Path("../there/own.yaml")).data == "/sets"
    (here / "tiny").mkdir()
    names = load_config("tiny", overrides=["task=module:factory"])
    assert (names.model, names.task, names.data) == ("tiny", "module:factory", None)
    assert load_config(options={"model": "Owner/Name"}).model == "Owner/Name"


def test_numbers_may_be_written_as_people_write_them() -> None:
    assert load_config(overrides=["solver.learning_rate=1e-6"]).solver.learning_rate == 1e-6


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("solver.learning_rat=1", ["solver.learning_rat", "'learning_rate'"]),
        ("sovler.steps=1", ["'sovler'", "'solver'"]),
        ("solver.sampling.top_q=1", ["solver.sampling.top_q", "top_"]),
        ("solver.steps=0", ["solver.steps", "0", "greater than or equal to 1"]),
        ("solver.steps=many", ["solver.steps", "'many'", "integer"]),
        ("solver.learning_rate=.nan", ["solver.learning_rate", "finite"]),
        ("roles=both", ["roles", "'both'", "'full', 'lora' or 'single'"]),
        ("pool=3", ["pool", "3", "mapping"]),
        ("pool.keep_low=9", ["keep_low = 9", "keep_high = 7"]),
        ("challenger.group=3", ["2048", "multiple", "3"]),
        ("solver.clip_dual=1", ["solver.clip_dual", "greater than 1"]),
        ("steps", ["'steps'", "name.of.field=value"]),
        ("seed=[1", ["'[1'", "YAML"]),
    ],
)
def test_a_bad_setting_is_refused_by_name(override: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_config(overrides=[override])
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        load_config("tinny")


@pytest.mark.parametrize(
    ("text", "part"), [("[1, 2]", "mapping"), ("a: [", "not YAML"), (b"\xff\xfe\x00", "cannot read")]
)
def test_bad_config_files(tmp_path: Path, text: str | bytes, part: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=part) as caught:
        load_config(file=file)
    assert str(file) in str(caught.value)
    with pytest.raises(InputError, match="cannot read"):
        load_config(file=tmp_path / "missing.yaml")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_fingerprint_counts_what_changes_the_result() -> None:
    config = load_config("tiny")
    names = [name for name, value in flatten(config).items() if not isinstance(value, dict)]
    assert len(names) > 100
    for name in names:
        *parents, last = name.split(".")
        inner = config
        for parent in parents:
            inner = getattr(inner, parent)
        changed = inner.model_copy(update={last: "another"})
        for depth in range(len(parents), 0, -1):
            outer = config
            for parent in parents[: depth - 1]:
                outer = getattr(outer, parent)
            changed = outer.model_copy(update={parents[depth - 1]: changed})
        is_free = name in ("output", "checkpoint_every", "ablation")
        assert (fingerprint(changed) == fingerprint(config)) == is_free, name


def test_differences_are_named() -> None:
    one = load_config("tiny", overrides=["solver.steps=16"])
    other = load_config("tiny", overrides=["solver.steps=2", "engine.kernels={attention: ref}"])
    assert differences(one, other) == {
        "solver.steps": (16, 2),
        "engine.kernels": ({}, None),
        "engine.kernels.attention": (None, "ref"),
    }


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 2  # type: ignore[misc]


def test_nearest_lists_all_when_nothing_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "known: a, b"


def test_a_section_named_in_part_keeps_the_defaults_of_the_rest() -> None:
    """voting.max_tokens=100 once turned voting.top_k off, and pool.sampling lost its top_p."""
    config = load_config(overrides=["voting.max_tokens=100", "pool.sampling.temperature=0.5"])
    assert (config.voting.top_k, config.voting.max_tokens) == (40, 100)
    assert (config.pool.sampling.top_p, config.pool.sampling.temperature) == (0.95, 0.5)


def test_schedules_that_cannot_run_are_refused_before_the_run() -> None:
    falling = ["solver.schedule=linear", "solver.steps=3", "solver.updates_per_step=2"]
    assert load_config("tiny", overrides=falling).solver.total_updates(iterations=4) == 6
    kept = load_config("tiny", overrides=[*falling, "solver.keep_optimizer=true"]).solver
    assert kept.total_updates(iterations=4) == 24
    with pytest.raises(InputError, match=r"solver\.warmup_steps = 6 must be below the 6 updates"):
        load_config("tiny", overrides=[*falling, "solver.warmup_steps=6"])
    with pytest.raises(InputError, match="needs roles = full or lora"):
        load_config("tiny", overrides=[*falling, "solver.keep_optimizer=true", "roles=single"])
    load_config("tiny", overrides=["challenger.schedule=cosine", "challenger.steps=0"])
