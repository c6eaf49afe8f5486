# SPDX-License-Identifier: Apache-2.0
"""Model folders: read and written, whole or in shards; damage is answered by one sentence."""

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import CPU, IDS, SHAPES, random_hf, save

from rzero.engine.checkpoint import hf_tensors, load_config, load_weights, resolve_model, save_hf
from rzero.engine.errors import InputError
from rzero.engine.tensor_file import new_folder, read_tensors, write_tensors
from rzero.engine.weights import ModelWeights, Weights, base_tensors


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 folder as transformers writes it."""
    return save(random_hf("qwen2"), tmp_path_factory.mktemp("made") / "m")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "m"))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> ModelWeights:
    return load_weights(folder, load_config(folder), dtype, CPU)


def same(a: ModelWeights, b: ModelWeights) -> bool:
    return all(torch.equal(x, y) for (_, x), (_, y) in zip(base_tensors(a), base_tensors(b), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_loads_what_is_saved(shape: str, tmp_path: Path) -> None:
    hf = random_hf(shape)
    source = save(hf, tmp_path / "theirs")
    save_hf(tmp_path / "ours", load_config(source), load(source), source)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    assert back.config.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(back(IDS[None]).logits, hf(IDS[None]).logits)
    assert same(load(tmp_path / "ours"), load(source))
    assert (tmp_path / "ours/generation_config.json").is_file()


def test_shards_are_read_and_written(folder: Path, tmp_path: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs = save(hf, tmp_path / "theirs", max_shard_size="20KB")
    assert len(list(theirs.glob("*.safetensors"))) > 2
    config, weights = load_config(folder), load(folder)
    assert same(load(theirs), weights)
    save_hf(tmp_path / "ours", config, weights, shard_bytes=20_000)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) > 2
    assert same(load(tmp_path / "ours"), weights)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), hf.parameters(), strict=True))


def test_number_types_are_converted_tensor_by_tensor(folder: Path, tmp_path: Path) -> None:
    full, half = load(folder), load(folder, torch.bfloat16)
    assert torch.equal(half.layers[1].qkv, full.layers[1].qkv.bfloat16())
    save_hf(tmp_path / "half", load_config(folder), half)
    assert load_config(tmp_path / "half").torch_dtype == "bfloat16"
    assert torch.equal(load(tmp_path / "half").embed, full.embed.bfloat16().float())


def test_a_bare_decoder_without_a_head_is_read(folder: Path, tmp_path: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    bare = save(hf.model, tmp_path / "bare")
    assert "embed_tokens.weight" in read_tensors(bare / "model.safetensors")
    assert same(load(bare), load(folder))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors)


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


def rewrite(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


Q = "model.layers.1.self_attn.q_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "there is no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: the file is missing"),
    "no JSON": (
        lambda f: (f / "config.json").write_text('{"model_type": '),
        "config.json: not readable as JSON",
    ),
    "a list": (
        lambda f: (f / "config.json").write_text("[]"),
        "config.json: expected a JSON object, found list",
    ),
    "binary": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json: not readable as JSON",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "half a file": (
        lambda f: cut(f / "model.safetensors", 0.5),
        "model.safetensors: not a complete safetensors file",
    ),
    "half a header": (lambda f: cut(f / "model.safetensors", 0.001), "not a complete safetensors file"),
    "an empty file": (lambda f: cut(f / "model.safetensors", 0), "not a complete safetensors file"),
    "a text file": (
        lambda f: (f / "model.safetensors").write_text("git-lfs pointer"),
        "not a complete safetensors",
    ),
    "a missing tensor": (lambda f: edit(f, lambda t: t.pop(Q)), f"tensor {Q} is missing"),
    "a wrong shape": (
        lambda f: edit(f, lambda t: t.update({Q: t[Q][:, :-1]})),
        f"tensor {Q} has shape [42, 41], expected [42, 42]",
    ),
    "a wrong number of dimensions": (
        lambda f: edit(f, lambda t: t.update({Q: t[Q].view(-1)})),
        f"tensor {Q} has shape [1764], expected [42, 42]",
    ),
    "integers": (lambda f: edit(f, lambda t: t.update({Q: t[Q].int()})), f"tensor {Q} is stored as I32"),
    "a bias we do not add": (
        lambda f: edit(f, lambda t: t.update({"model.layers.0.mlp.down_proj.bias": torch.ones(42)})),
        "tensor model.layers.0.mlp.down_proj.bias does not belong",
    ),
    "a layer too many": (
        lambda f: edit(f, lambda t: t.update({"model.layers.2.self_attn.q_proj.weight": t[Q]})),
        "tensor model.layers.2.self_attn.q_proj.weight does not belong",
    ),
    "a head that is not the embedding": (
        lambda f: edit(f, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1})),
        "lm_head.weight differs from the embedding",
    ),
    "a vocabulary that no memory holds": (
        lambda f: rewrite(f / "config.json", vocab_size=10**13),
        "expected [10000000000000, 42]",
    ),
    "a size that no number of bytes holds": (
        lambda f: rewrite(f / "config.json", intermediate_size=10**18),
        "config.json describes tensors that no memory holds",
    ),
    "layers that no memory holds": (
        lambda f: rewrite(f / "config.json", num_hidden_layers=10**9, layer_types=None),
        "num_hidden_layers 1000000000",
    ),
    "an index without a map": (
        lambda f: (
            (f / "model.safetensors").unlink(),
            (f / "model.safetensors.index.json").write_text("{}"),
        ),
        "weight_map is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_one_sentence(damage: str, folder: Path) -> None:
    act, sentence = DAMAGE[damage]
    act(folder)
    with pytest.raises(InputError) as error:
        load(folder)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    save_hf(tmp_path / "m2", load_config(folder), load(folder), shard_bytes=20_000)
    (tmp_path / "m2/model-00002-of-00003.safetensors").unlink(missing_ok=True)
    name = sorted(
        json.loads((tmp_path / "m2/model.safetensors.index.json").read_text())["weight_map"].values()
    )[0]
    (tmp_path / "m2" / name).unlink(missing_ok=True)
    with pytest.raises(InputError, match="safetensors: the file is missing"):
        load(tmp_path / "m2")


def test_tensors_without_effect_are_passed_over(folder: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(7)}
    before = load(folder)
    edit(folder, lambda t: t.update({**extra, "lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert same(load(folder), before)


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 30 kB, which is how the system tells of a disk that fills up while writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_disk_that_fills_up_changes_nothing(folder: Path, small_files: None) -> None:
    config, weights = load_config(folder), load(folder)
    before = contents(folder.parent)
    with pytest.raises(InputError, match="cannot be written: File too large; it is as it was"):
        save_hf(folder, config, weights)
    with pytest.raises(InputError, match="cannot be written: File too large; it is as it was"):
        write_tensors(folder / "model.safetensors", hf_tensors(config, weights))
    with pytest.raises(InputError, match="cannot be written"):
        save_hf(folder.parent / "new", config, weights)
    assert contents(folder.parent) == before and [path.name for path in folder.parent.iterdir()] == ["m"]


def test_a_disk_that_is_too_small_is_seen_before_writing(folder: Path) -> None:
    before = contents(folder)
    sentence = r"it needs 1,000,000,000,000,000,000 bytes, [\d,]+ are free"
    with pytest.raises(InputError, match=sentence), new_folder(folder, 10**18):
        raise AssertionError("the block must not run")
    assert contents(folder) == before


def test_an_interrupt_while_writing_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(KeyboardInterrupt), new_folder(folder) as new:
        (new / "config.json").write_text("half")
        raise KeyboardInterrupt
    assert contents(folder) == before and [path.name for path in folder.parent.iterdir()] == ["m"]


def test_what_a_killed_writer_left_is_cleared_away(folder: Path) -> None:
    (folder.parent / ".m.partial").mkdir()
    (folder.parent / ".m.partial/junk").write_text("junk")
    config, weights = load_config(folder), load(folder)
    save_hf(folder, config, weights)
    assert not (folder / "junk").exists() and [path.name for path in folder.parent.iterdir()] == ["m"]
    assert same(load(folder), weights)


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save_hf(tmp_path / "file/m", load_config(folder), load(folder))


def test_saving_a_role_merges_nothing_into_the_others(folder: Path, tmp_path: Path) -> None:
    weights = Weights(load_config(folder), load(folder))
    weights.fork("solver", of="base")
    weights.own("solver").layers[0].o.mul_(2)
    save_hf(tmp_path / "solver", weights.config, weights.role("solver"))
    assert torch.equal(load(tmp_path / "solver").layers[0].o, 2 * load(folder).layers[0].o)
    assert same(load(folder), weights.role("base"))


@pytest.mark.parametrize("name", ["no/such/folder", "nofolder", "./m", "/nowhere/m", "owner/na me"])
def test_names_that_are_no_model_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        resolve_model(name)


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(InputError, match="is a file"):
        resolve_model(folder / "config.json")
    assert resolve_model(str(folder)) == folder


def test_a_hub_name_is_looked_up_in_the_cache_and_then_on_the_hub(folder: Path, tmp_path: Path) -> None:
    """In a process of its own: the hub's library reads its settings when it is imported."""
    repository, commit = tmp_path / "hub/models--owner--name", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    code = (
        "from rzero.engine.checkpoint import resolve_model, load_config\n"
        "from rzero.engine.errors import InputError\n"
        "print(load_config(resolve_model('owner/name')).model_type)\n"
        "try:\n    resolve_model('owner/absent')\nexcept InputError as error:\n    print(error)\n"
    )
    environment = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    found, absent = done.stdout.splitlines()
    assert found == "qwen2", done.stderr
    assert absent.startswith("model 'owner/absent': there is no such folder, and the hub does not give it")


def test_saving_behind_a_link_leaves_the_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "large")
    for _ in range(2):
        save_hf(tmp_path / "link", load_config(folder), load(folder))
    assert (tmp_path / "link").is_symlink() and same(load(tmp_path / "large"), load(folder))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: it is a file"):
        save_hf(tmp_path / "file", load_config(folder), load(folder))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"vocab_size": ' + "9" * 5000 + "}"])
def test_json_that_python_does_not_read_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not readable as JSON"):
        load_config(folder)
