"""A merge that takes long says how far it is; bytes done rise to bytes in all, on resumption too."""

from click.testing import CliRunner

from evomerge.cli import merge as cli
from evomerge.merging import merge_to_folder
from evomerge.recipes import parse_recipe
from evomerge.testing.tiny_models import tiny_family


def test_the_command_tells_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "SECONDS", 0.0)
    paths = tiny_family(tmp_path, parents=2)
    text = (
        f"merge_method: linear\nmodels: [{{model: {paths['a']}}}, {{model: {paths['b']}}}]\nparameters: {{weight: 1}}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text)
    told = CliRunner().invoke(cli.command, [str(tmp_path / "recipe.yaml"), str(tmp_path / "out")])
    assert told.exit_code == 0, told.output
    assert "merged 0.0 of 0.0 GB" in told.stderr


def test_bytes_rise_to_all_of_them(tmp_path):
    paths = tiny_family(tmp_path, parents=1)
    recipe = parse_recipe(f"merge_method: passthrough\nmodels: [{{model: {paths['a']}}}]\n")
    told = []
    merge_to_folder(recipe, tmp_path / "out", report=lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1][0] == told[-1][1]
