"""Any sampler of Optuna's by its class name: ``{kind: optuna, sampler: GPSampler, options: {…}}``."""

from __future__ import annotations

import inspect
from typing import Any, Literal

import optuna
from pydantic import Field, ValidationInfo, field_validator

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.searchers.base import SEARCHERS, SearcherConfig, SearcherEntry, Setting
from evomerge.searchers.optuna_study import OptunaSearcher, quiet_optuna

REFUSED = {
    "BaseSampler": "it is a base class",
    "BaseGASampler": "it is a base class",
    "BruteForceSampler": "it ends the search itself, and real-valued genes cannot be enumerated",
    "CmaEsSampler": "it takes one objective only and no choices: use `kind: cma-es`",
    "GridSampler": "it ends the search itself: use `kind: qmc` to cover the space evenly",
    "PartialFixedSampler": "it wraps another sampler: fix genes in the search space",
}


class OptunaConfig(SearcherConfig):
    """Options of an Optuna sampler. The first trials are the starting points."""

    kind: Literal["optuna"] = Field("optuna", description="the searcher's name")
    sampler: str = Field("TPESampler", description="class name in optuna.samplers")
    options: dict[str, Any] = Field({}, description="arguments of the sampler, the seed apart")

    @field_validator("sampler")
    @classmethod
    def _is_usable(cls, sampler: str) -> str:
        if sampler in REFUSED:
            raise ValueError(f"the sampler {sampler} of Optuna's cannot be used here: {REFUSED[sampler]}")
        if sampler not in samplers():
            raise ValueError(f"unknown Optuna sampler {sampler!r}; {suggest(sampler, samplers())}")
        return sampler

    @field_validator("options")
    @classmethod
    def _are_arguments(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        sampler = info.data.get("sampler")
        valid = sampler_options(sampler) if sampler else tuple(options)
        unknown = [name for name in options if name not in valid]
        if "seed" in unknown:
            raise ValueError("the seed is written beside `kind`, not among the sampler's options")
        if unknown:
            hints = "; ".join(f"{name!r}: {suggest(name, valid)}" for name in unknown)
            raise ValueError(f"{sampler} has no such option: {hints}")
        return options


def samplers() -> tuple[str, ...]:
    """Return the class names of Optuna's samplers that may be used here, sorted."""
    found = (name for name in optuna.samplers.__all__ if inspect.isclass(getattr(optuna.samplers, name)))
    return tuple(sorted(name for name in found if name not in REFUSED))


def sampler_options(sampler: str) -> tuple[str, ...]:
    """Return the arguments of a sampler that can be written as data, without the seed, sorted."""
    parameters = inspect.signature(getattr(optuna.samplers, sampler)).parameters.values()
    code = ("Callable", "Base", "Trial", "ndarray")
    data = (p.name for p in parameters if not any(word in str(p.annotation) for word in code))
    return tuple(sorted(name for name in data if name != "seed"))


def build_optuna(config: OptunaConfig, setting: Setting) -> OptunaSearcher:
    """Return a searcher around the named sampler.

    Raises:
        ConfigError: the sampler does not take the options' values.
    """
    try:
        with quiet_optuna():
            sampler = getattr(optuna.samplers, config.sampler)(seed=config.seed, **config.options)
    except (TypeError, ValueError, ImportError) as error:
        what = f"Optuna's {config.sampler} does not take these options: {error}"
        raise ConfigError(Problem(what, "searcher.options", "see its page in Optuna's reference")) from error
    return OptunaSearcher(sampler, setting)


SEARCHERS.add(
    "optuna",
    SearcherEntry(
        config=OptunaConfig,
        build=build_optuna,
        summary="any Optuna sampler by name (TPESampler, GPSampler, NSGAIIISampler, …)",
        paper="Akiba et al. 2019",
        multi_objective=True,
        needs_generations=False,
    ),
    origin=__name__,
)
