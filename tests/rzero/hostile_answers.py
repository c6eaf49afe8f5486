# SPDX-License-Identifier: Apache-2.0
"""Answers that a model may write, by accident or to please its reward, and that hurt whoever grades them."""

from collections.abc import Callable
from random import Random

# Digits of other scripts, Cyrillic letters, the minus sign, a wide equals sign.
LOOK_ALIKES = str.maketrans("12x-ao=", "\u0661\uff12\u0445\u2212\u0430\u043e\uff1d")


def nested(begin: str, middle: str, end: str) -> Callable[[Random], str]:
    def build(draw: Random) -> str:
        depth = draw.randrange(4, 150)
        return begin * depth + middle + end * depth

    return build


def repeated(part: str, last: str = "1") -> Callable[[Random], str]:
    return lambda draw: part * draw.choice((draw.randrange(2, 120), 100_000)) + last


def number(low: int, high: int) -> Callable[[Random], str]:
    return lambda draw: "".join(draw.choices("123456789", k=draw.randrange(low, high)))


def text(template: str) -> Callable[[Random], str]:
    """Every # becomes a number of one to six digits."""

    def build(draw: Random) -> str:
        parts = template.split("#")
        numbers = [str(draw.randrange(2, 10 ** draw.randrange(1, 7))) for _ in parts[1:]] + [""]
        return "".join(part + digits for part, digits in zip(parts, numbers, strict=True))

    return build


FAMILIES: tuple[tuple[str, Callable[[Random], str]], ...] = (
    ("tower", text(r"#^{#^{#^{#}}}")),
    ("tower of nines", nested("9^{", "9", "}")),
    ("power", text(r"#^{#}")),
    ("negative power", text(r"#^{-#^{#}}")),
    ("factorial", text(r"#!")),
    ("factorials", text(r"((#!)!)!")),
    ("binomial", text(r"\binom{#}{#}")),
    ("nested fraction", nested(r"\frac{1}{1+", "1", "}")),
    ("nested root", nested(r"\sqrt{2+", "2", "}")),
    ("continued", repeated(r"1+\frac{1}{", "2")),
    ("integral", text(r"\int_{0}^{#} \frac{\sin(x^{#})}{x^{x}} e^{x^{#}} dx")),
    ("integrals", nested(r"\int \frac{1}{1+x^5} ", "dx", "dx")),
    ("sum", text(r"\sum_{k=1}^{#!} \frac{1}{k^{#}}")),
    ("product", text(r"\prod_{k=1}^{#} (x^{k} - k^{#})")),
    ("limit", text(r"\lim_{x \to 0} \frac{\sin(\tan(x))^{#} - x}{x^{#}}")),
    ("derivative", text(r"\frac{d^{#}}{dx^{#}} \sin(x^{#})^{x}")),
    ("polynomial", text(r"(x+y+z+w)^{#} - (a+b)^{#}")),
    ("equations", text(r"x^{#} + #x + # = y^{#} - z")),
    ("inequality", text(r"x^{#} + \sin(x) > \log(x)^{#}")),
    ("matrix", repeated(r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}^{99}")),
    ("set", repeated("1,", "2")),
    ("logarithms", text(r"\log_{#}(\log_{#}(#^{#^{#}}))")),
    ("open braces", repeated("{", "")),
    ("closed braces", repeated("}", "")),
    ("half a fraction", repeated(r"\frac{", "1")),
    ("digits", number(300, 5000)),
    ("decimal", lambda draw: "0." + str(draw.randrange(10**900))),
    (
        "megabyte",
        lambda draw: draw.choice(("9", "x+", r"\frac", " ", "é", "((")) * draw.randrange(900_000, 1_000_000),
    ),
    ("look-alikes", lambda draw: text("#x - # = a#o")(draw).translate(LOOK_ALIKES)),
    ("code", text("__import__('os').system('kill -9 #') or exit(#)")),
    ("control", lambda draw: "".join(chr(draw.randrange(32)) for _ in range(20)) + "\ud800\x00$\n"),
    ("dollars", repeated("$", "1$2$$")),
    ("words", repeated("the answer is ", "42")),
    ("boxes", nested(r"\boxed{", "1", "}")),
    ("percent", repeated(r"\%", "5")),
    ("letters", text(r"i^{i^{i^{#}}} e^{\pi^{#}}")),
)


def hostile(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` different answers with their family, the families in turn, always the same."""
    draw = Random(seed)
    found: dict[str, str] = {}
    turn = 0
    while len(found) < count:
        name, build = FAMILIES[turn % len(FAMILIES)]
        found.setdefault(build(draw), name)
        turn += 1
    return [(name, answer) for answer, name in found.items()]
