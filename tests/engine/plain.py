# SPDX-License-Identifier: Apache-2.0
"""What the training tests compare with: a decoder and a GRPO loss written plainly, one sequence at a time.

No packing, no fused tensors, no kernels; the only thing shared with the engine is the table of rotary angles.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rzero.engine.checkpoint import hf_tensors
from rzero.engine.config import ModelConfig, RopeConfig
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.outputs import Sample
from rzero.engine.rope_table import rope_tables
from rzero.engine.trainer import Trainer
from rzero.engine.weights import ModelWeights, Weights, base_tensors, empty_weights, substitute
from rzero.kernels import resolve

CPU = torch.device("cpu")
POSITIONS = 48


def small_config(model_type: str, tied: bool = False) -> ModelConfig:
    """Two layers with odd sizes: three query heads to one key head, head size apart from the hidden size."""
    rope = (
        RopeConfig("llama3", 500.0, 8.0, 1.0, 4.0, 16) if model_type == "llama" else RopeConfig(theta=1000.0)
    )
    return ModelConfig(
        model_type=model_type, hidden_size=30, layers=2, heads=6, kv_heads=2, head_size=10,
        intermediate_size=37, vocab_size=31, rms_norm_eps=1e-5, rope=rope, max_positions=POSITIONS,
        qkv_bias=model_type == "qwen2", qk_norm=model_type == "qwen3", tied=tied, eos_token_ids=(1,),
    )  # fmt: skip


def random_weights(config: ModelConfig, dtype: torch.dtype, seed: int = 0) -> ModelWeights:
    """Matrices of a size that keeps activations near 1, norms near 1, biases small but not zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = empty_weights(config, dtype, CPU)
    for name, tensor in base_tensors(weights):
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        is_norm = name.endswith("norm")
        spread = 0.1 if is_norm or tensor.ndim == 1 else tensor.shape[1] ** -0.5
        tensor.copy_(noise * spread + (1.0 if is_norm else 0.0))
    return weights


def new_trainer(config: ModelConfig, weights: ModelWeights, backend: str = "ref") -> tuple[Trainer, Weights]:
    roles = Weights(config, weights)
    kernels = resolve(CPU, {"default": backend})
    return Trainer(config, roles, kernels, *rope_tables(config, POSITIONS, CPU)), roles


def nudged(weights: ModelWeights, seed: int = 9, size: float = 0.03) -> ModelWeights:
    """The same shapes, each value a little moved: a reference role that differs."""
    generator = torch.Generator().manual_seed(seed)

    def move(tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (tensor + size * noise).to(tensor.dtype)

    return substitute(weights, {id(tensor): move(tensor) for _, tensor in base_tensors(weights)})


def sample(tokens: Sequence[int], logprobs: Sequence[float] | None = None) -> Sample:
    values = list(logprobs) if logprobs is not None else [-3.0] * len(tokens)
    return Sample(list(tokens), "", values, values, "stop")


def random_groups(seed: int, lengths: Sequence[Sequence[int]], spread: float = 0.5) -> list[TrainGroup]:
    """Groups of random answers of these lengths; old log-probs are scattered so that clipping happens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 31, (count,), generator=generator).tolist()

    def one(count: int) -> Sample:
        return sample(ids(count), (-3.4 + spread * torch.randn(count, generator=generator)).tolist())

    return [
        TrainGroup(
            ids(3 + g),
            [one(n) for n in counts],
            rewards=torch.rand(len(counts), generator=generator).tolist(),
        )
        for g, counts in enumerate(lengths)
    ]


def plain_logprobs(
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    prompt: Sequence[int],
    answer: Sequence[int],
    temperature: float,
) -> Tensor:
    """Log-probs of the answer's tokens by a textbook decoder; tensors under the names of transformers."""
    ids, heads, size = torch.tensor([*prompt, *answer]), config.heads, config.head_size
    cos_RE, sin_RE = (
        t.to(tensors["model.norm.weight"].dtype)[: len(ids)] for t in rope_tables(config, POSITIONS, CPU)
    )

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * tensors[name]

    def project(x: Tensor, name: str) -> Tensor:
        y = x @ tensors[f"{name}.weight"].T
        return y + tensors[f"{name}.bias"] if f"{name}.bias" in tensors else y

    def rotate(x_EN: Tensor) -> Tensor:
        a, b = x_EN[:, : size // 2], x_EN[:, size // 2 :]
        return torch.cat((a * cos_RE - b * sin_RE, b * cos_RE + a * sin_RE), dim=1)

    x = tensors["model.embed_tokens.weight"][ids]
    future = torch.ones(len(ids), len(ids)).triu(1).bool()
    for index in range(config.layers):
        at = f"model.layers.{index}"
        y = norm(x, f"{at}.input_layernorm.weight")
        q, k, v = (project(y, f"{at}.self_attn.{part}_proj") for part in "qkv")
        seen = []
        for head in range(heads):
            group = head // (heads // config.kv_heads)
            mine, theirs = slice(head * size, (head + 1) * size), slice(group * size, (group + 1) * size)
            q_h, k_h = q[:, mine], k[:, theirs]
            if config.qk_norm:
                q_h, k_h = (
                    norm(q_h, f"{at}.self_attn.q_norm.weight"),
                    norm(k_h, f"{at}.self_attn.k_norm.weight"),
                )
            score = rotate(q_h) @ rotate(k_h).T / size**0.5
            seen.append(score.masked_fill(future, float("-inf")).softmax(-1) @ v[:, theirs])
        x = x + project(torch.cat(seen, dim=1), f"{at}.self_attn.o_proj")
        y = norm(x, f"{at}.post_attention_layernorm.weight")
        gate, up = project(y, f"{at}.mlp.gate_proj"), project(y, f"{at}.mlp.up_proj")
        x = x + project(gate * gate.sigmoid() * up, f"{at}.mlp.down_proj")
    head_VD = tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])
    logits = norm(x, "model.norm.weight")[len(prompt) - 1 : -1] @ head_VD.T / temperature
    return logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0]


def plain_advantages(rewards: Sequence[float], mode: str) -> list[float]:
    count = len(rewards)
    if len(set(rewards)) == 1:
        return [0.0] * count
    mean = sum(rewards) / count
    std = (sum((r - mean) ** 2 for r in rewards) / (count - 1)) ** 0.5
    return {
        "std": [(r - mean) / (std + 1e-6) for r in rewards],
        "center": [r - mean for r in rewards],
        "loo": [r - (sum(rewards) - r) / (count - 1) for r in rewards],
    }[mode]


def plain_loss(
    config: ModelConfig,
    policy: ModelWeights,
    reference: ModelWeights | None,
    groups: Sequence[TrainGroup],
    cfg: TrainConfig,
) -> Tensor:
    """The loss of one update, one sequence after the other."""
    answers = [s for group in groups for s in group.samples if s.token_ids]
    all_tokens = sum(len(s.token_ids) for s in answers)
    mine, theirs = hf_tensors(config, policy), reference and hf_tensors(config, reference)
    loss = torch.zeros((), dtype=policy.embed.dtype)
    for group in groups:
        for answer, advantage in zip(
            group.samples, plain_advantages(group.rewards or [], cfg.advantage), strict=True
        ):
            if not answer.token_ids:
                continue
            logp = plain_logprobs(config, mine, group.prompt_ids, answer.token_ids, cfg.temperature)
            ratio = (logp - torch.tensor(answer.full_logprobs, dtype=logp.dtype)).exp()
            gain = torch.minimum(
                ratio * advantage, ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high) * advantage
            )
            if cfg.clip_dual is not None and advantage < 0:
                gain = gain.clamp(min=cfg.clip_dual * advantage)
            per_token = -gain
            if theirs is not None:
                ref = plain_logprobs(
                    config, theirs, group.prompt_ids, answer.token_ids, cfg.temperature
                ).detach()
                apart = ref - logp
                kl = {"k1": -apart, "k2": apart**2 / 2, "k3": apart.exp() - apart - 1}[cfg.kl_estimator]
                per_token = per_token + cfg.kl_coef * kl
            share = all_tokens if cfg.loss_mean == "token" else len(answers) * len(answer.token_ids)
            loss = loss + per_token.sum() / share
    return loss
