"""What is minimised: supervised answers, and a judge's preferences."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import GenerationConfig

from stagebeam.models.encoder import IGNORE, RowEncoder
from stagebeam.models.family import Family
from stagebeam.training.contracts import Objective

GOLD, CHOSEN, REJECTED = 0, 1, 2


class Supervised(Objective):
    """Negative log-likelihood of the assistant's turns, in nats a token."""

    def __init__(self, model: Any, family: Family, encoder: RowEncoder) -> None:
        super().__init__()
        self.model, self._family = model, family
        self._normalisation = encoder.normalisation
        self._pad = encoder.tokenizer.pad_token_id

    def terms(self, **batch: torch.Tensor) -> torch.Tensor:
        return -self.row_logprobs(**batch).sum()[None]

    def weights(self, **batch: torch.Tensor) -> torch.Tensor:
        return _tokens(batch["labels"])[None]

    def row_logprobs(self, **batch: torch.Tensor) -> torch.Tensor:
        logits = self._family.forward(self.model, batch, self._normalisation)[:, :-1].float()
        labels = batch["labels"][:, 1:]
        nll = functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none"
        )
        return -nll.sum(1)

    def answers(self, max_new_tokens: int, synced: bool, **batch: torch.Tensor) -> torch.Tensor:
        own = self.model.generation_config
        # Not the folder's sampling settings: the figure must be the same each time.
        greedy = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=own.eos_token_id,
            pad_token_id=self._pad,
        )
        inputs = self._family.generation(self.model, batch, self._normalisation)
        out: torch.Tensor = self.model.generate(
            **inputs, generation_config=greedy, synced_gpus=synced
        )
        known = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        return out[:, known:]


class Preference(Supervised):
    """Gold answers as above, and pairs: the chosen text must be likelier than the rejected one.

    Rows are marked in `role` [B]; the i-th CHOSEN row of a batch belongs to its i-th REJECTED
    row. The second term is the mean over pairs of -log sigmoid(log p(chosen) - log p(rejected)):
    the Bradley-Terry likelihood of the margin that the likelihood judge reports.
    """

    def __init__(self, model: Any, family: Family, encoder: RowEncoder, pair_weight: float) -> None:
        super().__init__(model, family, encoder)
        self._pair_weight = pair_weight

    def terms(self, **batch: torch.Tensor) -> torch.Tensor:
        role = batch["role"]
        logprobs = self.row_logprobs(**batch)
        margins = logprobs[role == CHOSEN] - logprobs[role == REJECTED]
        pairs = -functional.logsigmoid(margins).sum()
        return torch.stack((-logprobs[role == GOLD].sum(), self._pair_weight * pairs))

    def weights(self, **batch: torch.Tensor) -> torch.Tensor:
        role = batch["role"]
        return torch.stack((_tokens(batch["labels"][role == GOLD]), (role == CHOSEN).sum()))


def _tokens(labels: torch.Tensor) -> torch.Tensor:
    return (labels[:, 1:] != IGNORE).sum()
