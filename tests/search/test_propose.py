from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from stagebeam.inference.types import Candidate, GenerateRequest, Usage
from stagebeam.search.events import StageOpened
from stagebeam.search.propose import Draw
from stagebeam.search.state import SearchError
from stagebeam.stages import Stage


class Stream:
    """A generator that yields what it is given."""

    def __init__(self, *items: Candidate | Usage) -> None:
        self.items = items

    async def propose(self, request: GenerateRequest) -> AsyncIterator[Candidate | Usage]:
        for item in self.items:
            yield item


async def propose(
    kit: SimpleNamespace,
    generator: object,
    n: int,
    stage: Stage | None,
    prefix: str = "",
    **changed: Any,
) -> Draw:
    search, _ = kit.search(generator, None, kit.settings(candidates=n, **changed))
    spot = search.spot(stage, prefix)
    draw = Draw(search, spot)
    await search.emit(StageOpened(spot.visit, spot.name, n))
    await draw.more(range(n))
    return draw


def said(index: int, logprob: float = -1.0) -> Candidate:
    return Candidate(index, f"text {index}", 2, logprob, "stop")


async def test_candidates_come_sorted_by_index_with_all_usage_added(kit: SimpleNamespace) -> None:
    stream = Stream(said(1), Usage(prefill_tokens=5), said(0), Usage(decode_tokens=4))
    got = await propose(kit, stream, 2, None)
    assert [c.index for c in got.candidates] == [0, 1]
    assert got.usage == Usage(prefill_tokens=5, decode_tokens=4)
    assert got.seconds > 0


async def test_a_candidate_that_a_retried_stream_gives_twice_counts_once(
    kit: SimpleNamespace,
) -> None:
    stream = Stream(said(0), said(0), said(1), Usage())
    got = await propose(kit, stream, 2, None)
    assert [c.index for c in got.candidates] == [0, 1]


async def test_the_request_carries_prompt_prefix_stop_seeds_and_sampling(
    kit: SimpleNamespace,
) -> None:
    generator = kit.SeededGenerator()
    settings = {"temperature": 0.7, "top_p": 0.8, "max_new_tokens": 9}
    prefix = "<SUMMARY> a </SUMMARY>"
    await propose(kit, generator, 3, Stage.CAPTION, prefix, **settings)
    (request,) = generator.requests
    assert (request.prompt, request.prefix, request.stops) == (kit.ask(), prefix, ("</CAPTION>",))
    assert len(set(request.seeds)) == 3
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.7, 0.8, 9)


@pytest.mark.parametrize("items", [(), (Usage(),), (said(0),)])
async def test_a_missing_candidate_is_an_error_that_says_how_many_came(
    kit: SimpleNamespace, items: tuple[Candidate | Usage, ...]
) -> None:
    with pytest.raises(SearchError, match=r"returned [01] of 2 candidates for REASONING"):
        await propose(kit, Stream(*items), 2, Stage.REASONING)


async def test_a_log_probability_that_is_not_a_number_is_an_error(kit: SimpleNamespace) -> None:
    stream = Stream(said(0, float("nan")))
    with pytest.raises(SearchError, match="not finite"):
        await propose(kit, stream, 1, None)
