"""What vLLM is told, without vLLM."""

from __future__ import annotations

from stagebeam.inference.vllm_engine import engine_arguments
from stagebeam.recipe import EngineConfig


def test_a_model_is_divided_over_as_many_gpus_as_the_recipe_says() -> None:
    engine = EngineConfig(engine="vllm", model="m", tensor_parallel=4, kv_cache_mb=8)
    told = engine_arguments(engine, "bfloat16", on_cpu=False)
    assert told["tensor_parallel_size"] == 4
    # the replica's own GPUs, not others that Ray would be asked for
    assert told["distributed_executor_backend"] == "mp"
    assert (told["dtype"], told["kv_cache_memory_bytes"]) == ("bfloat16", 8 << 20)


def test_a_model_on_one_gpu_is_vllms_default() -> None:
    told = engine_arguments(EngineConfig(engine="vllm", model="m"), None, on_cpu=True)
    assert {"tensor_parallel_size", "distributed_executor_backend"}.isdisjoint(told)
    assert (told["dtype"], told["enforce_eager"]) == ("auto", True)
