"""What is minimised, against the same numbers reckoned by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from stagebeam.data.preferences import Preference as Pair
from stagebeam.data.preferences import first_fault, write_preferences
from stagebeam.inference.types import JudgeRequest, Prompt
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.encoder import IGNORE
from stagebeam.models.families import mllama
from stagebeam.models.load import Loaded
from stagebeam.records import Example
from stagebeam.stages import Stage, parse, render
from stagebeam.training.objectives import CHOSEN, GOLD, REJECTED, Preference, Supervised
from stagebeam.training.preference import PreferenceEncoder

Tensors = dict[str, torch.Tensor]


def tensors(arrays: dict[str, np.ndarray]) -> Tensors:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}


def by_hand(loaded: Loaded, batch: Tensors) -> list[float]:
    """Summed log-probability of each row's labelled tokens, token by token."""
    with torch.no_grad():
        logits = mllama.forward(loaded.model, batch, loaded.encoder.normalisation)
    sums = []
    for row, labels in zip(logits, batch["labels"].tolist(), strict=True):
        places = [t for t, label in enumerate(labels) if label != IGNORE]
        sums.append(sum(float(row[t - 1].log_softmax(-1)[labels[t]]) for t in places))
    return sums


@pytest.fixture(scope="module")
def gold(scenes: list[Example]) -> list[Example]:
    """With two turns, with one, and without an image."""
    two = next(e for e in scenes if len(e.messages) == 4)
    return [two, next(e for e in scenes if e.images), next(e for e in scenes if not e.images)]


@pytest.fixture(scope="module")
def pairs(scenes: list[Example]) -> list[Pair]:
    """In each the rejected reasoning is the gold one backwards, so that neither is shorter."""
    found = []
    for example in [e for e in scenes if len(e.messages) == 2][:6]:
        bodies = dict(parse(example.messages[-1].text).bodies)
        bodies[Stage.REASONING] = " ".join(bodies[Stage.REASONING].split()[::-1])
        pair = first_fault(example, render(bodies))
        assert pair is not None
        found.append(pair)
    return found


@pytest.fixture(scope="module")
def mixed(
    loaded: Loaded,
    gold: list[Example],
    pairs: list[Pair],
    tmp_path_factory: pytest.TempPathFactory,
) -> Tensors:
    """Three gold rows and two pairs."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    write_preferences(path, pairs)
    return tensors(PreferenceEncoder(loaded.encoder, path, 2 / 3)(gold)[0])


def test_supervised_is_the_cross_entropy_of_the_answers(
    loaded: Loaded, gold: list[Example]
) -> None:
    objective = Supervised(loaded.model, loaded.family, loaded.encoder)
    batch = tensors(loaded.encoder(gold)[0])
    sums = by_hand(loaded, batch)
    with torch.no_grad():
        assert objective.row_logprobs(**batch).tolist() == pytest.approx(sums, rel=1e-5)
        assert objective(**batch).tolist() == pytest.approx([-sum(sums)], rel=1e-5)
    answers = [m.text for e in gold for m in e.messages if m.role == "assistant"]
    tokens = sum(len(loaded.encoder.ids(text)) + 1 for text in answers)  # and its end token
    assert objective.weights(**batch).tolist() == [tokens]


def test_a_sum_over_parts_of_a_batch_is_the_sum_over_the_batch(
    loaded: Loaded, gold: list[Example]
) -> None:
    """What makes the loss the same at every world size and accumulation."""
    objective = Supervised(loaded.model, loaded.family, loaded.encoder)
    whole, first, rest = (tensors(loaded.encoder(part)[0]) for part in (gold, gold[:1], gold[1:]))
    with torch.no_grad():
        parts = objective(**first) + objective(**rest)
        assert parts.item() == pytest.approx(objective(**whole).item(), rel=1e-5)
    assert (objective.weights(**first) + objective.weights(**rest)).equal(
        objective.weights(**whole)
    )


def test_preference_has_a_gold_term_and_a_pair_term(loaded: Loaded, mixed: Tensors) -> None:
    objective = Preference(loaded.model, loaded.family, loaded.encoder, pair_weight=0.25)
    sums = torch.tensor(by_hand(loaded, mixed), dtype=torch.float64)
    role = mixed["role"]
    margins = sums[role == CHOSEN] - sums[role == REJECTED]
    assert len(margins) == 2 and (role == GOLD).sum() == 3
    expected = [-sums[role == GOLD].sum(), 0.25 * torch.log1p(torch.exp(-margins)).sum()]
    with torch.no_grad():
        terms = objective(**mixed)
    assert terms.tolist() == pytest.approx([float(e) for e in expected], rel=1e-4)


def test_preference_divides_by_gold_tokens_and_by_pairs(
    loaded: Loaded, gold: list[Example], mixed: Tensors
) -> None:
    objective = Preference(loaded.model, loaded.family, loaded.encoder, pair_weight=0.25)
    alone = Supervised(loaded.model, loaded.family, loaded.encoder).weights(
        **tensors(loaded.encoder(gold)[0])
    )
    assert objective.weights(**mixed).tolist() == [alone.item(), 2]


async def test_the_margin_is_the_likelihood_judges(
    loaded: Loaded, pairs: list[Pair], mixed: Tensors
) -> None:
    judge = TransformersJudge(loaded, kind="likelihood", max_rows=8)
    try:
        reported = []
        for pair in pairs:
            prompt = Prompt(pair.messages, tuple(image.bytes for image in pair.images))
            asked = JudgeRequest(
                prompt, pair.stage, pair.prefix, (pair.chosen, pair.rejected), ((0, 1),)
            )
            reported.append((await judge.compare(asked)).verdicts[0].margin)
    finally:
        judge.close()
    with torch.no_grad():
        logprobs = Supervised(loaded.model, loaded.family, loaded.encoder).row_logprobs(**mixed)
    margins = logprobs[mixed["role"] == CHOSEN] - logprobs[mixed["role"] == REJECTED]
    for margin in margins.tolist():
        assert min(abs(margin - told) for told in reported) < 1e-3


def test_a_gradient_step_on_the_pairs_prefers_the_chosen_text(
    loaded: Loaded, mixed: Tensors
) -> None:
    objective = Preference(
        copy.deepcopy(loaded.model), loaded.family, loaded.encoder, pair_weight=1.0
    )
    role = mixed["role"]

    def margin() -> torch.Tensor:
        logprobs = objective.row_logprobs(**mixed)
        return (logprobs[role == CHOSEN] - logprobs[role == REJECTED]).mean()

    before = margin().item()
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
    objective(**mixed)[1].backward()
    torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
    optimizer.step()
    assert margin().item() > before + 0.01
