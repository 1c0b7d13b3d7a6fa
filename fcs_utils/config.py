"""What a run is: a validated configuration with a stable identity.

The identity is a hash of the configuration's canonical JSON with defaults left out, so a new option
does not orphan old records. ``SCHEMA`` is part of it and is raised whenever a changed default or a bug
fix changes results.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Immutable, hashable by content, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
