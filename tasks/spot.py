"""The other sources of SPoT (Vu et al. 2022, §2.1 and §3) and its source mixtures.

The paper prints no format for these; they follow T5's rule, `name: text` for each field, and COPA's, that the answer is
the name of the right choice. Sets that TensorFlow Datasets lacks are read from DATA_DIR/spot alone.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning import metrics
from prompt_tuning.records import Record
from tasks import answers, formats, glue, mrqa, nli, summarization, superglue
from tasks.registry import CAP, add, add_mixtures
from tasks.sources import OfficialFiles, Rows, Source, field, label, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
LOCAL = {"train": ("train.tsv", "train.jsonl"), "validation": ("dev.tsv", "val.jsonl", "dev.jsonl")}
DTYPES = {"label": tf.int64, "idx": tf.int32}
POLARITY = ("negative", "positive")
# fmt: off
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)
# fmt: on


def local(folder: str, read) -> Source:
    """A set that stands in no TensorFlow Datasets."""
    official = OfficialFiles((f"spot/{folder}",), LOCAL, read, DTYPES)
    return Source(None, {split: split for split in LOCAL}, official)


# ---------------------------------------------------------------- sentiment


def yelp2() -> None:
    """Does the review like the place? Yelp's reviews of one or two stars against three or four (Zhang et al. 2015).

    inputs:  text: The Groovy P. and I ventured to his old stomping grounds for lunch today. ...
    targets: positive
    """
    add(
        "spot_yelp2",
        Source("yelp_polarity_reviews:0.2.0", {"train": "train", "validation": "test"}),
        formats.classify(("text",), POLARITY),
        [metrics.accuracy],
        labels=POLARITY,
        prefix="yelp2",
    )


def sentiment140() -> None:
    """Is the tweet happy? By its emoticon (Go et al. 2009); the neutral ones of the test set are left out.

    inputs:  text: i'm 10x cooler than all of you!
    targets: positive
    """

    @formats.on_batches
    def text(example):
        targets = tf.where(example["polarity"] < 2, *POLARITY)
        return {"inputs": formats.named(example, ("text",)), "targets": targets}

    polar = {split: lambda example: example["polarity"] != 2 for split in ("train", "validation")}
    add(
        "spot_sentiment140",
        Source("sentiment140:1.0.0", {"train": "train", "validation": "test"}, keep=polar),
        text,
        [metrics.accuracy],
        labels=POLARITY,
        prefix="sentiment140",
    )


def goemotions() -> None:
    """Which of 27 emotions, or none, does the comment show (Demszky et al. 2020)? Several are listed in order.

    inputs:  comment_text: It's just wholesome content, from questionable sources
    targets: neutral
    """

    @seqio.map_over_dataset
    def text(example):
        shown = tf.boolean_mask(tf.constant(EMOTIONS), tf.stack([example[e] for e in EMOTIONS]))
        targets = tf.strings.reduce_join(shown, separator=", ")
        return {"inputs": formats.named(example, ("comment_text",)), "targets": targets}

    add("spot_goemotions", Source("goemotions:0.1.0", SPLITS), text, [metrics.accuracy], prefix="goemotions")


def customer_reviews() -> None:
    """Does the sentence like the product (Hu and Liu 2004)? `spot/CR/{train,dev}.tsv`: sentence, label 0 or 1.

    inputs:  sentence: the picture quality surprised me .
    targets: positive
    """
    add(
        "spot_cr",
        local("CR", text_fields(("sentence",), ("0", "1"))),
        formats.classify(("sentence",), POLARITY),
        [metrics.accuracy],
        labels=POLARITY,
        prefix="cr",
    )


# ---------------------------------------------------------------- similarity


def cxc() -> None:
    """How alike are two captions, from 0 to 5 (Parekh et al. 2021)?

    `spot/CxC/{train,dev}.tsv` have the columns sentence1, sentence2, score. The published files name MS-COCO
    captions by number; the two sentences have to be looked up first.

    inputs:  sentence1: A man riding a wave. sentence2: A surfer on a wave.
    targets: 4.2
    """
    stsb = seqio.TaskRegistry.get("glue_stsb")
    read = stsb.source.official.read
    official = OfficialFiles(("spot/CxC",), LOCAL, read, DTYPES | {"label": tf.float32})
    add(
        "spot_cxc",
        Source(None, {split: split for split in LOCAL}, official),
        stsb.preprocessors[0],
        [metrics.pearson, metrics.spearman],
        postprocess=answers.number,
        prefix="cxc",
    )


# ---------------------------------------------------------------- common sense (RAINBOW)


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

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        beside = path.with_name(f"{path.stem}-labels.lst")
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
        local(folder, read),
        formats.classify(fields, labels),
        [metrics.accuracy],
        labels=labels,
        prefix=name.removeprefix("spot_"),
    )


# ---------------------------------------------------------------- reading


def race() -> None:
    """Which of four answers is right, by the article (Lai et al. 2017)? `spot_race` mixes middle and high school.

    inputs:  A: 6 hours B: 8 hours C: 10 hours D: 12 hours article: Last week I talked with some of my students ...
             question: How long do they sleep?
    targets: C
    """
    labels = ("A", "B", "C", "D")

    def one_per_question(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def spread(example):
            each = tf.data.Dataset.from_tensor_slices({k: example[k] for k in ("questions", "answers", "options")})
            return each.map(lambda one: text(one, example["article"]))

        def text(one, article):
            choices = one["options"] if isinstance(one["options"], tf.Tensor) else one["options"].to_tensor()
            parts = {name: choices[i] for i, name in enumerate(labels)}
            parts |= {"article": article, "question": one["questions"]}
            return {"inputs": formats.named(parts, (*labels, "article", "question")), "targets": one["answers"]}

        return dataset.flat_map(spread)

    for school in ("middle", "high"):
        add(
            {"middle": "spot_race_middle", "high": "spot_race_high"}[school],
            Source(f"race/{school}:2.0.0", {"train": "train", "validation": "dev", "test": "test"}),
            one_per_question,
            [metrics.accuracy],
            labels=labels,
            prefix="race",
        )
    add_mixtures("spot_race", {"spot_race_middle": 25421, "spot_race_high": 62445})


def drop() -> None:
    """Which number, date or span answers the question (Dua et al. 2019)? In SQuAD's format.

    inputs:  question: How many yards longer was the longest touchdown than the shortest ? context: Hoping to ...
    targets: 18
    """

    @seqio.map_over_dataset
    def text(example):
        right = tf.concat([example["answer"][None], example["validated_answers"]], 0)
        return formats.question_in_context(example["question"], example["passage"], right) | {"id": example["query_id"]}

    add(
        "spot_drop",
        Source("drop:2.0.0", {"train": "train", "validation": "dev"}),
        text,
        [metrics.squad],
        postprocess=answers.all_answers,
        prefix="drop",
    )


# ---------------------------------------------------------------- generation


def translation() -> None:
    """WMT, from English.

    inputs:  translate English to German: That is good.
    targets: Das ist gut.
    """
    for name, tfds_name, code, language in (
        ("spot_wmt_ende", "wmt_t2t_translate/de-en:1.0.0", "de", "German"),
        ("spot_wmt_enfr", "wmt14_translate/fr-en:1.0.0", "fr", "French"),
        ("spot_wmt_enro", "wmt16_translate/ro-en:1.0.0", "ro", "Romanian"),
    ):
        add(name, Source(tfds_name, SPLITS), _translate(code, language), [metrics.bleu])


def _translate(code: str, language: str) -> formats.Preprocessor:
    @formats.on_batches
    def text(example):
        inputs = tf.strings.join([f"translate English to {language}: ", example["en"]])
        return {"inputs": inputs, "targets": example[code]}

    return text


def gem() -> None:
    """Generation from data and text (GEM, Gehrmann et al. 2021); XSum and WikiLingua are among the summaries.

    inputs:  concepts: ski mountain skier
    targets: Skier skis down the mountain
    """
    for name, (tfds_name, feature, _) in GEM.items():
        add(name, Source(f"gem/{tfds_name}:1.1.0", SPLITS), _generate(feature), [metrics.rouge], prefix=name[9:])


GEM = {  # name: configuration, the input's feature, training examples
    "spot_gem_common_gen": ("common_gen", "concepts", 67389),
    "spot_gem_dart": ("dart", "tripleset", 62659),
    "spot_gem_e2e_nlg": ("e2e_nlg", "meaning_representation", 33525),
    "spot_gem_schema_guided_dialog": ("schema_guided_dialog", "prompt", 164982),
    "spot_gem_web_nlg_en": ("web_nlg_en", "input", 35426),
    "spot_gem_wiki_auto": ("wiki_auto_asset_turk", "source", 483801),
}


def _generate(feature: str) -> formats.Preprocessor:
    @seqio.map_over_dataset
    def text(example):
        given = example[feature]
        given = tf.strings.reduce_join(given, separator=" ") if given.shape.rank else given
        return {"inputs": tf.strings.join([f"{feature}: ", given]), "targets": example["target"]}

    return text


for register in (
    *(yelp2, sentiment140, goemotions, customer_reviews, cxc, winogrande, hellaswag, cosmos_qa, piqa, alpha_nli),
    *(social_iqa, race, drop, translation, gem),
):
    register()


# ---------------------------------------------------------------- source mixtures, by size up to 2**19


def sizes(*names: str) -> dict[str, int]:
    known = SIZES | glue.SIZES | superglue.SIZES
    return {name: known[name] for name in names}


SIZES: Mapping[str, int] = {
    "spot_yelp2": 560000,
    "spot_sentiment140": 1600000,
    "spot_goemotions": 43410,
    "spot_cr": 3775,
    "spot_cxc": 88000,
    "spot_winogrande": 40398,
    "spot_hellaswag": 39905,
    "spot_cosmos_qa": 25262,
    "spot_piqa": 16113,
    "spot_alpha_nli": 169654,
    "spot_social_iqa": 33410,
    "spot_drop": 77409,
}

add_mixtures("spot_paraphrase", sizes("spot_cxc", "glue_mrpc", "glue_qqp", "glue_stsb"))
add_mixtures("spot_sentiment", sizes("spot_cr", "spot_goemotions", "spot_sentiment140", "glue_sst2", "spot_yelp2"))
add_mixtures(
    "spot_rainbow",
    sizes(
        *("spot_alpha_nli", "spot_cosmos_qa", "spot_hellaswag", "spot_piqa", "spot_social_iqa", "spot_winogrande"),
    ),
)
WMT = {"spot_wmt_ende": 4548885, "spot_wmt_enfr": 40836715, "spot_wmt_enro": 610320}
seqio.MixtureRegistry.add("spot_translation", [(name, min(size, CAP)) for name, size in WMT.items()])
SUMMARIES = {name: size for name, (*_, size) in summarization.SETS.items()}
GEM_SIZES = {name: size for name, (*_, size) in GEM.items()}
GEM_SIZES |= {name: SUMMARIES[name] for name in ("summarize_xsum", "summarize_wikilingua")}
add_mixtures("spot_gem", GEM_SIZES)
# Every labelled source once (the mixture "all" of the paper's Table 1).
ALL = glue.SIZES | superglue.SIZES | nli.SIZES | mrqa.IN_DOMAIN | SIZES | WMT | SUMMARIES | GEM_SIZES
seqio.MixtureRegistry.add("spot_all", [(name, min(size, CAP)) for name, size in ALL.items() if name != "spot_drop"])
