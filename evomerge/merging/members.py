"""The weights of trials that are sources of others: kept on this machine while there is room, else rebuilt.

A member's weights are what merging its recipe in its dtype makes, the run's: so they are those that were scored, and
those that a merge to a folder of the same recipe has. They are made on the CPU, by the streaming engine, wherever they
are needed, so that all machines have the same bits. Small ones are kept in each process's memory, larger ones in files
that the processes of a machine share.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evomerge import __version__
from evomerge.checkpoints import Checkpoint, CheckpointView, TensorInfo, TensorSpec, cache_folder
from evomerge.checkpoints.naming import RenamedCheckpoint
from evomerge.checkpoints.weight_store import StoredWeights, WeightStore
from evomerge.errors import EvomergeError, Problem
from evomerge.merging.parents import RECOMPUTED, Parents
from evomerge.merging.tensors import merge_dtypes, merge_tensors
from evomerge.merging.to_folder import output_config
from evomerge.recipes import Recipe, sources_of, trial_reference, unpack_recipe, with_ancestors

SMALL = 1 << 20  # bytes up to which a member is not worth a file
MEMORY = 1 << 28  # bytes of small members that a process keeps
VERSION = "1"  # raised when stored members change, so that old files are not taken for new ones


class MissingRecipesError(EvomergeError):
    """Weights are to be rebuilt whose recipes are not known here; ``trials`` are the hashes of these."""

    def __init__(self, trials: Sequence[str]) -> None:
        self.trials = tuple(trials)
        super().__init__(f"not known here: the recipes of the trials {', '.join(trials)}")


class Member(CheckpointView):
    """A trial's model: tensors of its own; files beside them, such as the tokenizer's, are the donor's."""

    transient = True

    def __init__(self, trial: str, donor: Checkpoint, weights: StoredWeights, fingerprint: str) -> None:
        super().__init__(donor, trial_reference(trial))
        self._weights, self._fingerprint = weights, fingerprint
        self.config: dict[str, Any] = dict(weights.config)
        self.tensors: Mapping[str, TensorInfo] = weights.infos
        self.untied, self.transient = frozenset(), True

    def tensor(self, name: str) -> torch.Tensor:
        """Return tensor ``name`` as a view of the mapped file."""
        return self._weights.tensors[name]

    def release(self) -> None:
        """Keep the file mapped: it may be evicted, and could not be mapped again."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of the recipe, its whole lineage and the parents."""
        return self._fingerprint


class _Recent:
    """The last used members, as many as fit into ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._left, self._found = limit, OrderedDict[str, tuple[Member, int]]()

    def get(self, trial: str) -> Member | None:
        if trial not in self._found:
            return None
        self._found.move_to_end(trial)
        return self._found[trial][0]

    def keep(self, trial: str, member: Member, size: int) -> None:
        self._found[trial] = (member, size)
        self._left -= size
        while self._left < 0:
            self._left += self._found.popitem(last=False)[1][1]


class Members:
    """Opens the trials that recipes name as sources.

    Args:
        parents: the experiment's models.
        donor: reference of the one whose files members have beside their weights.
        limit: bytes of the files in which this machine keeps members of all runs; 0 keeps none.
        root: where these files lie; in the cache folder by default.
        small: bytes up to which a member is kept in memory and not in a file.
    """

    def __init__(self, parents: Parents, donor: str, limit: int, root: Path | None = None, small: int = SMALL) -> None:
        self._parents, self._donor = parents, parents[donor]
        self._small, self._in_memory = small, _Recent(min(limit, MEMORY))
        self._key = _digest(parents)
        root = root or cache_folder() / "members"
        self._store = WeightStore(root / self._key, root, limit)
        self._recipes: dict[str, str] = {}

    def learn(self, recipes: Mapping[str, str]) -> None:
        """Take in packed recipes of trials by their hashes, from which members can be rebuilt."""
        self._recipes.update(recipes)

    def of(self, recipe: Recipe) -> dict[str, Checkpoint]:
        """Return reference → model of the trials that the recipe names, rebuilt if they are not kept.

        They stay valid while they are held, whatever is evicted.

        Raises:
            MissingRecipesError: some must be rebuilt, and recipes of their lineage are not known.
            MergeError: one cannot be rebuilt.
        """
        wanted = sources_of(recipe)
        opened: dict[str, Member] = {}
        recipes: dict[str, Recipe] = {}
        missing: list[str] = []

        def sources(trial: str) -> list[str]:
            if (member := self._in_memory.get(trial)) is not None:
                opened[trial] = member
            elif (weights := self._store.open(trial)) is not None:
                opened[trial] = self._member(trial, weights)
            elif trial in self._recipes:
                recipes[trial] = unpack_recipe(self._recipes[trial])
                return sources_of(recipes[trial])
            else:
                missing.append(trial)
            return []

        order = with_ancestors(wanted, sources)
        if missing:
            raise MissingRecipesError(missing)
        uses = Counter([*wanted, *(source for each in recipes.values() for source in sources_of(each))])
        for trial in order:
            if trial not in recipes:
                continue
            opened[trial] = self._rebuilt(trial, recipes[trial], opened)
            for source in sources_of(recipes[trial]):
                uses[source] -= 1
                if not uses[source]:
                    del opened[source]
        return {trial_reference(trial): opened[trial] for trial in wanted}

    @torch.no_grad()
    def _rebuilt(self, trial: str, recipe: Recipe, opened: Mapping[str, Member]) -> Member:
        """Return a member whose sources are open; kept, if there is room."""
        sources = {trial_reference(source): opened[source] for source in sources_of(recipe)}
        parents = self._parents.with_members(sources).viewed(recipe)
        specs = [TensorSpec(step.name, step.shape, merge_dtypes(recipe, step)[1]) for step in parents.plan(recipe)]
        size = sum(spec.num_bytes for spec in specs)
        config = output_config(recipe, parents, specs)
        if size > self._small and self._store.holds(size):
            with self._store.making(trial):
                weights = self._store.open(trial)  # another process may have been faster
                try:
                    weights = weights or self._store.write(trial, specs, config, merge_tensors(recipe, parents))
                except OSError:  # a full disk, a folder that is read-only: done without
                    weights = None
            if weights is not None:
                return self._member(trial, weights)
        member = self._member(trial, _of_memory(dict(merge_tensors(recipe, parents)), config))
        if size <= self._small:
            self._in_memory.keep(trial, member, size)
        return member

    def _member(self, trial: str, weights: StoredWeights) -> Member:
        return Member(trial, self._donor, weights, hashlib.sha256(f"{self._key} {trial}".encode()).hexdigest()[:16])


def member_problems(parents: Mapping[str, Checkpoint]) -> list[Problem]:
    """Return why children of children of these models would not all have the same tensors.

    Args:
        parents: reference → model, with one set of tensor names.
    """
    first, *others = parents
    hint = "children of children are one model: save the parents by one version of transformers, with one vocabulary"
    found = []
    for other in others:
        ours, theirs = _shapes(parents[first]), _shapes(parents[other])
        apart = [name for name in sorted(ours.keys() | theirs) if ours.get(name) != theirs.get(name)]
        if apart:
            shapes = [each.get(apart[0], "missing") for each in (ours, theirs)]
            what = f"tensor {apart[0]} is {shapes[0]} in {first} and {shapes[1]} in {other}"
            found.append(Problem(what, other, hint))
        elif isinstance(parents[other], RenamedCheckpoint):
            found.append(Problem(f"its file calls tensors otherwise than that of {first}", other, hint))
    return found


def _shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in checkpoint.tensors.items() if not name.endswith(RECOMPUTED)}


def _of_memory(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]) -> StoredWeights:
    nowhere = Path("in memory")
    infos = {name: TensorInfo(name, tuple(t.shape), t.dtype, nowhere, 0, t.nbytes) for name, t in tensors.items()}
    return StoredWeights(infos, tensors, config)


def _digest(parents: Parents) -> str:
    """Return 16 hexadecimal digits of what the weights depend on besides the recipes."""
    content = [VERSION, __version__, torch.__version__]
    content += [f"{reference} {parent.fingerprint}" for reference, parent in parents.checkpoints.items()]
    return hashlib.sha256("\0".join(content).encode()).hexdigest()[:16]
