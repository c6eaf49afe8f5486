# SPDX-License-Identifier: Apache-2.0
"""Make the embedded model and the held-out arithmetic sets from a seed.

python tools/make_tiny_model.py --out python/rzero/models/tiny --data python/rzero/data --seed 0

Each stage starts from the folder that the last one wrote, in bfloat16, so a stage can be run again by itself.
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
from tiny.training import STAGES, Stage, new_model, train

SNAPSHOT_STEPS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="model folder to write, replaced when it exists"
    )
    parser.add_argument("--data", type=Path, help="folder to write the held-out sets to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", type=int, default=1, help="start with this stage, from what is in OUT")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.data:
        write_sets(args.data, seed=0)
    for number in range(args.stage, len(STAGES) + 1):
        run_stage(args.out, number, args.seed + number - 1)


def run_stage(out: Path, number: int, seed: int) -> None:
    """Train one stage from what is in `out` (the first from random weights) and write it there, measured."""
    stage: Stage = STAGES[number - 1]
    model = new_model(seed)
    if number > 1:
        model.load_state_dict(load_file(out / "model.safetensors"))

    def on_step(done: int) -> None:
        if done % SNAPSHOT_STEPS == 0 and done < stage.steps:
            note = f"Unfinished: {done} of {stage.steps} steps of stage {number}.\n"
            write_folder(out.with_name(out.name + ".unfinished"), model, note)

    began = time.perf_counter()
    tokens = train(model, stage, seed, on_step)
    minutes = (time.perf_counter() - began) / 60
    print(f"stage {number}: {tokens:,} tokens, {minutes:.0f} minutes")
    # What is measured is what is written.
    model.to(torch.bfloat16).to(torch.float32)
    profiles = {name: profile(model, expressions, seed=0) for name, expressions in draw_sets(seed=0).items()}
    for name, measured in profiles.items():
        print(name, *(f"{key} {value:.3f}" for key, value in measured._asdict().items()))
    write_folder(out, model, model_card(profiles, number))


if __name__ == "__main__":
    main()
