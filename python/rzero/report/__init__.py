# SPDX-License-Identifier: Apache-2.0
"""report.html: one page that shows a run, with everything it needs inside and nothing fetched.

The page is a template, a style sheet, two scripts and the data as JSON. The charts are drawn by `charts.js`
(SVG) and not by matplotlib: a chart drawn for the width it has stays legible on a phone and on a projector,
follows the light and dark colours of the page, and shows its numbers under the pointer; a finished picture
does none of it.

Model output is untrusted. It enters the page as JSON in which "<" is written as an escape, reaches the
document as text only (never as markup), and the page's content policy forbids what comes from elsewhere.
"""

import json
from pathlib import Path
from typing import Any

from rzero.report.collect import collect
from rzero.run_folder import explained, write_atomic

PARTS = Path(__file__).parent


def build(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a run folder (finished or not) and return its path, by default <folder>/report.html.

    Raises InputError when the folder holds no run, a journal is damaged, or the page cannot be written.
    """
    path = Path(output) if output is not None else Path(folder) / "report.html"
    page = render(collect(Path(folder)))
    with explained(path):
        write_atomic(path, page)
    return path


def render(data: dict[str, Any]) -> str:
    """The whole page as text."""
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    parts = {
        "/*style*/": (PARTS / "page.css").read_text(encoding="utf-8"),
        "/*scripts*/": "".join(
            (PARTS / name).read_text(encoding="utf-8") for name in ("charts.js", "page.js")
        ),
        # Last: nothing is replaced inside what a model wrote.
        "/*data*/": as_script(data),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text, 1)
    return page


def as_script(data: Any) -> str:
    """JSON that can stand inside a script element: no "<" can end it, and all of it is ASCII."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")
