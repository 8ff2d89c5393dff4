"""``evomerge statistics``: what data-aware merge methods need, gathered once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from evomerge.checkpoints import Checkpoint
    from evomerge.merging import Parents
    from evomerge.recipes import Recipe

KINDS = ("fisher", "gram", "gradient", "scale", "sample", "loss")


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, metavar="MODEL", help="A model; repeat for each of them.")
@click.option("--recipe", metavar="FILE", help="Take the models, and the kinds that it needs, from a recipe.")
@click.option("--text", "texts", multiple=True, metavar="[MODEL=]FILE", help="Calibration text: plain, or JSON lines.")
@click.option("--task", "tasks", multiple=True, metavar="[MODEL=]TASK", help="Calibration items of a task.")
@click.option(
    "--split",
    type=click.Choice(["train", "search", "confirmation"]),
    default="search",
    show_default=True,
    help="Which of the task's items.",
)
@click.option("--kinds", metavar="KIND,…", help=f"What to gather, of {', '.join(KINDS)}.  [default: gram]")
@click.option(
    "--samples", type=click.IntRange(min=1), default=256, show_default=True, help="Examples of each model, at most."
)
@click.option(
    "--length", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens of an example, at most."
)
@click.option(
    "--labels",
    type=click.Choice(["sampled", "data"]),
    default="sampled",
    show_default=True,
    help="Tokens whose gradient the Fisher takes: drawn from the model, or the text's own.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    default=1024,
    show_default=True,
    help="Tokens whose activations `sample` keeps.",
)
@click.option("--seed", default=0, show_default=True, help="Chooses examples, labels and sampled tokens.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What the models are run in; sums are float32 or wider.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def command(
    out: Path,
    models: tuple[str, ...],
    recipe: str | None,
    texts: tuple[str, ...],
    tasks: tuple[str, ...],
    split: Literal["train", "search", "confirmation"],
    kinds: str | None,
    samples: int,
    length: int,
    labels: Literal["sampled", "data"],
    rows: int,
    seed: int,
    dtype: str,
    device: str,
) -> None:
    """Run models once over a small calibration set, and write what data-aware merge methods need into the folder OUT.

    Methods say what they need in `evomerge methods`; a recipe then says `statistics: OUT`. Give every model its own
    data (--task zoo/math-en=arithmetic_en) where a method is to keep what each is good at, the same data for all where
    models are compared (loss, sample).
    """
    from evomerge.cli.calibration import encode, sources
    from evomerge.errors import ConfigError, Problem
    from evomerge.merging import Parents
    from evomerge.merging.gathering import Calibration, write_statistics
    from evomerge.merging.gathering.examples import digest
    from evomerge.recipes import read_recipe

    read = read_recipe(recipe) if recipe else None
    references = list(dict.fromkeys([*models, *(read.parents() if read else ())]))
    if not references:
        raise ConfigError("no models; name them with --model, or give a recipe")
    chosen = _kinds(kinds, read)
    places = sources(texts, tasks, split, references)
    parents = Parents.open(references)
    pairs = {place: place.read() for place in dict.fromkeys(places.values())}
    calibrations = {}
    for reference in references:
        checkpoint = parents[reference]
        examples = encode(
            pairs[places[reference]],
            _tokenizer(checkpoint),
            count=samples,
            length=length,
            seed=seed,
            mask=_is_masked(checkpoint),
        )
        calibrations[reference] = Calibration(checkpoint, _builder(parents, reference, dtype, device), examples)
    if "sample" in chosen and len({digest(each.examples) for each in calibrations.values()}) > 1:
        what = "samples are compared between models, but these do not see the same tokens"
        raise ConfigError(Problem(what, "--kinds sample", "give one text for all, to models of one tokenizer"))
    made = {
        "texts": {model: str(place.text or place.task) for model, place in places.items()},
        "split": split,
        "kinds": list(chosen),
        "samples": samples,
        "length": length,
        "labels": labels,
        "seed": seed,
        "dtype": dtype,
    }
    with _progress() as report:
        found = write_statistics(
            out, calibrations, chosen, seed=seed, labels=labels, sample_rows=rows, made=made, report=report
        )
    for reference, gathered in found.items():
        loss = f", loss {gathered.numbers['loss']:.4f}" if "loss" in gathered.numbers else ""
        count = len(calibrations[reference].examples)
        click.echo(f"{reference}: {count} examples, {gathered.tokens} tokens{loss}")
        if gathered.unseen and not set(chosen).isdisjoint(("gram", "scale", "sample", "gradient")):
            some = ", ".join(gathered.unseen[:3])
            click.secho(f"  no inputs seen of {len(gathered.unseen)} matrices, such as {some}", fg="yellow")
    click.echo(str(out))


def _kinds(text: str | None, recipe: Recipe | None) -> tuple[str, ...]:
    """Return the kinds asked for, or those that the recipe needs."""
    from evomerge.errors import ConfigError, Problem, suggest
    from evomerge.merging.statistics import kinds_of

    if text is None:
        return (kinds_of(recipe) if recipe else ()) or ("gram",)
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    unknown = [Problem(f"no kind {kind!r}", "--kinds", suggest(kind, KINDS)) for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigError(unknown or [Problem("names no kind", "--kinds", f"choose of {', '.join(KINDS)}")])
    return kinds


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from transformers import AutoTokenizer

    from evomerge.errors import CheckpointError

    try:
        return AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
    except (OSError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        what = f"{checkpoint.name}: no tokenizer can be read, so it cannot be run on text: {reason}"
        raise CheckpointError(f"{what}\n    → for images and sound, call evomerge.merging.gathering.gather") from error


def _is_masked(checkpoint: Checkpoint) -> bool:
    """Whether the model fills in hidden tokens; transformers' own table of classes knows."""
    from transformers.models.auto import modeling_auto as table

    classes = checkpoint.config.get("architectures") or [""]
    causal = set(table.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return classes[0] in set(table.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()) - causal


def _builder(parents: Parents, reference: str, dtype: str, device: str) -> Any:
    def build() -> Any:
        from evomerge.merging import InPlaceMerger, Parents

        alone = Parents({reference: parents[reference]})
        return InPlaceMerger(alone, base=reference, dtype=dtype, device=device).model

    return build


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yields what to tell the number of finished examples of a model."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(reference: str, done: int) -> None:
            if reference not in tasks:
                tasks[reference] = bar.add_task(reference, total=None)
            bar.update(tasks[reference], completed=done, description=f"{reference}: {done} examples")

        yield report
