"""What a task's examples are made from, as a record that shows without importing anything whether it is still so.

Code outside this project and the installed packages counts only where it visibly looks at nothing but its arguments:
whatever else it read (files, the environment, the clock) could change unseen.
"""

import ast
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prompt_tuning.vocabulary import Vocabulary

PACKAGE = Path(__file__).parent
TASKS = PACKAGE.parent / "tasks"
VARIABLES = (
    "DATA_DIR",
    "TFDS_DATA_DIR",
    "HOME",
    "XDG_CONFIG_HOME",
    "PYTHONPATH",
)  # where data and tasks are looked for
MOST_DATA = 1 << 28  # bytes of data that are hashed at a start; a task of more is read anew each time

_IMPORTS = re.findall(
    r"\w+",
    "__future__ collections dataclasses enum functools itertools math numpy operator re seqio string tasks tensorflow"
    " textwrap typing unicodedata prompt_tuning",
)
_REACHES_OUT = re.findall(
    r"\w+",
    "open read_records read_text read_bytes environ getenv gfile io lookup random load loadtxt genfromtxt fromfile"
    " memmap eval exec getattr globals vars __import__ import_module TextLineDataset TFRecordDataset CsvDataset"
    " FixedLengthRecordDataset SqlDataset experimental py_function numpy_function py_func read_file matching_files"
    " list_files add_global_cache_dirs set_tfds_data_dir_override now today records",
)


def key(name: str, vocabulary: Vocabulary, lengths: Mapping[str, int], module: str | None, data_dir: str | None) -> str:
    """What is known before anything is opened: the request, the vocabulary's content, this code, what is installed."""
    told = {
        "request": [name, dict(lengths), module, data_dir, str(Path.cwd())],
        "variables": {variable: os.environ.get(variable) for variable in VARIABLES},
        "vocabulary": [_digest(Path(vocabulary.path)), vocabulary.extra_ids],
        "code": code(),
    }
    return digest(told)


def code() -> list[Any]:
    """This package's modules by their content, and what else is installed."""
    modules = [(path.name, _digest(path)) for path in sorted(PACKAGE.glob("*.py"))]
    return [modules, _installed_packages(), sys.version]


def digest(told: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def look_in_working_folder() -> None:
    """Modules of the working folder can be imported, which a console script does not have on its path."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


_opened: set[str] = set()  # modules that were loaded to open tasks, and may have registered some


def nothing_else_loaded() -> bool:
    """Whether no code of the user's own is loaded that may have registered or replaced tasks by hand."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    started_by = main is not None and (_is_installed(Path(main)) or PACKAGE in Path(main).parents)
    return started_by and not {name for name in own_modules() if name.split(".")[0] != "tasks"} - _opened


def own_modules(roots: Iterable[str] = ()) -> dict[str, str | None]:
    """Files of the loaded modules that are neither installed nor of this package, and of all those below `roots`."""
    found: dict[str, str | None] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in ("__main__", "__mp_main__") or file is None or PACKAGE in Path(file).absolute().parents:
            continue
        if Path(file).name.startswith("__autograph_generated"):  # by TensorFlow, from functions of the other modules
            continue
        if name.split(".")[0] in roots or not _is_installed(Path(file)):
            found[name] = str(Path(file).absolute())
    return found


def record(module: str | None, data: Mapping[str, Iterable[Path] | None], before: float) -> dict[str, Any] | None:
    """The code that is loaded, once `module` is, and the files of each task's `data`; None if it cannot be known.

    Code or data that changed after the time `before` may not be what was loaded.
    """
    modules: dict[str, Any] = {}
    loaded = own_modules([root.strip().split(".")[0] for root in (module or "tasks").split(",")])
    for name, file in loaded.items():
        if file is None or not file.endswith(".py") or Path(file).stat().st_mtime >= before:
            return None
        if TASKS not in Path(file).parents and not _looks_at_arguments_only(Path(file), loaded):
            return None
        parent = sys.modules.get(name.rpartition(".")[0])
        modules[name] = {"file": file, "in": list(parent.__path__) if parent else None, "digest": _digest(Path(file))}
    states = {task: states_of(paths) for task, paths in data.items()}
    _opened.update(loaded)
    return None if None in states.values() else {"modules": modules, "data": states}


def holds(recorded: Mapping[str, Any]) -> bool:
    """Whether the modules that would be imported and the data are those of the record."""
    look_in_working_folder()
    for name, told in recorded["modules"].items():
        if _file_of(name, told["in"]) != told["file"] or _digest(Path(told["file"])) != told["digest"]:
            return False
    return all(_state(Path(p), s[0]) == s for states in recorded["data"].values() for p, s in states.items())


def states_of(paths: Iterable[Path] | None) -> dict[str, list[Any]] | None:
    """What stands at each path: nothing, a folder, or a file of that content; None if that is not known or too much."""
    if paths is None:
        return None
    absolute = sorted({path.expanduser().absolute() for path in paths})
    if sum(path.stat().st_size for path in absolute if path.is_file()) > MOST_DATA:
        return None
    return {str(path): _state(path) for path in absolute}


def _state(path: Path, size: Any = None) -> list[Any]:
    """[bytes, SHA-256] of a file; of one that has not the expected size its size alone."""
    if path.is_dir():
        return ["folder", ""]
    if not path.is_file():
        return ["absent", ""]
    found = path.stat().st_size
    return [found, _digest(path) if size in (None, found) else ""]


def _digest(path: Path) -> str:
    """SHA-256 of a file's content; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _file_of(name: str, folders: list[str] | None) -> str | None:
    """The file that importing `name` would load, without loading it or the packages above it."""
    try:
        if folders is None:
            spec = importlib.util.find_spec(name)
        else:
            spec = importlib.machinery.PathFinder.find_spec(name, folders)
    except (ImportError, ValueError, AttributeError):
        return None
    return str(Path(spec.origin).absolute()) if spec and spec.origin else None


def _installed_packages() -> list[str]:
    """Name and version of every installed package, as their folders are called."""
    places = {Path(place) for place in sys.path if place and Path(place).is_dir()}
    return sorted(found.name for place in places for found in place.glob("*.dist-info"))


def _is_installed(file: Path) -> bool:
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")]
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return any(Path(place) in file.absolute().parents for place in places)


def _looks_at_arguments_only(file: Path, loaded: Mapping[str, Any]) -> bool:
    """Whether a module names nothing by which code reads files, the environment, the clock or chance."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes())))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return False
    named: set[str] = set()
    imported: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            named.add(node.id)
        elif isinstance(node, ast.Attribute):
            named.add(node.attr)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named |= {part for alias in node.names for part in alias.name.split(".")}
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add(node.module or "")
            named |= set((node.module or "").split("."))
    known = {name.split(".")[0] for name in loaded} | set(_IMPORTS)
    return not named & set(_REACHES_OUT) and all(name.split(".")[0] in known for name in imported)
