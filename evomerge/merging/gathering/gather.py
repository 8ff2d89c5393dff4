"""One pass of a model over calibration examples, gathering statistics of its weights on the way.

Matena and Raffel 2022 (Fisher), https://arxiv.org/abs/2111.09832; Jin et al. 2023 (Gram matrices),
https://arxiv.org/abs/2212.09849; Tam et al. 2024 (Gram matrices of gradients), https://arxiv.org/abs/2312.04339;
Heyrani Nobari et al. 2025 (activation magnitudes), https://arxiv.org/abs/2502.02421.

Sums run over the examples as they come; nothing is kept of an example but the asked-for samples. Peak memory, in
float32: the model; for ``fisher`` twice the model more (gradients and their squares); for ``gram`` the square of the
inputs of each matrix, for ``gradient`` of the outputs; and the activations of one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn.functional import cross_entropy, log_softmax

from evomerge.checkpoints import Checkpoint
from evomerge.errors import MergeError
from evomerge.merging.gathering.examples import IGNORED, Example
from evomerge.merging.gathering.places import Spot, spots
from evomerge.merging.gathering.products import Operand, Products

KINDS = ("fisher", "gram", "gradient", "scale", "sample", "loss")
OF_PREDICTIONS = ("fisher", "gradient", "loss")  # kinds that need labels
ONE_BY_ONE = ("fisher", "gradient")  # kinds that need each example's own gradient
Labels = Literal["sampled", "data"]
HALF_MAX = torch.finfo(torch.float16).max


@dataclass
class Gathered:
    """What one pass found out.

    Args:
        sums: "KIND/TENSOR" → statistic, float32 (samples: float16).
        axes: tensor → the axis that runs over its inputs.
        numbers: of the model as a whole.
        tokens: how many tokens were seen.
        unseen: matrices of the checkpoint that the pass found no product with, or whose place in the model is
            unknown: methods average these.
    """

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    tokens: int = 0
    unseen: tuple[str, ...] = ()


def gather(
    model: Any,
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    kinds: Sequence[str],
    *,
    seed: int = 0,
    labels: Labels = "sampled",
    sample_rows: int = 1024,
    batch_tokens: int = 1024,
    report: Callable[[int], None] = lambda done: None,
) -> Gathered:
    """Return statistics of ``kinds`` of a model on examples, under the names of its checkpoint's tensors.

    The diagonal Fisher is the mean over examples of the squared gradient of log p(y | x), summed over the example's
    predicted tokens. With ``labels="sampled"`` each predicted token y is drawn from the model's own distribution,
    given the example's text before it (one draw of the expectation that Matena and Raffel take); with ``"data"`` it is
    the example's own (the empirical Fisher).

    Args:
        model: built by transformers from ``checkpoint``, on the CPU or a GPU; left as it was.
        examples: at least one; those of one length share a forward pass where no gradient is needed.
        kinds: of `KINDS`.
        seed: draws labels and chooses sampled rows.
        sample_rows: tokens whose inputs are kept, at most; the same for every model that sees the same examples.
        batch_tokens: tokens in a forward pass.
        report: called with the number of finished examples.

    Raises:
        MergeError: a kind needs predictions and the examples ask for none, the model takes other inputs, or its
            scores are not finite.
    """
    if wanting := [
        kind for kind in OF_PREDICTIONS if kind in kinds and not any(e.labels is not None for e in examples)
    ]:
        raise MergeError(f"{wanting[0]} needs examples with something to predict, such as a language model's text")
    names = [name for name, info in checkpoint.tensors.items() if info.dtype.is_floating_point]
    found = spots(model, checkpoint, names)
    run = _Pass(model, found, kinds, seed, labels, _rows(examples, sample_rows, seed))
    with _ready(model, gradients=not set(kinds).isdisjoint(ONE_BY_ONE)):
        for batch in _batches(examples, 1 if set(kinds) & set(ONE_BY_ONE) else batch_tokens):
            run.batch([examples[index] for index in batch], batch)
            report(run.examples)
    return run.result(names)


class _Pass:
    """The sums of one pass."""

    def __init__(
        self,
        model: Any,
        found: dict[str, Spot],
        kinds: Sequence[str],
        seed: int,
        labels: Labels,
        rows: dict[int, torch.Tensor],
    ) -> None:
        self.model, self.spots, self.kinds, self.labels, self.rows = model, found, set(kinds), labels, rows
        self.parameters = dict(model.named_parameters())
        self.device = next(iter(self.parameters.values())).device
        self.generator = torch.Generator().manual_seed(seed)
        self.sums: dict[tuple[str, Any], torch.Tensor] = {}
        self.counts: dict[tuple[str, Any], int] = defaultdict(int)
        self.samples: dict[Operand, list[torch.Tensor]] = defaultdict(list)
        self.loss, self.predicted, self.tokens, self.examples = 0.0, 0, 0, 0
        self.products = Products(self.parameters.items(), self._product)
        self._last: tuple[Any, int, torch.Tensor] | None = None
        self._batch: list[int] = []
        self._shape = (0, 0)
        self._blocks: dict[Operand, dict[str, int]] = {}

    def batch(self, examples: Sequence[Example], indices: Sequence[int]) -> None:
        """Run examples of one length through the model."""
        inputs = {
            name: torch.stack([example.inputs[name] for example in examples]).to(self.device)
            for name in examples[0].inputs
        }
        self._batch, self._shape = list(indices), (len(examples), examples[0].length)
        self.tokens += len(examples) * examples[0].length
        with self.products, self._vectors():
            scores = getattr(self._run(inputs), "logits", None)
        self._last = None
        if self.kinds & set(OF_PREDICTIONS):
            self._predict(scores, examples)
        self.examples += len(examples)

    def _run(self, inputs: dict[str, torch.Tensor]) -> Any:
        try:
            return self.model(**inputs)
        except (AttributeError, IndexError, TypeError, ValueError) as error:  # what models raise for a missing input
            given = ", ".join(inputs)
            raise MergeError(f"{type(self.model).__name__} cannot be run on {given} alone: {error}") from error

    def _predict(self, scores: Any, examples: Sequence[Example]) -> None:
        labels = torch.stack([e.labels for e in examples if e.labels is not None]).to(self.device)
        if scores is None or scores.shape[:2] != labels.shape:
            raise MergeError(f"{type(self.model).__name__} gives no score for each token, so it has no loss or Fisher")
        asked = labels != IGNORED
        scores, labels = scores[asked].float(), labels[asked]
        if not scores.isfinite().all():
            raise MergeError("the model's scores hold NaN or infinity; look for NaN in its weights")
        self.loss += float(cross_entropy(scores.detach(), labels, reduction="none").double().sum())
        self.predicted += len(labels)
        if self.kinds & set(ONE_BY_ONE) and len(labels):
            if self.labels == "sampled":
                chances = scores.detach().softmax(-1).cpu()
                labels = torch.multinomial(chances, 1, generator=self.generator).flatten().to(self.device)
            log_softmax(scores, -1).gather(-1, labels[:, None]).sum().backward()
            self._square()

    def _square(self) -> None:
        for name, parameter in self.parameters.items():
            if parameter.grad is not None and "fisher" in self.kinds:
                self._add(("fisher", name), parameter.grad.float().square())
            parameter.grad = None

    def _add(self, key: tuple[str, Any], term: torch.Tensor) -> None:
        if key in self.sums:
            self.sums[key] += term
        else:
            self.sums[key] = term.clone()

    def _add_magnitudes(self, key: tuple[str, Any], rows: torch.Tensor) -> None:
        self._add(key, rows.abs().sum(0, dtype=torch.float64))
        self.counts[key] += len(rows)

    def _mean_magnitude(self, key: tuple[str, Any]) -> torch.Tensor:
        return (self.sums[key].cpu() / self.counts[key]).float()

    def _product(self, operand: Operand, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        blocks = self._blocks_of(operand)
        if not blocks:
            return
        whole = tuple(inputs.shape[:-1]) in (self._shape, (math.prod(self._shape),))
        with torch.no_grad():
            rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
            if "gram" in self.kinds:
                self._add(("gram", operand), self._squared(inputs, rows))
            if "scale" in self.kinds:
                self._add_magnitudes(("scale", operand), rows)
            if "sample" in self.kinds and whole:
                chosen = [self.rows[i] + n * self._shape[1] for n, i in enumerate(self._batch)]
                part = rows[torch.cat(chosen).to(rows.device)]
                self.samples[operand].append(part.clamp(-HALF_MAX, HALF_MAX).half().cpu())
        vocabulary = getattr(self.model.config.get_text_config(), "vocab_size", None)
        if "gradient" in self.kinds and outputs.requires_grad and outputs.shape[-1] != vocabulary:
            outputs.register_hook(lambda gradient: self._output_gradient(operand, gradient))

    def _output_gradient(self, operand: Operand, gradient: torch.Tensor) -> None:
        rows = gradient.detach().reshape(-1, gradient.shape[-1]).float()
        self._add(("gradient", operand), rows.T @ rows)

    def _squared(self, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return XᵀX; computed once where several matrices are multiplied with the same tensor in a row."""
        if self._last is None or self._last[0] is not inputs or self._last[1] != inputs._version:
            self._last = (inputs, inputs._version, rows.T @ rows)
        return self._last[2]

    def _blocks_of(self, operand: Operand) -> dict[str, int]:
        """Return the checkpoint's tensors that this operand is made of, with the axis of their inputs."""
        if operand not in self._blocks:
            axes = {name: operand.input_axis(*spot) for name, spot in self.spots.items()}
            self._blocks[operand] = {name: axis for name, axis in axes.items() if axis is not None}
        return self._blocks[operand]

    @contextmanager
    def _vectors(self) -> Iterator[None]:
        """Watch the inputs of modules whose ``weight`` is a vector with one number a channel: norms."""
        hooks = []
        for prefix, module in self.model.named_modules() if "scale" in self.kinds else ():
            weight = module._parameters.get("weight")
            if weight is not None and weight.ndim == 1:
                name = f"{prefix}.weight"
                hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: self._vector(name, args)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _vector(self, name: str, args: Sequence[Any]) -> None:
        size = self.parameters[name].numel() if name in self.parameters else -1
        if args and isinstance(args[0], torch.Tensor) and args[0].shape[-1:] == (size,):
            self._add_magnitudes(("vector", name), args[0].detach().reshape(-1, size))

    def result(self, names: Sequence[str]) -> Gathered:
        """Return the means, by the checkpoint's names."""
        gathered = Gathered(tokens=self.tokens)
        if self.predicted:
            gathered.numbers["loss"] = self.loss / self.predicted
        self._of_entries(gathered)
        for operand, blocks in self._blocks.items():
            for name, axis in blocks.items():
                if operand.parameter not in self.products.embeddings:
                    self._of_block(gathered, operand, name, axis)
        matrices = [name for name in names if name not in gathered.axes and self._is_matrix(name)]
        gathered.unseen = tuple(matrices)
        return gathered

    def _is_matrix(self, name: str) -> bool:
        spot = self.spots.get(name)
        return spot is None or (len(spot.shape) == 2 and spot.parameter not in self.products.embeddings)

    def _of_entries(self, gathered: Gathered) -> None:
        squares, entries = 0.0, 0
        for name, spot in self.spots.items():
            if ("fisher", spot.parameter) in self.sums:
                fisher = spot.view(self.sums["fisher", spot.parameter].cpu()).div(self.examples)
                gathered.sums[f"fisher/{name}"] = fisher
                squares += float(fisher.double().square().sum())
                entries += fisher.numel()
            if spot.parameter in self.parameters and ("vector", spot.parameter) in self.sums and len(spot.shape) == 1:
                gathered.sums[f"scale/{name}"] = self._mean_magnitude(("vector", spot.parameter))
        if entries:
            gathered.numbers["fisher_size"] = math.sqrt(squares / entries)

    def _of_block(self, gathered: Gathered, operand: Operand, name: str, axis: int) -> None:
        gathered.axes[name] = axis
        if ("gram", operand) in self.sums:
            gathered.sums[f"gram/{name}"] = self.sums["gram", operand].cpu() / self.tokens
        if ("scale", operand) in self.sums:
            gathered.sums[f"scale/{name}"] = self._mean_magnitude(("scale", operand)).unsqueeze(1 - axis)
        if self.samples.get(operand):
            gathered.sums[f"sample/{name}"] = torch.cat(self.samples[operand])
        spot = self.spots[name]
        if ("gradient", operand) in self.sums:
            first = (spot.offset - operand.offset) // operand.outputs[1]
            block = slice(first, first + spot.shape[1 - axis])
            gathered.sums[f"gradient/{name}"] = self.sums["gradient", operand][block, block].cpu() / self.tokens


def _rows(examples: Sequence[Example], count: int, seed: int) -> dict[int, torch.Tensor]:
    """Return example → the positions to keep of it: ``count`` of all tokens at most, drawn without repetition."""
    lengths = [example.length for example in examples]
    order = torch.randperm(sum(lengths), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    ends = torch.tensor(lengths).cumsum(0)
    owner = torch.searchsorted(ends, order, right=True)
    starts = ends - torch.tensor(lengths)
    return {index: order[owner == index] - starts[index] for index in range(len(examples))}


def _batches(examples: Sequence[Example], tokens: int) -> Iterator[list[int]]:
    """Yield indices of examples that fit one forward pass without padding: equal shapes, at most so many tokens."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        alike[tuple((name, tuple(tensor.shape)) for name, tensor in sorted(example.inputs.items()))].append(index)
    for indices in alike.values():
        step = max(1, tokens // examples[indices[0]].length) if tokens > 1 else 1
        yield from (indices[start : start + step] for start in range(0, len(indices), step))


@contextmanager
def _ready(model: Any, *, gradients: bool) -> Iterator[None]:
    """Switch off dropout, and fused implementations of experts, in which an expert's inputs cannot be told apart."""
    training, wanting = model.training, [p.requires_grad for p in model.parameters()]
    experts = getattr(model.config, "_experts_implementation", None)
    switch = getattr(model, "set_experts_implementation", None)
    if switch is not None and experts not in (None, "eager"):
        switch("eager")
    model.eval().requires_grad_(gradients)
    try:
        with nullcontext() if gradients else torch.no_grad():
            yield
    finally:
        if switch is not None and experts not in (None, "eager"):
            switch(experts)
        model.train(training)
        for parameter, wanted in zip(model.parameters(), wanting, strict=True):
            parameter.requires_grad_(wanted)
            parameter.grad = None
