"""The scripted world's models as engines of a service; `model` says how many scenes there are."""

from __future__ import annotations

from scripted_world import ScriptedGenerator, ScriptedJudge, World, example

from stagebeam.recipe import EngineConfig, JudgeConfig


class _Served:
    fingerprint = "scripted-1"

    async def check(self) -> None:
        pass

    def close(self) -> None:
        pass


class ServedGenerator(_Served, ScriptedGenerator):
    pass


class ServedJudge(_Served, ScriptedJudge):
    pass


def load_generator(config: EngineConfig) -> ServedGenerator:
    return ServedGenerator(_world(config))


def load_judge(config: JudgeConfig) -> ServedJudge:
    return ServedJudge(_world(config))


def _world(config: EngineConfig) -> World:
    return World(tuple(example(number) for number in range(int(config.model))))
