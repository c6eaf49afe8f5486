# SPDX-License-Identifier: Apache-2.0
"""Times sampling: random prompts of one length, temperature 1, end of sequence ignored, fresh prompts.

    python benchmarks/rollout.py --model DIR --prompts 32 --samples 8 --prompt-tokens 128 --new-tokens 128

The last line is JSON: `tokens_per_s` has one figure a round, and `ceiling_tokens_per_s` is what the matrix
products of the same work would allow if nothing else took time, measured in the same run. With --texts FILE
(JSON lines with "problem") the prompts are real questions and answers run to their end of sequence. With
--kernels linear=ref the products are torch's, whose rows depend on the batch: what exactness costs.
"""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import torch
from conditions import conditions


def since_start() -> float:
    """Seconds since this process began, imports included; Linux."""
    began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def product_seconds(engine, rows: int) -> float:  # type: ignore[no-untyped-def]
    """The matrix products of one forward pass over `rows` tokens, head left out; best of three."""
    linear, w = engine.kernels.linear, engine.weights.role("base")
    inputs = {width: _noise(engine, rows, width) for width in _widths(w)}

    def once() -> None:
        for layer in w.layers:
            for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down):
                linear(inputs[matrix.shape[1]], matrix)

    return best(once, engine.device)


def head_seconds(engine, rows: int) -> float:  # type: ignore[no-untyped-def]
    head_VD = engine.weights.role("base").head
    h_BD = _noise(engine, rows, head_VD.shape[1])
    return best(lambda: engine.kernels.linear(h_BD, head_VD), engine.device)


def _noise(engine, rows: int, width: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return torch.randn(rows, width, dtype=engine.dtype, device=engine.device)


def _widths(w) -> set[int]:  # type: ignore[no-untyped-def]
    layer = w.layers[0]
    return {matrix.shape[1] for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)}


@torch.inference_mode()
def best(once: Callable[[], object], device: torch.device, times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ceiling(engine, prompts: int, samples: int, prompt_tokens: int, new_tokens: int, most: int) -> float:  # type: ignore[no-untyped-def]
    """Tokens per second if only matrix products took time: prefill in whole batches, then decoding."""
    sequences = prompts * samples
    rows = min(sequences, most)
    step = product_seconds(engine, rows) + head_seconds(engine, rows)
    chunk = min(2048, prompts * prompt_tokens)
    prefill = product_seconds(engine, chunk) * prompts * prompt_tokens / chunk
    return sequences * new_tokens / (prefill + step * new_tokens * sequences / rows)


@click.command()
@click.argument("path", required=False)
@click.option("--model", help="Hugging Face folder or hub name")
@click.option("--prompts", default=32, show_default=True)
@click.option("--samples", default=8, show_default=True, help="answers to each prompt")
@click.option("--prompt-tokens", default=128, show_default=True)
@click.option("--new-tokens", default=128, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=int, help="torch's threads; default: all")
@click.option("--max-seqs", default=256, show_default=True, help="answers that run at a time")
@click.option("--kernels", multiple=True, metavar="OP=BACKEND", help="force an op's backend; repeatable")
@click.option("--numerics", default="auto", show_default=True, help="auto, exact or fast")
@click.option("--cuda-graphs", is_flag=True, help="record the steps that decode, on a GPU")
@click.option("--texts", type=click.Path(exists=True, dir_okay=False), help='JSON lines with "problem"')
def main(path: str | None, model: str | None, prompts: int, samples: int, **options) -> None:  # type: ignore[no-untyped-def]
    from rzero.cli.host_memory import keep_freed_memory
    from rzero.engine import Engine, SamplingParams

    keep_freed_memory()  # as `rzero run` does
    name = model or path
    if name is None:
        raise click.UsageError("give a model: --model DIR")
    prompt_tokens, new_tokens = options["prompt_tokens"], options["new_tokens"]
    engine = Engine(
        name,
        device=options["device"],
        dtype=options["dtype"],
        threads=options["threads"],
        kernels=dict(choice.split("=", 1) for choice in options["kernels"]),
        max_seqs=options["max_seqs"],
        numerics=options["numerics"],
        cuda_graphs=options["cuda_graphs"],
        max_model_len=prompt_tokens + new_tokens if options["texts"] is None else 2048,
    )
    engine.generate([[1, 2, 3]], SamplingParams(max_tokens=1))
    first_token_s = since_start()
    click.echo(f"{name}: first token {first_token_s:.1f} s after the start of the process")
    result: dict[str, object] = {"benchmark": "rollout"}
    if options["texts"] is None:
        rng, vocabulary = random.Random(0), min(engine.config.vocab_size, 40000)

        def fresh() -> list[list[int]]:
            return [[rng.randrange(vocabulary) for _ in range(prompt_tokens)] for _ in range(prompts)]
    else:
        rng, texts = random.Random(0), _texts(engine, options["texts"])

        def fresh() -> list[list[int]]:
            return rng.sample(texts, prompts)

    params = SamplingParams(n=samples, max_tokens=new_tokens, ignore_eos=options["texts"] is None)
    rates, length = timed_rounds(engine, fresh, params, options["rounds"])
    result |= {"tokens_per_s": rates, "answer_tokens_mean": length}
    if options["texts"] is None:
        most = ceiling(engine, prompts, samples, prompt_tokens, new_tokens, options["max_seqs"])
        result["ceiling_tokens_per_s"] = round(most, 1)
        result["share_of_ceiling"] = round(max(rates) / most, 3)
    result |= {"first_token_s": round(first_token_s, 2), "model": name, "prompts": prompts}
    result |= {"samples": samples, **{key: value for key, value in options.items() if key != "threads"}}
    result["linear"] = next(choice.backend for choice in engine.kernels.report if choice.op == "linear")
    click.echo(json.dumps(result | conditions(options["device"])))


def timed_rounds(engine, fresh, params, rounds: int) -> tuple[list[float], float]:  # type: ignore[no-untyped-def]
    """Tokens per second of each round, and the mean length of all answers."""
    rates, lengths = [], []
    for number in range(rounds):
        ids = fresh()
        start = time.perf_counter()
        outputs = engine.generate(ids, replace(params, seed=number))
        seconds = time.perf_counter() - start
        tokens = sum(len(sample.token_ids) for output in outputs for sample in output.samples)
        rates.append(round(tokens / seconds, 1))
        lengths.append(tokens / (len(ids) * params.n))
        click.echo(f"round {number + 1}: {tokens} tokens in {seconds:.1f} s, {rates[-1]} tokens/s")
    return rates, round(sum(lengths) / rounds, 1)


def _texts(engine, file: str) -> list[list[int]]:  # type: ignore[no-untyped-def]
    problems = [json.loads(line)["problem"] for line in Path(file).read_text("utf-8").splitlines()]
    return [engine.tokenizer.chat([{"role": "user", "content": problem}]) for problem in problems]


if __name__ == "__main__":
    main()
