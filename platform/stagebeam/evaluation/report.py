"""`report.json` for programs and `report.html` for people, one self-contained page."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from markupsafe import Markup
from PIL import Image

from stagebeam.evaluation.answers import name_of
from stagebeam.evaluation.cases import Case, choose
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.plots import (
    accuracy_against_passes,
    accuracy_against_seconds,
    accuracy_against_tokens,
    judge_by_stage,
)
from stagebeam.evaluation.results import (
    SEARCHES,
    Accuracies,
    JudgeCard,
    JudgeResult,
    MethodResult,
    Results,
)
from stagebeam.evaluation.trace_page import templates

SHOWN_TRACES = 8
LARGEST_SIDE = 640  # pixels; larger images are scaled down for the page
_AS_THEY_ARE = {"PNG", "JPEG", "GIF", "WEBP"}  # what every browser shows


def write_report(results: Results, cases: Sequence[Case], folder: Path) -> Path:
    """Write both files into `folder`; returns the page's path.

    `cases` are all answers that could be shown; the page takes the most telling of them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    json_text = results.model_dump_json(indent=2)
    (folder / "report.json").write_text(json_text + "\n", encoding="utf-8")
    page = folder / "report.html"
    page.write_text(_render(results, choose(cases, SHOWN_TRACES)), encoding="utf-8")
    return page


def _render(results: Results, cases: Sequence[Case]) -> str:
    environment = templates()
    environment.filters.update(percent=_percent, points=_points, signed=_signed, pretty=_pretty)
    return environment.get_template("report.html.j2").render(
        results=results,
        methods=method_lines(results),
        label=label,
        tokens_plot=Markup(accuracy_against_tokens(results)),
        passes_plot=Markup(accuracy_against_passes(results)),
        seconds_plot=Markup(accuracy_against_seconds(results)),
        judge_plot=Markup(judge_by_stage(_judge_kinds(results.judge))) if results.judge else None,
        cases=[_CaseView(case) for case in cases],
    )


def method_lines(results: Accuracies) -> list[tuple[str, MethodResult]]:
    """Every method with its name, greedy first, the bounds (judge alone, oracle) last."""
    lines = [("greedy", results.greedy)]
    for method in SEARCHES:
        by_n: dict[str, MethodResult] = getattr(results, method)
        lines += [(name_of(method, int(n)), by_n[n]) for n in sorted(by_n, key=int)]
    if results.judge_alone is not None:
        lines.append(("judge_alone", results.judge_alone))
    lines += [(f"oracle@{n}", results.oracle[n]) for n in sorted(results.oracle, key=int)]
    return lines


def _judge_kinds(judge: JudgeResult) -> dict[str, JudgeCard]:
    """Every card, that of the judge which was used among them."""
    return {**judge.kinds, judge.kind: judge}


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
