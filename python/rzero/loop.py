# SPDX-License-Identifier: Apache-2.0
"""R-Zero from end to end: `evolve` is the algorithm, the rest of this page starts it, saves it and goes on
with it.

A run is a fixed sequence of units of work: an evaluation of the base, then in each iteration the Challenger's
steps, the question pool, the Solver's steps and an evaluation. Each unit is a function of the weights, the
journals and keys derived from the run's seed. After each one the state is saved, and a resumed run skips what
is finished.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rzero import challenger, pool, solver
from rzero.anchors import of_run
from rzero.config import model_path
from rzero.engine.engine import Engine
from rzero.engine.errors import InputError
from rzero.evaluate import Measured, measure
from rzero.gauges import Stopped, alarms, best_iteration, is_news, read, stop_order, thresholds
from rzero.journals import read_journal
from rzero.memory_plan import require_memory
from rzero.observer import Observer
from rzero.plan import phases
from rzero.roles import adopt_roles, begin_phase, drop_roles, restore, saved_state
from rzero.rollout import Run, Unit, named
from rzero.run_facts import facts, held_out_hashes
from rzero.run_folder import RunFolder, explained, write_atomic
from rzero.settings import Settings
from rzero.tasks import create

ABLATION = "ablation"


def evolve(work: "Work") -> None:
    """The algorithm (R-Zero, arXiv:2508.05004): the Challenger learns to ask, the Solver learns to answer."""
    config, run = work.run.config, work.run
    work.phase(0, "evaluation", 1, work.evaluate)
    for iteration in range(1, config.iterations + 1):
        earlier = pool.earlier(run, iteration)
        ask = partial(challenger.step, run, earlier=earlier)
        work.phase(iteration, "challenger", config.challenger.steps, ask)
        work.phase(iteration, "pool", 1, partial(pool.build, run, earlier=earlier))
        questions = pool.kept(run, iteration)
        if not questions:
            raise Stopped(empty_pool(iteration))
        work.phase(iteration, "solver", config.solver.steps, partial(solver.step, run, pool=questions))
        if iteration % config.evaluation.every == 0 or iteration == config.iterations:
            work.phase(iteration, "evaluation", 1, work.evaluate)


def empty_pool(iteration: int) -> str:
    """Why a run ends early when no question was kept."""
    return (
        f"stopped in iteration {iteration}: no question of the pool lies between too easy and too hard, so "
        "there is nothing to train the Solver on; questions.jsonl says why each was dropped; widen "
        "pool.keep_low and pool.keep_high, or draw more pool.candidates"
    )


def run(settings: Settings, path: str | Path, observer: Observer | None = None) -> None:
    """A new run in the folder `path`; raises InputError for what the user can mend."""
    if (Path(path) / "config.yaml").exists():
        raise InputError(f"{path} already holds a run; go on with --resume {path} or name another folder")
    with engine_of(settings) as engine:
        _main_and_ablation(engine, Path(path), settings, observer or Observer())


def resume(path: str | Path, settings: Settings | None = None, observer: Observer | None = None) -> None:
    """Go on with the run in `path`; `settings`, where given, must compute the same run."""
    with closing(RunFolder.open(path, settings)) as folder:
        config = folder.config
    with engine_of(config) as engine:
        _main_and_ablation(engine, Path(path), config, observer or Observer())


@contextmanager
def engine_of(settings: Settings, *, trains: bool = True) -> Iterator[Engine]:
    """The engine of a run, or with trains = False of an evaluation; closed at the end."""
    how = settings.engine
    require_memory(settings, trains=trains)
    engine = Engine(
        model_path(settings.model),
        device=how.device,
        dtype=how.dtype,
        kernels=how.kernels,
        page_size=how.page_size,
        num_pages=how.num_pages,
        kv_cache_bytes=None if how.kv_cache_gib is None else int(how.kv_cache_gib * 2**30),
        max_seqs=how.max_seqs,
        max_batch_tokens=how.max_batch_tokens,
        max_model_len=how.max_model_len,
        threads=how.threads,
        optimizer=how.optimizer,
        numerics=how.numerics,
        cuda_graphs=how.cuda_graphs,
    )
    with engine:
        yield engine


def _main_and_ablation(engine: Engine, path: Path, settings: Settings, observer: Observer) -> None:
    _one_run(engine, path, settings, observer, "main")
    if settings.ablation:
        untrained = settings.challenger.model_copy(update={"steps": 0})
        other = settings.model_copy(update={"challenger": untrained, "ablation": False})
        _one_run(engine, path / ABLATION, other, observer, ABLATION, main=path)


def _one_run(
    engine: Engine, path: Path, settings: Settings, observer: Observer, name: str, main: Path | None = None
) -> None:
    """One run; `main` is the one that it is the control of, with the same examples and the same base."""
    with closing(create(settings.task, settings.data)) as task:
        held_out = held_out_hashes(task)
        if (path / "config.yaml").exists():
            folder = RunFolder.open(path, settings)
        else:
            folder = RunFolder.create(path, settings, facts(engine, settings) | {"held_out_sha256": held_out})
        with closing(folder):
            folder.check_model(engine.weights.hash("base"))
            folder.check_held_out(held_out)
            roles = adopt_roles(engine, settings)
            anchors = of_run(folder.path, settings.anchors, task, main)
            work = Work(Run(engine, task, settings, folder, observer, *roles, anchors), main)
            observer.on_run(name, work.count_units(), work.rows)
            try:
                evolve(work)
            except Stopped as stop:
                observer.on_message(str(stop))
                write_result(work.run, best_iteration(work.rows) if stop.keep_best else None, str(stop))
            else:
                write_result(work.run, settings.iterations, "the last iteration")
            drop_roles(engine)


RESULT = "result.json"


def write_result(run: Run, iteration: int | None, reason: str) -> None:
    """Say which iteration's models are the run's result; None: the last whose models were saved."""
    saved = [i for i in range(1, run.config.iterations + 1) if (run.folder.models_of(i) / "solver").is_dir()]
    chosen = max(saved, default=0) if iteration is None else iteration
    models = {
        role: str((run.folder.models_of(chosen) / role).relative_to(run.folder.path))
        for role in ("solver", "challenger")
        if (run.folder.models_of(chosen) / role).is_dir()
    }
    result = {"iteration": chosen, "reason": reason, "models": models or {"solver": run.config.model}}
    with explained(run.folder.path / RESULT):
        write_atomic(run.folder.path / RESULT, json.dumps(result, indent=1) + "\n")


class Work:
    """Does the units of a run that are not finished yet, in order, and saves the state after each."""

    def __init__(self, run: Run, main: Path | None) -> None:
        self.run, self.main = run, main
        state = run.folder.load_state(run.observer.on_message)
        if state is not None:
            restore(run, state)
        self.done = 0 if state is None else state.units
        self.rows = list(run.folder.read("metrics.jsonl"))
        self._seen = 0
        self._changed: set[str] = set()

    def count_units(self) -> int:
        """Units of the whole run."""
        return sum(1 for _ in phases(self.run.config, is_ablation=False))

    def phase(self, iteration: int, name: str, steps: int, do: Callable[[Unit], Mapping[str, Any]]) -> None:
        """The steps of one phase; those that are finished are skipped."""
        if self._seen + steps > self.done and steps:
            self.run.observer.on_phase(iteration, name, steps)
        for step in range(1, steps + 1):
            self._seen += 1
            if self._seen > self.done:
                self._unit(Unit(iteration, name, step), do, is_last=step == steps)
            if order := stop_order(self.rows[self._seen - 1]):
                raise order

    def _unit(self, unit: Unit, do: Callable[[Unit], Mapping[str, Any]], is_last: bool) -> None:
        begin_s = time.monotonic()
        if unit.step == 1:
            self._changed |= begin_phase(self.run, unit)
        metrics = {**unit._asdict(), "seconds": 0.0, **do(unit)}
        if unit.phase in ("challenger", "solver"):
            self._changed.add(self.run.challenger if unit.phase == "challenger" else self.run.solver)
        if unit.phase == "solver" and is_last:
            self._save_models(unit.iteration)
        metrics["seconds"] = round(time.monotonic() - begin_s, 3)
        self._gauge(unit, metrics)
        self.run.folder.append("metrics.jsonl", [metrics])
        self.rows.append(metrics)
        self.done = self._seen
        if is_last or self.done % self.run.config.checkpoint_every == 0:
            state = saved_state(self.run, self.done, unit.words)
            self.run.folder.save_state(state, sorted(self._changed))
            self._changed.clear()
        self.run.observer.on_step(metrics)

    def _gauge(self, unit: Unit, metrics: dict[str, Any]) -> None:
        """Write the gauges and their alarms into a unit's metrics, and say what is new of them."""
        metrics["gauges"] = read(metrics, self.rows)
        found = alarms(metrics["gauges"], thresholds(self.run.config, unit.phase, self.run.engine.is_exact))
        metrics["alarms"] = [alarm._asdict() for alarm in found]
        for alarm in found:
            # An order to stop is said where it is carried out.
            if alarm.action == "warn" and is_news(alarm, unit.iteration, self.rows):
                self.run.observer.on_message(alarm.sentence(unit.words))

    def evaluate(self, unit: Unit) -> dict[str, Any]:
        """Measure the Solver on the held-out sets; the base of the ablation is that of the main run."""
        folder = self.run.folder
        if self.main is not None and unit.iteration == 0:
            measured = measured_before(self.main)
        else:
            measured = measure(self.run, unit)
        folder.append("evaluations.jsonl", measured.rows)
        folder.append("evaluation_answers.jsonl", measured.answers)
        self.run.observer.on_evaluation(measured.rows)
        of_sets = set_accuracy(measured.rows)
        metrics = {"accuracy": accuracy(of_sets), "set_accuracy": of_sets or None} | self.run.task.counters()
        return {"tokens_sampled": measured.tokens_sampled} | named("evaluation", metrics)

    def _save_models(self, iteration: int) -> None:
        run = self.run
        run.engine.save(run.solver, run.folder.model_folder(iteration, "solver"))
        # An untrained Challenger is the base, which the user has.
        if run.config.challenger.steps:
            run.engine.save(run.challenger, run.folder.model_folder(iteration, "challenger"))


def set_accuracy(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Held-out set -> mean@k, or greedy where nothing was sampled."""
    return {row["set"]: row["greedy"] if row["mean_at_k"] is None else row["mean_at_k"] for row in rows}


def accuracy(of_sets: Mapping[str, float]) -> float | None:
    """Held-out accuracy as one number: the mean over the sets; None without a set."""
    return sum(of_sets.values()) / len(of_sets) if of_sets else None


def measured_before(main: Path) -> Measured:
    """The evaluation of the base, from the journals of the main run."""
    rows = [row for row in read_journal(main / "evaluations.jsonl") if row["iteration"] == 0]
    answers = [row for row in read_journal(main / "evaluation_answers.jsonl") if row["iteration"] == 0]
    return Measured(rows, answers, 0)
