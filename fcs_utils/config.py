"""The base of all configurations, and what their fields may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Ratio = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Immutable, hashable by content, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
