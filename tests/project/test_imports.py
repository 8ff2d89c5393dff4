"""What importing costs, and what is public."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "ray", "lm_eval", "optuna", "plotly", "datasets", "scipy", "numpy")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "module",
    ["evomerge", "evomerge.errors", "evomerge.library", "evomerge.registry", "evomerge.recipes", "evomerge.cli"],
)
def test_light_modules_load_nothing_heavy(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


def test_help_loads_nothing_heavy() -> None:
    statement = "from click.testing import CliRunner; from evomerge.cli import cli; CliRunner().invoke(cli, ['--help'])"
    assert not loaded_by(statement) & set(HEAVY)


@pytest.mark.parametrize(
    "command", ["run", "resume", "status", "front", "report", "export", "merge", "zoo", "ls", "cp"]
)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    statement = (
        f"from click.testing import CliRunner; from evomerge.cli import cli; "
        f"r = CliRunner().invoke(cli, ['{command}', '--help']); assert r.exit_code == 0, r.output"
    )
    assert not loaded_by(statement) & set(HEAVY)
