# SPDX-License-Identifier: Apache-2.0
"""How long a run will still take: its units of work, a cost for each kind, corrected by what was measured."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rzero.settings import Settings

# A trained sample costs about as much again as sampling it: one forward and one backward pass.
TRAIN_COST = 1.0
# Until something is measured: samples per second of a small model on two CPU cores.
FIRST_GUESS_PER_S = 150.0


def phases(config: Settings, *, is_ablation: bool) -> Iterator[str]:
    """The phase of every unit of work of one run, in order."""
    # The ablation takes over what was measured of the base.
    yield "taken over" if is_ablation else "evaluation"
    for iteration in range(1, config.iterations + 1):
        if not is_ablation:
            yield from ["challenger"] * config.challenger.steps
        yield "pool"
        yield from ["solver"] * config.solver.steps
        if iteration % config.evaluation.every == 0 or iteration == config.iterations:
            yield "evaluation"


def costs(config: Settings) -> Mapping[str, float]:
    """The samples that one unit of each phase draws, a trained one counted more."""
    challenger, pool, solver, evaluation = config.challenger, config.pool, config.solver, config.evaluation
    return {
        "challenger": challenger.questions_per_step * (1 + challenger.votes + TRAIN_COST),
        "pool": pool.candidates * (1.0 + pool.votes),
        "solver": solver.questions_per_step * solver.samples * (1 + TRAIN_COST),
        # Where the size of the held-out sets is not limited: three sets of 200 problems.
        "evaluation": 3 * (evaluation.problems or 200) * (1.0 + evaluation.samples),
    }


@dataclass
class Plan:
    """The units of the whole command (the ablation too), how far it is, and the time left."""

    costs: Mapping[str, float]
    runs: Mapping[str, tuple[str, ...]]
    run: str = "main"
    done: int = 0
    _spent_s: dict[str, float] = field(default_factory=dict)
    _counted: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Settings) -> "Plan":
        runs = {"main": tuple(phases(config, is_ablation=False))}
        if config.ablation:
            runs["ablation"] = tuple(phases(config, is_ablation=True))
        return cls(costs(config), runs)

    def start(self, run: str) -> None:
        """`run` begins; its units that were finished before are told with `finish`, as all others."""
        self.run, self.done = run, 0

    def finish(self, seconds: float) -> None:
        """The next unit took `seconds`."""
        units = self.runs[self.run]
        phase = units[min(self.done, len(units) - 1)]
        self.done += 1
        self._spent_s[phase] = self._spent_s.get(phase, 0.0) + seconds
        self._counted[phase] = self._counted.get(phase, 0) + 1

    def unit_s(self, phase: str) -> float:
        """Expected seconds of a unit: as measured, else by its cost at the speed of the others."""
        if phase in self._counted:
            return self._spent_s[phase] / self._counted[phase]
        spent_s = sum(self._spent_s.values())
        samples = sum(self.costs.get(name, 0.0) * count for name, count in self._counted.items())
        speed = samples / spent_s if spent_s > 0 and samples > 0 else FIRST_GUESS_PER_S
        return self.costs.get(phase, 0.0) / speed

    def left_s(self) -> float:
        """Expected seconds until the whole command is finished."""
        return sum(self.unit_s(phase) for phase in self._units_left())

    def share_done(self) -> float:
        """The part of the expected time that lies behind, 0 to 1."""
        total_s = sum(self.unit_s(phase) for units in self.runs.values() for phase in units)
        return 1.0 - min(self.left_s() / total_s, 1.0) if total_s > 0 else 0.0

    def _units_left(self) -> Iterator[str]:
        names = list(self.runs)
        here = names.index(self.run)
        yield from self.runs[names[here]][self.done :]
        for name in names[here + 1 :]:
            yield from self.runs[name]
