"""Common sense: the six sets of RAINBOW (Lourie et al. 2021), SPoT sources.

SPoT prints no format for them; they follow T5's rule, `name: text` for each field, and COPA's, that the answer is the
name of the right choice.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import seqio

from prompt_tuning import metrics
from prompt_tuning.records import Record
from tasks import formats
from tasks.registry import add, add_mixtures
from tasks.sources import Rows, Source, field, label, local_only

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
SIZES = {
    "spot_winogrande": 40398,
    "spot_hellaswag": 39905,
    "spot_cosmos_qa": 25262,
    "spot_piqa": 16113,
    "spot_alpha_nli": 169654,
    "spot_social_iqa": 33410,
}


def winogrande() -> None:
    """Who or what is meant by the blank (Sakaguchi et al. 2020)? The training set of 40,398.

    inputs:  option1: Ian option2: Dennis sentence: Ian volunteered to eat Dennis's menudo after already having a bowl
             because _ despised eating intestine.
    targets: option2
    """
    labels = ("option1", "option2")
    add(
        "spot_winogrande",
        Source("winogrande:1.2.0", {"train": "train_xl", "validation": "validation", "test": "test"}),
        formats.classify(("option1", "option2", "sentence"), labels),
        [metrics.accuracy],
        labels=labels,
        prefix="winogrande",
    )


def hellaswag() -> None:
    """How does it go on (Zellers et al. 2019)?

    inputs:  context: A man is sitting on a roof. he ending0: is using wrap to wrap a pair of skis. ending1: is ripping
             level tiles off. ending2: is holding a rubik's cube. ending3: starts pulling up roofing on a roof.
    targets: ending3
    """
    labels = ("ending0", "ending1", "ending2", "ending3")

    @seqio.map_over_dataset
    def text(example):
        endings = {name: example["endings"][i] for i, name in enumerate(labels)}
        inputs = formats.named({"context": example["context"]} | endings, ("context", *labels))
        return {"inputs": inputs, "targets": formats.label_text(example["label"], labels)}

    add("spot_hellaswag", Source("hellaswag:1.1.0", SPLITS), text, [metrics.accuracy], labels, prefix="hellaswag")


def cosmos_qa() -> None:
    """Which of four answers fits the story (Huang et al. 2019)?

    inputs:  answer0: None of the above choices . answer1: ... answer2: ... answer3: ... context: Good Old War and ...
             question: In the future , will this person go to see other bands play ?
    targets: answer1
    """
    labels = ("answer0", "answer1", "answer2", "answer3")
    add(
        "spot_cosmos_qa",
        Source("cosmos_qa:1.0.0", SPLITS),
        formats.classify((*labels, "context", "question"), labels),
        [metrics.accuracy],
        labels=labels,
        prefix="cosmos_qa",
    )


def piqa() -> None:
    """Which of two ways reaches the goal (Bisk et al. 2020)?

    inputs:  goal: How do I ready a guinea pig cage for it's new occupants? sol1: Provide the guinea pig with ...
             sol2: ...
    targets: sol1
    """
    labels = ("sol1", "sol2")
    add(
        "spot_piqa",
        Source("piqa:1.0.0", {"train": "train", "validation": "validation"}),
        formats.classify(("goal", "sol1", "sol2"), labels),
        [metrics.accuracy],
        labels=labels,
        prefix="piqa",
    )


def alpha_nli() -> None:
    """Which hypothesis explains both observations (Bhagavatula et al. 2020)? Official files in `spot/alphaNLI`.

    inputs:  hyp1: Chad's car had run out of gas. hyp2: ... obs1: Chad went to get the wheel alignment measured ...
             obs2: The mechanic provided a working alignment with new body work.
    targets: hyp2
    """
    fields, labels = ("hyp1", "hyp2", "obs1", "obs2"), ("hyp1", "hyp2")
    _labelled_beside("spot_alpha_nli", "alphaNLI", fields, labels)


def social_iqa() -> None:
    """What follows in the company of others (Sap et al. 2019)? Official files in `spot/SocialIQA`.

    inputs:  answerA: like attending answerB: like staying home answerC: a good friend to have context: Cameron decided
             to have a barbecue ... question: How would Others feel as a result?
    targets: answerA
    """
    labels = ("answerA", "answerB", "answerC")
    _labelled_beside("spot_social_iqa", "SocialIQA", (*labels, "context", "question"), labels)


def _labelled_beside(name: str, folder: str, fields: Sequence[str], labels: Sequence[str]) -> None:
    """A set whose labels, 1 for the first, stand line by line in a second file, `train-labels.lst`."""

    labels_of = lambda path: [path.with_name(f"{path.stem}-labels.lst")]

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        (beside,) = labels_of(path)
        given = beside.read_text().split() if beside.is_file() else [None] * len(records)
        rows: Rows = []
        for n, record in enumerate(records):
            row: dict[str, Any] = {f: field(path, record, f) for f in fields}
            beside_record = (n + 1, {"label": given[n]} if n < len(given) and given[n] else {})
            known = [str(i + 1) for i in range(len(labels))]
            rows.append(row | {"label": label(beside, beside_record, split, "label", known), "idx": n})
        return rows

    add(
        name,
        local_only(folder, read, beside=labels_of),
        formats.classify(fields, labels),
        [metrics.accuracy],
        labels=labels,
        prefix=name.removeprefix("spot_"),
    )


for register in (winogrande, hellaswag, cosmos_qa, piqa, alpha_nli, social_iqa):
    register()

add_mixtures("spot_rainbow", SIZES)
