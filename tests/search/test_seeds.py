from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from stagebeam.inference.types import Prompt
from stagebeam.records import Message
from stagebeam.search.majority import majority
from stagebeam.search.seeds import candidate_seed, question_key

TALK = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"))


@pytest.mark.parametrize(
    "other",
    [
        Prompt(TALK, (b"a", b"c")),
        Prompt(TALK, (b"b", b"a")),
        Prompt(TALK, (b"ab",)),
        Prompt(TALK, (b"a", b"b"), (0, 0)),
        Prompt(TALK[1:], (b"a", b"b")),
        Prompt((Message("system", "one"), *TALK[1:]), (b"a", b"b")),
        Prompt((Message("user", "one "), *TALK[1:]), (b"a", b"b")),
    ],
)
def test_the_question_key_tells_any_turn_role_or_image_apart(other: Prompt) -> None:
    assert question_key(other) != question_key(Prompt(TALK, (b"a", b"b")))


def test_the_question_key_takes_any_text() -> None:
    assert question_key(Prompt((Message("user", "\ud800 \x00 é"),)))


def test_seeds_differ_in_every_part_and_have_63_bits() -> None:
    seeds = {
        candidate_seed(run, key, stage, index)
        for run in (0, 1)
        for key in ("k", "l")
        for stage in ("SUMMARY", "ANSWER")
        for index in range(16)
    }
    assert len(seeds) == 2 * 2 * 2 * 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


def test_a_seed_is_the_same_in_another_process() -> None:
    code = "from stagebeam.search.seeds import *; print(candidate_seed(3, 'key', 'CAPTION', 5))"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert int(told.stdout) == candidate_seed(3, "key", "CAPTION", 5)


async def test_the_first_candidates_do_not_depend_on_n(kit: SimpleNamespace) -> None:
    generator = kit.SeededGenerator()
    for n in (2, 4):
        settings = kit.settings(candidates=n, method="majority")
        await kit.decisions(majority, generator, None, settings)
    two, four = (request.seeds for request in generator.requests)
    assert two == four[:2] and len(four) == 4
