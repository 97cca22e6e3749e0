"""Stage-wise retracing search (SWIRES, arXiv 2411.10440, section 3.2 and appendix D).

A pointwise judge scores M candidates of a stage, spread over the kept ones of the stage before;
the best few are kept. Where none reaches the stage's cutoff, the stage before is drawn again and
its best are continued too. The summary is exempt. The conclusion with the highest score wins.
"""

from __future__ import annotations

from collections.abc import Sequence

from stagebeam.search.calibration import cutoff
from stagebeam.search.events import Retraced
from stagebeam.search.greedy import finish
from stagebeam.search.limits import OutOfBudget
from stagebeam.search.routes import Layer, Route
from stagebeam.search.state import Search
from stagebeam.search.trace import RetraceTrace
from stagebeam.stages import STAGES


async def retrace(search: Search) -> None:
    """Decides all stages at the end, along the way to the best conclusion.

    Without a calibration every score is good enough. A text that was cut, or that ended its turn,
    is not continued while another can be.
    """
    layers: list[Layer] = []
    roots: list[Route] = [Route()]
    for stage in STAGES:
        layer = Layer(search, stage)
        layers.append(layer)
        try:
            await layer.grow(roots)
            if len(layers) > 1:  # the summary is exempt
                await _go_back(search, layers, cutoff(search.calibration, stage))
        except OutOfBudget:
            if not layer.routes:
                layers.pop()
            break
        roots = layer.best(search.settings.kept)
        if not roots[0].open:
            break
    await _decide(search, layers)


async def _go_back(search: Search, layers: Sequence[Layer], needed: float) -> None:
    """Draw the stage before again, and continue its new best, until a score is good enough."""
    layer, before = layers[-1], layers[-2]
    roots = layers[-3].best(search.settings.kept) if len(layers) > 2 else [Route()]
    for _ in range(search.settings.max_retraces):
        best = layer.best(1)[0].score
        # A judge that failed gives no scores: nothing says that going back would help.
        if layer.unjudged or (best is not None and best >= needed):
            return
        told = RetraceTrace(stage=layer.name, back_to=before.name, best=best, cutoff=needed)
        await search.emit(Retraced(told))
        fresh = before.best(search.settings.kept, among=await before.grow(roots))
        if fresh[0].open:
            await layer.grow(fresh)


async def _decide(search: Search, layers: Sequence[Layer]) -> None:
    """Tell the winners from the first stage to the last; finish what a limit left undone."""
    if not layers:
        return await finish(search, "")
    route = layers[-1].best(1)[0]
    for layer, step in zip(layers, route.steps, strict=True):
        await layer.decide(step)
    whole = len(layers) == len(STAGES)
    if route.cut or (route.open and not whole):
        await finish(search, route.text)
