"""The tracking section of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stagebeam.schema import Section


class TrackingConfig(Section):
    """Weights & Biases. Without a key the run is kept offline and can be synced later."""

    enabled: bool = Field(True, description="Record the run.")
    project: str = Field("stagebeam", description="W&B project.")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="`auto` is online where a key is set, else offline."
    )
