"""An example's fields between TensorFlow, plain Python and what SeqIO shows a postprocessor; imports no TensorFlow."""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A batch of tensors, ragged or not, as one dictionary an example: str, numbers, lists of these."""
    columns = [_column(v) for v in batch.values()]
    return [dict(zip(batch, values, strict=True)) for values in zip(*columns, strict=True)]


def _column(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return rows(values)
    plain = values.to_list() if hasattr(values, "to_list") else values.numpy().tolist()
    return [_text(v) for v in plain] if values.dtype.name == "string" else plain


def _text(value: Any) -> Any:
    return [_text(v) for v in value] if isinstance(value, list) else value.decode("utf-8", "replace")


def as_seqio(value: Any) -> Any:
    """An example's field as SeqIO hands it to a postprocessor: bytes, and numpy's arrays and scalars."""
    if isinstance(value, Mapping):
        return {k: as_seqio(v) for k, v in value.items()}
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        items = [as_seqio(v) for v in value]
        return np.array(items, object) if any(isinstance(v, bytes) for v in items) else np.array(items)
    return np.asarray(value)[()]  # a postprocessor may ask it for .item()


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Metrics by name as floats; what is no number (a text, a histogram) is left out."""
    scores: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            scores.update(numbers(value, f"{prefix}{name}/"))
            continue
        with contextlib.suppress(TypeError, ValueError):
            scores[prefix + name] = float(getattr(value, "value", value))
    return scores
