"""What all models of the mappings are made of."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from avesa_dagster.names import NAME

PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name is 1 to 63 of a-z, 0-9, '_' and '-', starting with a-z or 0-9")
    return value


def _path(value: str) -> str:
    if not PATH.fullmatch(value):
        raise ValueError("a path is field names joined by dots, for example company.id")
    return value


Name = Annotated[str, AfterValidator(_name)]
Path = Annotated[str, AfterValidator(_path)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
