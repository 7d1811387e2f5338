"""Files from anywhere: read or refused with a sentence, whatever is in them; nothing in them runs or takes the memory.

`scripts/fuzz_files.py` reads many more of them.
"""

import contextlib
import json
import pickle
import random
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from flax import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_tuning import base, export, prompt_file, tiny
from prompt_tuning.errors import UserError
from prompt_tuning.records import parsed
from prompt_tuning.task_file import open_task_file
from prompt_tuning.vocabulary import Vocabulary

slowly = [HealthCheck.too_slow]  # on a busy machine
often = settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=slowly)
SLOW = ("t5x_base", "huggingface", "gin")  # 100 ms and more for an input


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in hostile.parsers()}


@pytest.mark.parametrize("name", hostile.parsers())
def test_the_files_that_are_spoiled_can_be_read_as_they_were(folders, name):
    parser = hostile.parsers()[name]
    for data in hostile.seeds(parser):
        assert hostile.outcome(parser, data, folders[name]) == "read"


@pytest.mark.parametrize("name", hostile.parsers())
def test_a_spoiled_file_is_read_or_refused(folders, name):
    parser = hostile.parsers()[name]

    @settings(often, max_examples=12 if name in SLOW else 60)
    @given(st.sampled_from(hostile.seeds(parser)), st.integers(0, 2**32))
    def holds(valid: bytes, seed: int) -> None:
        hostile.outcome(parser, hostile.spoiled(random.Random(seed), valid, parser), folders[name])

    holds()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)


@often
@given(st.binary(max_size=200), st.sampled_from([n for n in hostile.parsers() if n not in SLOW]))
def test_any_bytes_are_read_or_refused(folders, data, name):
    hostile.outcome(hostile.parsers()[name], data, folders[name])


@often
@given(st.dictionaries(st.sampled_from([*hostile.CARD, "other"]), JSON, max_size=4))
def test_a_card_holds_only_what_its_fields_are(folders, fields):
    path = folders["card"] / "p.safetensors"
    path.write_bytes(hostile.safetensors_bytes(fields))
    try:
        card = prompt_file.load(path).card
    except UserError:
        return
    assert all(isinstance(text, str) for text in (card.name, card.task, card.base, *card.labels))
    json.dumps(vars(card), allow_nan=False, ensure_ascii=False).encode()


@often
@given(JSON)
def test_what_json_can_say_comes_back_or_is_refused(value):
    try:
        assert parsed(json.dumps(value), "here") == value or value != value or isinstance(value, list | dict | float)
    except UserError as error:
        assert str(error).startswith("here")


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_no_pickle_is_ever_loaded(tmp_path):
    trap = tmp_path / "ran"
    np.save(tmp_path / "p.npy", np.array([Trap(trap)], object), allow_pickle=True)
    with pytest.raises(UserError, match="pickle"):
        prompt_file.load(tmp_path / "p.npy")
    for name, beside, load in (("t5", "config.json", base.load_base), ("peft", export.PEFT_CONFIG, export.load)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("pytorch_model.bin" if name == "t5" else "adapter_model.bin")).write_bytes(
            pickle.dumps(Trap(trap))
        )
        valid = {Path(n).name: content for n, content in _files({"t5": "huggingface"}.get(name, name)).items()}
        (tmp_path / name / beside).write_bytes(valid[beside])
        with pytest.raises(UserError, match=r"\.bin"):
            load(tmp_path / name)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))  # noqa: S301 - to see that it would have run
    assert trap.exists(), "the trap works"


def _files(name: str) -> Mapping[str, bytes]:
    return hostile.parsers()[name].valid()[0]


@contextlib.contextmanager
def little_memory(more: int = 1 << 28) -> Iterator[None]:
    """Inside, the process may hold 256 MiB more than it does."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory is counted under Linux only")
    held = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData:"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (held * 1024 + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _npy(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(48)


def _safetensors(header: Mapping[str, Any] | None, length: int = 0) -> bytes:
    text = json.dumps(header).encode() if header else b"{"
    return (length or len(text)).to_bytes(8, "little") + text + bytes(48)


def _zarr(**changes: Any) -> dict[str, bytes]:
    return _files("index") | {"t5x/prompt/.zarray": json.dumps(hostile.ZARRAY | changes).encode()}


def _layers(number: int) -> dict[str, bytes]:
    index = serialization.msgpack_restore(_files("t5x_base")["t5x/checkpoint"])
    encoder = index["optimizer"]["target"]["encoder"]
    encoder[f"layers_{number}"] = encoder["layers_0"]
    return {"t5x/checkpoint": serialization.msgpack_serialize(index)}


def _configured(**changes: Any) -> dict[str, bytes]:
    files = _files("huggingface")
    told = json.loads(files["t5/config.json"]) | changes
    return {**files, "t5/config.json": json.dumps(told).encode()}


CLAIMS = {
    "an npy of 10 TB": ("npy", {"p.npy": _npy("(1000000, 2500000)")}, "10,000,000,000,000 bytes"),
    "an npy of 1 GB": ("npy", {"p.npy": _npy("(1000000, 250)")}, "1,000,000,000 bytes"),
    "an npy longer than it says": ("npy", {"p.npy": _npy("(3, 2)")}, "24 bytes"),
    "a safetensors header of 2 GB": ("safetensors", {"p.safetensors": _safetensors(None, 2 << 30)}, "safetensors"),
    "a safetensors tensor of 10 TB": (
        "safetensors",
        {"p.safetensors": _safetensors({"prompt": {"dtype": "F32", "shape": [10**6, 2_500_000],
                                                   "data_offsets": [0, 10**13]}})},
        "safetensors",
    ),
    "a Zarr array of 40 TB": ("index", _zarr(shape=[10**6, 10**7]), "40,000,000,000,000 bytes"),
    "a Zarr chunk of 40 TB": ("index", _zarr(chunks=[10**6, 10**7]), "40,000,000,000,000 bytes"),
    "a Zarr array of 1 GB": ("index", _zarr(shape=[10**6, 250], chunks=[10**6, 250]), "1,000,000,000 bytes"),
    "a T5X base of a billion layers": ("t5x_base", _layers(10**9), "num_encoder_layers 1,000,000,001"),
    "a Hugging Face base of a billion layers": ("huggingface", _configured(num_layers=10**9), "num_encoder_layers"),
    "a Hugging Face base of 4 TB": ("huggingface", _configured(vocab_size=10**12), "vocab_size 1,000,000,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("name, files, said", CLAIMS.values(), ids=CLAIMS)
def test_a_size_is_checked_before_room_is_made(tmp_path, name, files, said):
    parser = hostile.parsers()[name]
    parser.read(_written(tmp_path, _files(name)))
    with little_memory(), pytest.raises(UserError, match=said):
        parser.read(_written(tmp_path, files))


def _written(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    "line, said",
    [
        (b'{"text": "\\ud800", "label": "good"}', "half a character"),
        (b'{"text": ' + b"9" * 5000 + b"}", "not JSON that can be read"),
        (b'{"text": ' + b"[" * 100_000, "not JSON that can be read"),
    ],
    ids=["half a character", "a number of 5,000 digits", "100,000 brackets"],
)
def test_json_that_python_stumbles_over_is_named_with_its_line(tmp_path, line, said):
    (tmp_path / "task.toml").write_bytes(_files("task_file")["task.toml"])
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "a fine film", "label": "good"}\n' + line + b"\n")
    task = open_task_file(tmp_path / "task.toml", Vocabulary(tiny.VOCABULARY), {"inputs": 8, "targets": 8})
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{said}"):
        task.tasks[0].load("train")


def _index(change: Any) -> dict[str, bytes]:
    """The T5X index of a prompt, with `change` made to the description of its array."""
    index = json.loads(json.dumps(hostile.PROMPT_INDEX))
    change(index["optimizer"]["target"]["encoder"]["prompt"]["prompt"]["prompt"])
    return _files("index") | {"t5x/checkpoint": serialization.msgpack_serialize(index)}


def _version(version: Any) -> dict[str, bytes]:
    index = serialization.msgpack_restore(_files("t5x_base")["t5x/checkpoint"])
    return {"t5x/checkpoint": serialization.msgpack_serialize(index | {"version": version})}


FOUND = {
    "a base of an array's description that is none": ("index", _index(lambda spec: spec.update(base="zarr")), None),
    "a folder's name with a zero in it": (
        "index", _index(lambda spec: spec["kvstore"].update(path="a\0b")), "no folder's name",
    ),
    "a version that is an array": ("t5x_base", _version(np.ones(3)), "target"),
    "a score of 500 digits": (
        "card", {"p.safetensors": hostile.safetensors_bytes(hostile.CARD | {"score": 10**500})}, "card",
    ),
    "a task that is a number": ("gin", {"flags": b"GRID={'task': ['superglue_cb', 1]}"}, "task"),
    "a grid of 100 million prompts": (
        "gin", {"flags": f"GRID={ {'seed': [*range(10**4)], 'length': [1] * 10**4} }".encode()},
        "100,000,000 prompts",
    ),
    "an init whose name is no file's": ("gin", {"flags": b"PROMPT_INIT=" + b"a" * 300}, "is neither"),
    "a seed that is a word": ("gin", {"flags": b"SLOTS=[{'seed': 'a'}]"}, "seed"),
}  # fmt: skip


@pytest.mark.parametrize("name, files, said", FOUND.values(), ids=FOUND)
def test_what_fuzzing_found_once_stays_mended(tmp_path, name, files, said):
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        hostile.parsers()[name].read(_written(tmp_path, files))
