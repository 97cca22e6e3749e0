"""Drawing tokens: greedy, nucleus, and rows that do not know each other."""

from __future__ import annotations

import pytest
import torch

from stagebeam.inference.sampling import draw_tokens

PROBABILITIES = (0.5, 0.3, 0.15, 0.05)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(
    logits: torch.Tensor, temperature: float, top_p: float, seeds: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(logits)
    return draw_tokens(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_p),
        generators(*seeds),
    )


def frequencies(temperature: float, top_p: float, draws: int = 20_000) -> list[float]:
    """How often each token of PROBABILITIES is drawn. The rows have streams of their own."""
    logits = torch.tensor(PROBABILITIES).log().expand(draws, -1)
    tokens, _ = draw(logits, temperature, top_p, list(range(draws)))
    return (torch.bincount(tokens, minlength=len(PROBABILITIES)) / draws).tolist()


def test_temperature_zero_takes_the_best_token() -> None:
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = draw(logits, 0.0, 0.5, list(range(64)))
    assert tokens.equal(logits.argmax(-1))
    assert logprobs.equal(logits.log_softmax(-1).max(-1).values)


def test_frequencies_are_those_of_the_distribution() -> None:
    # 20,000 draws: a standard deviation of at most 0.0036
    assert frequencies(1.0, 1.0) == pytest.approx(PROBABILITIES, abs=0.015)


def test_temperature_sharpens() -> None:
    powers = [p**2 for p in PROBABILITIES]
    expected = [p / sum(powers) for p in powers]
    assert frequencies(0.5, 1.0) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("top_p", "kept"), [(0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (1.0, 4)])
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(top_p: float, kept: int) -> None:
    expected = [p / sum(PROBABILITIES[:kept]) for p in PROBABILITIES[:kept]]
    assert frequencies(1.0, top_p) == pytest.approx(expected + [0.0] * (4 - kept), abs=0.015)


def test_the_likeliest_token_is_kept_however_small_top_p_is() -> None:
    assert frequencies(1.0, 1e-6, draws=200) == [1.0, 0.0, 0.0, 0.0]


def test_logprobs_are_those_at_temperature_one() -> None:
    logits = torch.tensor(PROBABILITIES).log().expand(100, -1)
    tokens, logprobs = draw(logits, 0.3, 0.9, list(range(100)))
    assert logprobs.tolist() == pytest.approx([logits[0, t].item() for t in tokens], abs=1e-6)


def test_a_row_draws_the_same_tokens_whatever_its_neighbours_do() -> None:
    logits = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(1))  # [step, R, V]
    settings = torch.tensor([0.7, 0.0, 1.0, 0.0, 1.5]), torch.tensor([0.9, 0.9, 1.0, 0.5, 0.95])
    streams = generators(*range(5))
    crowd = torch.stack([draw_tokens(step, *settings, streams)[0] for step in logits])
    for row in range(5):
        (stream,) = generators(row)
        one = slice(row, row + 1)
        alone = [
            draw_tokens(step[one], settings[0][one], settings[1][one], [stream])[0].item()
            for step in logits
        ]
        assert crowd[:, row].tolist() == alone


def test_a_greedy_step_uses_its_stream_up_like_any_other() -> None:
    """So that the draws after it do not depend on the temperature before it."""
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    states = []
    for temperature in (0.0, 1.0):
        (stream,) = generators(5)
        draw_tokens(logits, torch.tensor([temperature]), torch.tensor([1.0]), [stream])
        states.append(stream.get_state())
    assert states[0].equal(states[1])


def test_half_precision_logits_are_drawn_from_in_full() -> None:
    logits = torch.tensor([PROBABILITIES]).log().to(torch.bfloat16)
    _, logprobs = draw(logits, 1.0, 1.0, [0])
    assert logprobs.dtype is torch.float32
