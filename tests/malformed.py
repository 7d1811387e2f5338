"""Requests that are wrong in some way, made from a server's own OpenAPI document."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Schema = dict[str, Any]


class Wrong(NamedTuple):
    """One request."""

    method: str
    path: str  # percent-encoded
    headers: dict[str, str]
    body: bytes
    how: str  # it is wrong


ODD_TEXTS = [
    "", " ", "\x00", "\ud800", "\udfff x", "a\u0301" * 50, "\u202e", "🦊" * 40, "<extra_id_0>", "</s>", "%00", "NaN",
    "../../etc/passwd", "..\\..", "{{7*7}}", "'; DROP TABLE prompts;--", "<script>alert(1)</script>", "▁",
    "x" * 25_000, "word " * 5_000,
]  # fmt: skip
ODD_VALUES = [None, True, False, 0, -1, 1.5, 10**400, float("nan"), float("inf"), [], {}, [[]], [None], {"a": {}}]
ODD_PATHS = ["..", ".", "%2e%2e", "..%2f..%2fetc", "%00", "a" * 500, "%ff%fe", "%F0%9F%A6%8A", "a%0d%0ab", "%25", " ".replace(" ", "%20"), "-", "con", "NUL"]  # fmt: skip # noqa: E501


def requests(document: Schema, prompts: list[str], count: int, seed: int = 0) -> Iterator[Wrong]:
    """`count` requests, the same for the same document and seed; most name one of the `prompts` that are loaded."""
    draw = random.Random(seed)
    document = copy.deepcopy(document)
    for schema in document["components"]["schemas"].values():
        if "examples" in schema.get("properties", {}).get("prompt", {}):
            schema["properties"]["prompt"]["examples"] = [*prompts, "not-loaded"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in sorted(document["paths"].items())
        for method, operation in sorted(methods.items())
    ]
    for _ in range(count):
        method, path, operation = draw.choice(operations)
        schema = _body_schema(operation)
        headers = {"content-type": "application/json"}
        for parameter in operation.get("parameters", []):
            path = path.replace("{" + parameter["name"] + "}", draw.choice([*ODD_PATHS, "nothing-of-that-name"]))
        if schema is None:
            yield _without_body(draw, method, path, headers)
            continue
        value = valid(schema, document, draw)
        how, change = draw.choice(CHANGES)
        yield change(draw, Wrong(method, path, headers, b"", how), value, lambda s=schema: valid(s, document, draw))


def _without_body(draw: random.Random, method: str, path: str, headers: dict[str, str]) -> Wrong:
    if draw.random() < 0.5:
        other = draw.choice([m for m in ("GET", "PUT", "DELETE", "PATCH", "POST", "HEAD", "TRACE") if m != method])
        return Wrong(other, path, headers, b"", "another method")
    query = draw.choice(["?", "?a=%00", "?" + "x" * 3000, "?name[]=1", "/../..", "/", "//", "/%2e%2e/"])
    return Wrong(method, path + query, headers, draw.randbytes(draw.randint(0, 200)), "an odd path and a body")


def _body_schema(operation: Schema) -> Schema | None:
    content = operation.get("requestBody", {}).get("content", {})
    return content["application/json"]["schema"] if "application/json" in content else None


def valid(schema: Schema, document: Schema, draw: random.Random) -> Any:
    """A value that a schema describes."""
    if "$ref" in schema:
        return valid(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, draw)
    if "anyOf" in schema:
        return valid(draw.choice(schema["anyOf"]), document, draw)
    kind = schema.get("type")
    if kind == "object":
        return {name: valid(part, document, draw) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [valid(schema["items"], document, draw) for _ in range(draw.randint(1, 3))]
    if kind == "null":
        return None
    assert kind == "string", f"the document has a {kind} that this does not know"
    return draw.choice(schema.get("examples", ["a fine film"]))


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in [(value, key), *_places(part)]]


def _another_value(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    changed = copy.deepcopy(value)
    container, key = draw.choice(_places(changed))
    container[key] = draw.choice(ODD_VALUES)
    return wrong._replace(body=_dump(changed))


def _an_odd_text(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    changed = copy.deepcopy(value)
    texts = [place for place in _places(changed) if isinstance(place[0][place[1]], str)]
    container, key = draw.choice(texts)
    container[key] = draw.choice(ODD_TEXTS)
    return wrong._replace(body=_dump(changed))


def _a_field_less(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    return wrong._replace(body=_dump({k: v for k, v in value.items() if k != draw.choice(list(value))}))


def _a_field_more(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    return wrong._replace(
        body=_dump(value | {draw.choice(["path", "__class__", "", "x" * 300]): draw.choice(ODD_VALUES)})
    )


def _too_many(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    lists = [name for name, part in value.items() if isinstance(part, list)]
    many = {name: value[name] * draw.choice([100, 3000]) for name in lists} or {"text": "x " * 100_000}
    return wrong._replace(body=_dump(value | many))


def _cut(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    whole = _dump(value)
    return wrong._replace(body=whole[: draw.randrange(len(whole))])


def _flipped(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    body = bytearray(_dump(value))
    for _ in range(draw.randint(1, 4)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return wrong._replace(body=bytes(body))


def _no_json(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    deep = draw.choice([100, 30_000])
    bodies = [
        b"",
        b"null",
        b"[]",
        b'""',
        b"1e999",
        b"-",
        b"[" * deep,
        b'{"a":' * deep,
        draw.randbytes(500),
        b"9" * 6_000,
    ]
    return wrong._replace(body=draw.choice(bodies))


def _odd_headers(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    kinds = [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/x-pickle",
        "",
        "é",
    ]
    more = draw.choice(
        [{}, {"content-encoding": "gzip"}, {"x-odd": "x" * 5_000}, {"accept": "nothing/at-all"}, {"expect": "x"}]
    )
    return wrong._replace(headers={"content-type": draw.choice(kinds), **more}, body=_dump(value))


def _too_large(draw: random.Random, wrong: Wrong, value: Any, _: Callable) -> Wrong:
    return wrong._replace(body=_dump(value) + b" " * draw.choice([300_000, 2_000_000]))


CHANGES: list[tuple[str, Callable[..., Wrong]]] = [
    ("another value", _another_value), ("an odd text", _an_odd_text), ("a field less", _a_field_less),
    ("a field more", _a_field_more), ("too many", _too_many), ("cut short", _cut), ("bytes flipped", _flipped),
    ("no JSON", _no_json), ("odd headers", _odd_headers), ("too large", _too_large),
]  # fmt: skip
