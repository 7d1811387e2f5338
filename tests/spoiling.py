"""Ways to spoil a file: bytes at random, or with an understanding of JSON, TOML, npy, safetensors and msgpack."""

import copy
import json
import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack

ODD = [
    None, True, False, 0, 1, -1, 2, 3, 4, 10**6, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63), 10**400, 0.5, 1e308,
    float("inf"), float("nan"), "", " ", "\x00", "\ud800", "/", "..", "../../etc/passwd", "x" * 300, "{", "{text}",
    "{x}", "{}", "@", "é" * 150, "good", "0", [], {}, [[]], [None], [0], [4, 3], [3, 4], [-1, -1], [10**6, 10**7],
    [2**40, 2**40], {"a": {}}, {"": ""}, ["a", 1], ["good", "good"],
]  # fmt: skip
TOKENS = [
    b"\x00", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r", b"\r\n", b"\t", b'"', b"'", b",", b"{", b"}", b"[", b"]", b"-",
    b"\\ud800", b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"(" * 300, b"null", b"true",
    b"\xed\xa0\x80", b"\xf0\x9f\xa6\x8a", b"@", b"%", b"@from_file", b"%BATCH_SIZE", b"O", b"|O", b"<f8", b"<f2",
    b">f4", b"<U4", b"V4", b"<M8[s]", b"BF16", b"F64", b"I8", b"F8_E4M3", b"x" * 300, b"a" * 140_000,
]  # fmt: skip
NAMES = ["", "base", "path", "/", "\x00", "x" * 300, "format", "name"]
SHAPES = [(3, 4), (4, 3), (), (12,), (0, 4), (3, 0), (10**6, 10**7), (2**40, 4), (-1, 4), (3, 4, 1), (2**63, 2**63)]
KINDS = ["<f4", ">f4", "<f2", "<f8", "<i4", "|O", "O", "<U3", "|V4", "<M8[s]", "c16", "", "f4,f4", "1000000000f4"]


def _flip(draw: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _cut(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.randrange(len(data))]


def _leave_out(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    return data[:at] + data[at + draw.randint(1, 16) :]


def _put_in(draw: random.Random, data: bytes) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice(TOKENS) + data[at:]


def _repeat(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data))
    part = data[at : at + draw.randint(1, 64)]
    return data[:at] + part * draw.choice([2, 3, 50]) + data[at:]


def _another_number(draw: random.Random, data: bytes) -> bytes:
    """One of the numbers that stand there in digits."""
    places = [i for i, byte in enumerate(data) if 48 <= byte < 58]
    at = draw.choice(places)
    end = next((i for i in range(at, len(data)) if not 48 <= data[i] < 58), len(data))
    number = draw.choice([0, 1, -1, 2, 3, 7, 12, 255, 10**4, 2**31, 2**40, 10**13, 2**63, 2**64, 10**30])
    return data[:at] + str(number).encode() + data[end:]


def _another_size(draw: random.Random, data: bytes) -> bytes:
    """Some bytes as a little-endian number."""
    at = draw.choice([0, 8, draw.randrange(len(data))])
    width, kind = draw.choice([(1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")])
    number = draw.choice([0, 1, 2**7, 2**15, 2**31, 2**31 - 1, 2**40, 2**63, 2**64 - 1]) % (1 << 8 * width)
    return data[:at] + struct.pack(kind, number) + data[at + width :]


BYTES = [_flip, _cut, _leave_out, _put_in, _repeat, _another_number, _another_size]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(value, key), *_places(part)]]


def _tree(draw: random.Random, value: Any) -> Any:
    """The value with another one in one of its places, or one more, or one less."""
    places = _places(value)
    if not places or draw.random() < 0.05:
        return copy.deepcopy(draw.choice(ODD))
    container, key = draw.choice(places)
    match draw.randrange(4):
        case 0 if isinstance(container, dict):
            del container[key]
        case 1 if isinstance(container, dict):
            container[draw.choice(NAMES)] = copy.deepcopy(draw.choice(ODD))
        case 2:
            other, place = draw.choice(places)
            container[key] = copy.deepcopy(other[place])
        case _:
            container[key] = copy.deepcopy(draw.choice(ODD))
    return value


def _json(draw: random.Random, data: bytes) -> bytes:
    return json.dumps(_tree(draw, json.loads(data))).encode()


def _json_line(draw: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = _json(draw, lines[at])
    return b"\n".join(lines)


def _toml(draw: random.Random, data: bytes) -> bytes:
    """One of the settings, or one more, with another value; JSON of texts, numbers and lists is TOML."""
    lines = data.splitlines()
    key = draw.choice([*(line.split(b" ")[0] for line in lines), b"name", b"odd"])
    kept = [line for line in lines if not line.startswith(key)]
    return b"\n".join([*kept, key + b" = " + json.dumps(draw.choice(ODD)).encode()]) + b"\n"


def _safetensors(draw: random.Random, data: bytes) -> bytes:
    """The header as JSON, changed, with its length put right again."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if draw.random() < 0.5 and isinstance(header.get("__metadata__"), dict) and header["__metadata__"]:
        key = draw.choice(list(header["__metadata__"]))
        header["__metadata__"][key] = json.dumps(_tree(draw, [json.loads(header["__metadata__"][key])])[0])
    else:
        header = _tree(draw, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def _npy(draw: random.Random, data: bytes) -> bytes:
    """The header's dictionary with another type, order or shape, with its length put right again."""
    length = int.from_bytes(data[8:10], "little")
    order = draw.choice([True, False, 0, None, "x"])
    header = {"descr": draw.choice(KINDS), "fortran_order": order, "shape": draw.choice(SHAPES)}
    for key in draw.sample(sorted(header), draw.randint(0, 1)):
        del header[key]
    text = (repr(header) + "\n").encode()
    return data[:8] + len(text).to_bytes(2, "little") + text + data[10 + length :]


def _msgpack(draw: random.Random, data: bytes) -> bytes:
    value = msgpack.unpackb(data, strict_map_key=False)
    changed = _tree(draw, value)
    return msgpack.packb(changed, default=str)


def _knowing(name: str) -> list[Callable[[random.Random, bytes], bytes]]:
    """Ways to spoil a file that know its format; twice, so that they come as often as those that do not."""
    known = {".json": _json, ".jsonl": _json_line, ".toml": _toml, ".safetensors": _safetensors, ".npy": _npy}
    plain = {"checkpoint": _msgpack, ".zarray": _json, ".index": _safetensors}
    change = plain.get(Path(name).name) or known.get(Path(name).suffix)
    return [change] * 7 if change else []


def spoiled(draw: random.Random, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with one to three things wrong in one of them."""
    changed = dict(files)
    for _ in range(draw.randint(1, 3)):
        name = draw.choice(list(changed))
        change = draw.choice([*_knowing(name), *BYTES])
        try:
            changed[name] = change(draw, changed[name])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error, OverflowError):
            continue  # what is there is spoiled too much to be changed with understanding
    return changed
