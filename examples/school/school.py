# SPDX-License-Identifier: Apache-2.0
"""Word problems as at primary school: mathematics with a Challenger prompt that a 0.5B model can follow.

    cd examples/school
    rzero run --config school.yaml --model Qwen/Qwen2.5-Coder-0.5B-Instruct --data DIR

DIR holds the held-out sets, <name>.jsonl. The examples' answers are calculations, whose last result is the
answer: a Challenger that calculates can be held to what it answers (`only_confirmed`). What came of it:
docs/results.md.
"""

import re
from collections.abc import Sequence

from rzero.tasks.base import Invalid, Problem, Question, TaskTokenizer
from rzero.tasks.math import EXAMPLES, Math, ask

SYSTEM = r"""You write word problems for school children.
Write one new problem that takes one to four steps with the numbers that stand in it, and that has exactly one number as its answer. Invent the people, the things and the story yourself.
Output exactly the following and nothing else:

<question>
{the problem, in one to four sentences, ending with the question}
</question>

{the calculation}
\boxed{the answer, only a number}"""  # noqa: E501
EXAMPLE = "<question>\n{question}\n</question>\n\n{calculation}\n\\boxed{{{answer}}}"
USER = "Write one new word problem now. Remember to format the output exactly as instructed."

WORDS = "two|three|four|five|six|seven|eight|nine|ten|twelve|dozen|twice|half"
_NUMBER = re.compile(rf"\d[\d,.]*|\b(?:{WORDS})\b", re.I)


class School(Math):
    name = "school"

    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence[Problem] = ()) -> list[int]:
        shown = [
            EXAMPLE.format(
                question=example.question,
                calculation=example.answer,
                answer=example.answer.rpartition("= ")[2],
            )
            for example in examples
        ]
        return ask(tokenizer, SYSTEM, "\n\n".join([EXAMPLES, *shown, USER]) if shown else USER)

    def parse_question(self, text: str) -> Question | Invalid:
        """As in mathematics, but a text must ask, and give two numbers to work with."""
        parsed = super().parse_question(text)
        if isinstance(parsed, Invalid):
            return parsed
        if not parsed.text.endswith("?"):
            return Invalid("no question mark at the end")
        if len(_NUMBER.findall(parsed.text)) < 2:
            return Invalid("fewer than two numbers")
        return parsed
