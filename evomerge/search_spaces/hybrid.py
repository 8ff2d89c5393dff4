"""The hybrid search space: first merge in parameter space, then route through the result and the parents.

Akiba et al. 2025, "Evolutionary optimization of model merging recipes" (https://arxiv.org/abs/2403.13187), Section 3.3.
A run searches the two spaces one after the other (`evomerge.experiments.hybrid`); neither is searched through this one.
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn

from pydantic import Field, field_validator

from evomerge import library
from evomerge.errors import EvomergeError, UnknownNameError
from evomerge.recipes import yaml
from evomerge.search_spaces.base import SEARCH_SPACES, ParentsInfo, SearchSpaceConfig, SearchSpaceKind
from evomerge.search_spaces.layer_routing_config import LayerRoutingConfig
from evomerge.search_spaces.parameter_config import ParameterSpaceConfig


class HybridSpaceConfig(SearchSpaceConfig):
    """Fields of a search space of kind ``hybrid`` (search_spaces/README.md explains them).

    Attributes:
        parameter: the space of the first stage: fields, or a name.
        routing: the space of the second stage, in which the first one's pick is the parent ``merged``; paths begin and
            end with its layers unless they say otherwise.
        trials: those of the budget that the first stage has; None: half of them.
    """

    kind: Literal["hybrid"]
    parameter: ParameterSpaceConfig
    routing: LayerRoutingConfig = LayerRoutingConfig()
    trials: int | None = Field(default=None, ge=1)

    @field_validator("parameter", "routing", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return yaml.load(library.find("search_spaces", value).path).data
        except UnknownNameError as error:
            raise ValueError(str(error)) from error


def _build(config: HybridSpaceConfig, info: ParentsInfo) -> NoReturn:
    raise EvomergeError("a hybrid space is searched in two stages; build those")


SEARCH_SPACES.add(
    "hybrid",
    SearchSpaceKind(HybridSpaceConfig, _build, "a merge in parameter space, then paths through it and its parents"),
    origin=__name__,
)
