"""No line of the package runs code that it finds in a file of data: held by reading every line of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import evomerge

PACKAGE = Path(evomerge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FOR_ITS_ERROR = ("checkpoints/pickled.py", "pickle.UnpicklingError")  # which PyTorch's restricted reader raises
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.hub.load", "pandas.read_pickle"}
YAML_NAMES = {"load", "load_all", "unsafe_load", "full_load", "unsafe_load_all", "UnsafeLoader", "FullLoader", "Loader"}
ARGUMENTS = {"trust_remote_code", "shell"}  # False or absent


def problems(path: str, text: str) -> list[str]:
    """Return what a source file does that it must not."""
    tree = ast.parse(text)
    ours = any(isinstance(n, ast.ImportFrom) and any(a.name == "yaml" for a in n.names) for n in ast.walk(tree))
    return [f"{path}:{line}: {what}" for line, what in _found(tree, path, ours)]


def _found(tree: ast.Module, path: str, our_yaml: bool) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and path != FOR_ITS_ERROR[0]:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            for name in {name.split(".")[0] for name in names} & UNPICKLERS:
                yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.value.id in UNPICKLERS and (path, name) != FOR_ITS_ERROR:
                yield node.lineno, f"uses {name}"
            if node.value.id == "yaml" and node.attr in YAML_NAMES and not our_yaml:
                yield node.lineno, f"uses {name}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {
                each.arg: each.value.value if isinstance(each.value, ast.Constant) else ... for each in node.keywords
            }
            if name in CALLS:
                yield node.lineno, f"calls {name}"
            if name in ("torch.load", "torch.serialization.load") and given.get("weights_only") is not True:
                yield node.lineno, f"calls {name} without weights_only=True"
            if name in ("np.load", "numpy.load") and given.get("allow_pickle", False) is not False:
                yield node.lineno, f"calls {name} with allow_pickle"
            for argument in ARGUMENTS & given.keys():
                if given[argument] is not False:
                    yield node.lineno, f"calls {name} with {argument}"


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_nothing_in_the_package_runs_what_a_file_of_data_says(file: Path) -> None:
    assert problems(file.relative_to(PACKAGE).as_posix(), file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import pickle as p",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=chosen)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "AutoModel.from_pretrained(folder, trust_remote_code=True)",
        "AutoModel.from_pretrained(folder, trust_remote_code=wanted)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_reading_finds_what_it_looks_for(line: str) -> None:
    assert problems("module.py", f"x = 1\n{line}\n") != []


@pytest.mark.parametrize(
    "line", ["torch.load(f, weights_only=True)", "model.eval()", "re.compile(text)", "f(trust_remote_code=False)"]
)
def test_the_reading_lets_pass_what_is_safe(line: str) -> None:
    assert problems("module.py", line) == []
