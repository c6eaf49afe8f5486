# SPDX-License-Identifier: Apache-2.0
"""Counts the log-probs that are not the same to the last bit when sampled, prefilled and trained.

    python benchmarks/exact.py --model DIR --tokens 10000

A ragged batch of random prompts is sampled (temperature 1) in a page pool that is too small for it, so that
answers are preempted and computed again; one answer in eight is sampled a second time, alone. Then every text
is scored by a prefill through pages and by the training forward. Exit status 1 if anything differs.
"""

import json
import random
import sys
import time
from typing import Any

import click
import torch
from conditions import conditions


@click.command()
@click.option("--model", required=True, help="Hugging Face folder or hub name")
@click.option("--tokens", default=10_000, show_default=True, help="answer tokens to compare, at least")
@click.option("--samples", default=4, show_default=True, help="answers to each prompt")
@click.option("--max-tokens", default=96, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--device", default="cpu", show_default=True, help="on a GPU: the engine's exact kernels")
@click.option("--cuda-graphs", is_flag=True, help="record the steps that decode, on a GPU")
@click.option("--threads", type=int, help="torch's threads; default: all")
def main(
    model: str, tokens: int, samples: int, max_tokens: int, dtype: str, device: str, **options: Any
) -> None:
    from rzero.engine import Engine, SamplingParams

    most = 64 + max_tokens
    # A quarter of the pages that the running answers would like to have.
    engine = Engine(
        model, device=device, dtype=dtype, max_seqs=64, max_model_len=most, num_pages=16 * -(-most // 16),
        numerics="auto" if device == "cpu" else "exact", **options,
    )  # fmt: skip
    rng, vocabulary = random.Random(0), min(engine.config.vocab_size, 40000)
    start, compared, pairs = time.perf_counter(), 0, []
    differing = {"prefill": 0, "training": 0, "alone": 0}
    while compared < tokens:
        prompts = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 64))] for _ in range(32)]
        params = [
            SamplingParams(
                n=samples, max_tokens=rng.randint(1, max_tokens), ignore_eos=True, seed=rng.getrandbits(60)
            )
            for _ in prompts
        ]
        outputs = engine.generate(prompts, params)
        for output, param in list(zip(outputs, params, strict=True))[::8]:
            [alone] = engine.generate([output.prompt_token_ids], param)
            differing["alone"] += sum(
                a.token_ids != b.token_ids or a.full_logprobs != b.full_logprobs
                for a, b in zip(alone.samples, output.samples, strict=True)
            )
        pairs = [(output.prompt_token_ids, sample) for output in outputs for sample in output.samples]
        trained = engine.logprobs("base", [(prompt, sample.token_ids) for prompt, sample in pairs])
        for (prompt, sample), scored in zip(pairs, trained, strict=True):
            differing["training"] += _apart(sample.full_logprobs, scored)
            differing["prefill"] += _apart(sample.full_logprobs, prefilled(engine, prompt, sample.token_ids))
            compared += len(sample.token_ids)
        click.echo(f"{compared} tokens, differing: {differing}", err=True)
    result = {
        "benchmark": "exact",
        "tokens": compared,
        "differing": differing,
        "seconds": round(time.perf_counter() - start, 1),
        "model": model,
        "dtype": dtype,
        "cuda_graphs": options["cuda_graphs"],
        **conditions(device),
    }
    click.echo(json.dumps(result))
    sys.exit(1 if any(differing.values()) else 0)


def _apart(a: list[float], b: list[float]) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


@torch.inference_mode()
def prefilled(engine, prompt: list[int], answer: list[int]) -> list[float]:  # type: ignore[no-untyped-def]
    """Log-probs of the answer from one prefill of the whole text through pages of its own."""
    from rzero.engine.model import PagedStep, Step, forward
    from rzero.engine.rope_table import rope_tables

    T, config, page, device = len(prompt) + len(answer), engine.config, 16, engine.device
    ids_T, pos_T = torch.tensor(prompt + answer, device=device), torch.arange(T, device=device)
    shape = (-(-T // page), page, config.kv_heads, config.head_size)
    keys, values = (
        [torch.zeros(shape, dtype=engine.dtype, device=device) for _ in range(config.layers)]
        for _ in range(2)
    )
    table, starts, lengths = (
        torch.tensor(x, dtype=torch.int32, device=device) for x in ([list(range(shape[0]))], [0, T], [T])
    )
    weights = engine.weights.role("base")
    step = Step(ids_T, pos_T, PagedStep(keys, values, pos_T, table, starts, lengths))
    h_TD = forward(config, weights, step, engine.kernels, *rope_tables(config, T, engine.device))
    rows = slice(len(prompt) - 1, T - 1)
    logp_A, _ = engine.kernels.linear_logprob(h_TD[rows], weights.head, ids_T[len(prompt) :])
    return [float(x) for x in logp_A]


if __name__ == "__main__":
    main()
