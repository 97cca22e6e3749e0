"""Drawing tokens: greedy, nucleus, and rows that do not know each other."""

from __future__ import annotations

import pytest
import torch

from stagebeam.inference import sampling
from stagebeam.inference.sampling import Luck, Manner, draw_tokens, numbers
from stagebeam.inference.types import Sampling

PROBABILITIES = (0.5, 0.3, 0.15, 0.05)


def luck(*seeds: int) -> list[float]:
    return [next(numbers(seed)) for seed in seeds]


def manner(*settings: tuple[float, float]) -> Manner:
    """Of rows with these temperatures and top-p."""
    return Manner.of([Sampling(*each) for each in settings], torch.device("cpu"))


def draw(
    logits: torch.Tensor, temperature: float, top_p: float, seeds: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_tokens(logits, manner(*[(temperature, top_p)] * len(logits)), luck(*seeds))


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
    settings = [(0.7, 0.9), (0.0, 0.9), (1.0, 1.0), (0.0, 0.5), (1.5, 0.95)]
    lucks = luck(*range(5))
    crowd = torch.stack([draw_tokens(step, manner(*settings), lucks)[0] for step in logits])
    for row, setting in enumerate(settings):
        alone = [
            draw_tokens(step[row : row + 1], manner(setting), lucks[row : row + 1])[0].item()
            for step in logits
        ]
        assert crowd[:, row].tolist() == alone


def test_a_stream_follows_from_its_seed_and_does_not_repeat_itself() -> None:
    first = [value for value, _ in zip(numbers(5), range(200), strict=False)]
    assert first == [value for value, _ in zip(numbers(5), range(200), strict=False)]
    assert len(set(first)) == 200 and all(0 <= value < 1 for value in first)
    assert next(numbers(6)) != first[0]


def test_numbers_that_are_seen_ahead_come_in_the_same_order_and_are_spent_one_by_one() -> None:
    stream, row = numbers(5), Luck(5)
    expected = [next(stream) for _ in range(200)]
    assert row.ahead(9) == expected[:9] and row.ahead(3) == expected[:3]
    row.spend(2)
    assert row.ahead(150) == expected[2:152]
    row.spend(150)
    assert row.ahead(1) == expected[152:153]


@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_of_a_large_vocabulary_the_same_token_is_drawn_as_if_all_of_it_were_sorted(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat rows need more than the likeliest tokens, steep ones do not. Among equally likely ones
    either may be drawn."""
    steep = torch.tensor([0.1, 1.0, 8.0])[torch.arange(60) % 3, None]
    logits = steep * torch.randn(60, 5000, generator=torch.Generator().manual_seed(3))
    _, logprobs = draw(logits, 1.0, top_p, list(range(60)))
    monkeypatch.setattr(sampling, "_LIKELIEST", 5000)
    assert draw(logits, 1.0, top_p, list(range(60)))[1].equal(logprobs)


def test_half_precision_logits_are_drawn_from_in_full() -> None:
    logits = torch.tensor([PROBABILITIES]).log().to(torch.bfloat16)
    _, logprobs = draw(logits, 1.0, 1.0, [0])
    assert logprobs.dtype is torch.float32
