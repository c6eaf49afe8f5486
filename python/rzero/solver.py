# SPDX-License-Identifier: Apache-2.0
"""The Solver's step: answer questions of the pool, be paid for the majority's answer, learn."""

from collections.abc import Sequence
from typing import Any

from rzero.rewards import edited, solver_rewards
from rzero.rollout import (
    Request,
    Run,
    Scored,
    Unit,
    draw,
    kl_to_base,
    mean,
    named,
    sample_metrics,
    tokens,
    train,
)
from rzero.seeds import generator


def step(run: Run, unit: Unit, pool: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """One GRPO step of the Solver on (question, label) pairs of the pool; returns its metrics."""
    settings = run.config.solver
    batch = [pool[index] for index in batch_indices(run, unit, len(pool))]
    request = Request(
        prompts=[run.task.solver_prompt(run.tokenizer, question) for question, _ in batch],
        seeds=[run.seed(unit, "answers", index) for index in range(len(batch))],
        n=[settings.samples] * len(batch),
        sampling=settings.sampling,
        stop=run.task.solver_stop(run.tokenizer),
        what="answers",
    )
    draws = draw(run, run.solver, request)
    texts = [[sample.text for sample in drawn.samples] for drawn in draws]
    if settings.edit_before_grading:
        texts = [[edited(text) for text in given] for given in texts]
    answers = [[run.task.extract_answer(text) for text in given] for given in texts]
    pairs = [
        (answer, label)
        for (_, label), given in zip(batch, answers, strict=True)
        for answer in given
        if answer is not None
    ]
    judged = iter(run.task.same_many(pairs))
    verdicts = [[None if answer is None else next(judged) for answer in given] for given in answers]
    rewards = [
        solver_rewards(judgement, given, settings.format_weight)
        for judgement, given in zip(verdicts, texts, strict=True)
    ]
    scored = [
        Scored(drawn, reward, [number] * len(reward))
        for number, (drawn, reward) in enumerate(zip(draws, rewards, strict=True))
    ]
    trained = train(run, run.solver, scored, settings, settings.sampling.temperature)
    metrics = {
        "questions": len(batch),
        "reward_mean": mean([reward for part in rewards for reward in part]),
        "unboxed_share": mean([answer is None for given in answers for answer in given]),
        "kl_to_base": kl_to_base(run, draws, settings, trained),
    }
    metrics |= sample_metrics(draws) | trained | run.task.counters()
    return {"tokens_sampled": tokens(draws)} | named("solver", metrics)


def batch_indices(run: Run, unit: Unit, pool_size: int) -> list[int]:
    """Which questions a step takes: the pool is gone through in a new order again and again.

    A pool smaller than a step is taken whole, so that no question comes twice in a step by necessity.
    """
    size = min(run.config.solver.questions_per_step, pool_size)
    places = range((unit.step - 1) * size, unit.step * size)
    orders = {
        epoch: generator(run.config.seed, unit.iteration, "solver order", epoch).permutation(pool_size)
        for epoch in {place // pool_size for place in places}
    }
    return [int(orders[place // pool_size][place % pool_size]) for place in places]
