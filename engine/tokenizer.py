# SPDX-License-Identifier: Apache-2.0
"""The tokenizer of a model folder: a thin layer over transformers, with the few calls the engine needs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError


class Tokenizer:
    """Text to token ids and back; `hf` is the transformers tokenizer behind it, for whoever needs more."""

    def __init__(self, hf: Any, config: ModelConfig) -> None:
        self.hf = hf
        self.vocab_size = 1 + max(hf.get_vocab().values())
        """One more than the largest id: embeddings may have more rows, never fewer."""
        own = () if hf.eos_token_id is None else (int(hf.eos_token_id),)
        self.eos_ids = tuple(dict.fromkeys(config.eos_token_ids + own))
        """The ids that end an answer: of config.json, generation_config.json and the tokenizer."""
        added = (token.content for token in hf.added_tokens_decoder.values() if token.special)
        self.control_tokens = tuple(sorted({*hf.all_special_tokens, *added}))
        """Texts that `encode` and `chat` turn into one special token wherever they stand."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return bool(self.hf.chat_template)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with the model's beginning of sequence where it has one.

        Raises InputError for a character that a vocabulary without an unknown token does not have.
        """
        with _NamingErrors(f"the tokenizer cannot encode {text[:80]!r}"):
            return list(self.hf.encode(text, add_special_tokens=add_special_tokens))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids, without special tokens and otherwise unchanged."""
        return str(
            self.hf.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation of {"role", "content"} under the model's chat template, up to the
        answer's start.

        Raises InputError where the tokenizer has no template or the template refuses the messages.
        """
        if not self.has_chat_template:
            raise InputError(
                "this model's tokenizer has no chat template; give plain text instead of messages"
            )
        from jinja2 import TemplateError

        try:
            text = self.hf.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses these messages: {error}") from error
        return self.encode(text, add_special_tokens=False)


class _NamingErrors:
    """Turns what a tokenizer's library raises into an InputError that begins with `what`.

    The library in Rust raises plain `Exception`, which no except clause can name without catching everything
    else.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        known = (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError)
        if kind is Exception or isinstance(error, known):
            message = f"{type(error).__name__}: {error}"
            raise InputError(f"{self.what}: {message[:300]}") from error


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    Raises InputError where it is missing, unusable, or has more ids than the model has embeddings.
    """
    # transformers takes a second to import, which a program that only reads a config should not pay.
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{folder}: there is no tokenizer (tokenizer.json, tokenizer.model or vocab.json)")
    with _NamingErrors(f"{folder}: the tokenizer is unusable"):
        hf = AutoTokenizer.from_pretrained(folder, local_files_only=True, config=_class_hint(folder, config))
        tokenizer = Tokenizer(hf, config)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, "
            f"but config.json gives vocab_size {config.vocab_size}"
        )
    return tokenizer


def _class_hint(folder: Path, config: ModelConfig) -> Any:
    """What transformers must know of the model to choose the tokenizer's class, where the folder names one.

    Without it transformers loads the model's own config class, and with that half of itself and of
    torch.distributed, for two seconds.
    """
    from transformers import PreTrainedConfig

    settings = folder / "tokenizer_config.json"
    if not settings.is_file() or "tokenizer_class" not in json.loads(settings.read_text(encoding="utf-8")):
        return None
    hint = PreTrainedConfig(name_or_path=str(folder))
    hint.model_type = config.model_type
    return hint
