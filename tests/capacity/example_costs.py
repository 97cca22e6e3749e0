"""Costs to predict from: round numbers, so that a test can say what comes out."""

from __future__ import annotations

from typing import Any

from stagebeam.capacity.costs import Costs

PASS_S, ROW_S = 0.04, 0.002


def costs(
    *,
    candidates: int = 4,
    spread: float = 0.5,
    tokens: tuple[int, ...] = (6, 10, 14, 6),
    rows: int = 16,
    prompt_tokens: int = 20,
    **judge: Any,
) -> Costs:
    names = ("SUMMARY", "CAPTION", "REASONING", "CONCLUSION")
    reading = {"image_s": 0.0, "prompt_token_s": 0.001, "max_rows": rows}
    return Costs.model_validate(
        {
            "name": "example",
            "origin": "assumed",
            "how": "round numbers",
            "generator": {"pass_s": PASS_S, "row_s": ROW_S, **reading},
            "judge": {"round_s": 0.02, "order_s": 0.001, **reading, **judge},
            "hops": {
                "question_s": 0.03,
                "generator_s": 0.006,
                "judge_s": 0.005,
                "gateway_cpu_s": 0.01,
                "searcher_cpu_s": 0.03,
            },
            "question": {
                "candidates": candidates,
                "tournament": "auto",
                "stage_tokens": dict(zip(names, tokens, strict=False)),
                "spread": spread,
                "prompt_tokens": prompt_tokens,
                "images": 0,
            },
            "training": {
                "parameters": 1_000_000_000,
                "flops_a_row": 1e13,
                "micro_batch_rows": 4,
                "gpu_tflops": 100,
                "mfu": 0.5,
                "node_gb_s": 100,
                "network_gb_s": 10,
                "encode_s": 0.01,
                "cores_a_gpu": 8,
                "stream_share": 0.5,
            },
        }
    )
