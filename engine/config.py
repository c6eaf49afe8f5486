# SPDX-License-Identifier: Apache-2.0
"""What a decoder looks like, read from and written to the `config.json` of a Hugging Face folder.

Three model types share one decoder: llama, qwen2 and qwen3. A field that would change the result and that the
decoder does not compute is refused by name; nothing is ignored in silence. transformers 4 writes `rope_theta`
and `rope_scaling`, transformers 5 writes `rope_parameters`: both are read, and `to_hf` writes what either of
them understands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from rzero.engine.errors import InputError

ARCHITECTURES: Mapping[str, str] = MappingProxyType(
    {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
)
ROPE_FIELDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
)
# Fields whose one listed value is what the decoder computes; any other value is refused.
FIXED: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "hidden_act": ("silu", "swish"),
        "hidden_activation": ("silu", "swish", None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "attention_dropout": (0, None),
        "partial_rotary_factor": (1, None),
        "use_sliding_window": (False, None),
        "use_mrope": (False, None),
        "qkv_bias": (None,),
        "use_qk_norm": (None,),
        "is_encoder_decoder": (False, None),
        "add_cross_attention": (False, None),
    }
)
# Parts of names under which other decoders keep what changes their result. transformers ignores unknown
# fields of the three types, but a folder that carries one of these was made for another program.
SUSPECT = (
    "expert",
    "moe",
    "router",
    "softcap",
    "sliding",
    "alibi",
    "multiplier",
    "scaling",
    "scale",
    "clip_qkv",
)
SUSPECT_PREFIXES = ("quant", "compression_config", "mup", "block_sparse", "query_pre_attn", "no_rope")
# Read elsewhere, or without effect although their names look suspicious.
KNOWN = frozenset(
    {
        "rope_scaling",
        "sliding_window",
        "use_sliding_window",
        "output_router_logits",
        "router_aux_loss_coef",
        "initializer_range",
    }
)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: `kind` is default, linear or llama3; the rest as in transformers."""

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_positions: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """One decoder's shape; `from_hf` reads it from a `config.json`, `to_hf` writes it back.

    Two are equal where the same weights compute the same with either: ids and number type of a file do not
    count.
    """

    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_positions: int
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    eos_token_ids: tuple[int, ...] = field(default=(), compare=False)
    bos_token_id: int | None = field(default=None, compare=False)
    pad_token_id: int | None = field(default=None, compare=False)
    torch_dtype: str = field(default="float32", compare=False)
    """The number type that the checkpoint is stored in; the one computed in is the engine's choice."""

    @property
    def qkv_sizes(self) -> tuple[int, int, int]:
        """Rows of the query, key and value projections: H E, G E, G E."""
        return self.heads * self.head_size, self.kv_heads * self.head_size, self.kv_heads * self.head_size

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection: (H + 2 G) E."""
        return sum(self.qkv_sizes)

    @property
    def scale(self) -> float:
        """The factor on query-key products: 1 / sqrt(E)."""
        return float(self.head_size**-0.5)

    @property
    def parameters(self) -> int:
        """The number of weights, tied ones counted once."""
        norms = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        attention = (self.qkv_size + self.heads * self.head_size) * self.hidden_size
        bias = self.qkv_size if self.qkv_bias else 0
        layer = norms + attention + bias + 3 * self.intermediate_size * self.hidden_size
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.hidden_size
        return self.layers * layer + embeddings + self.hidden_size

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token keeps in the cache, all layers together."""
        return 2 * self.layers * self.kv_heads * self.head_size * element_bytes

    @staticmethod
    def from_hf(fields: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> "ModelConfig":
        """Read a `config.json` (and a `generation_config.json`, for the ids that end an answer).

        Raises InputError that names the field where one is missing, malformed or beyond what the decoder
        computes.
        """
        model_type = fields.get("model_type")
        if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
            raise InputError(
                f"config.json: model_type {model_type!r} is not supported (only {', '.join(ARCHITECTURES)})"
            )
        _refuse_what_we_do_not_compute(fields)
        hidden_size, heads = _positive(fields, "hidden_size"), _positive(fields, "num_attention_heads")
        kv_heads = _positive(fields, "num_key_value_heads", heads)
        if heads % kv_heads:
            raise InputError(
                f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
            )
        head_size = _positive(fields, "head_dim", 128 if model_type == "qwen3" else hidden_size // heads)
        if head_size % 2:
            raise InputError(f"config.json: head_dim {head_size} is odd; rotary embedding needs an even size")
        max_positions = _positive(fields, "max_position_embeddings")
        return ModelConfig(
            model_type=model_type,
            hidden_size=hidden_size,
            layers=_positive(fields, "num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            intermediate_size=_positive(fields, "intermediate_size"),
            vocab_size=_positive(fields, "vocab_size"),
            rms_norm_eps=_number(fields, "rms_norm_eps", 1e-6),
            rope=_rope(fields, max_positions),
            max_positions=max_positions,
            qkv_bias=model_type == "qwen2",
            qk_norm=model_type == "qwen3",
            tied=bool(fields.get("tie_word_embeddings", False)),
            eos_token_ids=tuple(
                dict.fromkeys(_ids(fields, "eos_token_id") + _ids(generation or {}, "eos_token_id"))
            ),
            bos_token_id=next(iter(_ids(fields, "bos_token_id")), None),
            pad_token_id=next(iter(_ids(fields, "pad_token_id")), None),
            torch_dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32"),
        )

    def to_hf(self) -> dict[str, Any]:
        """The `config.json` of this model, for transformers 4.43 and later, 5 included."""
        rope: dict[str, Any] = {"rope_type": self.rope.kind}
        values = (
            self.rope.factor,
            self.rope.low_freq_factor,
            self.rope.high_freq_factor,
            self.rope.original_max_positions,
        )
        rope |= dict(zip(ROPE_FIELDS[self.rope.kind], values, strict=False))
        fields: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_size,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "hidden_act": "silu",
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope.theta,
            "rope_scaling": None if self.rope.kind == "default" else rope,
            "rope_parameters": {**rope, "rope_theta": self.rope.theta},
            "tie_word_embeddings": self.tied,
            "attention_dropout": 0.0,
            "eos_token_id": list(self.eos_token_ids) or None,
            "bos_token_id": self.bos_token_id,
            "pad_token_id": self.pad_token_id,
            "torch_dtype": self.torch_dtype,
            "dtype": self.torch_dtype,
            "use_cache": True,
        }
        if self.model_type == "llama":
            return fields | {"attention_bias": False, "mlp_bias": False}
        window = {"use_sliding_window": False, "sliding_window": None, "max_window_layers": self.layers}
        return fields | window | ({"attention_bias": False} if self.model_type == "qwen3" else {})


def _refuse_what_we_do_not_compute(fields: Mapping[str, Any]) -> None:
    for name, allowed in FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(
                f"config.json: {name} {fields[name]!r} is not supported (allowed: {allowed[0]!r})"
            )
    window = fields.get("sliding_window")
    if window is not None and fields.get("model_type") == "llama":
        raise InputError(f"config.json: sliding_window {window!r} is not supported (allowed: null)")
    for name, kind, word in (("layer_types", list, "a list"), ("auto_map", dict, "an object")):
        if not isinstance(fields.get(name) or kind(), kind):
            raise InputError(f"config.json: {name} is {fields[name]!r}, expected {word}")
    windowed = sorted({str(kind) for kind in fields.get("layer_types") or ()} - {"full_attention"})
    if windowed:
        raise InputError(
            f"config.json: layer_types contains {windowed[0]!r} (allowed: only 'full_attention')"
        )
    if "AutoModelForCausalLM" in (fields.get("auto_map") or {}):
        raise InputError(
            "config.json: auto_map asks for the model's own code, which is not run (remove the field)"
        )
    for name, value in fields.items():
        suspect = name.startswith(SUSPECT_PREFIXES) or any(part in name for part in SUSPECT)
        # True equals 1, and is no factor that changes nothing.
        is_inert = value is not True and value in (None, False, 0, 1, "", [], {})
        if suspect and name not in KNOWN and not is_inert:
            raise InputError(f"config.json: {name} {value!r} is not supported and would change the result")


def _rope(fields: Mapping[str, Any], max_positions: int) -> RopeConfig:
    # transformers lets rope_scaling win where a file carries both (convert_rope_params_to_dict).
    source = "rope_scaling" if fields.get("rope_scaling") else "rope_parameters"
    given = fields.get(source) or {}
    if not isinstance(given, Mapping):
        raise InputError(f"config.json: {source} is {given!r}, expected an object")
    kind = given.get("rope_type", given.get("type", "default"))
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        raise InputError(f"config.json: {source} has rope_type {kind!r} (allowed: {', '.join(ROPE_FIELDS)})")
    for name, value in given.items():
        inert = value is None or (name == "partial_rotary_factor" and value == 1)
        if name not in ("rope_type", "type", "rope_theta", *ROPE_FIELDS[kind]) and not inert:
            raise InputError(
                f"config.json: {source} field {name} ({value!r}) is not supported for rope_type {kind!r}"
            )
    thetas = (source.get("rope_theta") for source in (given, fields))
    theta = next((value for value in thetas if value is not None), 10000.0)
    rope = RopeConfig(kind=kind, theta=_number({"rope_theta": theta}, "rope_theta", None))
    if kind == "default":
        return rope
    factor = _number(given, "factor", None)
    if kind == "linear":
        return RopeConfig(kind=kind, theta=rope.theta, factor=factor)
    original = given.get(
        "original_max_position_embeddings", fields.get("original_max_position_embeddings", max_positions)
    )
    if fields.get("original_max_position_embeddings", original) != original:
        raise InputError("config.json: original_max_position_embeddings differs from the one in " + source)
    return RopeConfig(
        kind=kind,
        theta=rope.theta,
        factor=factor,
        low_freq_factor=_number(given, "low_freq_factor", None),
        high_freq_factor=_number(given, "high_freq_factor", None),
        original_max_positions=_positive(
            {"original_max_position_embeddings": original}, "original_max_position_embeddings"
        ),
    )


def _positive(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = default if fields.get(name) is None else fields[name]
    if value is None:
        raise InputError(f"config.json: {name} is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"config.json: {name} is {value!r}, expected a whole number of at least 1")
    return value


def _number(fields: Mapping[str, Any], name: str, default: float | None) -> float:
    value = default if fields.get(name) is None else fields[name]
    if value is None:
        raise InputError(f"config.json: {name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"config.json: {name} is {value!r}, expected a positive number")
    return float(value)


def _ids(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = fields.get(name)
    ids = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise InputError(f"{name} is {value!r}, expected a token id or a list of them")
    return ids
