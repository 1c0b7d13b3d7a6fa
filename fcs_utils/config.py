"""The base of all configurations, and what their fields may be."""

from __future__ import annotations

import reprlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fcs_utils.errors import StudyError

Ratio = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Config(BaseModel):
    """Immutable, hashable by content, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def refuse_field(error: ValidationError, where: str = "") -> StudyError:
    """The error for the first field that pydantic refuses: names it, its value and the rule."""
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "the whole"
    return StudyError(f"{where}{field}={reprlib.repr(first['input'])} is not allowed: {first['msg']}")
