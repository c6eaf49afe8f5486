# SPDX-License-Identifier: Apache-2.0
"""The decoder against transformers: logits, greedy tokens, gradients, number types, both kinds of step."""

import gc
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import CPU, IDS, SHAPES, PagedSequence, greedy, packed_logits, random_hf, save

from rzero.engine.checkpoint import hf_tensors, load_config, load_weights
from rzero.engine.lora import LoraConfig
from rzero.engine.tokenizer import load_tokenizer
from rzero.engine.weights import Weights, base_tensors
from rzero.kernels import Kernels, resolve

BACKENDS = ("ref", "auto")
OPS_OF_THE_DECODER = (
    "rmsnorm",
    "add_rmsnorm",
    "rope",
    "rope_write",
    "swiglu",
    "attention",
    "paged_attention",
)
MODELS = ("smollm2-135m-instruct", "qwen2.5-coder-0.5b-instruct")


@pytest.fixture(params=BACKENDS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return resolve(CPU, {"default": request.param})


def spread(error: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest error relative to the truth's standard deviation."""
    return float(error.abs().max() / truth.std())


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_greedy_tokens_are_those_of_transformers(
    shape: str, kernels: Kernels, tmp_path: Path
) -> None:
    hf = random_hf(shape)
    folder = save(hf, tmp_path / "m")
    config = load_config(folder)
    weights = load_weights(folder, config, torch.float32, CPU)
    with torch.no_grad():
        truth_TV = hf(IDS[None]).logits[0]
        assert spread(packed_logits(config, weights, kernels, IDS) - truth_TV, truth_TV) < 1e-4
    prompt = IDS[:37].tolist()
    settings = {
        "do_sample": False,
        "max_new_tokens": 64,
        "min_new_tokens": 64,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    truth = hf.generate(torch.tensor([prompt]), **settings)[0, 37:].tolist()
    assert len(set(truth)) > 8, "a model that repeats itself shows nothing"
    assert greedy(PagedSequence(config, weights, kernels), prompt, 64) == truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lora", [None, LoraConfig(rank=3, targets=("q_proj", "v_proj", "down_proj", "up_proj"))]
)
@pytest.mark.parametrize("shape", SHAPES)
def test_sampling_and_training_compute_the_same(
    shape: str, lora: LoraConfig | None, dtype: torch.dtype, kernels: Kernels, tmp_path: Path
) -> None:
    folder = save(random_hf(shape), tmp_path / "m")
    config = load_config(folder)
    roles = Weights(config, load_weights(folder, config, dtype, CPU))
    if lora:
        roles.add_lora("base", lora)
        for _, tensor in roles.trainable_tensors("base"):
            tensor.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    weights, ids = roles.role("base"), IDS.tolist()
    packed_TV = packed_logits(config, weights, kernels, IDS).detach()
    sequence = PagedSequence(config, weights, kernels)
    chunks = [ids[:50], ids[50:113], *([token] for token in ids[113:])]
    paged_TV = torch.cat([sequence.logits(chunk) for chunk in chunks])
    if {choice.backend for choice in kernels.report if choice.op in OPS_OF_THE_DECODER} == {"native"}:
        assert torch.equal(packed_TV, paged_TV)
    else:
        bound = 1e-4 if dtype == torch.float32 else 0.1
        assert spread(packed_TV.float() - paged_TV.float(), packed_TV.float()) < bound


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_are_those_of_transformers(
    shape: str, recompute: bool, kernels: Kernels, tmp_path: Path
) -> None:
    hf = random_hf(shape)
    folder = save(hf, tmp_path / "m")
    config = load_config(folder)
    weights = load_weights(folder, config, torch.float32, CPU)
    for _, tensor in base_tensors(weights):
        tensor.requires_grad_(True)
    ids_T, target_T = IDS[:40], IDS[1:41]
    torch.nn.functional.cross_entropy(hf(ids_T[None]).logits[0], target_T).backward()
    logits_TV = packed_logits(config, weights, kernels, ids_T, recompute_layers=recompute)
    torch.nn.functional.cross_entropy(logits_TV, target_T).backward()
    got = load_weights(folder, config, torch.float32, CPU)
    for (_, slot), (_, tensor) in zip(base_tensors(got), base_tensors(weights), strict=True):
        assert tensor.grad is not None
        slot.copy_(tensor.grad)
    mine = hf_tensors(config, got)
    for name, parameter in hf.named_parameters():
        error = (mine[name] - parameter.grad).norm() / parameter.grad.norm()
        assert parameter.grad.norm() > 0 and error < 1e-4, name


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_as_close_as_that_of_transformers(shape: str, kernels: Kernels, tmp_path: Path) -> None:
    hf = random_hf(shape)
    folder = save(hf, tmp_path / "m")
    config = load_config(folder)
    weights = load_weights(folder, config, torch.bfloat16, CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in hf.parameters():  # the truth is float32 arithmetic on the rounded weights
            parameter.copy_(parameter.bfloat16())
        truth_TV, theirs_TV = hf(IDS[None]).logits[0], theirs(IDS[None]).logits[0].float()
        logits_TV = packed_logits(config, weights, kernels, IDS)
    assert logits_TV.dtype == torch.bfloat16
    assert (logits_TV.float() - truth_TV).norm() < 1.5 * (theirs_TV - truth_TV).norm()


def test_rows_do_not_depend_on_what_else_is_packed(kernels: Kernels, tmp_path: Path) -> None:
    folder = save(random_hf("qwen3"), tmp_path / "m")
    config = load_config(folder)
    weights = load_weights(folder, config, torch.float32, CPU)
    with torch.no_grad():
        long_TV = packed_logits(config, weights, kernels, IDS)
        short_TV = packed_logits(config, weights, kernels, IDS[:3])
    assert spread(long_TV[:3] - short_TV, long_TV) < 1e-5


@pytest.mark.models
@pytest.mark.parametrize("name", MODELS)
def test_real_model_against_transformers(name: str, models_dir: Path) -> None:
    folder = models_dir / name
    config = load_config(folder)
    messages = [{"role": "user", "content": "Write a function that tells whether a number is prime."}]
    prompt = load_tokenizer(folder, config).chat(messages)
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = {"do_sample": False, "max_new_tokens": 64, "min_new_tokens": 64}
    with torch.no_grad():
        truth = hf.generate(torch.tensor([prompt]), **settings)[0].tolist()
        truth_TV = hf(torch.tensor([truth])).logits[0]
    del hf  # two float32 models side by side would not fit a small machine
    gc.collect()
    kernels = resolve(CPU)
    weights = load_weights(folder, config, torch.float32, CPU)
    with torch.no_grad():
        logits_TV = packed_logits(config, weights, kernels, torch.tensor(truth))
    assert spread(logits_TV - truth_TV, truth_TV) < 1e-4
    assert greedy(PagedSequence(config, weights, kernels), prompt, 64) == truth[len(prompt) :]


def test_a_role_is_what_forward_takes(tmp_path: Path) -> None:
    folder = save(random_hf("llama"), tmp_path / "m")
    config = load_config(folder)
    roles = Weights(config, load_weights(folder, config, torch.float32, CPU))
    roles.fork("solver", of="base")
    kernels = resolve(CPU)
    with torch.no_grad():
        a_TV = packed_logits(config, roles.role("base"), kernels, IDS)
        b_TV = packed_logits(config, roles.role("solver"), kernels, IDS)
    assert torch.equal(a_TV, b_TV)
