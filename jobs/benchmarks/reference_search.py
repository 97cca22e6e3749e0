"""Stage-level beam search as LLaVA-CoT's authors run it (arXiv 2411.10440, section 3.3), to be
measured against: every candidate and every verdict is a stock `generate` call of its own.

Nothing is kept between calls: each one takes the whole text so far and pre-processes and encodes
the image again. A stage ends where a criterion finds its closing tag, for which it decodes the
whole sequence after each token. N-1 verdicts a stage follow one another (random pairs, the winner
meets the next), as texts with the image; reasonings are first checked without it. Within a call
`generate` keeps keys and values, as it does by default.

A verdict has a fixed number of tokens: the small models of the benchmark write something else
than "Since ..., I choose response 1.", which would end at a random place. What cannot be read
leaves the champion where it is.
"""

from __future__ import annotations

import io
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PilImage
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from stagebeam.inference.types import Prompt
from stagebeam.models.load import Loaded
from stagebeam.records import Message
from stagebeam.search.seeds import candidate_seed, question_key
from stagebeam.stages import STAGES, Stage, parse

_CRITERIA = {
    Stage.SUMMARY: "Which one plans the better approach to the question?",
    Stage.CAPTION: "Which one describes the image more thoroughly and accurately?",
    Stage.REASONING: "Which one reasons more soundly, step by step and without mistakes?",
    Stage.CONCLUSION: "Which one agrees with the reasoning and answers the question?",
}
_HINTS = {
    Stage.REASONING: (Stage.CAPTION,),
    Stage.CONCLUSION: (Stage.CAPTION, Stage.REASONING),
}
_FORMAT = 'Write nothing but: "Since [reason], I choose response [1/2]."'
_CHOICE = re.compile(r"I choose response ([12])")


@dataclass(frozen=True, slots=True)
class ReferenceSettings:
    """How it samples. A temperature of 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 48  # of a stage
    verdict_tokens: int = 32
    seed: int = 0


@dataclass(slots=True)
class ReferenceAnswer:
    """One answer and what it took. `after_first_token_s` is what verdicts took after their first
    token: without it, `seconds` are those of verdicts of one token."""

    text: str = ""
    seconds: float = 0.0
    after_first_token_s: float = 0.0
    generate_calls: int = 0
    verdict_calls: int = 0  # among them, checks included
    candidate_tokens: int = 0
    verdict_tokens: int = 0

    @property
    def sequential_passes(self) -> int:
        """Every token is a forward pass that waits for the one before it."""
        return self.candidate_tokens + self.verdict_tokens


class _TagWritten(StoppingCriteria):
    """Stops where the whole text holds the tag."""

    def __init__(self, tokenizer: Any, tag: str) -> None:
        self._tokenizer, self._tag = tokenizer, tag

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        found = [self._tag in self._tokenizer.decode(ids) for ids in input_ids]
        return torch.tensor(found, device=input_ids.device)


class _FirstToken(StoppingCriteria):
    """Stops nothing; remembers when the first token was there."""

    at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.at = self.at or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class ReferenceSearch:
    """Answers one question at a time."""

    def __init__(self, generator: Loaded, judge: Loaded, settings: ReferenceSettings) -> None:
        self._generator, self._judge, self._settings = generator, judge, settings

    def answer(self, prompt: Prompt, n: int) -> ReferenceAnswer:
        """Search with N candidates a stage. An answer ends at a stage without its closing tag."""
        began = time.perf_counter()
        key = question_key(prompt)
        picture = PilImage.open(io.BytesIO(prompt.images[0])).convert("RGB")
        asked = self._generator.encoder.render(prompt.messages, 1, answer_next=True)
        answer = ReferenceAnswer()
        for stage in STAGES:
            seeds = [candidate_seed(self._settings.seed, key, stage, i) for i in range(n)]
            texts = [
                self._candidate(picture, asked + answer.text, stage, seed, answer) for seed in seeds
            ]
            chosen = self._champion(picture, prompt, stage, texts, seeds[0], answer)
            answer.text += chosen
            if not chosen.endswith(stage.close_tag):
                break
        answer.seconds = time.perf_counter() - began
        return answer

    def _candidate(
        self, picture: PilImage.Image, text: str, stage: Stage, seed: int, answer: ReferenceAnswer
    ) -> str:
        criterion = _TagWritten(self._generator.encoder.tokenizer, stage.close_tag)
        torch.manual_seed(seed)
        written, tokens = self._generate(
            self._generator, picture, text, criterion, self._settings.max_new_tokens
        )
        answer.generate_calls += 1
        answer.candidate_tokens += tokens
        before, tag, _ = written.partition(stage.close_tag)
        return before + tag

    def _champion(
        self,
        picture: PilImage.Image,
        prompt: Prompt,
        stage: Stage,
        texts: Sequence[str],
        seed: int,
        answer: ReferenceAnswer,
    ) -> str:
        """The last one standing."""
        champion, *others = random.Random(seed).sample(list(texts), len(texts))
        for challenger in others:
            checked = None
            if stage is Stage.REASONING:
                check = _asked(prompt, stage, answer.text, champion, challenger, check=True)
                checked = self._verdict(None, check, answer)
            judging = _asked(prompt, stage, answer.text, champion, challenger, check=False)
            chosen = self._verdict(picture, judging, answer) or checked
            if chosen == 2:
                champion = challenger
        return champion

    def _verdict(
        self, picture: PilImage.Image | None, question: str, answer: ReferenceAnswer
    ) -> int | None:
        """1 or 2, or None where it cannot be read."""
        images = 0 if picture is None else 1
        text = self._judge.encoder.render([Message("user", question)], images, answer_next=True)
        first, length = _FirstToken(), self._settings.verdict_tokens
        written, tokens = self._generate(self._judge, picture, text, first, length, least=length)
        assert first.at is not None
        answer.after_first_token_s += time.perf_counter() - first.at
        answer.generate_calls += 1
        answer.verdict_calls += 1
        answer.verdict_tokens += tokens
        found = _CHOICE.search(written)
        return int(found[1]) if found else None

    def _generate(
        self,
        loaded: Loaded,
        picture: PilImage.Image | None,
        text: str,
        criterion: StoppingCriteria,
        most: int,
        least: int = 0,
    ) -> tuple[str, int]:
        """What one stock call writes after `text`, and how many tokens that is."""
        inputs = loaded.encoder.processor(
            images=picture, text=text, add_special_tokens=False, return_tensors="pt"
        ).to(loaded.model.device)
        sampled = self._settings.temperature > 0
        sampling = {"temperature": self._settings.temperature, "top_p": self._settings.top_p}
        own = loaded.model.generation_config
        config = GenerationConfig(
            do_sample=sampled,
            **({**sampling, "top_k": 0} if sampled else {}),
            max_new_tokens=most,
            min_new_tokens=least,
            eos_token_id=own.eos_token_id,
            pad_token_id=own.pad_token_id,
        )
        ids = loaded.model.generate(
            **inputs, generation_config=config, stopping_criteria=StoppingCriteriaList([criterion])
        )
        new = ids[0, inputs["input_ids"].shape[1] :]
        return loaded.encoder.tokenizer.decode(new, skip_special_tokens=True), len(new)


def _asked(
    prompt: Prompt, stage: Stage, prefix: str, first: str, second: str, *, check: bool
) -> str:
    """The judge's question about two candidates; `check` asks only whether they are correct."""
    known = parse(prefix).bodies
    hints = " ".join(known[hint] for hint in _HINTS.get(stage, ()) if hint in known)
    criterion = "Which one is correct?" if check else _CRITERIA[stage]
    return "\n".join(
        [
            f"Two responses to the {stage.lower()} of an answer follow. {criterion}",
            f"Question: {prompt.messages[-1].text}",
            *([f"Hint: {hints}"] if hints else []),
            f"Response 1: {first}",
            f"Response 2: {second}",
            _FORMAT,
        ]
    )
