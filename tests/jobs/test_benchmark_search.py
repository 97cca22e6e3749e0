"""The search benchmark in miniature: what it calls the reference is one, and its figures are
whole."""

from __future__ import annotations

import io
import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as PilImage
from rich.console import Console

from jobs.benchmarks.figures import write_figures
from jobs.benchmarks.reference_search import ReferenceSearch, ReferenceSettings
from jobs.benchmarks.search import (
    Plan,
    ask,
    engines,
    our_answer,
    our_settings,
    run,
    tables,
    their_answer,
)
from jobs.benchmarks.search_breakdown import (
    OTHER,
    PARTS,
    HeadPass,
    ImagePass,
    LanguagePass,
    noting_passes,
    watching,
)
from jobs.benchmarks.search_figures import SearchBenchmark, SubjectFigures
from jobs.benchmarks.search_ideal import alone
from jobs.benchmarks.search_models import (
    Lesson,
    Subject,
    taught_folder,
    taught_subject,
    tiny_subject,
    unseen_questions,
)
from stagebeam.evaluation.question import prompt_of
from stagebeam.inference import decoding
from stagebeam.inference.sampling import draw_tokens
from stagebeam.inference.transformers_engine import TransformersEngine
from stagebeam.inference.types import Prompt
from stagebeam.inference.verdict import TransformersJudge
from stagebeam.models.attention import Shared
from stagebeam.models.runtimes import runtime_of
from stagebeam.stages import STAGES, parse

LESSON = Lesson("miniature", layers=2, steps=60, rows_a_step=16, learning_rate=5e-3)
SETTINGS = ReferenceSettings(top_p=0.9, verdict_tokens=3)
GREEDY = replace(SETTINGS, temperature=0.0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def subject(kept: Path) -> Subject:
    return taught_subject(LESSON, kept)


@pytest.fixture(scope="module")
def prompt(subject: Subject) -> Prompt:
    """A question that the model answers whole, by its likeliest words and by drawn ones."""
    for example in unseen_questions(20):
        asked = prompt_of(example)
        answers = [
            ReferenceSearch(*subject.stock, settings).answer(asked, 2)
            for settings in (GREEDY, SETTINGS)
        ]
        if all(parse(answer.text).valid for answer in answers):
            return asked
    raise AssertionError("The lesson is too short for whole stages.")


def test_the_reference_writes_the_text_that_one_greedy_generate_writes(
    subject: Subject, prompt: Prompt
) -> None:
    answer = ReferenceSearch(*subject.stock, GREEDY).answer(prompt, 1)
    loaded, _ = subject.stock
    inputs = loaded.encoder.processor(
        images=PilImage.open(io.BytesIO(prompt.images[0])),
        text=loaded.encoder.render(prompt.messages, 1, answer_next=True),
        return_tensors="pt",
    )
    ids = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=200)
    written = loaded.encoder.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    assert answer.text == written


def test_both_sides_write_the_same_text_where_nothing_is_drawn(
    subject: Subject, prompt: Prompt
) -> None:
    theirs = ReferenceSearch(*subject.stock, GREEDY).answer(prompt, 1)
    with engines(subject) as pair:
        ours = our_answer(pair, prompt, our_settings(GREEDY, 1))
    assert ours.whole and ours.usage.decode_tokens == theirs.candidate_tokens


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_reference_makes_a_call_and_an_encoding_for_each_candidate_and_verdict(
    subject: Subject, prompt: Prompt, n: int
) -> None:
    answer = their_answer(subject, prompt, n, GREEDY)
    assert answer.whole
    assert answer.image_encodes == len(STAGES) * (2 * n - 1)
    checks = n - 1  # of reasonings, without the image
    assert answer.generate_calls == answer.image_encodes + checks
    verdicts = answer.generate_calls - len(STAGES) * n
    assert answer.verdict_tokens == verdicts * SETTINGS.verdict_tokens
    assert 0 < answer.seconds_short_verdicts <= answer.seconds


def test_a_verdict_that_cannot_be_read_keeps_the_champion(subject: Subject, prompt: Prompt) -> None:
    class Deciding(ReferenceSearch):
        chosen: int | None = None

        def _verdict(self, *_: Any) -> int | None:
            return self.chosen

    texts = {}
    for choice in (None, 1, 2):
        search = Deciding(*subject.stock, replace(SETTINGS, temperature=2.0))
        search.chosen = choice
        texts[choice] = search.answer(prompt, 2).text
    assert texts[None] == texts[1] != texts[2]


def test_the_parts_of_an_answer_add_up_and_the_passes_are_those_that_were_counted(
    subject: Subject, prompt: Prompt
) -> None:
    with engines(subject) as pair:
        answer = our_answer(pair, prompt, our_settings(SETTINGS, 4))
    assert sum(answer.parts.values()) == pytest.approx(answer.seconds)
    assert set(answer.parts) == {*PARTS, OTHER}
    assert min(answer.parts.values()) > 0
    assert answer.ideal_seconds > 0
    assert answer.usage.image_encodes == answer.image_encodes == 2
    assert answer.usage.sequential_passes <= answer.passes_floor
    assert 1 < answer.distinct <= 4


async def test_a_watch_notes_every_pass_and_leaves_nothing_behind(
    subject: Subject, prompt: Prompt
) -> None:
    def attributes(pair: tuple[TransformersEngine, TransformersJudge]) -> list[dict[str, Any]]:
        engine, judge = pair
        owners = [engine.encoder, engine.encoder.tokenizer]
        for room in (engine, judge._engine):
            owners += [room._runtime, room._reader, room._batch]
        return [dict.fromkeys(vars(owner)) for owner in owners]

    with engines(subject) as pair:
        before = attributes(pair)
        with watching(*pair) as watch:
            trace = await ask(pair, prompt, our_settings(SETTINGS, 2))
            assert decoding.draw_tokens is not draw_tokens
        assert attributes(pair) == before
        assert decoding.draw_tokens is draw_tokens
        noted = len(watch.passes)
        await ask(pair, prompt, our_settings(SETTINGS, 1))
        assert len(watch.passes) == noted
    language = [p for p in watch.passes if isinstance(p, LanguagePass)]
    assert watch.image_encodes == trace.usage.image_encodes
    assert len(language) == trace.usage.sequential_passes  # of one question: nothing runs aside
    assert language[0].rows == 1 and language[0].tokens == trace.usage.prefill_tokens - 2 * 3
    assert {p.tokens for p in language if p.rows == 2 and p.beside is None} == {1}
    assert all(p.tokens > p.rows for p in language if p.beside is not None)
    assert all(p.seen > 0 and p.columns >= p.tokens for p in language)


def test_a_model_is_taught_once(kept: Path, subject: Subject) -> None:
    folder = taught_folder(LESSON, kept)
    stamp = os.stat(folder / "model.safetensors").st_mtime_ns
    assert taught_folder(LESSON, kept) == folder
    assert os.stat(folder / "model.safetensors").st_mtime_ns == stamp
    longer = replace(LESSON, steps=LESSON.steps + 1)
    assert longer.fingerprint() != LESSON.fingerprint()


def test_the_quickstarts_models_are_taken_where_they_are(kept: Path, tmp_path: Path) -> None:
    folder = taught_folder(LESSON, kept)
    for part in ("generator", "judge"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model").symlink_to(folder)
    found = tiny_subject(tmp_path, tmp_path / "none")
    assert found.generator is not found.judge
    assert "quickstart" in found.made and found.params > 0


def test_the_whole_benchmark_writes_every_figure(subject: Subject, tmp_path: Path) -> None:
    plan = Plan(questions=1, after=0, our_n=(1, 2, 4, 16), their_n=(1, 4))
    console = Console(width=200, record=True, file=io.StringIO())
    measured = run([(subject, plan)], SETTINGS, plan.after, console)
    output = tmp_path / "search.json"
    shown = list(tables(subject.name, measured.models[subject.name]))
    write_figures(measured, output, console, shown)
    written = json.loads(output.read_text())
    assert set(written) == {field.name for field in fields(SearchBenchmark)}
    figures = written["models"][subject.name]
    assert set(figures) == {field.name for field in fields(SubjectFigures)}
    assert set(figures["reference_over_ours"]) == {"1", "4"}
    for by_n in ("ideal_over_ours", "image_encodes_per_answer", "passes", "parts", "ours"):
        assert set(figures[by_n]) == {"1", "2", "4", "16"}
    for figure in ("latency_n4_over_n1", "passes_n16_over_n2", "throughput_8_over_1"):
        assert figures[figure] > 0
    assert [t["target"] for t in figures["targets"]] == [10, 1.6, 1.3, 4]
    assert "reference / ours" in console.export_text()


def test_passes_alone_have_the_shapes_that_were_noted(subject: Subject) -> None:
    model = subject.generator.model
    asked = [
        LanguagePass(model, rows=2, tokens=1, columns=64, seen=10),
        LanguagePass(model, rows=1, tokens=7, columns=9, seen=10),
        HeadPass(model, tokens=5),
        ImagePass(model, (1, 1, 1, 3, 48, 48)),
    ]
    with noting_passes(subject.generator) as watch:
        assert alone(asked) > 0
    assert watch.passes == asked


def test_a_pass_with_guesses_is_run_again_as_it_was(subject: Subject) -> None:
    model, cpu = runtime_of(subject.generator).model, torch.device("cpu")
    beside = Shared.of(frozenset({0}), [0, 0, 0, 1], cpu)
    shared = Shared.of(frozenset({1}), [0, 0, 0, 0], cpu)
    asked = LanguagePass(model, 2, 4, columns=64, seen=10, beside=beside, shared=shared)
    with noting_passes(subject.generator) as watch:
        assert alone([asked]) > 0
    assert watch.passes == [asked]
