"""What Serve is told about the deployments, from a recipe."""

from __future__ import annotations

from typing import Any

from serve.options import engine_options, gateway_options, searcher_options
from stagebeam.recipe import EngineConfig, ServeConfig

CONFIG = ServeConfig.model_validate(
    {
        "generator": {
            "model": "m",
            "scaling": {"max_replicas": 5, "target_questions": 7, "num_gpus": 1},
        },
        "judge": {"model": "m"},
        "searcher": {"max_replicas": 3},
        "gateway": {"min_replicas": 2, "max_replicas": 4, "target_questions": 100},
        "limits": {"max_questions": 100},
        "drain_seconds": 9,
    }
)


def scaling(options: dict[str, Any]) -> tuple[int, int, float, str]:
    found = options["autoscaling_config"]
    policy = found.policy.policy_function
    return found.min_replicas, found.max_replicas, found.target_ongoing_requests, policy


def test_each_deployment_scales_by_questions_within_its_own_bounds() -> None:
    generator = engine_options(CONFIG, "generator", CONFIG.generator)
    calls_are_questions = "ray.serve.autoscaling_policy:default_autoscaling_policy"
    assert scaling(generator) == (1, 5, 7, "serve.scaling.by_questions")
    assert scaling(searcher_options(CONFIG)) == (1, 3, 64, calls_are_questions)
    assert scaling(gateway_options(CONFIG)) == (2, 4, 100, calls_are_questions)
    assert generator["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 1}
    assert generator["graceful_shutdown_timeout_s"] == 9


def test_searchers_together_take_the_questions_that_the_operator_allows() -> None:
    options = searcher_options(CONFIG)
    assert options["max_ongoing_requests"] == 34  # of three replicas
    assert options["max_queued_requests"] == 100


def test_a_question_may_be_divided_over_all_replicas() -> None:
    """A router that knew fewer successors would send two parts to one replica."""
    options = engine_options(CONFIG, "generator", CONFIG.generator)
    assert options["request_router_config"].request_router_kwargs == {"num_fallback_replicas": 4}


def test_a_replica_reserves_the_gpus_that_its_model_is_divided_over() -> None:
    """Written once, in the engine's section: a replica with fewer would not start."""
    engine = EngineConfig(engine="vllm", model="m", tensor_parallel=4)
    assert engine_options(CONFIG, "generator", engine)["ray_actor_options"]["num_gpus"] == 4
