"""One judged decision: N candidates proposed, a tournament played, the result recorded."""

from __future__ import annotations

from stagebeam.inference.types import Generator, Judge, Prompt
from stagebeam.search.outcome import record
from stagebeam.search.propose import propose, stage_name
from stagebeam.search.seeds import candidate_seed
from stagebeam.search.settings import SearchSettings
from stagebeam.search.tournament import play
from stagebeam.search.trace import StageTrace
from stagebeam.stages import Stage


async def contest(
    prompt: Prompt,
    generator: Generator,
    judge: Judge | None,
    settings: SearchSettings,
    question_key: str,
    *,
    stage: Stage | None,
    prefix: str = "",
) -> StageTrace:
    """Propose and decide `stage` after `prefix` (the whole answer where `stage` is None).

    Raises SearchError if generator or judge break their protocol; their own errors pass through.
    """
    proposal = await propose(generator, prompt, settings, question_key, stage=stage, prefix=prefix)
    draw = candidate_seed(settings.seed, question_key, f"{stage_name(stage)} draw", 0)
    outcome = await play(
        proposal.candidates,
        prompt=prompt,
        stage=stage,
        prefix=prefix,
        judge=judge,
        form=settings.form,
        tie_margin=settings.tie_margin,
        seed=draw,
    )
    return record(stage, proposal, outcome)
