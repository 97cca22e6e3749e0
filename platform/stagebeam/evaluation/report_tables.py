"""The report's tables, out of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.evaluation.answers import name_of
from stagebeam.evaluation.claim import label
from stagebeam.evaluation.results import (
    SEARCHES,
    Accuracies,
    Comparison,
    Fallbacks,
    JudgeCard,
    JudgeResult,
    MethodResult,
    PairShare,
    Repeat,
    Results,
    Share,
)
from stagebeam.evaluation.statistics import Interval
from stagebeam.evaluation.tables import Table

NONE = "\N{EN DASH}"


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


def methods_table(results: Results) -> Table:
    return Table(
        "Accuracy and cost",
        (
            "Method",
            "Right, %",
            "95 % interval",
            "Bootstrap",
            "Correct",
            "Failed calls",
            "Unread",
            "Tokens sampled",
            "Judge tokens",
            "Sequential passes",
            "Seconds",
        ),
        tuple(_method_row(name, m) for name, m in method_lines(results)),
        "Intervals are Wilson's; the bootstrap is over questions. A failed call and a reply that"
        " no rule could read are wrong answers. Costs are means for one answer, seconds the median"
        f" with {results.concurrency} questions in flight. The oracle is right where any of"
        " best-of-N's candidates is.",
    )


def _method_row(name: str, m: MethodResult) -> tuple[str, ...]:
    return (
        label(name),
        percent(m.accuracy),
        span(m.interval),
        span(m.bootstrap),
        f"{m.correct} of {m.questions}",
        str(m.failed),
        NONE if m.fallbacks is None else str(m.fallbacks.unread),
        f"{m.cost.tokens:.0f}",
        f"{m.cost.judge_tokens:.0f}",
        f"{m.cost.sequential_passes:.0f}",
        f"{m.cost.seconds:.2f}",
    )


def fallbacks_table(results: Accuracies) -> Table:
    """The oracle draws nothing of its own, so it is not there."""
    own = [(name, m) for name, m in method_lines(results) if not name.startswith("oracle")]
    names = tuple(Fallbacks.model_fields)
    return Table(
        "Fallbacks",
        (
            "Method",
            "Failed calls",
            "Replies that no rule could read",
            "Candidates without their tags",
            "Candidates cut off",
            "Answers cut short",
            "Judge failures",
        ),
        tuple(
            (
                label(name),
                str(m.failed),
                *(NONE if m.fallbacks is None else str(getattr(m.fallbacks, n)) for n in names),
            )
            for name, m in own
        ),
        "Counts over all questions of a method. A dash: kept by a release that did not count them.",
    )


def categories_table(results: Accuracies) -> Table | None:
    categories = results.greedy.by_category
    if not categories:
        return None
    methods = method_lines(results)
    return Table(
        "By category",
        ("Category", "Questions", *(label(name) for name, _ in methods)),
        tuple(
            (
                category,
                str(share.questions),
                *(_share(m.by_category.get(category)) for _, m in methods),
            )
            for category, share in categories.items()
        ),
        "Percent right, with Wilson's 95 % interval.",
    )


def comparisons_table(title: str, comparisons: Sequence[Comparison]) -> Table | None:
    if not comparisons:
        return None
    return Table(
        title,
        (
            "Difference",
            "Points",
            "95 % interval",
            "Bootstrap",
            "p",
            "Only the first right",
            "Only the second right",
            "Shown",
        ),
        tuple(
            (
                f"{label(c.first)} less {label(c.second)}",
                points(c.difference),
                points_span(c.interval),
                points_span(c.bootstrap),
                p_value(c.p),
                str(c.only_first),
                str(c.only_second),
                {1: "better", 0: "neither", -1: "worse"}[c.shown],
            )
            for c in comparisons
        ),
        "On the same questions. Newcombe's interval for paired proportions, the bootstrap over"
        " questions, McNemar's exact p. Shown: the interval excludes zero and p is below 0.05; not"
        " corrected for the number of tests.",
    )


def equal_tokens_table(results: Accuracies) -> Table | None:
    if not results.equal_tokens:
        return None
    methods = [m for m in SEARCHES if any(e.method == m for e in results.equal_tokens)]
    firsts = dict.fromkeys(e.first for e in results.equal_tokens)
    cells = {(e.first, e.method): e for e in results.equal_tokens}

    def cell(first: str, method: str) -> str:
        found = cells.get((first, method))
        if found is None:
            return ""
        at = f"N = {found.second.partition('@')[2]}, {found.second_tokens:.0f} tokens"
        if found.comparison is None:
            return f"none as dear ({at})"
        c = found.comparison
        return f"{points(c.difference)} ({points_span(c.interval)}), {at}"

    return Table(
        "At equal tokens",
        ("Method", "Tokens", *(f"less {_without_n(m)}" for m in methods)),
        tuple(
            (
                label(first),
                f"{next(e.first_tokens for e in results.equal_tokens if e.first == first):.0f}",
                *(cell(first, method) for method in methods),
            )
            for first in firsts
        ),
        "Points by which the method in the row is ahead of the one in the column, with Newcombe's"
        " 95 % interval. The other method stands at its cheapest measured N that took at least as"
        " many tokens (sampled and judged, means for an answer), so a lead is not bought with"
        " tokens. Nothing is interpolated; where all its N are cheaper, the dearest is named and"
        " nothing is compared.",
    )


def _without_n(method: str) -> str:
    return label(f"{method}@N").removesuffix(", N = N")


def card_tables(judge: JudgeResult) -> list[Table]:
    """The card, what it says by stage and kind of question, length and calibration."""
    cards = judge.cards
    parts = {"all pairs": judge, **judge.by_stage}
    parts |= {f"questions: {name}": share for name, share in judge.by_category.items()}
    tables = [
        _kinds_table(judge, cards),
        Table(
            "The judge by stage and kind of question",
            ("Pairs", "Right, %", "95 % interval", "Correct"),
            tuple(
                (name, percent(s.accuracy), span(s.interval), f"{s.correct} of {s.pairs}")
                for name, s in parts.items()
            ),
            "Pairs of which one is known to be the better; a tie is not right.",
        ),
        _length_table(cards),
    ]
    if judge.calibration:
        tables.append(_calibration_table(judge))
    return tables


def _kinds_table(judge: JudgeResult, cards: dict[str, JudgeCard]) -> Table:
    alone = judge.alone
    told = (
        f"The judge's own model, answering alone, has {percent(alone.accuracy)} % of"
        f" {alone.questions} questions right ({span(alone.interval)})."
        if alone
        else "The judge's own model was not asked alone."
    )
    return Table(
        "The judge",
        (
            "Kind",
            "Pairs right, %",
            "95 % interval",
            "Pairs",
            "Ties",
            "Same winner in both orders, %",
            "First shown wins, %",
            "Mean margin",
            "Tokens a pair",
        ),
        tuple(
            (
                f"{kind} (used)" if kind == judge.kind else kind,
                percent(card.accuracy),
                span(card.interval),
                str(card.pairs),
                str(card.ties),
                percent(card.swap_consistency),
                percent(card.first_position_share),
                f"{card.mean_margin:+.2f}",
                f"{card.judge_tokens:.0f}",
            )
            for kind, card in cards.items()
        ),
        f"{judge.pairs_from or 'Pairs with known answers.'} Margins are log-odds. {told}",
    )


def _length_table(cards: dict[str, JudgeCard]) -> Table:
    return Table(
        "The judge and length",
        ("Kind", "Longer one wins, %", "Right where the better is longer, %", "where shorter, %"),
        tuple(
            (
                kind,
                percent(card.longer_share),
                _pairs(card.better_longer),
                _pairs(card.better_shorter),
            )
            for kind, card in cards.items()
        ),
        "Length in characters. A judge that does not look at it is right as often in both; how"
        " often the longer one wins also depends on how often it is the better.",
    )


def _calibration_table(judge: JudgeResult) -> Table:
    assert judge.calibration_error is not None
    return Table(
        "Calibration of the judge's margin",
        ("Margin, log-odds", "Pairs", "Confidence, %", "Right, %", "95 % interval"),
        tuple(
            (
                f"{b.low:.2f} to {b.high:.2f}",
                str(b.pairs),
                percent(b.confidence),
                percent(b.accuracy),
                span(b.interval),
            )
            for b in judge.calibration
        ),
        "Decided pairs in bins of equal number. Confidence is the mean of 1 / (1 + exp(-|margin|)),"
        " what the margin says if it is taken at its word. Expected calibration error:"
        f" {100 * judge.calibration_error:.1f} points.",
    )


def repeat_tables(repeat: Repeat) -> list[Table]:
    """What was used; the command and the recipe are shown beside them."""
    facts = {
        **{
            f"weights of the {k}": f"{w.folder} ({w.fingerprint})"
            for k, w in repeat.weights.items()
        },
        **{f"seed, {name}": str(seed) for name, seed in repeat.seeds.items()},
        "source, git commit": repeat.commit or "not a git checkout",
        **repeat.versions,
    }
    return [
        Table(
            "Files",
            ("File", "Rows", "SHA-256"),
            tuple(
                (f.path, NONE if f.rows is None else f"{f.rows:,}", f.sha256) for f in repeat.files
            ),
        ),
        Table("Weights, seeds, versions", ("What", "Which"), tuple(facts.items())),
    ]


def percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def span(interval: Interval | None) -> str:
    return NONE if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def points_span(interval: Interval | None) -> str:
    return NONE if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _share(share: Share | None) -> str:
    return NONE if share is None else f"{percent(share.accuracy)} ({span(share.interval)})"


def _pairs(share: PairShare | None) -> str:
    if share is None:
        return NONE
    return f"{percent(share.accuracy)} ({span(share.interval)}; {share.pairs} pairs)"
