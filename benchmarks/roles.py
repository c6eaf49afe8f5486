# SPDX-License-Identifier: Apache-2.0
"""Times the question pool in two phases and in one: a finished question goes to the Solver in the next step.

    python benchmarks/roles.py --questions 64 --votes 8           # the model in the package
    python benchmarks/roles.py --model DIR --task math --questions 24 --votes 6 --max-tokens 128

Both roles are adapters on one base, so that one batch serves both. In two phases the batch runs thin at the
end of the questions and fills again for the answers; in one phase it stays full. The answers are the same:
seeds belong to requests. The last line is JSON with the seconds of each way, measured in turn.
"""

import json
import time
from collections.abc import Callable

import click
from conditions import conditions


@click.command()
@click.option("--model", help="Hugging Face folder or hub name; default: the model in the package")
@click.option("--task", default="arithmetic", show_default=True)
@click.option("--questions", default=64, show_default=True)
@click.option("--votes", default=8, show_default=True)
@click.option("--max-tokens", default=96, show_default=True, help="of a question and of an answer")
@click.option("--temperature", default=0.8, show_default=True)
@click.option("--max-seqs", default=64, show_default=True, help="answers that run at a time")
@click.option("--rounds", default=3, show_default=True)
@click.option("--dtype", default="auto", show_default=True)
@click.option("--threads", type=int, help="torch's threads; default: all")
def main(model: str | None, task: str, questions: int, votes: int, **options) -> None:  # type: ignore[no-untyped-def]
    from rzero.engine import Engine, LoraConfig, SamplingParams
    from rzero.tasks import create
    from rzero.tasks.base import Question

    name = model or str(tiny())
    engine = Engine(
        name,
        dtype=options["dtype"],
        threads=options["threads"],
        max_seqs=options["max_seqs"],
        max_model_len=512 if model else 160,
    )
    for role in ("challenger", "solver"):
        engine.fork(role, of="base")
        engine.weights.add_lora(role, LoraConfig(rank=8, alpha=16.0))
    rules = create(task, None)
    ask = rules.challenger_prompt(engine.tokenizer)

    def params(n: int, seed: int) -> SamplingParams:
        return SamplingParams(
            n=n, max_tokens=options["max_tokens"], temperature=options["temperature"], seed=seed
        )

    def solver_prompt(text: str) -> list[int] | None:
        parsed = rules.parse_question(text)
        return rules.solver_prompt(engine.tokenizer, parsed.text) if isinstance(parsed, Question) else None

    def two_phases(base: int) -> int:
        written = engine.generate(
            [ask] * questions, [params(1, base + i) for i in range(questions)], "challenger"
        )
        prompts = [(i, solver_prompt(output.samples[0].text)) for i, output in enumerate(written)]
        usable = [(i, prompt) for i, prompt in prompts if prompt is not None]
        answers = engine.generate(
            [prompt for _, prompt in usable],
            [params(votes, base + questions + i) for i, _ in usable],
            "solver",
        )
        return _tokens(written) + _tokens(answers)

    def one_phase(base: int) -> int:
        done: list = []  # type: ignore[type-arg]

        def written(number: int) -> Callable[..., None]:
            def callback(output) -> None:  # type: ignore[no-untyped-def]
                done.append(output)
                prompt = solver_prompt(output.samples[0].text)
                if prompt is not None:
                    engine.submit(prompt, params(votes, base + questions + number), "solver", done.append)

            return callback

        for i in range(questions):
            engine.submit(ask, params(1, base + i), "challenger", written(i))
        while engine.has_work:
            engine.step()
        return _tokens(done)

    ways = {"two_phases": two_phases, "one_phase": one_phase}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tokens: dict[str, int] = {}
    for number in range(options["rounds"]):
        for way, run in ways.items():
            start = time.perf_counter()
            tokens[way] = run(1_000_000 * number)
            seconds[way].append(round(time.perf_counter() - start, 2))
        if tokens["two_phases"] != tokens["one_phase"]:
            raise SystemExit(f"the two ways sampled different numbers of tokens: {tokens}")
        click.echo(f"round {number + 1}: {tokens['one_phase']} tokens, {seconds}", err=True)
    saved = [1 - one / two for one, two in zip(seconds["one_phase"], seconds["two_phases"], strict=True)]
    result = {
        "benchmark": "roles",
        "seconds": seconds,
        "saved_share": [round(share, 3) for share in saved],
        "tokens": tokens["one_phase"],
        "model": model or "tiny",
        "task": task,
        "questions": questions,
        "votes": votes,
        **{key: value for key, value in options.items() if key != "threads"},
        **conditions(),
    }
    click.echo(json.dumps(result))
    rules.close()


def tiny():  # type: ignore[no-untyped-def]
    from importlib.resources import files

    return files("rzero") / "models" / "tiny"


def _tokens(outputs) -> int:  # type: ignore[no-untyped-def]
    return sum(len(sample.token_ids) for output in outputs for sample in output.samples)


if __name__ == "__main__":
    main()
