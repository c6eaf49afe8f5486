# SPDX-License-Identifier: Apache-2.0
"""Word problems as at primary school: mathematics with a Challenger prompt that a 0.5B model can follow.

    cd examples/school
    rzero run --config school.yaml --model Qwen/Qwen2.5-Coder-0.5B-Instruct --data DIR

DIR holds the held-out sets, <name>.jsonl. What came of it: docs/results.md.
"""

from collections.abc import Sequence

from rzero.tasks.base import Problem, TaskTokenizer
from rzero.tasks.math import EXAMPLE, EXAMPLES, Math, ask

SYSTEM = r"""You write word problems for school children.
Write one new problem of two to four steps that takes careful reading, with small whole numbers and exactly one number as its answer. Invent the people, the things and the story yourself.
Output exactly the following two blocks and nothing else:

<question>
{the problem, in two to five sentences, ending with the question}
</question>

\boxed{the answer, only a number}"""  # noqa: E501
USER = "Write one new word problem now. Remember to format the output exactly as instructed."


class School(Math):
    name = "school"

    def challenger_prompt(self, tokenizer: TaskTokenizer, examples: Sequence[Problem] = ()) -> list[int]:
        shown = [EXAMPLE.format(question=example.question, answer=example.answer) for example in examples]
        return ask(tokenizer, SYSTEM, "\n\n".join([EXAMPLES, *shown, USER]) if shown else USER)
