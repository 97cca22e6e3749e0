"""What a comparison shows and what it does not, in a sentence or two computed from the numbers."""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.evaluation.results import Comparison, JudgeCard

STAGE_BEAM, RETRACE = "stage_beam", "retrace"
CLAIMED = (STAGE_BEAM, RETRACE)  # methods that are compared with the others
JUDGE_ALONE = "judge_alone"


def doubt_about(card: JudgeCard | None) -> str | None:
    """Why this judge lets nobody claim a gain from search, None where it does.

    A search is worth what its judge is worth: what a judge that was not measured, or is not shown
    to be better than chance, seems to gain may be luck.
    """
    if card is None:
        return (
            "The judge was not measured on pairs with known answers, so no gain from search is"
            " claimed."
        )
    low, high = card.interval
    if low > 0.5:
        return None
    return (
        f"The judge is not shown to be better than chance ({card.accuracy:.1%} of {card.pairs}"
        f" pairs with known answers right, 95 % interval {low:.1%} to {high:.1%}), so no gain from"
        " search is claimed."
    )


def write_claim(comparisons: Sequence[Comparison], doubt: str | None = None) -> str:
    """The claim for stage beam, and for retracing where it was measured, each at its largest N.

    The largest, not the best: picking the best N after the fact would favour the search. With a
    `doubt` about the judge no difference is called a gain, and the doubt stands at the end.
    """
    parts = [_claim_for(method, comparisons, doubt is None) for method in CLAIMED]
    if not parts[0]:
        parts[0] = "Stage beam was not measured, so nothing is claimed about it."
    return " ".join(filter(None, (*parts, doubt)))


def _claim_for(method: str, comparisons: Sequence[Comparison], sure: bool) -> str:
    ours = [c for c in comparisons if c.first.partition("@")[0] == method]
    if not ours:
        return ""
    n = max(int(c.first.partition("@")[2]) for c in ours)
    ours = [c for c in ours if c.first == f"{method}@{n}"]
    alone = next((c for c in ours if c.second == JUDGE_ALONE), None)
    others = [c for c in ours if c is not alone]
    name = {STAGE_BEAM: "stage beam", RETRACE: "retracing"}[method]
    parts = _against_methods(f"{name} with N = {n}", others, sure), _against_judge(alone, sure)
    return " ".join(filter(None, parts))


def _against_methods(ours: str, comparisons: Sequence[Comparison], sure: bool) -> str:
    if not comparisons:
        return ""
    gains, losses, open_ = (
        [_figures(c) for c in comparisons if c.shown == sign] for sign in (1, -1, 0)
    )
    findings = []
    if gains:
        found = "a gain is shown over" if sure else "it has more right than"
        findings.append(f"{found} {_listed(gains)}")
    if losses:
        findings.append(f"it is shown to be worse than {_listed(losses)}")
    if open_:
        findings.append(f"neither a gain nor a loss is shown against {_listed(open_)}")
    first = comparisons[0]
    return (
        f"On {first.questions} held-out questions {ours} has "
        f"{first.first_accuracy:.1%} right: {'; '.join(findings)}."
    )


def _against_judge(alone: Comparison | None, sure: bool) -> str:
    if alone is None:
        return (
            "The judge's model was not asked alone, so the comparison cannot tell"
            " what search adds from what the judge already knew."
        )
    figures = f"{alone.second_accuracy:.1%} right; {_difference(alone)}"
    if alone.shown > 0 and not sure:
        return f"The judge's own model answering alone has fewer right ({figures})."
    if alone.shown > 0:
        return (
            f"It is also better than the judge's own model answering alone ({figures}), so the"
            " judge's training by itself does not explain the result."
        )
    if alone.shown < 0:
        return (
            f"The judge's own model answering alone is better ({figures}): asking it directly"
            " beats searching with it, and any gain belongs to the judge's training."
        )
    return (
        f"No gain is shown over the judge's own model answering alone ({figures}), so the"
        " comparison does not separate search from the judge's training."
    )


def _figures(comparison: Comparison) -> str:
    return f"{label(comparison.second)} ({_difference(comparison)})"


def _difference(comparison: Comparison) -> str:
    low, high = (100 * edge for edge in comparison.interval)
    p = "p < 0.001" if comparison.p < 0.001 else f"p = {comparison.p:.3f}"
    return (
        f"{100 * comparison.difference:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}, {p}"
    )


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def label(name: str) -> str:
    """A method's name for people: `best_of_n@4` is `best of 4`."""
    method, _, n = name.partition("@")
    names = {
        "greedy": "greedy",
        "stage_beam": f"stage beam, N = {n}",
        "best_of_n": f"best of {n}",
        "majority": f"majority of {n}",
        "sentence_beam": f"sentence beam, N = {n}",
        "retrace": f"retracing, N = {n}",
        "oracle": f"oracle of {n}",
        "judge_alone": "the judge's model alone",
    }
    return names[method]
