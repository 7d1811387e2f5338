"""Predicted text to what a metric compares: SeqIO postprocessors."""

from collections.abc import Sequence
from typing import Any


def label_id(text: str, label_classes: Sequence[str], **unused: Any) -> int:
    """The label's place, -1 for any other text: an answer that is no label is wrong, not an error."""
    return label_classes.index(text) if text in label_classes else -1
