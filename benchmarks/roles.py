# SPDX-License-Identifier: Apache-2.0
"""Times the question pool in two phases and in one: a finished question goes to the Solver in the next step.

    python benchmarks/roles.py --questions 64 --votes 8           # the model in the package
    python benchmarks/roles.py --model DIR --task math --questions 24 --votes 6 --max-tokens 128

Both roles are adapters on one base, so that one batch serves both. In two phases the batch runs thin at the
end of the questions and fills again for the answers; in one phase it stays full. The answers are the same:
seeds belong to requests. The last line is JSON with the seconds of each way, measured in turn.

    python benchmarks/roles.py --model DIR --switch

--switch times what changing between two full roles costs instead: forward passes over three tokens, every
second one in the other role. Both roles own all their tensors, of which none is copied or moved. `rebind_ms`
is the engine's part; `difference_ms`, between the fastest passes of each kind, has in it what the caches
still hold of the last role's weights, and the machine's noise.
"""

import json
import statistics
import time
from collections.abc import Callable

import click
from conditions import conditions


class Pool:
    """One question pool: `questions` questions of the Challenger, `votes` answers of the Solver to each."""

    def __init__(
        self, engine, rules, questions: int, votes: int, max_tokens: int, temperature: float
    ) -> None:  # type: ignore[no-untyped-def]
        self.engine, self.rules, self.questions, self.votes = engine, rules, questions, votes
        self.max_tokens, self.temperature = max_tokens, temperature
        self.ask = rules.challenger_prompt(engine.tokenizer)

    def params(self, n: int, seed: int):  # type: ignore[no-untyped-def]
        from rzero.engine import SamplingParams

        return SamplingParams(n=n, max_tokens=self.max_tokens, temperature=self.temperature, seed=seed)

    def solver_prompt(self, written) -> list[int] | None:  # type: ignore[no-untyped-def]
        from rzero.tasks.base import Question

        parsed = self.rules.parse_question(written.samples[0].text)
        if not isinstance(parsed, Question):
            return None
        return self.rules.solver_prompt(self.engine.tokenizer, parsed.text)

    def two_phases(self, seed: int) -> int:
        """All questions, then all answers; the tokens sampled."""
        asks = [self.params(1, seed + i) for i in range(self.questions)]
        written = self.engine.generate([self.ask] * self.questions, asks, "challenger")
        prompts = [(i, self.solver_prompt(output)) for i, output in enumerate(written)]
        usable = [(i, prompt) for i, prompt in prompts if prompt is not None]
        votes = [self.params(self.votes, seed + self.questions + i) for i, _ in usable]
        answers = self.engine.generate([prompt for _, prompt in usable], votes, "solver")
        return _tokens(written) + _tokens(answers)

    def one_phase(self, seed: int) -> int:
        """Each question's answers join the batch in the step after its last token."""
        done: list = []  # type: ignore[type-arg]

        def written(number: int) -> Callable[..., None]:
            def callback(output) -> None:  # type: ignore[no-untyped-def]
                done.append(output)
                prompt = self.solver_prompt(output)
                if prompt is not None:
                    votes = self.params(self.votes, seed + self.questions + number)
                    self.engine.submit(prompt, votes, "solver", done.append)

            return callback

        for i in range(self.questions):
            self.engine.submit(self.ask, self.params(1, seed + i), "challenger", written(i))
        while self.engine.has_work:
            self.engine.step()
        return _tokens(done)


def switch(engine, passes: int = 100) -> dict[str, object]:  # type: ignore[no-untyped-def]
    """Milliseconds of a pass whose role is the last pass's, and of one whose role is the other."""
    from rzero.engine import SamplingParams

    roles = ("challenger", "solver")
    for role in roles:
        engine.fork(role, of="base")
        engine.weights.own(role)
    engine.drop("base")
    held = {role: [t.data_ptr() for _, t in engine.weights.named_tensors(role)] for role in roles}
    ms: dict[str, list[float]] = {"same": [], "other": []}
    for number in range(-4, 2 * passes):
        way = "same" if number % 2 else "other"
        role = roles[number // 2 % 2]
        start = time.perf_counter()
        engine.generate([[1, 2, 3]], SamplingParams(max_tokens=1), role)
        if number >= 0:
            ms[way].append(1e3 * (time.perf_counter() - start))
    if held != {role: [t.data_ptr() for _, t in engine.weights.named_tensors(role)] for role in roles}:
        raise SystemExit("a tensor moved")
    start = time.perf_counter()
    for number in range(1000):
        engine.weights.role(roles[number % 2])
    rebinding = (time.perf_counter() - start) / 1000
    fastest = {way: statistics.mean(sorted(times)[: passes // 10]) for way, times in ms.items()}
    return {
        "pass_ms": {way: round(time, 2) for way, time in fastest.items()},
        "difference_ms": round(fastest["other"] - fastest["same"], 2),
        "rebind_ms": round(1e3 * rebinding, 4),
        "weights_gib": round(engine.weights.total_bytes() / 2**30, 2),
    }


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
@click.option("--switch", "only_switch", is_flag=True, help="time changing between two full roles instead")
@click.option("--threads", type=int, help="torch's threads; default: all")
def main(model: str | None, task: str, questions: int, votes: int, **options) -> None:  # type: ignore[no-untyped-def]
    from rzero.engine import Engine, LoraConfig
    from rzero.tasks import create

    engine = Engine(
        model or str(tiny()),
        dtype=options["dtype"],
        threads=options["threads"],
        max_seqs=options["max_seqs"],
        max_model_len=512 if model else 160,
    )
    if options["only_switch"]:
        asked = {"benchmark": "role_switch", "model": model or "tiny", "dtype": options["dtype"]}
        click.echo(json.dumps(asked | switch(engine) | conditions()))
        return
    for role in ("challenger", "solver"):
        engine.fork(role, of="base")
        engine.weights.add_lora(role, LoraConfig(rank=8, alpha=16.0))
    rules = create(task, None)
    pool = Pool(engine, rules, questions, votes, options["max_tokens"], options["temperature"])
    seconds: dict[str, list[float]] = {"two_phases": [], "one_phase": []}
    for number in range(options["rounds"]):
        tokens = set()
        for way, times in seconds.items():
            start = time.perf_counter()
            tokens.add(getattr(pool, way)(1_000_000 * number))
            times.append(round(time.perf_counter() - start, 2))
        if len(tokens) != 1:
            raise SystemExit(f"the two ways sampled different numbers of tokens: {tokens}")
        click.echo(f"round {number + 1}: {tokens} tokens, {seconds}", err=True)
    saved = [1 - one / two for two, one in zip(*seconds.values(), strict=True)]
    result = {
        "benchmark": "roles",
        "seconds": seconds,
        "saved_share": [round(share, 3) for share in saved],
        "tokens": tokens.pop(),
        "model": model or "tiny",
        "task": task,
        "questions": questions,
        "votes": votes,
        **{key: value for key, value in options.items() if key not in ("threads", "only_switch")},
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
