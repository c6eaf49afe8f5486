# SPDX-License-Identifier: Apache-2.0
"""Times one GRPO step, sampling included: random prompts, answers of full length, KL to a reference.

    python benchmarks/grpo_step.py --model DIR --prompts 8 --samples 8 --prompt-tokens 110 --new-tokens 128

All weights are trained, or with --lora adapters. The last line is JSON: `step_s` has one figure a step,
`split_s` the mean seconds of each part, `peak_gib` the most memory the process held. On a GPU that is the
GPU's memory, and training is one part, since its parts only launch their work there. The first step needs no
pass for the reference, whose weights are still the role's own, so that it is reported and not in the split.
"""

import json
import random
import resource
import time

import click
from conditions import conditions

PARTS = ("reference", "forward", "backward", "optimizer")


@click.command()
@click.argument("path", required=False)
@click.option("--model", help="Hugging Face folder or hub name")
@click.option("--prompts", default=8, show_default=True)
@click.option("--samples", default=8, show_default=True, help="answers to each prompt")
@click.option("--prompt-tokens", default=110, show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--steps", default=2, show_default=True)
@click.option("--beta", default=0.01, show_default=True, help="weight of the KL term; 0: no reference")
@click.option("--micro-batch-tokens", default=4096, show_default=True)
@click.option("--recompute-layers", is_flag=True, help="less memory for a third more time")
@click.option("--lora", is_flag=True, help="train adapters of rank 16 instead of all weights")
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="torch's threads; default: all")
def main(path: str | None, model: str | None, **options) -> None:  # type: ignore[no-untyped-def]
    from rzero.cli.host_memory import keep_freed_memory
    from rzero.engine import SamplingParams, TrainConfig, TrainGroup

    keep_freed_memory()  # as `rzero run` does
    name = model or path
    if name is None:
        raise click.UsageError("give a model: --model DIR")
    prompts, samples = options["prompts"], options["samples"]
    engine = _engine(name, options)
    cfg = TrainConfig(
        kl_coef=options["beta"],
        micro_batch_tokens=options["micro_batch_tokens"],
        recompute_layers=options["recompute_layers"],
    )
    rng, vocabulary = random.Random(0), min(engine.config.vocab_size, 40000)
    step_s: list[float] = []
    sampling_s: list[float] = []
    parts: list[dict[str, float]] = []
    for number in range(options["steps"]):
        ids = [[rng.randrange(vocabulary) for _ in range(options["prompt_tokens"])] for _ in range(prompts)]
        params = SamplingParams(n=samples, max_tokens=options["new_tokens"], ignore_eos=True, seed=number)
        before = dict(engine.training_seconds)
        start = _now_s(engine.device)
        outputs = engine.generate(ids, params, role="policy")
        sampled = _now_s(engine.device)
        groups = [
            TrainGroup(o.prompt_token_ids, o.samples, [float(sum(s.token_ids) % 7) for s in o.samples])
            for o in outputs
        ]
        metrics = engine.train_step("policy", groups, cfg, reference="base" if options["beta"] else None)
        end = _now_s(engine.device)
        step_s.append(round(end - start, 2))
        sampling_s.append(sampled - start)
        after = engine.training_seconds
        of_parts = {part: after.get(part, 0.0) - before.get(part, 0.0) for part in PARTS}
        parts.append({"training": end - sampled} if engine.device.type == "cuda" else of_parts)
        click.echo(f"step {number + 1}: {step_s[-1]} s, largest mismatch {metrics['mismatch_max']}")
    later = slice(1 if len(parts) > 1 else 0, None)
    split = {part: round(_mean([p[part] for p in parts[later]]), 2) for part in parts[0]}
    result = {
        "benchmark": "grpo_step",
        "step_s": step_s,
        "split_s": {"sampling": round(_mean(sampling_s[later]), 2), **split},
        "tokens_trained": int(metrics["tokens_trained"]),
        "tokens_computed": int(metrics["tokens_computed"]),
        "mismatch_max": metrics["mismatch_max"],
        "peak_gib": round(_peak_bytes(engine.device) / 2**30, 2),
        "model": name,
        **{key: value for key, value in options.items() if key != "threads"},
        **conditions(options["device"]),
    }
    click.echo(json.dumps(result))


def _engine(name: str, options):  # type: ignore[no-untyped-def]
    """The model with a role "policy" that shares its weights until it is trained."""
    from rzero.engine import Engine, LoraConfig

    engine = Engine(
        name,
        device=options["device"],
        dtype=options["dtype"],
        threads=options["threads"],
        max_seqs=options["prompts"] * options["samples"],
        max_model_len=options["prompt_tokens"] + options["new_tokens"],
    )
    engine.fork("policy", of="base")
    if options["lora"]:
        engine.weights.add_lora("policy", LoraConfig(rank=16, alpha=32.0))
    return engine


def _now_s(device) -> float:  # type: ignore[no-untyped-def]
    """Seconds, once a GPU has done what was launched."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_bytes(device) -> int:  # type: ignore[no-untyped-def]
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
