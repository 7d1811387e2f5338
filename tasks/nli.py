"""Natural language inference beside GLUE's: ANLI, SNLI, DocNLI, and SPoT's source mixture of seven sets."""

from prompt_tuning import metrics
from tasks import formats, glue, superglue
from tasks.registry import add, add_mixtures
from tasks.sources import Source

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
THREE = ("entailment", "neutral", "contradiction")
ANLI_SIZES = {"nli_anli_r1": 16946, "nli_anli_r2": 45460, "nli_anli_r3": 100459}


def anli() -> None:
    """Adversarial NLI (Nie et al. 2020), in three rounds.

    inputs:  hypothesis: The trolleybus system has over 2 urban routes context: The Parma trolleybus system ...
    targets: entailment
    """
    for name in ANLI_SIZES:
        this_round = name.removeprefix("nli_anli_")
        add(
            name,
            Source(f"anli/{this_round}:0.1.0", SPLITS),
            formats.choose(("hypothesis", "context"), THREE),
            [metrics.accuracy],
            labels=THREE,
            prefix=f"anli_{this_round}",
        )


def snli() -> None:
    """Stanford NLI (Bowman et al. 2015), without the examples on which the annotators found no majority.

    inputs:  hypothesis: A person is outdoors, on a horse. premise: A person on a horse jumps over a broken down ...
    targets: entailment
    """
    agreed = {split: lambda example: example["label"] >= 0 for split in SPLITS}
    add(
        "nli_snli",
        Source("snli:1.1.0", SPLITS, keep=agreed),
        formats.choose(("hypothesis", "premise"), THREE),
        [metrics.accuracy],
        labels=THREE,
        prefix="snli",
    )


def doc_nli() -> None:
    """NLI over whole documents (Yin et al. 2021).

    inputs:  hypothesis: The aim of the trip is to ... premise: On Thursday, the delegation arrived ...
    targets: not_entailment
    """
    labels = ("not_entailment", "entailment")
    add(
        "nli_doc_nli",
        Source("doc_nli:1.0.0", SPLITS),
        formats.choose(("hypothesis", "premise"), labels),
        [metrics.accuracy],
        labels=labels,
        prefix="doc_nli",
    )


for register in (anli, snli, doc_nli):
    register()

SIZES = ANLI_SIZES | {"nli_snli": 549367, "nli_doc_nli": 942314, "superglue_cb": superglue.SIZES["superglue_cb"]}
SIZES |= {name: glue.SIZES[name] for name in ("glue_mnli", "glue_qnli", "glue_rte")}
# ANLI, CB, DocNLI, MNLI, QNLI, RTE, SNLI: a SPoT source.
add_mixtures("spot_nli", SIZES)
