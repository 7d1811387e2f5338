"""Paraphrase, zero-shot: train on Quora's questions, evaluate on news sentences, and the other way round (Table 2).

A prompt for QQP answers "duplicate" where MRPC asks for "equivalent", so predictions are translated before they count.
"""

from collections.abc import Callable, Sequence
from typing import Any

import seqio

from prompt_tuning import metrics
from tasks import answers, formats, glue
from tasks.registry import add

__all__ = ["glue"]  # whose tasks are trained on


def translated(old: str, new: str) -> Callable[..., int]:
    """The label's place, after `old` in a prediction was replaced by `new`."""

    def label_id(text: str, label_classes: Sequence[str], is_target: bool = False, **unused: Any) -> int:
        return answers.label_id(text if is_target else text.replace(old, new), label_classes)

    return label_id


def mrpc_from_qqp() -> None:
    """MRPC's validation set for a prompt of QQP; the mixture `glue_mrpc_from_qqp` trains on QQP.

    inputs:  sentence1: Amrozi accused his brother ... sentence2: Referring to him as only " the witness " ...
    targets: equivalent   (where the prompt says: duplicate)
    """
    add(
        "glue_mrpc_by_qqp",
        seqio.TaskRegistry.get("glue_mrpc").source.only("validation"),
        formats.classify(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
        [metrics.f1, metrics.accuracy],
        labels=("not_equivalent", "equivalent"),
        postprocess=translated("duplicate", "equivalent"),
        prefix="mrpc",
    )


def qqp_from_mrpc() -> None:
    """QQP's validation set for a prompt of MRPC; the mixture `glue_qqp_from_mrpc` trains on MRPC.

    inputs:  question1: How is the life of a math student? question2: Which level of preparation is enough for ...?
    targets: not_duplicate   (where the prompt says: not_equivalent)
    """
    add(
        "glue_qqp_by_mrpc",
        seqio.TaskRegistry.get("glue_qqp").source.only("validation"),
        formats.classify(("question1", "question2"), ("not_duplicate", "duplicate")),
        [metrics.f1, metrics.accuracy],
        labels=("not_duplicate", "duplicate"),
        postprocess=translated("equivalent", "duplicate"),
        prefix="qqp",
    )


mrpc_from_qqp()
qqp_from_mrpc()
for end in ("", "_prefixed"):
    seqio.MixtureRegistry.add(f"glue_mrpc_from_qqp{end}", [f"glue_qqp{end}", f"glue_mrpc_by_qqp{end}"], 1.0)
    seqio.MixtureRegistry.add(f"glue_qqp_from_mrpc{end}", [f"glue_mrpc{end}", f"glue_qqp_by_mrpc{end}"], 1.0)
