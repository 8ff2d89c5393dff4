"""Layer routing: which layers of which parents the hidden states pass, in which order, and how they are scaled.

This is the "data flow space" of Akiba et al. 2025, Evolutionary Optimization of Model Merging Recipes
(https://arxiv.org/abs/2403.13187), encoded as there: all layers of all parents are laid out one after another, this
sequence is repeated, and an indicator gene at each place says whether the path passes it. Layers are thus left out,
repeated and mixed, but within a repetition keep their order. The path's first and last layer are pinned. They stand
before and after all places, as in the authors' sketch
(https://github.com/SakanaAI/evolutionary-model-merge/issues/8).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from evomerge.errors import ConfigError, Problem, suggest
from evomerge.recipes import PathStep, Recipe, routed_recipe
from evomerge.search_spaces.base import SEARCH_SPACES, ParentsInfo, SearchSpaceKind, check_genome
from evomerge.search_spaces.genes import Gene, Genome, IntGene
from evomerge.search_spaces.layer_routing_config import PINNED, LayerRoutingConfig
from evomerge.search_spaces.layer_routing_scales import NetworkScales, NoScales, Place, Scales, StepScales

BASE = "base"
OF_PATHS = ("chat_template", "seed")  # the merge settings that a path can have
NEIGHBOURS = 16  # starting points with one layer more or less


class LayerRoutingSpace:
    """A search space over paths through the layers of several parents.

    Args:
        config: as read from a file.
        info: the models.

    Raises:
        ConfigError: the configuration does not fit the models; lists every problem.
    """

    def __init__(self, config: LayerRoutingConfig, info: ParentsInfo) -> None:
        if problems := list(_problems(config, info)):
            raise ConfigError(problems)
        self._info = info
        self._nicknames = config.parents or tuple(info.parents)
        self._repetitions = config.repetitions
        first = config.first or self._nicknames[0]
        last = config.last or first
        self._first, self._last = Place("first", first, 0), Place("last", last, info.num_layers - 1)
        outside = config.outside or first
        self._outside = info.base if outside == BASE else info.parents[outside]

        layers = [(nickname, layer) for nickname in self._nicknames for layer in range(info.num_layers)]
        self._places = tuple(
            Place(_name(repetition, nickname, layer), nickname, layer)
            for repetition in range(config.repetitions)
            for nickname, layer in layers
        )
        longest = len(self._places) + PINNED
        self._max_depth = min(config.max_depth or longest, longest)
        self._scales = _scales(config, (self._first, *self._places, self._last), layers, self._max_depth)
        own = set(self._own())
        indicators = (IntGene(place.name, 0, 1, int(place.name in own)) for place in self._places)
        self.genes: tuple[Gene, ...] = (*indicators, *self._scales.genes)

    def express(self, genome: Genome) -> Recipe:
        """Return the recipe of a genome's path.

        Of a path longer than ``max_depth`` the last places are left out, not the pinned layer at its end.

        Raises:
            EvomergeError: a gene is missing or unknown.
        """
        check_genome(self.genes, genome)
        path = self._path(genome)
        scales = self._scales.along(path, genome)
        steps = [
            PathStep(self._info.parents[place.nickname], place.layer, scale)
            for place, scale in zip(path, scales, strict=True)
        ]
        return routed_recipe(steps, outside=self._outside, dtype=self._info.dtype, **self._info.common)

    def starting_points(self) -> list[Genome]:
        """Return stacks that are known to work, and neighbours of the first, where places and ``max_depth`` hold them.

        The first parent itself (with another parent's last layer, where paths must end with that); its lower half
        under the upper half of another; its lower three quarters under the other's upper three quarters, as Kim et al.
        2024 (SOLAR 10.7B, https://arxiv.org/abs/2312.15166) stack a model on itself; the first parent with one layer
        more or less, at places spread over all: most paths further away are no working models. All scales are 1.
        """
        initial = {gene.name: gene.initial for gene in self.genes}
        none = dict.fromkeys((place.name for place in self._places), 0)
        depth, places = self._info.num_layers, self._places
        own = self._own()
        stacks = [own, self._stack(depth // 2, depth // 2), self._stack(depth - depth // 4, depth // 4)]
        count = min(NEIGHBOURS, len(places))
        spread = [places[number * len(places) // count].name for number in range(count)]
        neighbours = [[*set(own) ^ {name}] for name in spread]
        found: dict[tuple[tuple[str, int], ...], Genome] = {}
        for chosen in (*stacks, *neighbours):
            if chosen is not None and len(chosen) + PINNED <= self._max_depth:
                genome = {**initial, **none, **dict.fromkeys(chosen, 1)}
                found.setdefault(tuple((place.nickname, place.layer) for place in self._path(genome)), genome)
        return list(found.values())

    def _own(self) -> list[str]:
        """Return the places of the first parent's inner layers, as many as a path may have."""
        inner = range(1, self._info.num_layers - 1)
        return [_name(0, self._first.nickname, layer) for layer in inner][: self._max_depth - PINNED]

    def _stack(self, end: int, start: int) -> list[str] | None:
        """Return the places of the first parent's layers before ``end`` and another's from ``start``, less pinned ones.

        None if the other's do not come after the first's.
        """
        first, other = self._first.nickname, self._last.nickname
        position = self._nicknames.index(first)
        if other == first:
            other = self._nicknames[(position + 1) % len(self._nicknames)]
        repetition = int(self._nicknames.index(other) <= position)
        if repetition >= self._repetitions:
            return None
        lower = [_name(0, first, layer) for layer in range(1, end)]
        return lower + [_name(repetition, other, layer) for layer in range(start, self._info.num_layers - 1)]

    def _path(self, genome: Genome) -> tuple[Place, ...]:
        chosen = [place for place in self._places if int(genome[place.name])]
        if not chosen and self._first[1:] == self._last[1:]:
            return (self._first,)  # of a parent with a single layer, which is this path
        return (self._first, *chosen[: self._max_depth - PINNED], self._last)


def build(config: LayerRoutingConfig, info: ParentsInfo) -> LayerRoutingSpace:
    """Return the layer routing space of a configuration over the given models.

    Raises:
        ConfigError: the configuration does not fit the models.
    """
    return LayerRoutingSpace(config, info)


SEARCH_SPACES.add(
    "layer_routing",
    SearchSpaceKind(LayerRoutingConfig, build, "the path of the hidden states through layers of several parents"),
    origin=__name__,
)


def _name(repetition: int, nickname: str, layer: int) -> str:
    return f"r{repetition}.{nickname}.layer{layer}"


def _scales(
    config: LayerRoutingConfig, places: Sequence[Place], layers: Sequence[tuple[str, int]], steps: int
) -> Scales:
    if config.scales == "step":
        return StepScales(places, config.scale_bounds)
    if config.scales == "network":
        return NetworkScales(layers, steps, config.hidden, config.scale_bounds)
    return NoScales()


def _problems(config: LayerRoutingConfig, info: ParentsInfo) -> Iterator[Problem]:
    if not info.parents:
        yield Problem("there is no parent whose layers a path could pass", "parents", "name at least one")
        return
    if useless := [name for name in info.common if name not in OF_PATHS]:
        what = f"merge: {', '.join(useless)} is for merges of weights, of which a path has none"
        yield Problem(what, f"merge.{useless[0]}", "leave it out; parents of a path need one vocabulary")
    if info.num_layers < 1:
        yield Problem("these models have no layers that a path could pass", "search_space.kind", "use kind: parameter")
    for index, nickname in enumerate(config.parents or ()):
        yield from _unknown(nickname, info.parents, f"search_space.parents[{index}]")
    taking_part = config.parents or tuple(info.parents)
    yield from _unknown(config.first, taking_part, "search_space.first")
    yield from _unknown(config.last, taking_part, "search_space.last")
    if config.outside == BASE and info.base is None:
        suggestion = "name it (base: MODEL), or one of the parents here"
        yield Problem("the experiment has no base", "search_space.outside", suggestion)
    elif config.outside != BASE:
        yield from _unknown(config.outside, (BASE, *info.parents), "search_space.outside")


def _unknown(nickname: str | None, known: Collection[str], where: str) -> Iterator[Problem]:
    if nickname is not None and nickname not in known:
        yield Problem(f"{nickname!r} is none of the parents", where, suggest(nickname, known))
