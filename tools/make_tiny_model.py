# SPDX-License-Identifier: Apache-2.0
"""Make the embedded model and the held-out arithmetic sets from a seed.

python tools/make_tiny_model.py --out python/rzero/models/tiny --seed 0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from tiny.folder import write_folder
from tiny.training import new_model, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write, replaced when it exists")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=7500, help="training steps of 96 lines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--snapshot-steps", type=int, default=1000, help="write OUT every so many steps")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = new_model(args.seed)

    def on_step(done: int) -> None:
        if done % args.snapshot_steps == 0 and done < args.steps:
            write_folder(args.out, model, f"Unfinished: {done} of {args.steps} steps.\n")

    train(model, args.seed, args.steps, on_step)
    write_folder(args.out, model, "card\n")


if __name__ == "__main__":
    main()
