# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: text and conversations to ids and back, ends of sequence, and folders without a usable one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import transformers
from hf_models import random_config

from rzero.engine.errors import InputError
from rzero.engine.tokenizer import Tokenizer, load_tokenizer

CONFIG = replace(random_config("llama"), vocab_size=400, eos_token_ids=(1, 7))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A byte-level tokenizer with a beginning and an end of sequence, as transformers saves it."""
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    raw.train_from_iterator(["the cat sat on the mat", "twelve plus seven is nineteen"], trainer)
    raw.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "m")


@pytest.fixture
def tokenizer(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, CONFIG)


@pytest.mark.parametrize(
    "text", ["the cat sat", "", " two  spaces , and a stop .", "naïve 数学 🙂\n\n\ttab", "<s>x</s>"]
)
def test_text_comes_back_unchanged(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == 0 and all(type(token) is int for token in ids)
    assert tokenizer.decode(ids) == text.replace("<s>", "").replace("</s>", "")
    assert tokenizer.encode(text, add_special_tokens=False) == ids[1:]


def test_special_tokens_are_shown_on_request(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0, *tokenizer.encode("mat", add_special_tokens=False), 1], False) == "<s>mat</s>"


def test_a_conversation_follows_the_template(tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the mat?"}]
    ids = tokenizer.chat(messages)
    assert ids.count(0) == 1, "the template writes the beginning of sequence: it must not come twice"
    assert tokenizer.decode(ids, False) == "<s>[system]be brief[user]the mat?[assistant]"
    assert tokenizer.decode(tokenizer.chat(messages, False), False) == "<s>[system]be brief[user]the mat?"


def test_the_ends_of_sequence_of_all_files_count(tokenizer: Tokenizer) -> None:
    assert tokenizer.eos_ids == (1, 7)


def test_a_larger_embedding_is_fine_and_a_smaller_one_is_not(folder: Path) -> None:
    size = load_tokenizer(folder, CONFIG).vocab_size
    assert load_tokenizer(folder, replace(CONFIG, vocab_size=size)).vocab_size == size
    with pytest.raises(
        InputError, match=f"ids up to {size - 1}, but config.json gives vocab_size {size - 1}"
    ):
        load_tokenizer(folder, replace(CONFIG, vocab_size=size - 1))


def test_without_a_template_there_is_no_chat(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make(tmp_path / "m", None), CONFIG)
    assert not tokenizer.has_chat_template
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "x"}])


def test_what_the_template_refuses_is_reported(tmp_path: Path) -> None:
    refusing = "{{ raise_exception('roles must alternate') }}"
    tokenizer = load_tokenizer(make(tmp_path / "m", refusing), CONFIG)
    with pytest.raises(InputError, match="roles must alternate"):
        tokenizer.chat([{"role": "user", "content": "x"}])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: path.write_text(path.read_text()[:500]),
    "no tokenizer": lambda path: path.write_text("{}"),
    "a list": lambda path: path.write_text("[]"),
    "another model": lambda path: path.write_text(path.read_text().replace('"BPE"', '"unheard-of"')),
    "binary": lambda path: path.write_bytes(b"\xff\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_unusable_tokenizer_is_one_sentence(damage: str, folder: Path) -> None:
    DAMAGE[damage](folder / "tokenizer.json")
    with pytest.raises(InputError, match="the tokenizer is unusable") as error:
        load_tokenizer(folder, CONFIG)
    assert str(folder) in str(error.value)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no tokenizer"):
        load_tokenizer(tmp_path, CONFIG)
