# SPDX-License-Identifier: Apache-2.0
"""The engine: one model, its weights by role and its paged key/value cache; it samples and trains.

    from rzero.engine import Engine, SamplingParams

Names are imported on first use, so that a program which only needs `InputError` or `SamplingParams` starts
without torch.
"""

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rzero.engine.config import ModelConfig
    from rzero.engine.engine import Engine, Model, load_model
    from rzero.engine.errors import InputError
    from rzero.engine.grpo import TrainConfig, TrainGroup
    from rzero.engine.lora import LoraConfig
    from rzero.engine.outputs import RequestOutput, Sample
    from rzero.engine.sampling import SamplingParams
    from rzero.engine.tokenizer import Tokenizer
    from rzero.engine.weights import Weights

__all__ = [
    "Engine",
    "InputError",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "RequestOutput",
    "Sample",
    "SamplingParams",
    "Tokenizer",
    "TrainConfig",
    "TrainGroup",
    "Weights",
    "load_model",
]

_HOME: Mapping[str, str] = MappingProxyType(
    {
        "Engine": "engine",
        "InputError": "errors",
        "LoraConfig": "lora",
        "Model": "engine",
        "ModelConfig": "config",
        "RequestOutput": "outputs",
        "Sample": "outputs",
        "SamplingParams": "sampling",
        "Tokenizer": "tokenizer",
        "TrainConfig": "grpo",
        "TrainGroup": "grpo",
        "Weights": "weights",
        "load_model": "engine",
    }
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
