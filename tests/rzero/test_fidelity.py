# SPDX-License-Identifier: Apache-2.0
"""The presets `paper`, `code` and `recommended`, row by row of the table in docs/algorithm.md.

Every value of a preset belongs to a row, and every row that a preset touches is named in a test's id.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from rzero.config import PRESET_FOLDER, differences, flatten, load_config
from rzero.pool import why_not
from rzero.rewards import challenger_rewards, edited, has_format, solver_rewards
from rzero.settings import Settings
from rzero.votes import Vote, count_votes, or_both_say_no

PRESETS = ("paper", "code", "recommended")
# Row -> setting -> its value in each of PRESETS.
ROWS: Mapping[int, Mapping[str, tuple[Any, Any, Any]]] = MappingProxyType(
    {
        1: {"challenger.reward_scale": (1.0, 0.5, 1.0)},
        6: {"challenger.repetition_weight": (1.0, 1.0, 1.0)},
        7: {"challenger.repetition_base": ("all", "all", "valid")},
        8: {"challenger.repetition_distance": (0.5, 0.5, 0.5)},
        9: {"challenger.reward_floor": (0.0, None, None)},
        10: {
            "challenger.invalid_reward": (0.0, -1.0, -1.0),
            "challenger.invalid_penalty": (False, True, False),
        },
        11: {"challenger.failed_vote": ("drop", "invalid", "drop")},
        13: {"challenger.votes": (10, 10, 10)},
        14: {"pool.votes": (10, 9, 10)},
        15: {
            "pool.keep_low": (3, 3, 3),
            "pool.keep_high": (7, 7, 7),
            "pool.keep_shares": (None, [0.3, 0.8], None),
        },
        16: {"pool.candidates": (8000, 8000, 8000)},
        17: {"pool.sampling.temperature": (1.0, 1.0, 1.0), "pool.sampling.top_p": (0.95, 0.95, 0.95)},
        18: {
            "voting.temperature": (1.0, 1.0, 1.0),
            "voting.top_p": (1.0, 1.0, 1.0),
            "voting.top_k": (40, 40, 40),
        },
        19: {
            "challenger.sampling.top_p": (0.99, 0.99, 1.0),
            "solver.sampling.top_p": (0.99, 0.99, 1.0),
        },
        20: {
            "pool.skip_in_question": ([], ["证明", "box"], []),
            "pool.skip_in_label": ([], ["text"], []),
        },
        21: {"voting.same_no": (False, True, False)},
        23: {"solver.format_weight": (0.0, 0.1, 0.0)},
        24: {"solver.edit_before_grading": (False, True, False)},
        26: {"challenger.group": (4, 4, 4)},
        27: {"solver.samples": (5, 5, 5)},
        28: {
            "challenger.questions_per_step": (2048, 2048, 2048),
            "solver.questions_per_step": (512, 512, 512),
        },
        29: {"challenger.updates_per_step": (4, 32, 32), "solver.updates_per_step": (4, 4, 4)},
        31: {"challenger.steps": (5, 5, 5), "solver.steps": (15, 15, 15)},
        32: {"challenger.learning_rate": (1e-6, 1e-6, 1e-6), "solver.weight_decay": (0.01, 0.01, 0.01)},
        33: {"challenger.keep_optimizer": (False, False, False), "solver.keep_optimizer": (False,) * 3},
        34: {"challenger.kl_coef": (0.01, 0.01, 0.01), "solver.kl_reference": ("phase",) * 3},
        35: {
            f"{role}.{name}": values
            for role in ("challenger", "solver")
            for name, values in (
                ("clip_low", (0.2, 0.2, 0.2)),
                ("clip_high", (0.2, 0.3, 0.3)),
                ("clip_dual", (None, 3.0, 3.0)),
            )
        },
        36: {"challenger.advantage": ("std",) * 3, "solver.advantage": ("std",) * 3},
        37: {"challenger.loss_mean": ("sequence",) * 3, "solver.loss_mean": ("sequence",) * 3},
        38: {
            "max_question_tokens": (2048, 2048, 2048),
            "solver.sampling.max_tokens": (4096, 4096, 4096),
        },
        39: {"iterations": (3, 5, 3)},
        41: {"roles": ("full", "full", "full")},
    }
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row-{row:02d}")
@pytest.mark.parametrize("place", range(3), ids=PRESETS)
def test_preset_says(place: int, row: int) -> None:
    values = flatten(load_config(PRESETS[place]))
    assert {name: values[name] for name in ROWS[row]} == {name: v[place] for name, v in ROWS[row].items()}


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_a_preset_belongs_to_a_row(name: str) -> None:
    known = {setting for row in ROWS.values() for setting in row}
    assert set(differences(load_config(name), Settings())) <= known
    for line in (PRESET_FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        found = re.fullmatch(r" *(\w+): ([^#]*[^# ]) *#? ?(\d*).*", line)
        if found is None:
            continue
        # A section in braces holds the setting itself: sampling: {top_p: 0.99}.
        setting = re.sub(r".*\{(\w+):.*", r"\1", found[2]) if found[2].startswith("{") else found[1]
        assert any(key.split(".")[-1] == setting for key in ROWS[int(found[3])]), line


def test_recommended_is_what_one_gets_without_a_preset() -> None:
    assert load_config("recommended") == Settings()


def rewards(preset: str, shares: list[float | None], clusters: list[int], **rest: Any) -> list[float]:
    return challenger_rewards(shares, clusters, load_config(preset).challenger, **rest)


def test_row_01_uncertainty() -> None:
    """Each question alone in its cluster of a large step, so that the penalty is small and the same."""
    shares = [0.1, 0.5, 0.8]
    assert rewards("recommended", [*shares], [0, 1, 2]) == pytest.approx([r - 1 / 3 for r in (0.2, 1, 0.4)])
    assert rewards("code", [*shares], [0, 1, 2]) == pytest.approx([r - 1 / 3 for r in (0.1, 0.5, 0.2)])


def test_row_07_base_of_the_penalty() -> None:
    shares = [0.5, None, None, 0.5]
    assert rewards("recommended", [*shares], [0, 0])[0] == pytest.approx(1 - 2 / 2)
    assert rewards("paper", [*shares], [0, 0])[0] == pytest.approx(1 - 2 / 4)
    assert rewards("code", [*shares], [0, 0])[0] == pytest.approx(0.5 - 2 / 4)


def test_row_09_floor() -> None:
    assert rewards("paper", [1.0, 1.0], [0, 0]) == [0.0, 0.0]
    assert rewards("code", [1.0, 1.0], [0, 0]) == rewards("recommended", [1.0, 1.0], [0, 0]) == [-1.0, -1.0]


def test_row_10_invalid_questions() -> None:
    found = {name: rewards(name, [0.5, None, 0.5, None], [0, 1])[1] for name in PRESETS}
    assert found == {"paper": 0.0, "code": -1.25, "recommended": -1.0}


def test_row_11_a_judge_that_gives_up() -> None:
    """The authors' score of -1 becomes min(-1, 2) and pays the penalty; here the question is left out."""
    assert rewards("code", [0.5, 0.5], [0, 1], failed={1}) == [0.0, -1.5]
    assert load_config("recommended").challenger.failed_vote == "drop"


def vote(counts: Mapping[str, int], empty: int = 0) -> Vote:
    answers = tuple(answer for answer, count in counts.items() for _ in range(count))
    return Vote(answers + (None,) * empty, tuple(counts.items()), 0)


@pytest.mark.parametrize(
    ("preset", "kept"),
    [("paper", [3, 4, 5, 6, 7]), ("recommended", [3, 4, 5, 6, 7]), ("code", [3, 4, 5, 6, 7])],
)
def test_row_15_band(preset: str, kept: list[int]) -> None:
    settings = load_config(preset).pool
    votes = [
        vote({"x": n, **{str(i): 1 for i in range(settings.votes - n)}}) for n in range(1, settings.votes + 1)
    ]
    assert [v.agreement for v in votes if why_not("2+2", v, settings) is None] == kept


def test_row_15_shares_leave_empty_answers_out() -> None:
    """7 of 8 that answered are more than 0.8 of them, and 2 of 6 more than 0.3."""
    code, recommended = load_config("code").pool, load_config("recommended").pool
    easy, hard = vote({"x": 7, "y": 1}, empty=1), vote({"x": 2, "y": 1, "z": 1, "u": 1, "v": 1}, empty=3)
    assert (why_not("q", easy, code), why_not("q", easy, recommended)) == ("too easy", None)
    assert (why_not("q", hard, code), why_not("q", hard, recommended)) == (None, "too hard")


def test_row_20_skipped_questions() -> None:
    settings = load_config("code").pool
    fair, words = vote({"7": 5, "8": 4}), vote({r"\text{none}": 5, "8": 4})
    assert why_not("What is in the box?", fair, settings) == "skipped for its question"
    assert why_not("证明", fair, settings) == "skipped for its question"
    assert why_not("How many?", words, settings) == "skipped for its label"
    assert why_not("What is in the box?", fair, load_config("recommended").pool) is None


def test_row_21_both_say_no() -> None:
    asked: list[tuple[str, str]] = []

    def judge(pairs: Any) -> list[bool]:
        asked.extend(pairs)
        return [False] * len(pairs)

    [found] = count_votes([["no way", "No solution", "none", "7"]], or_both_say_no(judge))
    assert found.classes == (("no way", 2), ("none", 1), ("7", 1))
    assert ("no way", "No solution") not in asked and len(asked) == 3
    [without] = count_votes([["no way", "No solution"]], judge)
    assert len(without.classes) == 2


def test_row_22_the_first_of_equals_wins() -> None:
    [found] = count_votes([["2", "1", "1", "2"]], lambda pairs: [False] * len(pairs))
    assert found.majority == "2"


def test_row_23_format_reward() -> None:
    good, bare = r"<think>a</think> \boxed{7}", r"\boxed{7}"
    assert has_format(good) and not has_format(bare) and not has_format(" " + good)
    assert not has_format(r"<think>\boxed{7}</think>")
    weight = load_config("code").solver.format_weight
    assert solver_rewards([True, True, None], [good, bare, good], weight) == pytest.approx([1.0, 0.9, 0.1])
    assert solver_rewards([True, None], [bare, good]) == [1.0, 0.0]


def test_row_24_text_edit() -> None:
    assert edited(" 1 / 2 < 3 > \n/ 4 ") == " 1/2<3>/4 "
    assert edited("no sign ") == "no sign "
