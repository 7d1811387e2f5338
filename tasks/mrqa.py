"""Extractive question answering: SQuAD, and MRQA 2019 (Fisch et al.) for domain shift and as SPoT sources."""

import seqio

from prompt_tuning import metrics
from tasks import answers, formats
from tasks.registry import add, add_mixtures
from tasks.sources import Source

IN_DOMAIN = {  # with their training examples
    "mrqa_squad": 86588,
    "mrqa_news_qa": 74160,
    "mrqa_trivia_qa": 61688,
    "mrqa_search_qa": 117384,
    "mrqa_hotpot_qa": 72928,
    "mrqa_natural_questions": 104071,
}
OUT_OF_DOMAIN = (
    "mrqa_textbook_qa",
    "mrqa_bio_asq",
    "mrqa_race",
    "mrqa_relation_extraction",
    "mrqa_duo_rc",
    "mrqa_drop",
)


@seqio.map_over_dataset
def squad_text(example):
    made = formats.question_in_context(example["question"], example["context"], example["answers"]["text"])
    return made | {"id": example["id"]}


@seqio.map_over_dataset
def mrqa_text(example):
    made = formats.question_in_context(example["question"], example["context"], example["answers"])
    return made | {"id": example["qid"]}


def squad() -> None:
    """Which words of the context answer the question? SQuAD 1.1; `squad_prefixed` opens with "squad".

    inputs:  question: Where did Super Bowl 50 take place ? context: Super Bowl 50 was an American football game ...
    targets: Santa Clara , California
    """
    splits = {"train": "train", "validation": "validation"}
    add(
        "squad",
        Source("squad/v1.1:3.0.0", splits),
        squad_text,
        [metrics.squad],
        postprocess=answers.all_answers,
        prefix="squad",
    )


def mrqa() -> None:
    """SQuAD's question and format, asked of other texts. Out of domain there is no training split (Table 1).

    inputs:  question: What is the first stage of the water cycle ? context: Evaporation takes place when ...
    targets: evaporation
    """
    for name in IN_DOMAIN:
        _mrqa(name, {"train": "train", "validation": "validation"})
    for name in OUT_OF_DOMAIN:
        _mrqa(name, {"validation": "test"})


def _mrqa(name: str, splits: dict[str, str]) -> None:
    own = name.removeprefix("mrqa_")
    add(
        name,
        Source(f"mrqa/{own}:1.0.0", splits),
        mrqa_text,
        [metrics.squad],
        postprocess=answers.all_answers,
        prefix=own,
    )


squad()
mrqa()

# Train on SQuAD, evaluate on all the others, or one of them: Lester et al. 2021, Table 1.
seqio.MixtureRegistry.add("squad_to_mrqa", ["squad", *OUT_OF_DOMAIN], default_rate=1.0)
for other in OUT_OF_DOMAIN:
    seqio.MixtureRegistry.add(other.replace("mrqa", "squad_to"), ["squad", other], default_rate=1.0)
# The six training sets of MRQA: a SPoT source.
add_mixtures("mrqa", IN_DOMAIN)
