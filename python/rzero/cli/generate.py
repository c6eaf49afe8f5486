# SPDX-License-Identifier: Apache-2.0
"""`rzero generate`: answers of a model to prompts."""

import json
import sys
from typing import Any

import click


@click.command(short_help="Print answers of a model to prompts.")
@click.argument("model")
@click.argument("prompts", nargs=-1)
@click.option("--n", default=1, show_default=True, help="Answers per prompt.")
@click.option("--temperature", default=1.0, show_default=True, help="0 takes the most likely token.")
@click.option(
    "--top-p", default=1.0, show_default=True, help="Keep the likeliest tokens that hold this share."
)
@click.option("--top-k", default=0, show_default=True, help="Keep the k likeliest tokens; 0 keeps all.")
@click.option(
    "--min-p", default=0.0, show_default=True, help="Keep tokens at least this likely, relative to the top."
)
@click.option("--max-tokens", default=256, show_default=True, help="Longest answer.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End an answer before this text; repeatable.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Answer j depends on prompt, seed and j only."
)
@click.option(
    "--chat", is_flag=True, help="Send each prompt as a user's message under the model's chat template."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON line per answer, with tokens and log-probs.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:0, ...")
@click.option("--dtype", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--threads", type=int, help="CPU threads. [default: all cores]")
def generate(model: str, prompts: tuple[str, ...], chat: bool, as_json: bool, **options: Any) -> None:
    """Print the answers of MODEL (a folder, a hub name, or tiny) to PROMPTS, or to the lines of stdin."""
    lines = prompts or tuple(line.rstrip("\n") for line in sys.stdin)

    from rzero.config import model_path
    from rzero.engine import Engine, SamplingParams
    from rzero.terminal import printable

    engine_options = {name: options.pop(name) for name in ("device", "dtype", "threads")}
    seed = options.pop("seed")
    params = SamplingParams(seed=seed, **options)
    engine = Engine(model_path(model), **engine_options)
    assert engine.tokenizer is not None  # a folder without one is refused
    asked = [engine.tokenizer.chat([{"role": "user", "content": line}]) if chat else line for line in lines]
    is_shown = sys.stdout.isatty()
    for line, output in zip(lines, engine.generate(asked, params), strict=True):
        for sample in output.samples:
            if as_json:
                row = {
                    "prompt": line,
                    "text": sample.text,
                    "token_ids": sample.token_ids,
                    "logprobs": sample.logprobs,
                    "finish_reason": sample.finish_reason,
                }
                click.echo(json.dumps(row, ensure_ascii=is_shown))
            else:
                click.echo(printable(sample.text, keep="\n\t") if is_shown else sample.text)
