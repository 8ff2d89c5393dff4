"""The names of estimators and of choices of items, for those who read a file that names them."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal["raw", "anchor", "p-irt", "gp-irt", "mp-irt", "gmp-irt"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Choice: TypeAlias = Literal[
    "score-optimal", "a-optimal", "d-optimal", "anchors-irt", "anchors-correctness", "stratified", "random"
]
CHOICES: tuple[Choice, ...] = get_args(Choice)
