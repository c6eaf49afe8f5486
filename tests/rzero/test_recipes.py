# SPDX-License-Identifier: Apache-2.0
"""The recipes: each is loaded, validated, and planned to fit the GPUs that its name promises.

The config.json files beside this test give the shapes of the published models (OctoThinker has those of
Llama 3.2 3B and Llama 3.1 8B); they were written down from the models' documentation.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner

from rzero.cli import app
from rzero.config import load_config
from rzero.doctor import memory_bytes
from rzero.engine import checkpoint
from rzero.engine.errors import InputError
from rzero.memory_plan import planned_dtype, run_plan

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
CONFIGS = Path(__file__).parent / "model_configs"
MODELS = {
    "qwen3-4b-base": 4.02e9,
    "qwen3-8b-base": 8.19e9,
    "octothinker-3b-hybrid-base": 3.21e9,
    "octothinker-8b-hybrid-base": 8.03e9,
}


def model_of(recipe: Path) -> str:
    return next(name for name in MODELS if recipe.stem.startswith(name))


def test_every_model_has_its_two_recipes() -> None:
    kinds = ("lora-1gpu", "full-8gpu")
    assert {path.stem for path in RECIPES} == {f"{name}-{kind}" for name in MODELS for kind in kinds}


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_are_those_of_the_models(name: str) -> None:
    config = checkpoint.load_config(CONFIGS / name)
    assert config.parameters == pytest.approx(MODELS[name], rel=0.005)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_fits_its_gpus(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    assert "Not yet run" in text
    settings = load_config(file=recipe, options={"model": str(CONFIGS / model_of(recipe))})
    assert settings.roles == ("lora" if "lora" in recipe.stem else "full")
    longest = settings.max_question_tokens + settings.solver.sampling.max_tokens
    assert settings.engine.max_model_len == longest <= settings.solver.micro_batch_tokens
    devices = 8 if recipe.stem.endswith("8gpu") else 1
    plan = run_plan(settings, planned_dtype(settings, "auto", None), devices)
    # 80 * 10^9 bytes: such a GPU has 7% more, which is the context's and the allocator's.
    plan.require(memory_bytes("80GB"))
    # The pool serves at least eight answers of full length at a time.
    config = checkpoint.load_config(CONFIGS / model_of(recipe))
    assert plan.bytes_of("kv pages") >= 8 * longest * config.kv_bytes_per_token(2)


@pytest.mark.parametrize("name", ["qwen3-4b-base", "qwen3-8b-base"])
def test_full_training_does_not_fit_one_gpu_and_doctor_says_so(name: str) -> None:
    recipe = ROOT / "recipes" / f"{name}-full-8gpu.yaml"
    options = ["doctor", "--config", str(recipe), "--model", str(CONFIGS / name), "--device-memory"]
    alone = CliRunner().invoke(app, [*options, "80GB"])
    assert isinstance(alone.exception, InputError)
    assert "are needed and 74.51 GiB are available" in str(alone.exception)
    node = CliRunner().invoke(app, [*options, "80GB", "--devices", "8"])
    assert node.exit_code == 0, node.output
    assert "1/8" in node.output and "kv pages" in node.output


def test_a_plan_for_elsewhere_needs_a_run_and_a_size() -> None:
    for options, named in (([], "--model"), (["--model", "tiny"], "80 apples")):
        size = "80 apples" if options else "80GB"
        result = CliRunner().invoke(app, ["doctor", "--device-memory", size, *options])
        assert isinstance(result.exception, InputError)
        assert named in str(result.exception)
