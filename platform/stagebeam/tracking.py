"""Weights & Biases, wrapped so that it never asks anything and never stops a run."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import wandb
from wandb.errors import CommError

from stagebeam.tracking_config import TrackingConfig

log = logging.getLogger(__name__)

KEY_VARIABLE = "WANDB_API_KEY"
INIT_TIMEOUT_S = 30.0
_ID_FILE = "tracking_id"


class Run:
    """A tracked run, or nothing at all where tracking is disabled: every call is then a no-op."""

    def __init__(self, run: wandb.Run | None) -> None:
        self._run = run

    @property
    def id(self) -> str | None:
        """Give it to `start_run` to go on with the same run."""
        return self._run.id if self._run is not None else None

    @property
    def offline_dir(self) -> Path | None:
        """What `wandb sync` takes; None for a run that is online or disabled."""
        if self._run is None or not self._run.offline:
            return None
        return Path(self._run.dir).parent

    @property
    def url(self) -> str | None:
        """Where the run can be seen; None for a run that is offline or disabled."""
        return self._run.url if self._run is not None and not self._run.offline else None

    def log(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics; `step` is the optimiser step and must not go back."""
        if self._run is not None:
            self._run.log(dict(metrics), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table, one list of cells a row."""
        if self._run is not None:
            data = [list(row) for row in rows]
            self._run.log(
                {name: wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)}
            )

    def finish(self) -> None:
        """Flush and close; to be called once, at the end."""
        if self._run is not None:
            self._run.finish()

    def describe(self) -> dict[str, str | None] | None:
        """What a report says about the run; None where tracking is disabled."""
        if self._run is None:
            return None
        directory = self.offline_dir
        return {
            "id": self.id,
            "mode": "offline" if self._run.offline else "online",
            "url": self.url,
            "offline_dir": str(directory) if directory else None,
        }


def run_id(folder: Path) -> str:
    """The id of the run whose files lie in `folder`, made at its first start and kept there, so
    that a restarted job goes on with the same run."""
    file = folder / _ID_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(uuid.uuid4().hex[:8])
    return file.read_text()


def start_run(
    config: TrackingConfig,
    name: str,
    recipe: Mapping[str, Any],
    folder: Path,
    *,
    job_type: str,
    run_id: str | None = None,
) -> Run:
    """Start a run called `name` whose files lie in `folder`, or go on with the run `run_id`.

    Mode `auto` is online where WANDB_API_KEY is set, and goes offline if the server cannot be
    reached. Raises ValueError if the mode is `online` without a key; W&B's CommError passes
    through if the mode is `online` and the server cannot be reached.
    """
    if not config.enabled:
        return Run(None)
    has_key = bool(os.environ.get(KEY_VARIABLE))
    if config.mode == "online" and not has_key:
        raise ValueError(f"tracking.mode is online, but {KEY_VARIABLE} is not set.")
    online = config.mode == "online" or (config.mode == "auto" and has_key)
    folder.mkdir(parents=True, exist_ok=True)

    def start(mode: Literal["online", "offline"]) -> Run:
        run = wandb.init(
            project=config.project,
            name=name,
            id=run_id,
            resume="allow",
            config=dict(recipe),
            dir=folder,
            job_type=job_type,
            mode=mode,
            reinit="create_new",  # the process may have another run, of another job
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                init_timeout=INIT_TIMEOUT_S,
            ),
        )
        return Run(run)

    if not online:
        return start("offline")
    try:
        return start("online")
    except CommError as error:
        if config.mode == "online":
            raise
        log.warning("W&B cannot be reached, so the run is kept offline: %s", error)
        return start("offline")
