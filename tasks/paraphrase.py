"""Paraphrase, zero-shot: train on Quora's questions, evaluate on news sentences, and the other way round (Table 2).

A prompt for QQP answers "duplicate" where MRPC asks for "equivalent": the set that was not trained on asks in the words
of the one that was, so that they have the same labels to rank and a written answer counts as well.
"""

import seqio

from prompt_tuning import metrics
from tasks import formats, glue
from tasks.registry import add

__all__ = ["glue"]  # whose tasks are trained on


def mrpc_from_qqp() -> None:
    """MRPC's validation set for a prompt of QQP; the mixture `glue_mrpc_from_qqp` trains on QQP.

    inputs:  sentence1: Amrozi accused his brother ... sentence2: Referring to him as only " the witness " ...
    targets: duplicate   (MRPC: equivalent)
    """
    fields, labels = ("sentence1", "sentence2"), ("not_duplicate", "duplicate")
    add(
        "glue_mrpc_by_qqp",
        seqio.TaskRegistry.get("glue_mrpc").source.only("validation"),
        formats.classify(fields, labels),
        [metrics.f1, metrics.accuracy],
        labels=labels,
        prefix="mrpc",
    )


def qqp_from_mrpc() -> None:
    """QQP's validation set for a prompt of MRPC; the mixture `glue_qqp_from_mrpc` trains on MRPC.

    inputs:  question1: How is the life of a math student? question2: Which level of preparation is enough for ...?
    targets: not_equivalent   (QQP: not_duplicate)
    """
    fields, labels = ("question1", "question2"), ("not_equivalent", "equivalent")
    add(
        "glue_qqp_by_mrpc",
        seqio.TaskRegistry.get("glue_qqp").source.only("validation"),
        formats.classify(fields, labels),
        [metrics.f1, metrics.accuracy],
        labels=labels,
        prefix="qqp",
    )


mrpc_from_qqp()
qqp_from_mrpc()
for end in ("", "_prefixed"):
    seqio.MixtureRegistry.add(f"glue_mrpc_from_qqp{end}", [f"glue_qqp{end}", f"glue_mrpc_by_qqp{end}"], 1.0)
    seqio.MixtureRegistry.add(f"glue_qqp_from_mrpc{end}", [f"glue_mrpc{end}", f"glue_qqp_by_mrpc{end}"], 1.0)
