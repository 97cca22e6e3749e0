"""What a job says where the head of its cluster is lost."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from jobs.head_watch import FAILED, watching_head


def test_an_error_while_the_head_answers_is_the_jobs_own() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as head:
        address = "{}:{}".format(*head.getsockname())
        with pytest.raises(KeyError), watching_head(address):
            raise KeyError("ours")


def test_an_error_while_the_head_is_away_is_one_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as head:
        address = "{}:{}".format(*head.getsockname())
    with pytest.raises(SystemExit) as ended, watching_head(address):
        raise RuntimeError("Ray's")
    assert ended.value.code == FAILED
    said = capsys.readouterr().err
    assert said.startswith(f"error: The head of the cluster at {address} is lost. ")
    assert said.count("\n") == 1
