"""What Serve is told about each deployment, from the recipe's `serve` section."""

from __future__ import annotations

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from serve.logs import LOGGING
from serve.routing import QuestionRouter
from serve.scaling import by_questions
from stagebeam.recipe import EngineConfig, Scaling, ServeConfig

# Calls that a replica takes in for each row of a batch: the engine, not Serve, does the batching.
_CALLS_PER_ROW = 4
_GATEWAY_CALLS = 10_000
# A dead replica is noticed, and replaced, after this long.
_HEALTH_CHECK_PERIOD_S = 2.0
# A replica that is stopped looks this often whether its calls have ended; Serve's two seconds
# would be added to each one's end.
_DRAIN_CHECK_S = 0.25
# Serve's defaults see load only after half a minute.
_METRICS_EVERY_S, _LOOK_BACK_S = 1.0, 5.0
# A model that cannot be loaded is not loaded twenty times over (Serve's default).
_LOAD_ATTEMPTS = 2
# Wait this long before a full replica is tried again, at first and at most; Serve's half a second
# is longer than most calls.
_ROUTE_AGAIN_S, _ROUTE_AGAIN_AT_MOST_S = 0.01, 0.1


def gateway_options(config: ServeConfig) -> dict[str, Any]:
    return {
        **_common(config, "gateway", config.gateway),
        "max_ongoing_requests": _GATEWAY_CALLS,
        "autoscaling_config": _autoscaling(config.gateway),
    }


def searcher_options(config: ServeConfig) -> dict[str, Any]:
    """A call to the searcher is a question, so Serve's own count of calls is one of questions."""
    most = config.limits.max_questions
    return {
        **_common(config, "searcher", config.searcher),
        "max_ongoing_requests": math.ceil(most / config.searcher.max_replicas),
        "max_queued_requests": most,
        "autoscaling_config": _autoscaling(config.searcher),
    }


def engine_options(config: ServeConfig, name: str, engine: EngineConfig) -> dict[str, Any]:
    """Of the generator or the judge: several calls are one question, and a question's calls find
    the keys and values of their prefix on the same replica."""
    scaling = engine.scaling
    options = _common(config, name, scaling)
    options["ray_actor_options"]["num_gpus"] = engine.gpus
    policy = AutoscalingPolicy(policy_function=by_questions)
    router: dict[str, Any] = {
        "request_router_class": QuestionRouter,
        "request_router_kwargs": {"num_fallback_replicas": max(2, scaling.max_replicas - 1)},
        "initial_backoff_s": _ROUTE_AGAIN_S,
        "max_backoff_s": _ROUTE_AGAIN_AT_MOST_S,
    }
    return {
        **options,
        "max_ongoing_requests": _CALLS_PER_ROW * scaling.max_batch_rows,
        "autoscaling_config": _autoscaling(scaling, policy=policy),
        "request_router_config": RequestRouterConfig(**router),
        "max_constructor_retry_count": _LOAD_ATTEMPTS,
    }


def traces_options(config: ServeConfig) -> dict[str, Any]:
    """Of what several gateways share."""
    return {
        "name": "traces",
        "ray_actor_options": {"num_cpus": config.gateway.num_cpus},
        "max_ongoing_requests": _GATEWAY_CALLS,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "logging_config": LOGGING,
    }


def _common(config: ServeConfig, name: str, scaling: Scaling) -> dict[str, Any]:
    return {
        "name": name,
        "ray_actor_options": {"num_cpus": scaling.num_cpus},
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "graceful_shutdown_timeout_s": config.drain_seconds,
        "graceful_shutdown_wait_loop_s": _DRAIN_CHECK_S,
        "logging_config": LOGGING,
    }


def _autoscaling(scaling: Scaling, **policy: AutoscalingPolicy) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target_ongoing_requests=scaling.target_questions,
        upscale_delay_s=scaling.upscale_delay_s,
        downscale_delay_s=scaling.downscale_delay_s,
        metrics_interval_s=_METRICS_EVERY_S,
        look_back_period_s=_LOOK_BACK_S,
        **policy,
    )
