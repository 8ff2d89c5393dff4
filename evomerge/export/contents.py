"""What a folder must hold to be a whole exported model; looks at names and headers, never at weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from evomerge.errors import ExportError
from evomerge.export.card import PLAIN_LIBRARY
from evomerge.export.licences import front_matter

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a whole exported model: config, tokenizer, weights and card; or plain tensors, card.

    Raises:
        ExportError: every missing or broken file, at once.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder: export the model first (`evomerge export RUN {folder}`)")
    plain = front_matter(folder).get("library_name") == PLAIN_LIBRARY  # has neither config nor tokenizer
    needed = ("README.md",) if plain else ("config.json", "README.md")
    problems = [f"{name} is missing" for name in needed if not (folder / name).is_file()]
    if not plain and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        problems.append(f"no tokenizer file ({', '.join(TOKENIZER_FILES)})")
    problems += _weight_problems(folder)
    if problems:
        raise ExportError(f"{folder} is not a complete model: {'; '.join(problems)}; export it again")


def _weight_problems(folder: Path) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        except (OSError, ValueError, KeyError, TypeError):
            return [f"{INDEX} cannot be read"]
    elif (folder / SINGLE).is_file():
        weight_map = {}
    else:
        return [f"no weights ({SINGLE} or {INDEX})"]
    if foreign := sorted(str(file) for file in set(weight_map.values()) if Path(str(file)).name != file):
        return [f"{INDEX} names {foreign[0]!r}, which lies outside the folder"]
    problems = []
    for file in sorted(set(weight_map.values())) or [SINGLE]:
        wanted = {name for name, place in weight_map.items() if place == file}
        problems += _shard_problems(folder / file, wanted)
    return problems


def _shard_problems(path: Path, wanted: set[str]) -> list[str]:
    """Open a shard (which compares its size with its header) and look for the tensors of the index."""
    if not path.is_file():
        return [f"{path.name} is missing"]
    try:
        with safe_open(path, framework="pt") as shard:
            absent = sorted(wanted - set(shard.keys()))
    except (OSError, SafetensorError) as error:
        return [f"{path.name} is broken ({error})"]
    return [f"{path.name} lacks {absent[0]!r} and {len(absent) - 1} more of the index's tensors"] if absent else []
