# SPDX-License-Identifier: Apache-2.0
"""Make the embedded model and the held-out arithmetic sets from a seed.

python tools/make_tiny_model.py --out python/rzero/models/tiny --data python/rzero/data --seed 0
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny.card import model_card
from tiny.folder import write_folder
from tiny.held_out import draw_sets, write_sets
from tiny.measure import profile
from tiny.training import Stage, new_model, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="model folder to write, replaced when it exists"
    )
    parser.add_argument("--data", type=Path, help="folder to write the held-out sets to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="model folder to go on from, instead of random weights")
    parser.add_argument("--steps", type=int, default=6500, help="training steps of 96 lines")
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--snapshot-steps", type=int, default=1000, help="write OUT every so many steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.data:
        write_sets(args.data, seed=0)
    model = new_model(args.seed)
    if args.start:
        model.load_state_dict(load_file(args.start / "model.safetensors"))

    def on_step(done: int) -> None:
        if done % args.snapshot_steps == 0 and done < args.steps:
            write_folder(args.out, model, f"Unfinished: {done} of {args.steps} steps.\n")

    began = time.perf_counter()
    tokens = train(model, Stage(args.seed, args.steps, args.learning_rate), on_step)
    minutes = (time.perf_counter() - began) / 60
    # What is measured is what is written.
    model.to(torch.bfloat16).to(torch.float32)
    profiles = {name: profile(model, expressions, seed=0) for name, expressions in draw_sets(seed=0).items()}
    for name, measured in profiles.items():
        print(name, *(f"{key} {value:.3f}" for key, value in measured._asdict().items()))
    training = (
        f"Trained on {tokens:,} tokens in {args.steps:,} steps, seed {args.seed}, "
        f"{minutes:.0f} minutes on {args.threads} thread(s), torch {torch.__version__}."
    )
    write_folder(args.out, model, model_card(profiles, training))


if __name__ == "__main__":
    main()
