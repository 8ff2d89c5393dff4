"""The experiment file: what to merge, where to search, how to score, how long (docs/experiments.md)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from evomerge import library
from evomerge.errors import ConfigError, Problem, suggest
from evomerge.experiments.journals import address
from evomerge.fitness.irt.bank import bank_files
from evomerge.fitness.objectives import FitnessConfig
from evomerge.loggers import LOGGERS
from evomerge.recipes import ActivationRelaxation, Alignment, TokenizerSettings, yaml
from evomerge.search_spaces import SearchSpaceConfig, read_search_space
from evomerge.searchers import SearcherConfig, read_searcher

NICKNAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
PICK = re.compile(r"^(best-mean|knee|objective:.+|prefer:.*|trial:\d+)$")
PICKS = "best-mean, knee, objective:NAME, prefer:NAME=WEIGHT,… or trial:N"
RESERVED_NAMES = ("base", "uniform")


class Strict(BaseModel):
    """A frozen model that refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(Strict):
    """How much to spend."""

    trials: int = Field(default=100, ge=1, description="trials to evaluate, failed ones included")


class WorkersConfig(Strict):
    """Where trials run. Nothing here but ``in_flight`` (and ``threads``, to rounding) changes a result."""

    devices: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto: every GPU, else the CPU")
    count: int | None = Field(
        default=None, ge=1, description="workers; default: one a GPU, or one a CPU core, as machines join and leave"
    )
    devices_per_worker: float = Field(
        default=1.0, gt=0, description="GPUs of each: 0.5 for two workers on each GPU, 2 for a model over two"
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads a worker; default: cores / workers")
    in_flight: int | None = Field(
        default=None,
        ge=1,
        description="candidates open at once; default: 8 or more, by the number of workers (docs/workers.md)",
    )
    retries: int = Field(default=2, ge=0, description="further tries of a trial that failed, or whose worker died")
    time_limit: float | None = Field(
        default=None,
        gt=0,
        description="seconds after which a worker hangs; default: 20 times the longest trial, at least 10 minutes",
    )
    overlap: bool | None = Field(
        default=None,
        description="merge the next trial while one is evaluated, if memory holds two models; default: on GPUs",
    )

    batch: int | None = Field(
        default=None,
        ge=1,
        description="recipes given to a worker at once, where the fitness takes batches; default: by the models' size",
    )
    members_gb: float = Field(
        default=64.0,
        ge=0,
        description="of disk on each machine for trials that are crossed again (kind: lineage); others are rebuilt",
    )

    @field_validator("devices_per_worker")
    @classmethod
    def _whole_devices(cls, devices: float) -> float:
        if devices > 1 and devices != int(devices):
            raise ValueError("a worker takes a part of one GPU (0.5) or whole ones (2)")
        return devices


class MergeConfig(Strict):
    """What every merge of the run has in common besides the search space: fields of a recipe (docs/recipes.md)."""

    tokenizer_source: str | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
    align: Alignment | None = None
    statistics: str | None = None
    aim: ActivationRelaxation | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_tokenizer(self) -> MergeConfig:
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either tokenizer or tokenizer_source")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """The fields that are set, as a recipe has them."""
        return self.model_dump(exclude_none=True, exclude_defaults=True)

    @property
    def vocabulary(self) -> dict[str, Any]:
        """Those of the fields that decide on the vocabulary."""
        return {name: value for name, value in self.fields.items() if name in ("tokenizer_source", "tokenizer")}


class ExperimentConfig(Strict):
    """A whole experiment. ``search_space`` and ``searcher`` may be a name or a mapping."""

    name: str = "experiment"
    base: str | None = None
    parents: dict[str, str]
    also_score: dict[str, str] = {}
    search_space: SearchSpaceConfig
    fitness: FitnessConfig
    searcher: SearcherConfig
    budget: Budget = Budget()
    workers: WorkersConfig = WorkersConfig()
    pick: str = "best-mean"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    merge: MergeConfig = MergeConfig()
    known_front: str | None = None
    journal: str | None = None
    loggers: list[str] = []

    _document: yaml.Document | None = PrivateAttr(None)

    def where(self, key: yaml.Key) -> str:
        """Return the place of a key path in the file that the experiment was read from, for messages."""
        return self._document.where(key) if self._document else yaml.dotted(key)

    @property
    def references(self) -> dict[str, str]:
        """Nickname to reference of every model to load, the base (if any) under ``base``."""
        base = {"base": self.base} if self.base is not None else {}
        return {**base, **self.parents, **self.also_score}


class _Raw(Strict):
    """The file as written: the two parts with kinds of their own are read separately."""

    name: str = Field(default="experiment", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    base: str | None = None
    parents: dict[str, str] = Field(min_length=1)
    also_score: dict[str, str] = Field({}, description="other models to compare with, which are not merged")
    search_space: str | dict[str, Any] = "layerwise-task-arithmetic"
    fitness: FitnessConfig
    searcher: str | dict[str, Any] = "nsga2"
    budget: Budget = Budget()
    workers: WorkersConfig = WorkersConfig()
    pick: str = "best-mean"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    merge: MergeConfig = MergeConfig()
    known_front: str | None = None
    journal: str | None = Field(None, description="URL of the server that keeps the journal; default: the run folder")
    loggers: list[str] = Field([], description="experiment trackers that are told what happens (docs/watching.md)")

    @field_validator("parents", "also_score")
    @classmethod
    def _nicknames(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            if not NICKNAME.match(name) or name in RESERVED_NAMES:
                raise ValueError(
                    f"{name!r} cannot name a model: use letters, digits, '-' and '_', "
                    f"but not {' or '.join(RESERVED_NAMES)}"
                )
        return models

    @field_validator("also_score")
    @classmethod
    def _not_merged(cls, models: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        twice = sorted(set(models) & set(info.data.get("parents", {})))
        if twice:
            raise ValueError(f"{twice[0]!r} is a parent already, which is scored anyway")
        return models

    @field_validator("loggers")
    @classmethod
    def _known_loggers(cls, loggers: list[str]) -> list[str]:
        for name in loggers:
            if name not in LOGGERS:
                raise ValueError(f"there is no logger {name!r}; {suggest(name, LOGGERS)}")
        return list(dict.fromkeys(loggers))

    @field_validator("pick")
    @classmethod
    def _pick(cls, pick: str) -> str:
        if not PICK.match(pick):
            raise ValueError(f"the pick must be {PICKS}")
        return pick


def read_experiment(name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment file, a name in the library, or a mergekit-evolve file.

    Args:
        name: a path or a name (``evomerge ls``).
        overrides: ``a.b=value`` strings; the value is YAML.

    Raises:
        ConfigError: every problem of the file, with lines.
        UnknownNameError: no such file or name.
    """
    entry = library.find("experiments", name)
    document = yaml.load(entry.path)
    if isinstance(document.data, Mapping) and "genome" in document.data:
        from evomerge.experiments.mergekit_evolve import convert

        document = convert(document)
    return parse_experiment(document, overrides, folder=entry.path.parent)


def parse_experiment(
    document: yaml.Document, overrides: Sequence[str] = (), *, folder: Path | None = None
) -> ExperimentConfig:
    """Validate a parsed experiment file; paths in it are taken relative to ``folder``."""
    for override in overrides:
        document = _override(document, override)
    _check_journal(document)
    problems: list[Problem] = []
    raw = _collect(problems, lambda: yaml.validate(_Raw, document))
    data = document.data if isinstance(document.data, Mapping) else {}
    space = _collect(
        problems,
        lambda: read_search_space(
            data.get("search_space", _Raw.model_fields["search_space"].default), document, ("search_space",)
        ),
    )
    searcher = _collect(
        problems,
        lambda: read_searcher(data.get("searcher", _Raw.model_fields["searcher"].default), document, ("searcher",)),
    )
    if problems or raw is None or space is None or searcher is None:
        raise ConfigError(list(dict.fromkeys(problems)))
    folder = (folder or Path.cwd()).resolve()
    fields = {name: getattr(raw, name) for name in _Raw.model_fields}
    fields |= {
        "search_space": space,
        "searcher": searcher,
        "base": None if raw.base is None else absolute(raw.base, folder),
        "parents": {nickname: absolute(reference, folder) for nickname, reference in raw.parents.items()},
        "also_score": {nickname: absolute(reference, folder) for nickname, reference in raw.also_score.items()},
        "fitness": anchored(raw.fitness, folder),
        "merge": located(raw.merge, folder),
        "known_front": None if raw.known_front is None else beside(raw.known_front, folder),
    }
    experiment = ExperimentConfig.model_construct(**fields)
    experiment._document = document
    return experiment


def write_experiment(experiment: ExperimentConfig) -> str:
    """Return the resolved experiment as YAML that reads back as the same experiment anywhere on this machine."""
    data = {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in ((field, getattr(experiment, field)) for field in ExperimentConfig.model_fields)
        if value is not None
    }
    return yaml.dumps(data)


def absolute(reference: str, folder: Path) -> str:
    """Make a reference that is a path absolute; leave zoo names and Hub ids as they are."""
    path = Path(os.path.expanduser(reference))
    if (folder / path).is_dir() or not path.is_dir():
        relative = reference.startswith((".", "~")) or (not path.is_absolute() and (folder / path).is_dir())
        return str((folder / path).resolve()) if relative else reference
    return str(path.resolve())  # found from the working folder only


def anchored(fitness: FitnessConfig, folder: Path) -> FitnessConfig:
    """Make the paths of task files, of functions' files and of item banks absolute."""
    objectives = tuple(
        objective.model_copy(
            update={"task": _file(objective.task, folder), "function": _module(objective.function, folder)}
        )
        for objective in fitness.objectives
    )
    estimate = fitness.estimate
    if estimate is not None and estimate.bank is not None:
        for base in (folder, Path.cwd()):
            path = base / Path(estimate.bank).expanduser()
            if path.exists() or bank_files(path)[0].exists():
                estimate = estimate.model_copy(update={"bank": str(path.resolve())})
                break
    return fitness.model_copy(update={"objectives": objectives, "estimate": estimate})


def located(merge: MergeConfig, folder: Path) -> MergeConfig:
    """Make the path of the statistics, and references that are paths, absolute."""
    changed: dict[str, Any] = {}
    if merge.statistics is not None:
        changed["statistics"] = beside(merge.statistics, folder)
    if merge.tokenizer_source not in (None, "base", "union"):
        changed["tokenizer_source"] = absolute(str(merge.tokenizer_source), folder)
    if merge.align is not None and merge.align.to is not None:
        changed["align"] = merge.align.model_copy(update={"to": absolute(merge.align.to, folder)})
    return merge.model_copy(update=changed)


def beside(path: str, folder: Path) -> str:
    """Make a path absolute: relative to ``folder``, or to the working folder if something is only there."""
    here, there = folder / Path(path).expanduser(), Path(path).expanduser()
    return str((there if there.exists() and not here.exists() else here).resolve())


def _file(name: str | None, folder: Path) -> str | None:
    path, colon, rest = (name or "").partition(":")
    if path.endswith((".yaml", ".yml", ".py")):
        found = next((base / path for base in (folder, Path.cwd()) if (base / path).is_file()), None)
        return str(found.resolve()) + colon + rest if found else name
    return name


def _module(function: str | None, folder: Path) -> str | None:
    """Take ``score:f`` from the score.py beside the experiment file if there is one, else as an installed module."""
    module, colon, name = (function or "").partition(":")
    beside = module.replace(".", "/") + ".py"
    if not module.endswith(".py") and (folder / beside).is_file():
        return str((folder / beside).resolve()) + colon + name
    return _file(function, folder)


def _check_journal(document: yaml.Document) -> None:
    """Refuse a journal's URL that cannot be used, before anything tells what the fields are: it may hold a password."""
    url = document.data.get("journal") if isinstance(document.data, Mapping) else None
    problem = address.problem_of(url, document.where(("journal",))) if isinstance(url, str) else None
    if problem is not None:
        raise ConfigError(problem)


def _collect(problems: list[Problem], read: Any) -> Any:
    try:
        return read()
    except ConfigError as error:
        problems.extend(error.problems)
        return None


def _override(document: yaml.Document, override: str) -> yaml.Document:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(Problem(f"cannot read --set {override!r}", suggestion="write it as --set budget.trials=50"))
    value = yaml.loads(text, f"--set {key}").data
    path = key.strip().split(".")
    data = document.data if isinstance(document.data, Mapping) else {}
    if len(path) > 1:
        data = _spelled_out(data, path[0])
    return replace(document, data=_assign(data, path, value, override))


def _spelled_out(data: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    """Replace a searcher or search space given by name alone by its fields, so that one of them can be set."""
    name = data.get(part)
    if not isinstance(name, str):
        return data
    if part == "searcher":
        return {**data, part: {"kind": name}}
    if part == "search_space":
        return {**data, part: yaml.load(library.find("search_spaces", name).path).data}
    return data


def _assign(data: Any, path: list[str], value: Any, override: str) -> Any:
    if not path:
        return value
    head, rest = path[0], path[1:]
    if isinstance(data, list):
        if not head.isdigit() or int(head) >= len(data):
            raise ConfigError(Problem(f"--set {override!r}: the list has no entry {head!r} (0 to {len(data) - 1})"))
        return [_assign(item, rest, value, override) if i == int(head) else item for i, item in enumerate(data)]
    fields = data if isinstance(data, Mapping) else {}
    return {**fields, head: _assign(fields.get(head), rest, value, override)}
