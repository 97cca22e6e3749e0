"""The report's plots, as SVG that sits inside the page and follows its light or dark colours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from stagebeam.evaluation.results import Accuracies, Cost, JudgeCard, MethodResult, PairShare
from stagebeam.stages import STAGES

# Stands for the page's text colour while matplotlib draws; replaced by `currentColor` after.
_INK = "#010203"
# Mid-tones that hold on white and on near-black; the marker tells methods apart without colour.
_STYLES = {
    "stage_beam": ("stage beam", "#e07b39", "o"),
    "best_of_n": ("best of N", "#3b8fd1", "s"),
    "majority": ("majority", "#3a9d78", "^"),
    "sentence_beam": ("sentence beam", "#b59a2d", "v"),
    "retrace": ("retracing", "#7a6fd0", "X"),
    "oracle": ("oracle", "#9a8fb0", "D"),
}
_GREEDY = ("greedy", _INK, "P")
_ALONE = ("judge's model alone", "#cf5a8c", "*")
_RC: Any = {  # matplotlib types the keys one by one
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def accuracy_against_tokens(results: Accuracies) -> str:
    """Accuracy over the tokens of an answer: sampled by the generator and read by the judge."""
    return _accuracy_plot(
        results,
        lambda cost: cost.tokens + cost.judge_tokens,
        "tokens an answer, sampled and judged",
        "tokens",
    )


def accuracy_against_passes(results: Accuracies) -> str:
    """Accuracy over the forward passes that had to wait for one another."""
    return _accuracy_plot(
        results, lambda cost: cost.sequential_passes, "sequential passes an answer", "passes"
    )


def accuracy_against_seconds(results: Accuracies) -> str:
    """Accuracy over the median wall clock, under the load of the run."""
    return _accuracy_plot(results, lambda cost: cost.seconds, "seconds an answer", "seconds")


def _accuracy_plot(
    results: Accuracies, x_of: Callable[[Cost], float], x_label: str, plot_id: str
) -> str:
    with rc_context(_RC):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for method, style in _STYLES.items():
            points = sorted(getattr(results, method).items(), key=lambda item: int(item[0]))
            if points:
                _draw_method(axes, points, x_of, style)
        _draw_method(axes, [("", results.greedy)], x_of, _GREEDY)
        if results.judge_alone is not None:
            _draw_method(axes, [("", results.judge_alone)], x_of, _ALONE)
            axes.axhline(
                results.judge_alone.accuracy, color=_ALONE[1], lw=1, ls=(0, (4, 4)), zorder=1
            )
        _scale_x(axes, [x_of(m.cost) for m in _all_results(results)])
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(x_label)
        axes.set_ylabel("right")
        axes.grid(axis="y", color=_INK, alpha=0.12)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return _inline(figure, plot_id, f"Accuracy against {x_label}")


def _all_results(results: Accuracies) -> list[MethodResult]:
    found = [r for method in _STYLES for r in getattr(results, method).values()]
    return [results.greedy, *found, *([results.judge_alone] if results.judge_alone else [])]


def _scale_x(axes: Axes, xs: list[float]) -> None:
    """A logarithmic axis where costs differ by much; a narrow one would have no labels."""
    if min(xs) > 0 and max(xs) / min(xs) > 4:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _number(x)))
        axes.xaxis.set_minor_formatter(FuncFormatter(_sparse_tick))


def _sparse_tick(value: float, _: int) -> str:
    leading = int(f"{value:e}"[0])
    return _number(value) if leading in (2, 5) else ""


def _number(value: float) -> str:
    """Seconds may be under one; tokens and passes are whole."""
    return f"{value:,.0f}" if value >= 1 else f"{value:.2g}"


def _draw_method(
    axes: Axes,
    points: list[tuple[str, MethodResult]],
    x_of: Callable[[Cost], float],
    style: tuple[str, str, str],
) -> None:
    name, color, marker = style
    xs = [x_of(result.cost) for _, result in points]
    ys = [result.accuracy for _, result in points]
    below = [result.accuracy - result.interval[0] for _, result in points]
    above = [result.interval[1] - result.accuracy for _, result in points]
    axes.errorbar(
        xs,
        ys,
        yerr=[below, above],
        color=color,
        marker=marker,
        markersize=9 if marker == "*" else 6,
        lw=1.6,
        ls="--" if name == "oracle" else "-",
        elinewidth=1,
        capsize=3,
        label=name,
        zorder=3,
    )
    for (n, _), x, y in zip(points, xs, ys, strict=True):
        if n:
            axes.annotate(n, (x, y), xytext=(6, 5), textcoords="offset points", color=color)


def judge_by_stage(cards: Mapping[str, JudgeCard]) -> str:
    """Accuracy on pairs with a known answer, by stage, one row of marks for each kind of judge."""
    names = [s.value for s in STAGES] + ["ANSWER"]
    names = [n for n in names if any(n in card.by_stage for card in cards.values())] + ["all"]
    with rc_context(_RC):
        figure = Figure(figsize=(6.4, 1.5 + 0.42 * len(names)), layout="constrained")
        axes = figure.subplots()
        for number, ((kind, card), style) in enumerate(
            zip(cards.items(), _STYLES.values(), strict=False)
        ):
            shift = (number - (len(cards) - 1) / 2) * 0.22
            shares: dict[str, PairShare] = {**card.by_stage, "all": card}
            at = [(i + shift, shares[name]) for i, name in enumerate(names) if name in shares]
            axes.errorbar(
                [s.accuracy for _, s in at],
                [y for y, _ in at],
                xerr=[
                    [s.accuracy - s.interval[0] for _, s in at],
                    [s.interval[1] - s.accuracy for _, s in at],
                ],
                color=style[1],
                marker=style[2],
                ls="none",
                elinewidth=1.4,
                capsize=3,
                label=kind,
            )
        axes.axvline(0.5, color=_INK, lw=1, ls=(0, (2, 3)), alpha=0.7)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)  # first stage on top
        axes.set_xlim(0, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("pairs judged right (dotted: chance)")
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
        return _inline(figure, "judge", "Judge accuracy by stage")


def _inline(figure: Figure, plot_id: str, title: str) -> str:
    """The figure as one <svg> element for an HTML page, with ids that no other plot shares."""
    buffer = StringIO()
    with rc_context({"svg.hashsalt": plot_id}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"(?=[^<>]*viewBox)', "", svg)
    svg = re.sub(r'(<svg[^>]*?)\sxmlns="[^"]*"', r"\1", svg)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{plot_id}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{plot_id}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{plot_id}-\1)", svg)
    svg = svg.replace(_INK, "currentColor")
    return svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
