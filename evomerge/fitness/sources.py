"""Names to lm-eval tasks: files of `fitness/`, files of the user's, and the tasks that lm-eval ships."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.config.task import TaskConfig
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from evomerge.checkpoints import zoo_folder
from evomerge.errors import FitnessError, UnknownNameError, suggest
from evomerge.library import SUFFIXES, entries, find

NAME_LINE = re.compile(rb"""^["']?(task|group|tag)["']?:[ \t]*["']?([^\s"'\[#]+)""", re.MULTILINE)
TAG_LIST = re.compile(rb"""^["']?tag["']?:[ \t]*\n((?:[ \t]*-.*\n?)+)""", re.MULTILINE)
NOT_FIELDS = ("tag", "group", "task_list", "class")


def load_task(name: str, base_folder: Path | None = None) -> Task:
    """Return the lm-eval task that ``name`` means, with its data loaded.

    Args:
        name: a name in `fitness/`, the path of a YAML file (relative to ``base_folder`` or the working
            folder), or the name of a task that lm-eval ships; tried in this order.
        base_folder: the experiment file's folder.

    Raises:
        UnknownNameError: no such task; lists the nearest names.
        FitnessError: the name is a group of tasks, or the task's file or data cannot be used.
    """
    path = find_task(name, base_folder)
    try:
        config = load_yaml(path)
    except Exception as error:
        raise FitnessError(f"task {name!r}: cannot read {path}: {error}") from error
    if "group" in config or isinstance(config.get("task"), list):
        raise FitnessError(_several(name, "group", _listed(config)))
    return _build(name, path, config)


def find_task(name: str, base_folder: Path | None = None) -> Path:
    """Return the YAML file of a task; see `load_task`."""
    if name.endswith(SUFFIXES) and base_folder and (base_folder / name).is_file():
        return base_folder / name
    try:
        return find("fitness", name).path
    except UnknownNameError:
        kinds = shipped_names().get(name, {})
    if "task" in kinds or "group" in kinds:
        return kinds.get("task", kinds.get("group", []))[0]
    if "tag" in kinds:
        raise FitnessError(_several(name, "tag", _tasks_in(name)))
    ours = [entry.name for entry in entries("fitness")]
    near = difflib.get_close_matches(name, [*ours, *shipped_names()], n=3, cutoff=0.6)
    raise UnknownNameError("task", name, near or ours, "fitness/ and the tasks that lm-eval ships")


@cache
def shipped_names() -> Mapping[str, Mapping[str, list[Path]]]:
    """Return the files that declare each task, group and tag of lm-eval's, by name and kind.

    lm-eval's own index parses 14,000 YAML files, in 18 s; the lines that hold names are found in 0.6 s.
    """
    names: dict[str, dict[str, list[Path]]] = {}
    for folder, _, files in os.walk(Path(lm_eval.__file__).parent / "tasks"):
        for path in (Path(folder, file) for file in files if file.endswith(SUFFIXES)):
            for kind, name in _declared(path):
                names.setdefault(name, {}).setdefault(kind, []).append(path)
    return names


def _declared(path: Path) -> list[tuple[str, str]]:
    """Return (kind, name) of what a file of lm-eval's declares, without parsing its YAML."""
    text = path.read_bytes()
    names = [(kind.decode(), name.decode()) for kind, name in NAME_LINE.findall(text)]
    for lines in TAG_LIST.findall(text):
        names += [("tag", line.strip(" -\"'\t")) for line in lines.decode().splitlines()]
    return names


def _several(name: str, kind: str, members: Iterable[str]) -> str:
    tasks = sorted({task for member in members for task in _tasks_in(member)})
    shown = ", ".join(tasks[:20]) + (", …" if len(tasks) > 20 else "")
    return f"{name!r} is a {kind} of tasks; name those you mean, one objective each: {shown}"


def _tasks_in(name: str) -> list[str]:
    """Return the tasks of a group or tag of lm-eval's, down to single tasks; an unknown name is its own."""
    kinds = shipped_names().get(name, {})
    if "group" in kinds and "task" not in kinds:
        return [
            task for member in _listed(load_yaml(kinds["group"][0], resolve_func=False)) for task in _tasks_in(member)
        ]
    if "tag" in kinds and "task" not in kinds:
        return [found for path in kinds["tag"] for kind, found in _declared(path) if kind == "task"]
    return [name]


def _listed(config: Mapping[str, Any]) -> list[str]:
    members = config.get("task") or []
    return [str(entry.get("task") or entry.get("group")) if isinstance(entry, dict) else entry for entry in members]


def _build(name: str, path: Path, config: dict[str, Any]) -> Task:
    _check_fields(path, config)
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if files is not None:
        config["dataset_kwargs"]["data_files"] = _locate(files, path)
    try:
        if "class" in config:
            return next(iter(TaskManager(include_defaults=False).load([str(path)])["tasks"].values()))
        task = ConfigurableTask(config={key: value for key, value in config.items() if key not in NOT_FIELDS})
    except ConnectionError as error:
        raise FitnessError(_unreachable(name, config, error)) from error
    except Exception as error:
        raise FitnessError(f"task {name!r} ({path}) cannot be built: {type(error).__name__}: {error}") from error
    return task


def _check_fields(path: Path, config: Mapping[str, Any]) -> None:
    known = {field.name for field in fields(TaskConfig)}
    unknown = [key for key in config if key not in known and key not in NOT_FIELDS]
    if unknown and "class" not in config:
        hints = "; ".join(f"{key!r}: {suggest(key, known)}" for key in unknown)
        raise FitnessError(f"{path}: unknown fields of a task: {hints}")


def _unreachable(name: str, config: Mapping[str, Any], error: Exception) -> str:
    dataset = " ".join(str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key))
    return (
        f"task {name!r}: its data set {dataset!r} is not in the local cache and cannot be downloaded "
        f"({error}); load it once on a machine with network, or copy the Hugging Face cache folder here"
    )


def _locate(files: Any, task_file: Path) -> Any:
    """Return ``data_files`` with every path absolute: ``zoo/…`` in the zoo, others beside the task's file."""
    if isinstance(files, Mapping):
        return {split: _locate(entry, task_file) for split, entry in files.items()}
    if isinstance(files, (list, tuple)):
        return [_locate(entry, task_file) for entry in files]
    if "://" in files:
        return files
    if files.startswith("zoo/"):
        path, remedy = zoo_folder() / files.removeprefix("zoo/"), "run `evomerge zoo build` first"
    else:
        path, remedy = task_file.parent / files, f"paths are relative to {task_file.parent}"
    if not path.exists() and not set("*?[") & set(files):
        raise FitnessError(f"{task_file}: the data file {path} does not exist; {remedy}")
    return str(path)
