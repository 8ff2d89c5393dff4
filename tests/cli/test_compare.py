"""``evomerge compare`` as a user meets it: the table, the numbers, the page."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from evomerge.cli import main
from evomerge.testing.written_runs import write_run


def write(folder: Path, kind: str, seed: int, ups: list[float], **more: Any) -> str:
    trials = [{"up": up, "down": 9.0} for up in ups]
    settings = {"directions": {"up": "maximize", "down": "minimize"}, "references": [{"up": 0.0, "down": 10.0}]}
    path = folder / f"{kind}-{seed}"
    return str(write_run(path, trials, searcher={"kind": kind, "seed": seed}, **(settings | more)))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        write(tmp_path, kind, seed, [start + seed, start + seed, start + seed, end + seed])
        for kind, start, end in (("random", 1.0, 2.0), ("nsga2", 1.5, 6.0))
        for seed in range(3)
    ]


@pytest.fixture
def call(capsys, monkeypatch):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["evomerge", "compare", *arguments])
        monkeypatch.setenv("COLUMNS", "80")
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_the_table_shows_medians_quartiles_and_the_test(call, runs) -> None:
    code, output = call(*runs)
    assert code == 0, output
    lines = [line.split() for line in output.splitlines()]
    first = next(i for i, words in enumerate(lines) if words[:1] == ["nsga2"])
    assert lines[first] == ["nsga2", "4", "2.50", "2.50", "7.00", "best"]
    assert lines[first + 1] == ["3", "seeds:", "0–2", "40", "2.00–3.00", "2.00–3.00", "6.50–7.50"]
    assert lines[first + 2] == ["random", "4", "2.00", "2.00", "3.00", "0.10"]
    assert lines[first + 3][-1] == "1.00"
    assert "worst of all runs' reference models: up 0.000, down 10.0" in output
    assert "With so few runs the test gives no p below 0.1" in output
    assert max(map(len, output.splitlines())) <= 80


def test_json_holds_every_number(call, runs) -> None:
    code, output = call("--json", *runs)
    assert code == 0, output
    found = json.loads(output)
    assert found["reference"] == {"up": 0.0, "down": 10.0}
    assert [group["label"] for group in found["groups"]] == ["nsga2", "random"]
    assert found["groups"][0]["at"][2] == {"low": 6.5, "median": 7.0, "high": 7.5}
    assert found["groups"][1]["runs"][2] == {
        "folder": runs[2], "seed": 2, "trials": 4, "items": 40, "spent": [1, 4], "values": [3.0, 4.0],
        "front": [[4.0, 9.0]], "confirmed": None,
    }  # fmt: skip
    assert found["pairs"][0]["p_value"] == pytest.approx(0.1)


def test_the_page_holds_the_curves_and_surfaces_and_needs_no_network(call, runs, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    code, output = call(*runs, "--out", str(page))
    assert code == 0, output
    assert output.endswith(f"{page}\n")
    text = page.read_text()
    assert not re.search(r'<(script|link|img)[^>]*(src|href)="http', text)
    figures = [json.loads(spec) for spec in re.findall(r'<script type="application/json">(.*?)</script>', text)]
    curves, surfaces = figures
    median = next(trace for trace in curves["data"] if trace.get("name") == "nsga2")
    assert (median["x"], median["y"]) == ([0, 1, 4], [0, 2.5, 7])
    surface = next(trace for trace in surfaces["data"] if trace.get("name") == "random")
    assert (surface["x"], surface["y"]) == ([0, 3, 3], [9, 9, 10])  # from the reference point to (3, 9) and back
    assert "7.00" in text
    assert "6.50–7.50" in text


def test_one_objective_has_curves_only(call, tmp_path: Path) -> None:
    paths = [
        str(
            write_run(
                tmp_path / str(seed),
                [{"loss": 3.0}, {"loss": 3.5}],
                searcher={"kind": "random", "seed": seed},
                directions={"loss": "minimize"},
                references=[{"loss": 4.0}],
            )
        )
        for seed in range(2)
    ]
    page = tmp_path / "compare.html"
    code, output = call(*paths, "--out", str(page))
    assert code == 0, output
    assert "Best loss (smaller is better) of 2 runs, up to 2 trials" in " ".join(output.split())
    assert page.read_text().count('type="application/json"') == 1


def test_text_from_runs_is_no_markup(call, tmp_path: Path) -> None:
    ways, page = {"<b>up": "maximize", "[b]down": "maximize"}, tmp_path / "compare.html"
    scores = dict.fromkeys(ways, 1.0)
    searcher = {"kind": "random", "seed": 0}
    run = write_run(tmp_path / "<i>run", [scores], searcher=searcher, directions=ways, references=[scores])
    code, output = call(str(run), "--out", str(page))
    assert code == 0, output
    assert "models: <b>up 1.000, [b]down 1.000" in " ".join(output.split())
    text = page.read_text()
    assert "&lt;b&gt;up" in text
    assert "&lt;i&gt;run" in text
    assert "<b>up" not in text
    assert "<i>run" not in text


def test_what_cannot_be_compared_is_refused(call, runs, tmp_path: Path) -> None:
    other = write(tmp_path, "qmc", 0, [1.0], facts={"identity": {"items": {"search": "others"}}})
    code, output = call(*runs, other)
    assert code == 2
    assert output.startswith(f"error: {other}: searched on 10 items of t other than")
    code, output = call(str(tmp_path / "nowhere"))
    assert code == 1
    assert "holds no run" in output
    assert "Traceback" not in output
