"""A plan in the terminal: what is evaluated, memory, disk, time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from evomerge.reports import wording
from evomerge.reports.planned import DiskPlan, MemoryPlan, Plan, Span, StagePlan, TaskPlan, TimePlan, WorkersPlan
from evomerge.reports.tables import QUIET

Row = tuple[str, str, str]  # what, how much, and what to know about it


def plan_table(plan: Plan) -> Group:
    """Return the plan as tables of three columns, one for each part."""
    parts: list[RenderableType] = []
    for stage in plan.stages:
        parts.append(_section(f"Search: {stage.name}" if stage.name else "Search", list(_search(stage))))
    if plan.memory is not None:
        parts.append(_section("Memory", list(_memory(plan.memory, plan.workers))))
    if plan.disk is not None:
        parts.append(_section("Disk", list(_disk(plan.disk))))
    if plan.time is not None and plan.workers is not None:
        parts.append(_section(f"Time on {_on(plan.workers)}", list(_time(plan.time, plan.workers))))
    if plan.fetched:
        rows = [(name, wording.size(size), "") for name, size in plan.fetched.items()]
        total = ("together", wording.size(sum(plan.fetched.values())), "the rest is known once they are here: --fetch")
        parts.append(_section("To be fetched", [*rows, total]))
    return Group(*parts)


def _section(title: str, rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False, title_justify="left")
    table.title = Text(f"\n{title}", style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(style=QUIET, overflow="fold")
    for what, amount, note in rows:
        table.add_row(Text(f"  {what}"), Text(amount), Text(note))
    return table


def _search(stage: StagePlan) -> Iterator[Row]:
    of = " a merge" if stage.merges > 1 else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in stage.genes.items())
    yield "search space", "", stage.space
    yield f"genes{of}", wording.whole(sum(stage.genes.values())), kinds
    each = f", {stage.trials // stage.merges} a merge" if stage.merges > 1 else ""
    yield "trials", wording.whole(stage.trials), f"by {stage.searcher}{each}; each asks"
    for task in stage.tasks:
        asked = "items" if task.asked == task.search else f"of {task.search} items (estimated)"
        yield (
            f"  {_short(task.task)}",
            wording.whole(task.asked),
            f"{asked}, {task.confirmation} to confirm{_tokens(task)}",
        )
    yield "reference models", wording.whole(stage.references), "on all search items: base, parents, uniform merge"
    if stage.calibration:
        yield "calibration", wording.whole(stage.calibration), "random merges, on all search items"
    few, many = round(stage.confirmed.low), round(stage.confirmed.high)
    assumed = "models: references, and a front of assumed size"
    yield "confirmed", wording.between(str(few), str(many)), assumed if few != many else "models"


def _tokens(task: TaskPlan) -> str:
    if task.prompt_tokens is None:
        return ""
    longest = f"{task.prompt_tokens} + {task.answer_tokens}" if task.answer_tokens else str(task.prompt_tokens)
    return f"; up to {longest} tokens"


def _short(task: str) -> str:
    """Return a task's name; of a function in a file, without the file's folder."""
    return task.rpartition("/")[2] if ".py:" in task else task


def _memory(memory: MemoryPlan, workers: WorkersPlan | None) -> Iterator[Row]:
    where = "a GPU" if memory.device is not None else "a worker"
    yield "the merged model", wording.size(memory.weights), "its weights"
    if memory.layers:
        yield "parents' layers", wording.size(memory.layers), "which paths go through"
    if memory.cache:
        yield "keys and values", wording.size(memory.cache), f"of {memory.batch} answers generated together"
    if memory.logits:
        yield "logits", wording.size(memory.logits), f"of a batch of {memory.batch}"
    if memory.activations:
        yield "activations", wording.size(memory.activations), "roughly"
    if memory.device is not None:
        have = f"of {wording.size(memory.device)}; parents are kept there too, as far as they fit"
        yield f"  {where}", wording.size(memory.on_device), have
    yield "Python and libraries", wording.size(memory.process), "as a rule"
    measured = "" if memory.measured is None else f"; measured: {wording.size(memory.measured)}"
    yield "  a worker", wording.size(memory.worker), f"pages of its own{measured}"
    yield "parents", wording.size(memory.parents), "mapped files, which workers share"
    if memory.prepared:
        yield "prepared states", wording.size(memory.prepared), "likewise"
    if workers is not None:
        here = f"{workers.count} workers" if workers.nodes == 1 else "all workers, on several machines"
        need = workers.count * memory.worker
        yield "  together", wording.size(need), f"{here}; this machine has {wording.size(memory.machine)}"
    for assumption in memory.assumed:
        yield "assumed", "", assumption


def _disk(disk: DiskPlan) -> Iterator[Row]:
    yield "responses", wording.size(disk.responses), "to every item, at most"
    yield "journal", wording.size(disk.journal), ""
    yield "report and front", wording.size(disk.reports), ""
    if disk.models:
        yield "models of stages", wording.size(disk.models), "which the next stage merges"
    yield "  the run folder", wording.size(disk.run), f"{wording.size(disk.free)} free in {disk.folder}"
    if disk.prepared:
        yield "prepared states", wording.size(disk.prepared), f"in {disk.cache}, made once"
    yield "the exported model", wording.size(disk.exported), "once you export it"


def _time(time: TimePlan, workers: WorkersPlan) -> Iterator[Row]:
    yield "a trial", _span(time.trial), f"in one worker; {_span(time.merge)} of it merging"
    for name, part in time.parts.items():
        yield name, _span(part), ""
    yield (
        "  together",
        _span(time.total),
        f"from a probe of {wording.duration(time.probe)}, with the machine as busy as now",
    )
    hours = wording.between(_hours(time.device_hours.low), _hours(time.device_hours.high))
    yield f"{'GPU' if workers.device == 'cuda' else 'core'}-hours", hours, ""


def _on(workers: WorkersPlan) -> str:
    machines = "" if workers.nodes == 1 else f" on {workers.nodes} machines"
    kind = "GPU" if workers.device == "cuda" else "CPU"
    threads = "1 thread" if workers.threads == 1 else f"{workers.threads} threads"
    each = f"{threads} each" if kind == "CPU" else f"{workers.devices_each:g} GPUs each"
    return f"{workers.count} {kind} workers{machines}, {each}"


def _span(span: Span) -> str:
    return wording.between(wording.duration(span.low), wording.duration(span.high))


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 100 else f"{hours:,.0f}"
