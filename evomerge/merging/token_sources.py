"""Which model's rows stand in for tokens that a model lacks: mergekit's rules, and a recipe's word on single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from evomerge.checkpoints.merged_tokenizer import MergedTokenizer
from evomerge.errors import Problem
from evomerge.merging.token_rows import RowCopies
from evomerge.recipes import PlannedTensor
from evomerge.recipes.recipe import TokenEmbedding, TokenFromModel, ZeroToken

NONE = -1  # in place of a row
_ZERO, _AVERAGE = -1, -2  # in place of a donor's index


@dataclass(frozen=True)
class Vocabulary:
    """The merged vocabulary of some models.

    Args:
        rows: how many rows each tensor of the vocabulary gets.
        ids: the merged ids that have a meaning, rising; int64 (tokens,).
        places: model → for each of ``ids``, its row in that model, -1 where it has none; int64 (tokens,).
        tokenizer: the merged tokenizer; None where tokenizers agree and only rows differ.
        chosen: token → where the recipe says that its rows come from.
    """

    rows: int
    ids: torch.Tensor
    places: Mapping[str, torch.Tensor]
    tokenizer: MergedTokenizer | None = None
    chosen: Mapping[str, TokenEmbedding] = field(default_factory=dict)


class TokenRows:
    """Where the rows of one planned tensor come from, for each of the models that make it.

    Args:
        planned: the tensor.
        rows: model → how many rows its tensor has, for those that make it.
        vocabulary: the merged vocabulary.

    Attributes:
        problems: tokens whose rows are to come from where there is none.
    """

    def __init__(self, planned: PlannedTensor, rows: Mapping[str, int], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tensor = planned.name
        self.places = {
            model: torch.where(vocabulary.places[model] < count, vocabulary.places[model], NONE)
            for model, count in rows.items()
        }
        self.models = list(rows)
        self.rows = rows
        self.has = torch.stack([self.places[model] >= 0 for model in self.models])  # (models, tokens)
        self.forced = torch.zeros(len(vocabulary.ids), dtype=torch.bool)
        self.problems: list[Problem] = []
        self._choose_defaults(planned.base)
        if vocabulary.chosen:
            self._choose_as_told()

    def _choose_defaults(self, base: str | None) -> None:
        """Fill ``donor`` (index of the model, -1 for zero, -2 for an average) and ``row`` (in the donor), per token."""
        count = self.has.sum(0)
        self.donor = torch.where(count == 1, self.has.int().argmax(0), _AVERAGE)
        if base in self.models:
            index = self.models.index(base)
            self.donor[(count > 1) & self.has[index]] = index
        self.donor[count == 0] = _ZERO
        everywhere = torch.stack([self.places[model] for model in self.models])
        self.row = everywhere.gather(0, self.donor.clamp(min=0)[None])[0]

    def _choose_as_told(self) -> None:
        merged = self.vocabulary.tokenizer
        position = {int(index): place for place, index in enumerate(self.vocabulary.ids)}
        for token, entry in self.vocabulary.chosen.items():
            if merged is None or token not in merged.vocabulary:
                self._refuse(token, "which the tokenizer cannot add", "remove it")
                continue
            place = position[merged.vocabulary[token]]
            self.forced[place] = entry.force
            if entry.source is None or (not entry.force and bool(self.has[:, place].all())):
                continue  # nothing is asked for, or no model lacks it
            if isinstance(entry.source, ZeroToken):
                self.donor[place] = _ZERO
            elif isinstance(entry.source, TokenFromModel):
                self._choose_row(token, place, entry.source.model, self._row_of(token, entry.source))
            elif entry.source in self.models:
                self._choose_row(token, place, entry.source, int(self.places[entry.source][place]))
            else:
                self._choose_row(token, place, entry.source, NONE)

    def _row_of(self, token: str, source: TokenFromModel) -> int:
        if source.token_id is not None:
            return source.token_id
        merged = self.vocabulary.tokenizer
        return merged.vocabularies[source.model].get(str(source.token), NONE) if merged else NONE

    def _choose_row(self, token: str, place: int, model: str, row: int) -> None:
        if model not in self.models:
            self._refuse(token, f"from {model}, which takes no part in the tensor {self.tensor}", "name another model")
        elif not 0 <= row < self.rows[model]:
            self._refuse(token, f"from {model}, which has no such token", "name a model or a token that has a row")
        else:
            self.donor[place], self.row[place] = self.models.index(model), row

    def _refuse(self, token: str, what: str, hint: str) -> None:
        self.problems.append(
            Problem(f"the embedding of {token!r} is to come {what}", f"tokenizer.tokens.{token}", hint)
        )

    def copies(self, model: str, shape: tuple[int, ...], dtype: torch.dtype, axis: int) -> RowCopies:
        """Return how this model's tensor is made."""
        ids = self.vocabulary.ids
        own = self.places.get(model)
        if own is None:  # it makes no such tensor of the merged model, but is seen with as many rows
            own = self.vocabulary.places[model]
        kept = (own >= 0) & ~self.forced
        copied = [(model, ids[kept], own[kept])]
        for index, donor in enumerate(self.models):
            given = ~kept & (self.donor == index)
            if given.any():
                copied.append((donor, ids[given], self.row[given]))
        mixed = ~kept & (self.donor == _AVERAGE)
        terms = {each: self.places[each][mixed] for each in self.models} if mixed.any() else {}
        padding = torch.ones(self.vocabulary.rows, dtype=torch.bool)
        padding[ids] = False
        return RowCopies(shape, dtype, axis, tuple(copied), ids[mixed], terms, padding.nonzero()[:, 0])
