from __future__ import annotations

import pytest
from pydantic import BaseModel
from ray.exceptions import RayTaskError

from jobs.errors import run_job


def _raising(error: BaseException) -> None:
    raise error


def test_a_result_comes_through() -> None:
    assert run_job(lambda: 3) == 3


def _task_error() -> Exception:
    cause = ValueError("The row\n is wrong.")
    return RayTaskError("f", "Traceback ...", cause).as_instanceof_cause()


class _Model(BaseModel):
    rows: int


def _validation_error() -> Exception:
    try:
        _Model.model_validate({"rows": "many"})
    except ValueError as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("The row is wrong."), "error: The row is wrong.\n"),
        (_task_error(), "error: The row is wrong.\n"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_job(lambda: _raising(error))
    assert ended.value.code == 2
    assert capsys.readouterr().err == said


def test_a_validation_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_job(lambda: _raising(_validation_error()))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'rows'" in said


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError):
        run_job(lambda: _raising(RuntimeError()))
