# SPDX-License-Identifier: Apache-2.0
"""The Challenger's step: ask, let the Solver vote, pay for questions on which it is of two minds, learn.

Invalid questions take part with their fixed reward. A question on which the judge gave up is left out of
training, because its vote cannot be trusted, and counted. Equal questions of a step are voted on once.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rzero.diversity import clusters, similarity
from rzero.rewards import challenger_rewards
from rzero.rollout import (
    Draw,
    Run,
    Scored,
    Unit,
    agreeing_share,
    answers_agree,
    ask_solver,
    draw_questions,
    kl_to_base,
    likeness_to_earlier,
    mean,
    named,
    sample_metrics,
    tokens,
    train,
    usable,
)
from rzero.tasks.base import Invalid, Question
from rzero.votes import Vote, agreement_counts

# Questions of a step whose likeness to earlier ones is measured where it is not paid for.
MEASURED_QUESTIONS = 128
# What the last step asked and how the Solver voted, for a pool that begins with it.
VOTES = "votes.jsonl"


def step(run: Run, unit: Unit, earlier: Sequence[str] = ()) -> dict[str, Any]:
    """One GRPO step of the Challenger; returns its metrics. `earlier`: the questions of the pools before."""
    settings = run.config.challenger
    # What is compared with each other is drawn from one prompt.
    group = settings.group or settings.questions_per_step
    drawn = draw_questions(run, unit, settings.questions_per_step, settings.sampling, group)
    parsed = [usable(run, sample.text) for part in drawn for sample in part.samples]
    valid = [question for question in parsed if isinstance(question, Question)]
    votes, answers = vote_once(run, unit, valid)

    cluster = clusters(
        1.0 - similarity([run.task.tokens(question.text) for question in valid], run.engine.kernels.bleu),
        settings.repetition_distance,
    )
    confirmed = answers_agree(run, valid, votes)
    places = [place for place, question in enumerate(parsed) if isinstance(question, Question)]
    paid = dict(zip(places, paid_shares(votes, confirmed, settings.only_confirmed), strict=True))
    shares = [paid.get(place) for place in range(len(parsed))]
    failed = {place for place, vote in zip(places, votes, strict=True) if vote.failures}
    asked = [question.text for question in valid]
    asked = asked if settings.earlier_weight else asked[:MEASURED_QUESTIONS]
    likeness = likeness_to_earlier(run, asked, earlier[-settings.earlier_questions :])
    rewards = challenger_rewards(
        shares, cluster, settings, likeness if settings.earlier_weight else (), failed
    )

    dropped = failed if settings.failed_vote == "drop" else set()
    scored = by_prompt(drawn, rewards, group, dropped)
    trained = train(run, run.challenger, scored, settings, settings.sampling.temperature)
    if run.config.pool.reuse_votes and unit.step == settings.steps:
        run.folder.append(VOTES, voted_rows(run, unit, valid, votes, answers))

    metrics = question_metrics(run, parsed, votes)
    metrics |= {
        "answer_agrees_share": agreeing_share(confirmed),
        "reward_mean": mean(rewards),
        "largest_cluster": max(Counter(cluster).values(), default=0),
        "agreement_counts": agreement_counts(votes, settings.votes),
        "dropped": len(dropped),
        "similarity_to_earlier": mean(likeness) if likeness else None,
        "kl_to_base": kl_to_base(run, drawn, settings, trained),
        "answer_length_mean": sample_metrics(answers)["length_mean"],
    }
    metrics |= sample_metrics(drawn) | trained | run.task.counters()
    return {"tokens_sampled": tokens([*drawn, *answers])} | named("challenger", metrics)


def paid_shares(votes: Sequence[Vote], confirmed: Sequence[bool | None], only_confirmed: bool) -> list[float]:
    """p of each question's reward: the majority's share, or 0 where it should be confirmed and is not."""
    return [
        vote.share if agrees or not only_confirmed else 0.0
        for vote, agrees in zip(votes, confirmed, strict=True)
    ]


def by_prompt(drawn: Sequence[Draw], rewards: Sequence[float], group: int, dropped: set[int]) -> list[Scored]:
    """The samples of each prompt with their rewards, without those `dropped`; numbers count over the step."""
    scored, begin = [], 0
    for part in drawn:
        places = [begin + place for place in range(len(part.samples)) if begin + place not in dropped]
        left = Draw(part.prompt_ids, [part.samples[place - begin] for place in places])
        if places:
            worth = [rewards[place] for place in places]
            scored.append(Scored(left, worth, [place // group for place in places]))
        begin += len(part.samples)
    return scored


def vote_once(run: Run, unit: Unit, questions: Sequence[Question]) -> tuple[list[Vote], list[Draw]]:
    """A vote per question, equal questions sharing one, and the answers that were drawn."""
    number: dict[str, int] = {}
    for question in questions:
        number.setdefault(run.task.canonical(question.text), len(number))
    first = {run.task.canonical(question.text): question.text for question in reversed(questions)}
    votes, answers = ask_solver(run, unit, [first[key] for key in number], run.config.challenger.votes)
    return [votes[number[run.task.canonical(question.text)]] for question in questions], answers


def voted_rows(
    run: Run, unit: Unit, questions: Sequence[Question], votes: Sequence[Vote], answers: Sequence[Draw]
) -> list[dict[str, Any]]:
    """Each different question of a step with its answers and vote; `answers` has a draw for each."""
    first: dict[str, tuple[Question, Vote]] = {}
    for question, vote in zip(questions, votes, strict=True):
        first.setdefault(run.task.canonical(question.text), (question, vote))
    return [
        {
            "iteration": unit.iteration,
            "question": question.text,
            "challenger_answer": question.answer,
            "texts": [sample.text for sample in drawn.samples],
            "answers": vote.answers,
            "classes": vote.classes,
            "failures": vote.failures,
        }
        for (question, vote), drawn in zip(first.values(), answers, strict=True)
    ]


def question_metrics(run: Run, parsed: Sequence[Question | Invalid], votes: Sequence[Vote]) -> dict[str, Any]:
    """What the questions of a step are like; shares of the valid ones unless the name says otherwise."""
    valid = [question for question in parsed if isinstance(question, Question)]
    reasons = Counter(question.reason for question in parsed if isinstance(question, Invalid))
    return {
        "format_share": len(valid) / len(parsed),
        "invalid": dict(sorted(reasons.items())),
        "distinct_share": len({run.task.canonical(question.text) for question in valid}) / max(len(valid), 1),
        "agreement_mean": mean([vote.share for vote in votes]),
        "unboxed_share": mean([answer is None for vote in votes for answer in vote.answers]),
    }
