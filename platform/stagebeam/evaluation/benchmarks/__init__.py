"""The benchmarks by name. A new one is an entry here (docs/evaluation.md)."""

from __future__ import annotations

from dataclasses import replace

from stagebeam.evaluation.benchmarks import figures, scoring
from stagebeam.evaluation.benchmarks.benchmark import Benchmark
from stagebeam.evaluation.benchmarks.figures import (
    capabilities,
    circular,
    column,
    macro,
    means,
    relative,
)

_CATEGORIES = column("category", "l2-category")

MMSTAR = Benchmark(
    name="MMStar",
    file="MMStar.tsv",
    md5="e1ecd2140806c1b1bbf54b43372efb9e",
    prompt=scoring.ask_options,
    score=scoring.score_choice,
    figures=means(_CATEGORIES),
)
MMBENCH = Benchmark(
    name="MMBench",
    file="MMBench_DEV_EN_V11.tsv",  # the answers of the test file are not public
    md5="30c05be8f2f347a50be25aa067248184",
    prompt=scoring.ask_options,
    score=scoring.score_choice,
    figures=circular(_CATEGORIES),
)
MMVET = Benchmark(
    name="MMVet",
    file="MMVet.tsv",
    md5="748aa6d4aa9d4de798306a63718455e3",
    prompt=scoring.ask_plain,
    score=None,
    review="grade",
    figures=means(capabilities),
)
LLAVA_BENCH = Benchmark(
    name="LLaVA-Bench",  # in the wild
    file="LLaVABench.tsv",
    md5="d382a093f749a697820d3dadd61c8428",
    needed=("caption", "gpt4_ans", "category"),
    prompt=scoring.ask_plain,
    score=None,
    review="pair",
    figures=relative(column("category")),
)
AI2D = Benchmark(
    name="AI2D",  # labels in the diagram are masked by the options' letters
    file="AI2D_TEST.tsv",
    md5="0f593e0d1c7df9a3d69bf1f947e71975",
    prompt=scoring.ask_options,
    score=scoring.score_choice,
    figures=means(_CATEGORIES),
)

_ALL = (
    MMSTAR,
    # The authors' reasoning subsets: dimensions in which every one counts alike.
    replace(
        MMSTAR,
        name="MMStar-R",
        figures=macro(
            means(column("category")),
            ("instance reasoning", "logical reasoning", "math", "science & technology"),
        ),
    ),
    MMBENCH,
    replace(
        MMBENCH,
        name="MMBench-R",
        figures=macro(
            circular(column("l2-category")),
            ("attribute_reasoning", "logic_reasoning", "relation_reasoning"),
        ),
    ),
    MMVET,
    replace(MMVET, name="MMVet-R", figures=macro(means(capabilities), ("spat", "math"))),
    Benchmark(
        name="MathVista",
        file="MathVista_MINI.tsv",
        md5="f199b98e178e5a2a20e7048f5dcb0464",
        needed=("answer", "answer_option", "answer_type", "question_type", "choices"),
        prompt=scoring.ask_plain,  # the question holds its hint and its options
        score=scoring.score_mathvista,
        review="extract",
        figures=means(figures.task_and_skills),
    ),
    AI2D,
    replace(
        AI2D,
        name="AI2D-unmasked",
        file="AI2D_TEST_NO_MASK.tsv",
        md5="fd8f463634d4fe9fbd23b876e8eea5be",
    ),
    Benchmark(
        name="HallusionBench",
        file="HallusionBench.tsv",
        md5="0c23ac0dc9ef46832d7a24504f2a0c7c",
        prompt=scoring.ask_yes_no,
        score=scoring.score_yes_no,
        figures=figures.hallusion,
    ),
    Benchmark(
        name="ScienceQA",
        file="ScienceQA_TEST.tsv",
        md5="e42e9e00f9c59a80d8a5db35bc32b71f",
        prompt=scoring.ask_options,
        score=scoring.score_science,
        figures=means(_CATEGORIES),
    ),
    Benchmark(
        name="ChartQA",
        file="ChartQA_TEST.tsv",
        md5="c902e0aa9be5582a7aad6dcf52734b42",
        prompt=scoring.ask_short,
        score=scoring.score_chartqa,
        figures=means(column("split")),  # questions by people and by machine
    ),
    Benchmark(
        name="DocVQA",
        file="DocVQA_VAL.tsv",  # the answers of the test file are not public
        md5="d5ee77e1926ff10690d469c56b73eabf",
        prompt=scoring.ask_short,
        score=scoring.score_docvqa,
        figures=means(column()),
    ),
    Benchmark(
        name="MMMU",
        file="MMMU_DEV_VAL.tsv",
        prompt=scoring.ask_options,
        score=scoring.score_mmmu,
        figures=means(column("split", "category", "l2-category")),
    ),
    Benchmark(
        name="VQAv2",
        file="VQAv2_VAL.tsv",  # of the same form; none is published
        prompt=scoring.ask_short,
        score=scoring.score_vqav2,
        figures=means(column("category")),
    ),
    LLAVA_BENCH,
    replace(
        LLAVA_BENCH,
        name="LLaVA-Bench-COCO",
        file="LLaVABench_COCO.tsv",  # of the same form; none is published
        md5=None,
    ),
)
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
