"""Hold what tests of the gateway on the real engine ask for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}


class Sum(BaseModel):
    """A sum."""

    value: Annotated[int, Field(ge=0, le=999)]
