"""`report.json` for programs, `report.html` for people (one self-contained page), `report.md` for
places that show text, and the `recipe.yaml` that repeats it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import yaml
from markupsafe import Markup
from PIL import Image

from stagebeam.evaluation.answers import name_of
from stagebeam.evaluation.cases import Case, choose
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.paper_tables import paper_tables, read_run
from stagebeam.evaluation.plots import (
    accuracy_against_passes,
    accuracy_against_seconds,
    accuracy_against_tokens,
    judge_by_stage,
)
from stagebeam.evaluation.published import BENCHMARKS
from stagebeam.evaluation.report_markdown import report_markdown
from stagebeam.evaluation.report_tables import (
    card_tables,
    comparisons_table,
    equal_tokens_table,
    fallbacks_table,
    method_lines,
    repeat_tables,
)
from stagebeam.evaluation.results import Results
from stagebeam.evaluation.tables import Table
from stagebeam.evaluation.trace_page import templates

RECIPE_FILE = "recipe.yaml"

SHOWN_TRACES = 8
LARGEST_SIDE = 640  # pixels; larger images are scaled down for the page
_AS_THEY_ARE = {"PNG", "JPEG", "GIF", "WEBP"}  # what every browser shows


def write_report(results: Results, cases: Sequence[Case], folder: Path) -> Path:
    """Write all files into `folder`; returns the page's path.

    `cases` are all answers that could be shown; the page takes the most telling of them. The
    paper's tables are there where `folder` holds figures of one of its benchmarks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    recipe = yaml.safe_dump(results.recipe, sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(recipe, encoding="utf-8")
    json_text = results.model_dump_json(indent=2)
    (folder / "report.json").write_text(json_text + "\n", encoding="utf-8")
    paper = _paper(folder)
    text = report_markdown(results, paper, recipe)
    (folder / "report.md").write_text(text, encoding="utf-8")
    page = folder / "report.html"
    shown = choose(cases, SHOWN_TRACES)
    page.write_text(_render(results, shown, paper, recipe), encoding="utf-8")
    return page


def _paper(folder: Path) -> list[Table]:
    measured = {path.parent.name for path in folder.glob("benchmarks/*/figures.json")}
    return paper_tables([read_run(folder)]) if measured & {*BENCHMARKS.values()} else []


def _render(results: Results, cases: Sequence[Case], paper: Sequence[Table], recipe: str) -> str:
    environment = templates()
    environment.filters.update(percent=_percent, points=_points, signed=_signed, pretty=_pretty)
    return environment.get_template("report.html.j2").render(
        results=results,
        methods=method_lines(results),
        label=label,
        tokens_plot=Markup(accuracy_against_tokens(results)),
        passes_plot=Markup(accuracy_against_passes(results)),
        seconds_plot=Markup(accuracy_against_seconds(results)),
        judge_plot=Markup(judge_by_stage(results.judge.cards)) if results.judge else None,
        cases=[_CaseView(case) for case in cases],
        fallbacks=fallbacks_table(results),
        against_greedy=comparisons_table("Every method against greedy", results.against_greedy),
        equal_tokens=equal_tokens_table(results),
        card=card_tables(results.judge) if results.judge else [],
        paper=paper,
        repeated=repeat_tables(results.repeat) if results.repeat else [],
        recipe=recipe,
    )


class _CaseView:
    """A case as the template reads it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.trace = case.trace
        *self.earlier, self.question = case.trace.messages
        self.images = [data_uri(image) for image in case.images]
        n = case.trace.candidates
        n = n if isinstance(n, int) else max(n.values())
        self.method = label(name_of(case.trace.method, n))


def data_uri(encoded: bytes) -> str:
    """An image as a data URI, scaled down where it is larger than the page needs."""
    with Image.open(BytesIO(encoded)) as image:
        kind = image.format or ""
        if max(image.size) > LARGEST_SIDE or kind not in _AS_THEY_ARE:
            image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
            buffer = BytesIO()
            image.convert("RGB").save(buffer, format="JPEG", quality=85)
            encoded, kind = buffer.getvalue(), "JPEG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded).decode()}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _pretty(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
