"""Files of every kind that a person may give, and what reads them, so that they can be spoiled and read.

An input of a parser is a few files, joined by `BETWEEN` into one run of bytes so that a fuzzer can hold it. Reading it
may succeed or raise UserError; anything else is a fault of this project.
"""

import functools
import io
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import spoiling
import tensorstore as ts
from flax import serialization
from safetensors.numpy import save

from prompt_tuning import base, configure, export, library, predict, prompt_file, task_file, tiny
from prompt_tuning.errors import UserError
from prompt_tuning.vocabulary import Vocabulary

BETWEEN = b"\xff==\xff"
VECTORS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
CARD = {"name": "films", "task": "films", "labels": ["bad", "good"], "placement": "front", "init": "class_labels",
        "seed": 0, "step": 30, "score": 91.5, "metric": "accuracy", "base": "t5", "base_digest": "ab" * 32,
        "input_length": 32}  # fmt: skip
TASK = {"inputs": "review: {text}", "target": "label", "labels": ["bad", "good"], "metric": "accuracy"}


class Parser(NamedTuple):
    """One kind of user file."""

    names: tuple[str, ...]  # of its files
    valid: Callable[[], list[Mapping[str, bytes]]]
    read: Callable[[Path], Any]  # what the product does with the folder they stand in


def outcome(parser: Parser, data: bytes, folder: Path) -> str:
    """`read` or `refused`, with the input's files in `folder`, which is this parser's own; anything else is raised."""
    files = unpacked(parser, data)
    for name in parser.names:
        path = folder / name
        if name in files:
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_bytes(files[name])
        else:
            path.unlink(missing_ok=True)
    try:
        parser.read(folder)
    except UserError:
        return "refused"
    return "read"


def packed(files: Mapping[str, bytes]) -> bytes:
    """The files of an input as one run of bytes."""
    return BETWEEN.join(files.values())


def unpacked(parser: Parser, data: bytes) -> dict[str, bytes]:
    """The files again; those that the bytes do not reach to are missing."""
    return dict(zip(parser.names, data.split(BETWEEN, len(parser.names) - 1), strict=False))


def spoiled(draw: random.Random, data: bytes, parser: Parser) -> bytes:
    """The input with something wrong in its files."""
    return packed(spoiling.spoiled(draw, unpacked(parser, data)))


@functools.cache
def seeds(parser: Parser) -> list[bytes]:
    """Inputs that can be read."""
    return [packed(files) for files in parser.valid()]


def _rows() -> list[dict[str, str]]:
    return [{"text": f"a {word} film", "label": label} for word, label in (("fine", "good"), ("dull", "bad"))]


def _toml_text(data: str) -> bytes:
    lines = [f"{key} = {json.dumps(value)}" for key, value in (TASK | {"train": data}).items()]
    return "\n".join(lines).encode() + b"\n"


def _task(path: Path) -> None:
    task = task_file.open_task_file(path, Vocabulary(tiny.VOCABULARY), {"inputs": 32, "targets": 8})
    task.tasks[0].load("train")


def _table_task(ending: str) -> Parser:
    def read(folder: Path) -> None:
        (folder / "task.toml").write_bytes(_toml_text(f"rows{ending}"))
        _task(folder / "task.toml")

    lines = {
        ".jsonl": [json.dumps(row) for row in _rows()],
        ".csv": ["text,label", '"a ""fine"", film",good', "dull,bad"],
        ".tsv": ["text\tlabel", "a fine film\tgood", "dull\tbad"],
    }[ending]
    return Parser((f"rows{ending}",), lambda: [{f"rows{ending}": "\n".join(lines).encode() + b"\n"}], read)


def _toml_task() -> Parser:
    rows = "\n".join(json.dumps(row) for row in _rows()).encode()
    more = b'name = "films"\nlabels = {0 = "bad", 1 = "good"}\nmetric = ["f1", "accuracy"]\n' + b"\n".join(
        line for line in _toml_text("rows.jsonl").splitlines() if not line.startswith((b"labels", b"metric"))
    )
    numbered = rows.replace(b'"good"', b"1").replace(b'"bad"', b"0")
    return Parser(
        ("task.toml", "rows.jsonl"),
        lambda: [
            {"task.toml": _toml_text("rows.jsonl"), "rows.jsonl": rows},
            {"task.toml": more, "rows.jsonl": numbered},
        ],
        lambda folder: _task(folder / "task.toml"),
    )


BINDINGS = [
    "BATCH_SIZE=16", "LEARNING_RATE=0.3", "PROMPT_LENGTH=20", "PROMPT_INIT=@text", "PROMPT_PLACEMENT=@after_bos",
    "PROMPT_TEXT=good or bad", "GRID={'task': ['superglue_cb', 'superglue_rte'], 'seed': [0, 1]}",
    "SLOTS=[{'seed': 1, 'length': 5}]", "CLASS_LABELS=['no', 'yes']", "TUNING=@ModelTuning()", "DROPOUT_RATE=0.1",
    "TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 8}", "Frozen.dtype='bfloat16'", "OPTIMIZER=@adafactor",
    "rank.content_free=['sentence: N/A']", "PATIENCE=5", "MODEL_DIR=runs/a", "adafactor.step_origin=3",
]  # fmt: skip


def _gin() -> Parser:
    def read(folder: Path) -> None:
        import prompt_tuning.train  # noqa: F401 - registers what the bindings name
        from prompt_tuning.run import Run

        lines = (folder / "flags").read_bytes().decode("utf-8", "surrogateescape").split("\0")
        configure.parse([], [configure.binding(line) for line in lines])
        run = Run()
        run.tuning.slots(run)

    return Parser(("flags",), lambda: [{"flags": binding.encode()} for binding in BINDINGS], read)


def _npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def safetensors_bytes(card: Mapping[str, Any], name: str = "prompt", **more: str) -> bytes:
    """A prompt with a card, whatever is on it."""
    return prompt_file.in_order(save({name: VECTORS}, metadata={k: json.dumps(v) for k, v in card.items()} | more))


def _peft() -> Parser:
    settings = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3, "num_transformer_submodules": 1,
                "task_type": "SEQ_2_SEQ_LM", "base_model_name_or_path": "t5", "token_dim": 4}  # fmt: skip
    weights = safetensors_bytes(CARD, export.PEFT_TENSOR, format='"pt"')
    names = (f"peft/{export.PEFT_CONFIG}", f"peft/{export.PEFT_WEIGHTS}")
    valid = dict(zip(names, (json.dumps(settings).encode(), weights), strict=True))
    return Parser(names, lambda: [valid], lambda folder: export.load(folder / "peft"))


def _library() -> Parser:
    def valid() -> list[Mapping[str, bytes]]:
        entry = {"name": "films", "length": 3, "width": 4, "task": "films", "score": 91.5, "step": 30, "base": "t5",
                 "base_digest": "ab" * 32, "stamp": [0, 0]}  # fmt: skip
        index = save({"4": np.ones((1, 2, 4), np.float32)}, metadata={"entries": json.dumps([entry])})
        return [{"library/.index": index, "library/films.safetensors": safetensors_bytes(CARD)}]

    def read(folder: Path) -> None:
        (folder / "library" / "another.safetensors").unlink(missing_ok=True)
        opened = library.Library(folder / "library", create=True)
        place = str(opened.path("films"))
        opened.search(place)
        opened.add([place], "another")

    return Parser(("library/.index", "library/films.safetensors"), valid, read)


PROMPT_INDEX = {
    "version": 3,
    "optimizer": {
        "state": {"step": 30},
        "target": {"encoder": {"prompt": {"prompt": {"prompt": {
            "driver": "zarr", "kvstore": {"driver": "file", "path": "prompt/"}, "dtype": "float32",
            "metadata": {"shape": [3, 4], "chunks": [3, 4], "compressor": {"id": "gzip"}},
        }}}}},
    },
}  # fmt: skip
ZARRAY = {"chunks": [3, 4], "compressor": None, "dimension_separator": ".", "dtype": "<f4", "fill_value": None,
          "filters": None, "order": "C", "shape": [3, 4], "zarr_format": 2}  # fmt: skip


def _index() -> Parser:
    names = ("t5x/checkpoint", "t5x/prompt/.zarray", "t5x/prompt/0.0")

    def valid() -> list[Mapping[str, bytes]]:
        inline = json.loads(json.dumps(PROMPT_INDEX))
        inline["optimizer"]["target"]["encoder"]["prompt"]["prompt"]["prompt"] = VECTORS
        contents = [serialization.msgpack_serialize(PROMPT_INDEX), serialization.msgpack_serialize(inline)]
        stored = json.dumps(ZARRAY).encode(), VECTORS.tobytes()
        return [dict(zip(names, (index, *stored), strict=True)) for index in contents]

    return Parser(names, valid, lambda folder: export.load(folder / "t5x"))


def _zarr() -> Parser:
    names = ("t5x/prompt/.zarray", "t5x/prompt/0.0")
    valid = dict(zip(names, (json.dumps(ZARRAY).encode(), VECTORS.tobytes()), strict=True))

    def read(folder: Path) -> None:
        (folder / "t5x" / "checkpoint").write_bytes(serialization.msgpack_serialize(PROMPT_INDEX))
        export.load(folder / "t5x")

    return Parser(names, lambda: [valid], read)


def _orbax() -> Parser:
    """A prompt alone in Orbax's layout; what its files are called is drawn anew each time."""
    with tempfile.TemporaryDirectory() as made:
        state = Path(made) / "t5x" / "state"
        for name, values in {"target.encoder.prompt.prompt.prompt": VECTORS, "state.step": np.int32(7)}.items():
            kvstore = {"driver": "ocdbt", "base": f"file://{state}/", "path": f"{name}/"}
            spec = {"driver": "zarr", "kvstore": kvstore, "dtype": values.dtype.name}
            ts.open(spec, create=True, shape=values.shape).result()[...] = values
        files = [path for path in sorted(state.rglob("*")) if path.is_file()]
        valid = {str(path.relative_to(made)): path.read_bytes() for path in files}
    return Parser(tuple(valid), lambda: [valid], lambda folder: export.load(folder / "t5x"))


def _tensors() -> dict[str, np.ndarray]:
    """A T5 of one layer each under Hugging Face's names."""
    vocabulary, width, joined, mlp = 6, 4, 4, 5
    attention = {"q": (joined, width), "k": (joined, width), "v": (joined, width), "o": (width, joined)}
    shapes: dict[str, tuple[int, ...]] = {"shared.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width)}
    for stack, parts in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for n, part in enumerate(parts):
            at = f"{stack}.block.0.layer.{n}"
            shapes |= {f"{at}.{part}.{letter}.weight": shape for letter, shape in attention.items()}
            shapes[f"{at}.layer_norm.weight"] = (width,)
        at = f"{stack}.block.0.layer.{len(parts)}"
        shapes |= {f"{at}.DenseReluDense.{name}.weight": (mlp, width) for name in ("wi_0", "wi_1")}
        shapes[f"{at}.DenseReluDense.wo.weight"] = (width, mlp)
        shapes |= {f"{at}.layer_norm.weight": (width,), f"{stack}.final_layer_norm.weight": (width,)}
        shapes[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, 2)
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def _huggingface() -> Parser:
    settings = {"model_type": "t5", "vocab_size": 6, "d_model": 4, "num_heads": 2, "d_kv": 2, "d_ff": 5,
                "num_layers": 1, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # fmt: skip
    names = ("t5/config.json", "t5/model.safetensors")
    valid = dict(zip(names, (json.dumps(settings).encode(), save(_tensors())), strict=True))
    return Parser(names, lambda: [valid], lambda folder: base.load_base(folder / "t5"))


def _t5x_base() -> Parser:
    """A base whose tensors all stand in its index, as those of a few bytes do."""

    def valid() -> list[Mapping[str, bytes]]:
        config = base.T5Config(vocab_size=6, emb_dim=4, num_heads=2, head_dim=2, mlp_dim=5, num_encoder_layers=1,
                               num_decoder_layers=1)  # fmt: skip
        shapes = base.parameter_shapes(config)
        params = base.jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
        index = {"version": 3, "optimizer": {"state": {"step": np.int32(7)}, "target": params}}
        return [{"t5x/checkpoint": serialization.msgpack_serialize(index)}]

    return Parser(("t5x/checkpoint",), valid, lambda folder: base.load_base(folder / "t5x"))


def _texts() -> Parser:
    rows = b'{"text": "review: a fine film", "prompt": "films"}\n{"inputs": "dull"}\n'
    return Parser(("in.jsonl",), lambda: [{"in.jsonl": rows}], lambda folder: predict._read(str(folder / "in.jsonl")))


def _prompt(name: str, *valid: bytes) -> Parser:
    return Parser((name,), lambda: [{name: data} for data in valid], lambda folder: prompt_file.load(folder / name))


@functools.cache
def parsers() -> dict[str, Parser]:
    """Every parser of files or flags that a person gives, by name."""
    return {
        "jsonl": _table_task(".jsonl"), "csv": _table_task(".csv"), "tsv": _table_task(".tsv"),
        "task_file": _toml_task(), "texts": _texts(), "gin": _gin(),
        "npy": _prompt("p.npy", _npy_bytes(VECTORS), _npy_bytes(VECTORS.astype(np.float16).T)),
        "safetensors": _prompt("p.safetensors", safetensors_bytes({})),
        "card": _prompt("p.safetensors", safetensors_bytes(CARD)),
        "index": _index(), "zarr": _zarr(), "orbax": _orbax(), "t5x_base": _t5x_base(),
        "huggingface": _huggingface(), "peft": _peft(), "library": _library(),
    }  # fmt: skip
