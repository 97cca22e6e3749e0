"""Where a job's Ray session lies."""

import tempfile
from pathlib import Path

import pytest

from jobs.cluster import session_folder


@pytest.fixture
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for temporary files with a path that Ray's sockets cannot lie in."""
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_session_lies_elsewhere_where_its_sockets_would_have_too_long_a_path(
    temporary_files: Path,
) -> None:
    folder = Path(session_folder())
    try:
        session = folder / "session_2026-11-21_03-12-08_216929_1234567"
        assert len(str(session / "sockets" / "plasma_store")) <= 107
        assert list(temporary_files.iterdir()) == []
    finally:
        folder.rmdir()


def test_a_session_lies_among_the_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        assert Path(session_folder()).parent == Path(place)
