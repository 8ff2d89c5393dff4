"""Build the zoo: data, tokenizer, base, experts, scores, tasks; all of it or nothing.

Everything is written to a folder beside the zoo's, which takes the zoo's place only when it is complete. Models are
trained in processes of their own with a fixed number of threads, so the weights depend on the plan alone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from rich.table import Table

from evomerge.errors import CheckpointError, EvomergeError
from evomerge.library import folders
from evomerge.zoo.data import make_dataset, read_split, write_dataset
from evomerge.zoo.family import BASE, DATA_TASKS, EXPERTS, MODELS, TASKS, UNIFORM, Plan
from evomerge.zoo.processes import Progress, run_all
from evomerge.zoo.tokenizer import train_tokenizer

STALE = 3600.0  # seconds after which an unfinished build's folder is taken for a killed one's


def build_zoo(folder: Path, *, force: bool = False, progress: bool = True, plan: Plan | None = None) -> Path:
    """Build the zoo in ``folder`` unless it is there; see ``evomerge.zoo.build``."""
    if folder.is_dir() and not force:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        _fill(partial, folder, plan or Plan(), progress)
        put_in_place(partial, folder, force)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def read_score_table(folder: Path) -> Table:
    """Return the table of ``folder/scores.json``."""
    path = folder / "scores.json"
    if not path.is_file():
        raise CheckpointError(f"the zoo is not built (no {path}); run `evomerge zoo build`")
    scores: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    table = Table("model", *(task.replace("_", " ") for task in TASKS), "mean", title="The zoo on its test items")
    for name, row in scores.items():
        values = [row[task] for task in TASKS]
        table.add_row(name, *(f"{value:.3f}" for value in [*values, sum(values) / len(values)]))
    return table


def _fill(partial: Path, final: Path, plan: Plan, progress: bool) -> None:
    (partial / "plan.json").write_text(json.dumps(dataclasses.asdict(plan), indent=2) + "\n", encoding="utf-8")
    with Progress(progress) as shown:
        _prepare(partial, plan)
        train = "evomerge.zoo.training"
        run_all([[train, str(partial), "2", BASE]], shown, threads=2)
        halves = [EXPERTS[0::2], EXPERTS[1::2]]
        run_all([[train, str(partial), "1", *half] for half in halves], shown, threads=1)
        groups = [[BASE, *EXPERTS[0::2]], [*EXPERTS[1::2], UNIFORM]]
        run_all([["evomerge.zoo.scoring", str(partial), *group] for group in groups], shown, threads=1)
    _join_scores(partial)
    _write_tasks(partial, final)


def _prepare(partial: Path, plan: Plan) -> None:
    """Write the data sets and the tokenizer, which is trained on the questions for training only."""
    sizes = {"train": plan.train_items, "search": plan.search_items, "test": plan.test_items}
    for task in DATA_TASKS:
        write_dataset(make_dataset(task, sizes, plan.seed), partial / "data" / task)
    items = (item for task in DATA_TASKS for item in read_split(partial / "data" / task, "train"))
    tokenizer = train_tokenizer((f"{item['prompt']} {item['answer']}" for item in items), plan.vocabulary)
    tokenizer.save_pretrained(partial / "tokenizer")


def _join_scores(partial: Path) -> None:
    names = [*MODELS, UNIFORM]
    parts = {name: partial / f"scores-{name.removeprefix('zoo/')}.json" for name in names}
    scores = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in parts.items()}
    (partial / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    for path in parts.values():
        path.unlink()


def _write_tasks(partial: Path, final: Path) -> None:
    """Copy the tasks with absolute paths, so that ``lm_eval --include_path`` needs nothing of ours."""
    shipped = [source / "zoo" for source in folders("fitness") if (source / "zoo").is_dir()]
    if not shipped:
        raise EvomergeError("the zoo's tasks (fitness/zoo/*.yaml) are missing; reinstall evomerge")
    target = partial / "tasks"
    target.mkdir()
    for task in TASKS:
        text = (shipped[-1] / f"{task}.yaml").read_text(encoding="utf-8")
        text = text.replace("zoo/data/", f"{final.absolute().as_posix()}/data/")
        (target / f"{task}.yaml").write_text(text, encoding="utf-8")


def put_in_place(partial: Path, folder: Path, force: bool) -> None:
    """Rename a complete build to its folder; one that is there already is kept, or replaced by ``force``."""
    partial.chmod(0o755)  # mkdtemp makes private folders
    if folder.is_dir() and not force:
        return  # another process was faster; its zoo has the same bytes
    if folder.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
        os.rename(folder, old / "old")
        os.rename(partial, folder)
        shutil.rmtree(old)
    else:
        os.rename(partial, folder)


def remove_stale(folder: Path) -> None:
    """Remove what killed builds of this folder left beside it."""
    for other in folder.parent.glob(f"{folder.name}.partial-*"):
        if time.time() - other.stat().st_mtime > STALE:
            shutil.rmtree(other, ignore_errors=True)
