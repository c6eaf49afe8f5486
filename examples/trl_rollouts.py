# SPDX-License-Identifier: Apache-2.0
"""TRL's trainer, our rollouts, one copy of the weights. Needs `pip install trl datasets`.

    python examples/trl_rollouts.py --steps 4

GRPOTrainer asks its rollout_func for answers; this one takes them from an engine that shares the memory of
the model that TRL trains (shared_memory.py), so there is no vLLM server and nothing to copy after an update.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rzero.engine import Engine, SamplingParams

TINY = Path(str(files("rzero") / "models" / "tiny"))


def rollouts(engine: Engine, max_tokens: int) -> Callable[[list[str], Any], dict[str, list[Any]]]:
    """A rollout_func for GRPOTrainer: TRL repeats a prompt once for each of its answers."""

    def rollout_func(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        repeated = [(prompt, len(list(same))) for prompt, same in groupby(prompts)]
        step = trainer.state.global_step
        params = [
            SamplingParams(n=count, max_tokens=max_tokens, seed=1_000_000 * step + number)
            for number, (_, count) in enumerate(repeated)
        ]
        outputs = engine.generate([prompt for prompt, _ in repeated], params)
        answers = [(output.prompt_token_ids, sample) for output in outputs for sample in output.samples]
        return {
            "prompt_ids": [prompt_ids for prompt_ids, _ in answers],
            "completion_ids": [sample.token_ids for _, sample in answers],
            "logprobs": [sample.full_logprobs for _, sample in answers],
        }

    return rollout_func


def train(steps: int, questions: int = 16, samples: int = 8) -> list[float]:
    """Trains the model in the package on sums for some steps and returns the mean reward of each."""
    rng, sums = random.Random(0), {}
    for _ in range(steps * questions):
        numbers = [rng.randint(10, 99) for _ in range(3)]
        sums[f"<S>{'+'.join(map(str, numbers))}="] = str(sum(numbers))
    engine = Engine(TINY, dtype="float32", max_seqs=questions * samples)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    for name, tensor in engine.tensors().items():
        model.get_parameter(name).data = tensor
    rewards: list[float] = []

    def is_right(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        given = [float(f"{{{sums[p]}}}" in c) for p, c in zip(prompts, completions, strict=True)]
        rewards.append(sum(given) / len(given))
        return given

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=questions * samples,
            num_generations=samples,
            max_completion_length=48,
            max_steps=steps,
            learning_rate=4e-4,
            lr_scheduler_type="constant",
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to=[],
            save_strategy="no",
        )
        trainer = GRPOTrainer(
            model=model,
            processing_class=AutoTokenizer.from_pretrained(TINY),
            reward_funcs=is_right,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in sums]),
            rollout_func=rollouts(engine, max_tokens=48),
        )
        trainer.train()
    return rewards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4)
    for number, reward in enumerate(train(parser.parse_args().steps), 1):
        print(f"step {number}: reward {reward:.2f}")
