"""``evomerge status``: where a run stands."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--workers", "every_worker", is_flag=True, help="Show every worker of a run that goes on, not a few.")
@click.option("--timings", "show_timings", is_flag=True, help="Say where the time went, and what limits the run.")
def command(run: Path, every_worker: bool, show_timings: bool) -> None:
    """Say where RUN stands: trials done, best so far, who works on what, and what to do next."""
    from evomerge.experiments.summarise import summarise
    from evomerge.reports import surrogates, timings, tree, wording
    from evomerge.reports.estimates import cost, method

    if _is_before_last_stage(run):
        return
    summary = summarise(run)
    failed = f", {len(summary.failed)} failed" if summary.failed else ""
    whole = f" of the last merge ({sum(merge.done for merge in summary.tree)} in the tree)" if summary.tree else ""
    click.echo(f"{summary.name}: {summary.status}, {len(summary.trials)} of {summary.budget} trials{failed}{whole}")
    for objective in summary.objectives:
        scored = [(t.objectives[objective.name], t) for t in summary.complete if t.objectives]
        if not scored:
            continue
        value, trial = max(scored, key=lambda pair: objective.sign * pair[0])
        error = trial.standard_errors.get(objective.name, 0.0)
        shown = f"{value:.4g} ± {error:.2g}" if error else f"{value:.4g}"
        parent = summary.best_parent(objective)
        beside = f" (best parent {parent.name} {parent.objectives[objective.name]:.4g})" if parent else ""
        click.echo(f"  {objective.name}: best {shown} by trial {trial.number}{beside}")
    if summary.quality:
        measures = wording.front_measures(summary.quality.spread, summary.quality.igd_plus)
        click.echo(f"  front: {', '.join([_trials(summary.quality.size), *measures])}")
        click.echo(
            f"  hypervolume {summary.quality.hypervolume:.4g} beyond {wording.reference_point(summary)}: "
            "the worst of parents, base and uniform merge"
        )
        if summary.quality.size != len(summary.front):
            click.echo(f"  {_trials(len(summary.front))} may be on the front, after estimates were revised")
    if summary.estimates:
        click.echo(f"  {method(summary.estimates)}\n  {cost(summary.estimates)}")
    if summary.surrogates:
        click.echo("  surrogates:")
        for line in surrogates.lines(summary.surrogates, len(summary.complete), str(run)):
            click.echo(f"    {line}")
    if summary.tree:
        click.echo("  the tree, and what was picked, on confirmation items:")
        for line in tree.lines(summary):
            click.echo(f"    {line}")
    if show_timings:
        click.echo("  where the time went:")
        for line in timings.lines(summary.trials):
            click.echo(f"    {line}")
    if summary.status == "running":
        _show_workers(run, every_worker)
    following = {
        "running": "",
        "finished": f"evomerge export {run} OUT",
        "interrupted": f"evomerge resume {run}",
    }
    if following[summary.status]:
        click.echo(f"next: {following[summary.status]}")


def _show_workers(run: Path, every_worker: bool) -> None:
    """Print the latest news of the workers, wherever they run."""
    from rich.console import Console
    from rich.padding import Padding

    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.worker_watch import read_workers
    from evomerge.reports import wording
    from evomerge.reports.worker_table import ROWS, worker_table, workers_line

    news = read_workers(RunFolder(run).workers)
    if news is None or not news.rows:
        return
    click.echo(f"  workers {wording.duration(news.age)} ago: {workers_line(news.rows)}")
    Console().print(Padding.indent(worker_table(news.rows, limit=None if every_worker else ROWS), 4))


def _is_before_last_stage(run: Path) -> bool:
    """Say where a run in stages stands that has not begun the last one; return whether it is such a run."""
    from evomerge.experiments import staging
    from evomerge.experiments.run_folder import RunFolder
    from evomerge.experiments.summarise_stages import earlier_stages

    folder = RunFolder(run)
    experiment = folder.read_written()
    if folder.journal.exists() or not staging.is_staged(experiment):
        return False
    state = "running" if folder.is_running else "interrupted"
    if staging.is_planned(experiment, run):
        click.echo(f"{experiment.name}: {state}, before the last of its stages")
        for line in earlier_stages(folder):
            click.echo(f"  {line}")
    else:
        click.echo(f"{experiment.name}: {state}, before all parents are evaluated, which decides what is merged first")
    if not folder.is_running:
        click.echo(f"next: evomerge resume {run}")
    return True


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count:,} trials"
