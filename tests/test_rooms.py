"""The rooms of the house: who may import whom, and what stays out of the way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "prompt_tuning"
ROOMS = sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    """The module of a file."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path, everywhere: bool = True) -> set[str]:
    """Modules that a file imports; those inside functions only with `everywhere`."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in ("prompt_tuning", "prompt_tuning.serve"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_no_room_imports_one_that_imports_it():
    files = {named(path): path for path in ROOMS if named(path) != "prompt_tuning"}
    above = {name: imports(path, everywhere=False) & files.keys() for name, path in files.items()}
    left = dict(above)
    while ready := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in ready:
            del left[name]
    assert not left, "these import one another in a circle"


@pytest.mark.parametrize("path", ROOMS, ids=named)
def test_only_the_data_room_imports_seqio_and_tensorflow(path):
    roots = {name.split(".")[0] for name in imports(path)}
    if path.stem not in ("data", "seqio_task"):
        assert not roots & {"seqio", "tensorflow_datasets"}
    if path.stem not in ("data", "seqio_task", "prepare"):
        assert "tensorflow" not in roots
    if path.stem != "t5x_bridge":
        assert "t5x" not in roots


@pytest.mark.parametrize("path", ROOMS, ids=named)
def test_only_the_server_imports_what_serving_needs(path):
    if path.parent.name != "serve":
        assert not {name.split(".")[0] for name in imports(path)} & {
            "fastapi",
            "uvicorn",
            "starlette",
            "prometheus_client",
        }


def test_training_and_predicting_import_no_tensorflow():
    code = (
        "import prompt_tuning.train, prompt_tuning.predict, prompt_tuning.evaluate, prompt_tuning.tiny;"
        "import prompt_tuning.library, prompt_tuning.study, prompt_tuning.transfer, sys;"
        "assert not {'tensorflow', 'seqio', 'clu', 'matplotlib'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
