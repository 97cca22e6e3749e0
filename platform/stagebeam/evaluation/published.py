"""What the paper reports (LLaVA-CoT, arXiv 2411.10440), in percent, to stand beside our figures.

Retracing is from the authors' later version of it. Averages are ours: the mean of a row's six.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

SOURCE: Final = "arXiv 2411.10440"

# The paper's columns, and our names of the benchmarks (evaluation.benchmarks).
BENCHMARKS: Final = MappingProxyType(
    {
        "MMStar": "MMStar",
        "MMBench V1.1": "MMBench",
        "MMVet": "MMVet",
        "MathVista": "MathVista",
        "AI2D": "AI2D",
        "HallusionBench": "HallusionBench",
    }
)

_Row = tuple[float, float, float, float, float, float]  # in the order of BENCHMARKS

BASE: Final[_Row] = (49.8, 65.8, 57.6, 48.6, 77.3, 40.3)
DIRECT: Final[_Row] = (54.3, 76.2, 49.9, 49.5, 81.2, 42.9)
UNTAGGED: Final[_Row] = (55.7, 74.2, 57.0, 54.1, 79.1, 45.0)
LLAVA_COT: Final[_Row] = (57.6, 75.0, 60.3, 54.8, 78.7, 47.8)
RETRACING: Final[_Row] = (62.5, 77.6, 64.9, 57.7, 81.0, 49.1)

# MMVet by how answers are searched for, under our names of the methods.
SCALING: Final = MappingProxyType(
    {
        "greedy": 60.3,
        "stage_beam@2": 61.7,
        "stage_beam@3": 62.3,
        "stage_beam@4": 62.9,
        "best_of_n@10": 60.9,
        "sentence_beam@2": 58.4,
    }
)
