"""What a file says about a search space of kind ``parameter``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from evomerge.errors import suggest
from evomerge.search_spaces.base import SearchSpaceConfig
from evomerge.search_spaces.groups import NAMED_GROUPS, OTHER, GroupSetting
from evomerge.search_spaces.layout import BLOCK, OUTSIDE

GROUP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
TAKEN_GROUP_NAME = re.compile(rf"(layer|block|point)\d+|{OUTSIDE}|{OTHER}")
Fixed = bool | int | FiniteFloat


class ParameterSpaceConfig(SearchSpaceConfig):
    """Fields of a search space of kind ``parameter`` (search_spaces/README.md explains them)."""

    kind: Literal["parameter"] = "parameter"
    method: str
    granularity: str = "layer"
    smooth: int | None = Field(default=None, ge=2)
    groups: tuple[GroupSetting, ...] = ()
    weights: Literal["free", "simplex"] = "free"
    bounds: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)
    fixed: dict[str, Fixed] = Field(default_factory=dict)

    @field_validator("granularity", mode="before")
    @classmethod
    def _granularity(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and list(value) == ["block"]:
            value = f"block: {value['block']}"
        if isinstance(value, str):
            value = re.sub(r"^block:\s*", "block: ", value.strip())
            if value in ("global", "layer") or BLOCK.fullmatch(value):
                return value
        raise ValueError("the granularity is global, layer or 'block: K' with K layers a block")

    @field_validator("groups")
    @classmethod
    def _groups(cls, groups: tuple[GroupSetting, ...]) -> tuple[GroupSetting, ...]:
        names = [name for group in groups for name in ([group] if isinstance(group, str) else group)]
        for name in {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the group {name!r} is listed twice")
        for group in groups:
            _check_group(group)
        return groups

    @field_validator("bounds")
    @classmethod
    def _bounds(cls, bounds: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in bounds.items():
            if low >= high:
                raise ValueError(f"the bounds of {name!r} must rise; a single value goes under fixed")
        return bounds

    @model_validator(mode="after")
    def _smooth_layers(self) -> ParameterSpaceConfig:
        if self.smooth is not None and self.granularity != "layer":
            raise ValueError(f"smooth curves run over layers: use granularity: layer, not {self.granularity!r}")
        return self


def _check_group(group: GroupSetting) -> None:
    if isinstance(group, str):
        if group not in NAMED_GROUPS:
            raise ValueError(
                f"unknown group {group!r}; {suggest(group, NAMED_GROUPS)} "
                "A group of your own is written {name: regular expression}"
            )
        return
    for name, pattern in group.items():
        if not GROUP_NAME.fullmatch(name) or TAKEN_GROUP_NAME.fullmatch(name) or name in NAMED_GROUPS:
            raise ValueError(f"{name!r} cannot name a group of your own: choose another word")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
