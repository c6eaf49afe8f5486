# SPDX-License-Identifier: Apache-2.0
"""All of GRPO: the model in the package practises sums, paid for the right answer.

    python examples/grpo.py --steps 20

Everything that depends on the problem is the prompt and the reward; put your own in their place.
"""

import argparse
import random
from importlib.resources import files
from pathlib import Path

from rzero.engine import Engine, SamplingParams, TrainConfig, TrainGroup


def train(steps: int, questions: int = 32, samples: int = 8, seed: int = 0) -> list[float]:
    """Trains for some steps and returns the mean reward of each."""
    engine = Engine(Path(str(files("rzero") / "models" / "tiny")), max_seqs=questions * samples)
    engine.fork("student", of="base")
    settings = TrainConfig(learning_rate=4e-4, kl_coef=0.01)
    rng, rewards = random.Random(seed), []
    for step in range(1, steps + 1):
        sums = [[rng.randint(10, 99) for _ in range(4)] for _ in range(questions)]
        prompts = [f"<S>{'+'.join(map(str, numbers))}=" for numbers in sums]
        params = [SamplingParams(n=samples, max_tokens=64, seed=rng.getrandbits(60)) for _ in prompts]
        outputs = engine.generate(prompts, params, role="student")
        groups = [
            TrainGroup(o.prompt_token_ids, o.samples, [float(f"{{{sum(n)}}}" in s.text) for s in o.samples])
            for n, o in zip(sums, outputs, strict=True)
        ]
        metrics = engine.train_step("student", groups, settings, reference="base")
        rewards.append(sum(sum(group.rewards or ()) for group in groups) / (questions * samples))
        print(f"step {step}: reward {rewards[-1]:.2f}, KL to the base {metrics['kl']:.4f}")
    engine.close()
    return rewards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    train(parser.parse_args().steps)
