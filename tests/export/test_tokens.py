"""Special tokens: what parents state differently is reported, what one leaves out is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.export.tokens import token_disagreements


def parent(path: Path, template: str = "", **files: dict[str, Any]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / f"{name}.json").write_text(json.dumps(data))
    if template:
        (path / "chat_template.jinja").write_text(template)
    return path


def test_parents_that_agree_or_say_nothing_give_no_line(tmp_path: Path) -> None:
    one = parent(tmp_path / "a", "T", config={"eos_token_id": 2}, tokenizer_config={"eos_token": "</s>"})
    two = parent(
        tmp_path / "b",
        "T\n",
        config={"eos_token_id": [2]},
        tokenizer_config={"eos_token": {"content": "</s>"}},
    )
    assert token_disagreements([one, two, parent(tmp_path / "c")]) == []


def test_each_disagreement_says_who_states_what(tmp_path: Path) -> None:
    one = parent(
        tmp_path / "a",
        "T1",
        generation_config={"eos_token_id": [7, 2]},
        tokenizer_config={"pad_token": "<p>"},
    )
    two = parent(tmp_path / "b", "T2", generation_config={"eos_token_id": 2}, tokenizer_config={"pad_token": "</s>"})
    lines = token_disagreements({"zoo/a": one, "zoo/b": two})
    assert lines == [
        "the parents differ in the eos_token_id of generation_config.json: [2, 7] in zoo/a; 2 in zoo/b",
        'the parents differ in the pad_token of tokenizer_config.json: "<p>" in zoo/a; "</s>" in zoo/b',
        "the parents differ in the chat template: version 1 in zoo/a; version 2 in zoo/b",
    ]
