# SPDX-License-Identifier: Apache-2.0
"""Adapters: the same logits in PEFT, here, and merged; loaded both ways; other kinds refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers
from hf_models import CPU, IDS, packed_logits, random_hf, save
from torch import Tensor

from rzero.engine import Engine, Model, SamplingParams, TrainConfig, TrainGroup
from rzero.engine.adapter_folder import load_adapter, save_adapter
from rzero.engine.checkpoint import load_config, load_weights, save_hf
from rzero.engine.errors import InputError
from rzero.engine.lora import MODULES, LoraConfig
from rzero.engine.tensor_file import read_tensors, write_tensors
from rzero.engine.weights import ModelWeights, Weights, adapter_tensors, base_tensors
from rzero.kernels import resolve

TARGETS = (tuple(MODULES), ("q_proj", "down_proj"), ("k_proj", "v_proj", "up_proj"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(random_hf("qwen2"), tmp_path_factory.mktemp("base") / "m")


def load(folder: Path) -> Weights:
    config = load_config(folder)
    return Weights(config, load_weights(folder, config, torch.float32, CPU))


def logits(weights: Weights, role: ModelWeights) -> Tensor:
    with torch.no_grad():
        return packed_logits(weights.config, role, resolve(CPU), IDS)


def close(a_TV: Tensor, b_TV: Tensor) -> bool:
    return float((a_TV - b_TV).abs().max() / b_TV.std()) < 1e-4


def with_random_adapters(folder: Path, targets: tuple[str, ...]) -> Weights:
    weights = load(folder)
    weights.fork("solver", of="base")
    weights.add_lora("solver", LoraConfig(rank=3, alpha=7.5, targets=targets), seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in adapter_tensors(weights.role("solver")):
        if name.endswith(".b"):
            tensor.normal_(0, 0.3, generator=generator)
    return weights


def test_new_adapters_have_no_effect(folder: Path) -> None:
    weights = load(folder)
    weights.fork("solver", of="base")
    weights.add_lora("solver", LoraConfig())
    assert torch.equal(logits(weights, weights.role("solver")), logits(weights, weights.role("base")))
    assert all(
        tensor.any() for name, tensor in adapter_tensors(weights.role("solver")) if name.endswith(".a")
    )


@pytest.mark.parametrize("targets", TARGETS)
def test_peft_loads_what_is_saved_and_computes_the_same(
    targets: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    weights = with_random_adapters(folder, targets)
    ours_TV = logits(weights, weights.role("solver"))
    assert not close(ours_TV, logits(weights, weights.role("base")))
    save_adapter(tmp_path / "adapter", weights.role("solver"), base=str(folder))
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter")
    with torch.no_grad():
        assert close(ours_TV, theirs(IDS[None]).logits[0])
    back = load_adapter(tmp_path / "adapter", weights.config, weights.role("base"))
    assert torch.equal(logits(weights, back), ours_TV)
    assert back.lora == weights.role("solver").lora


@pytest.mark.parametrize("stabilised", [False, True])
def test_adapters_that_peft_saved_are_loaded(stabilised: bool, folder: Path, tmp_path: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        use_rslora=stabilised,
        lora_dropout=0.1,
    )
    theirs = peft.get_peft_model(hf, settings).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    weights = load(folder)
    weights.replace("solver", load_adapter(tmp_path / "adapter", weights.config, weights.role("base")))
    with torch.no_grad():
        assert close(logits(weights, weights.role("solver")), theirs(IDS[None]).logits[0])
    base = dict(base_tensors(weights.role("base")))
    assert all(tensor is base[name] for name, tensor in base_tensors(weights.role("solver")))


@pytest.mark.parametrize("targets", TARGETS)
def test_export_merges_and_leaves_the_base_as_it_was(
    targets: tuple[str, ...], folder: Path, tmp_path: Path
) -> None:
    weights = with_random_adapters(folder, targets)
    ours_TV, base = logits(weights, weights.role("solver")), weights.hash("base")
    save_hf(tmp_path / "merged", weights.config, weights.role("solver"), folder)
    assert weights.hash("base") == base and weights.role("solver").lora is not None
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        assert close(ours_TV, hf(IDS[None]).logits[0])


def test_gradients_reach_the_adapters_and_nothing_else(folder: Path) -> None:
    weights = with_random_adapters(folder, tuple(MODULES))
    theirs = random_hf("qwen2").requires_grad_(False)
    for _, tensor in weights.trainable_tensors("solver"):
        tensor.requires_grad_(True)
    logits_TV = packed_logits(weights.config, weights.role("solver"), resolve(CPU), IDS)
    logits_TV.square().mean().backward()
    assert all(tensor.grad is None for _, tensor in base_tensors(weights.role("solver")))
    merged = peft.get_peft_model(theirs, peft.LoraConfig(r=3, lora_alpha=7.5, target_modules=list(MODULES)))
    with torch.no_grad():
        for index, layer in enumerate(weights.role("solver").layers):
            for target, module in MODULES.items():
                adapter, theirs_module = (
                    getattr(layer.lora, target),
                    merged.base_model.model.model.layers[index],
                )
                pair = theirs_module.get_submodule(module)
                pair.lora_A["default"].weight.copy_(adapter.a)
                pair.lora_B["default"].weight.copy_(adapter.b)
    merged(IDS[None]).logits.square().mean().backward()
    for index, layer in enumerate(weights.role("solver").layers):
        for target, module in MODULES.items():
            pair = merged.base_model.model.model.layers[index].get_submodule(module)
            adapter = getattr(layer.lora, target)
            for mine, truth in ((adapter.a, pair.lora_A), (adapter.b, pair.lora_B)):
                gradient = truth["default"].weight.grad
                assert (mine.grad - gradient).norm() < 1e-4 * gradient.norm(), (index, target)


REFUSED: dict[str, tuple[Callable[[dict[str, object]], object], str]] = {
    "dora": (lambda f: f.update(use_dora=True), "use_dora True"),
    "bias": (lambda f: f.update(bias="all"), "bias 'all'"),
    "kind": (lambda f: f.update(peft_type="LOHA"), "peft_type 'LOHA'"),
    "whole modules": (lambda f: f.update(modules_to_save=["lm_head"]), "modules_to_save"),
    "ranks": (lambda f: f.update(rank_pattern={"q_proj": 2}), "rank_pattern"),
    "no rank": (lambda f: f.pop("r"), "r must be a whole number"),
    "negative rank": (lambda f: f.update(r=-1), "r must be a whole number"),
    "endless alpha": (lambda f: f.update(lora_alpha=float("inf")), "lora_alpha a number"),
    "wrong rank": (lambda f: f.update(r=9), "expected [9, "),
}


@pytest.mark.parametrize("change", REFUSED)
def test_other_adapters_are_refused_by_name(change: str, folder: Path, tmp_path: Path) -> None:
    weights = with_random_adapters(folder, TARGETS[0])
    save_adapter(tmp_path / "adapter", weights.role("solver"), base=str(folder))
    path = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(path.read_text())
    act, named = REFUSED[change]
    act(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputError) as error:
        load_adapter(tmp_path / "adapter", weights.config, weights.role("base"))
    assert named in str(error.value)


def test_adapters_that_are_promised_and_missing_are_named(folder: Path, tmp_path: Path) -> None:
    weights = with_random_adapters(folder, ("q_proj", "down_proj"))
    save_adapter(tmp_path / "adapter", weights.role("solver"), base=str(folder))
    path = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"target_modules": ["q_proj", "down_proj", "v_proj"]}))
    with pytest.raises(InputError, match=r"layers\.0\.self_attn\.v_proj\.lora_A\.weight is missing"):
        load_adapter(tmp_path / "adapter", weights.config, weights.role("base"))


@pytest.mark.parametrize("layer", [0, [0]])
def test_adapters_of_some_layers_are_loaded_and_saved(layer: object, folder: Path, tmp_path: Path) -> None:
    weights = with_random_adapters(folder, ("q_proj", "down_proj"))
    save_adapter(tmp_path / "all", weights.role("solver"), base=str(folder))
    path = tmp_path / "all/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": layer}))
    file = tmp_path / "all/adapter_model.safetensors"
    write_tensors(file, {name: x for name, x in read_tensors(file).items() if ".layers.0." in name})
    some = load_adapter(tmp_path / "all", weights.config, weights.role("base"))
    save_adapter(tmp_path / "some", some, base=str(folder))
    # Another process may write over a file that was loaded.
    file.write_bytes(b"\0" * file.stat().st_size)
    again = load_adapter(tmp_path / "some", weights.config, weights.role("base"))
    assert torch.equal(logits(weights, again), logits(weights, some))
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "some")
    with torch.no_grad():
        assert close(logits(weights, some), theirs(IDS[None]).logits[0])


def new_engine(folder: Path) -> Engine:
    weights = load(folder)
    return Engine(Model(weights.config, weights.role("base"), folder=folder), num_pages=64)


def test_engine_saves_a_role_for_peft_and_loads_it_back(folder: Path, tmp_path: Path) -> None:
    with new_engine(folder) as engine:
        engine.fork("solver")
        engine.weights.add_lora("solver", LoraConfig(rank=3, targets=("q_proj", "down_proj")))
        for name, tensor in adapter_tensors(engine.weights.role("solver")):
            if name.endswith(".b"):
                torch.nn.init.normal_(tensor, 0, 0.3, generator=torch.Generator().manual_seed(1))
        engine.save("solver", tmp_path / "adapter", as_adapter=True)
        ours_TV = logits(engine.weights, engine.weights.role("solver"))
        hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(hf, tmp_path / "adapter")
        with torch.no_grad():
            assert close(ours_TV, theirs(IDS[None]).logits[0])
        params = SamplingParams(n=2, max_tokens=8, seed=1, ignore_eos=True)
        wanted = engine.generate([IDS.tolist()], params, role="solver")[0].samples
        engine.load("again", tmp_path / "adapter")
        assert engine.generate([IDS.tolist()], params, role="again")[0].samples == wanted
        assert engine.generate([IDS.tolist()], params, role="base")[0].samples != wanted
        assert engine.weights.base("again") == engine.weights.base("base")


def test_adapters_put_onto_a_trained_role_begin_their_optimizer_anew(folder: Path, tmp_path: Path) -> None:
    save_adapter(
        tmp_path / "adapter", with_random_adapters(folder, TARGETS[1]).role("solver"), base=str(folder)
    )
    with new_engine(folder) as engine:
        engine.fork("solver")
        params = SamplingParams(n=2, max_tokens=4, seed=1, ignore_eos=True)
        [output] = engine.generate([IDS.tolist()], params, "solver")
        groups = [TrainGroup(output.prompt_token_ids, output.samples, rewards=[0.0, 1.0])]
        engine.train_step("solver", groups, TrainConfig(kl_coef=0.0))
        assert engine.training_state("solver")["step"] == 1
        engine.save("solver", tmp_path / "full")
        engine.load("solver", tmp_path / "adapter")
        assert engine.training_state("solver") == {"step": 0}
        engine.train_step("solver", groups, TrainConfig(kl_coef=0.0))
        engine.load("solver", tmp_path / "full")
        assert engine.training_state("solver") == {"step": 0}


def test_engine_says_what_is_wrong_with_an_adapter(folder: Path, tmp_path: Path) -> None:
    weights = with_random_adapters(folder, TARGETS[1])
    save_adapter(tmp_path / "adapter", weights.role("solver"), base=str(folder))
    with new_engine(folder) as engine:
        with pytest.raises(InputError, match="'base' has no adapters; save it with as_adapter=False"):
            engine.save("base", tmp_path / "none", as_adapter=True)
        with pytest.raises(InputError, match="role 'reference' does not exist"):
            engine.load("solver", tmp_path / "adapter", of="reference")
        engine.load("solver", tmp_path / "adapter")
        with pytest.raises(InputError, match="role 'solver' has adapters"):
            engine.load("other", tmp_path / "adapter", of="solver")
        with pytest.raises(InputError, match=r"config\.json"):
            engine.load("other", tmp_path)
        (tmp_path / "adapter/adapter_model.safetensors").unlink()
        with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
            engine.load("other", tmp_path / "adapter")
        assert engine.weights.roles == ("base", "solver")


PREFIX = "base_model.model.model.layers.1"


@pytest.mark.parametrize(
    ("name", "new", "named"),
    [
        (f"{PREFIX}.self_attn.q_proj.lora_A.weight", None, "only one of the two matrices of q_proj"),
        (
            f"{PREFIX}.self_attn.q_proj.lora_A.weight",
            f"{PREFIX}0.self_attn.q_proj.lora_A.weight",
            "fits no projection",
        ),
        (
            f"{PREFIX}.self_attn.q_proj.lora_A.weight",
            "base_model.model.lm_head.lora_A.weight",
            "fits no projection",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    name: str, new: str | None, named: str, folder: Path, tmp_path: Path
) -> None:
    weights = with_random_adapters(folder, TARGETS[0])
    save_adapter(tmp_path / "adapter", weights.role("solver"), base=str(folder))
    path = tmp_path / "adapter/adapter_model.safetensors"
    tensors = read_tensors(path)
    moved = tensors.pop(name)
    write_tensors(path, tensors | ({new: moved} if new else {}))
    with pytest.raises(InputError, match=named):
        load_adapter(tmp_path / "adapter", weights.config, weights.role("base"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"rank": 0}, "rank is 0"), ({"alpha": 0.0}, "alpha is 0.0"), ({"targets": ("lm_head",)}, "'lm_head'"),
     ({"targets": ()}, "allowed: q_proj")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        LoraConfig(**settings)  # type: ignore[arg-type]
