# SPDX-License-Identifier: Apache-2.0
"""Somebody else's training loop, our sampling, one copy of the weights.

    python examples/shared_memory.py MODEL

A transformers model is given the engine's tensors. Its optimizer then updates, in place, what the engine
samples from: nothing is copied and nothing has to be kept in step. Here the loop is REINFORCE, paid for short
answers.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rzero.engine import Engine, SamplingParams


def share(engine: Engine, model: PreTrainedModel) -> None:
    """Lets `model` compute with the engine's own tensors; both must be of one number type and device."""
    for name, tensor in engine.tensors().items():
        model.get_parameter(name).data = tensor


def train(folder: str, steps: int, prompt: str = "Tell me about the sea.") -> list[float]:
    engine = Engine(folder, dtype="float32", max_model_len=256)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    share(engine, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lengths = []
    for step in range(steps):
        [output] = engine.generate([prompt], SamplingParams(n=8, max_tokens=32, seed=step))
        samples = [sample for sample in output.samples if sample.token_ids]
        reward = torch.tensor([-float(len(sample.token_ids)) for sample in samples])
        advantage = reward - reward.mean()
        for sample, worth in zip(samples, advantage, strict=True):
            ids = torch.tensor([output.prompt_token_ids + sample.token_ids])
            logits = model(ids).logits[0, len(output.prompt_token_ids) - 1 : -1]
            logp = logits.log_softmax(-1).gather(1, torch.tensor(sample.token_ids)[:, None]).sum()
            (-worth * logp / len(samples)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        lengths.append(-float(reward.mean()))
        print(f"step {step + 1}: {lengths[-1]:.1f} tokens an answer")
    return lengths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    train(arguments.model, arguments.steps)
