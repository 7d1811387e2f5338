"""The other sources of SPoT (Vu et al. 2022, §2.1 and §3) and its source mixtures.

The paper prints no format for these; they follow T5's rule, `name: text` for each field, and COPA's, that the answer is
the name of the right choice. Sets that TensorFlow Datasets lacks are read from DATA_DIR/spot alone.
"""

import seqio
import tensorflow as tf

from prompt_tuning import metrics
from prompt_tuning.examples import CAP
from tasks import answers, formats, glue, mrqa, nli, rainbow, summarization, superglue
from tasks.registry import add, add_mixtures
from tasks.sources import Source, local_only, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
POLARITY = ("negative", "positive")
# fmt: off
EMOTIONS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)
# fmt: on


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
        local_only("CR", text_fields(("sentence",), ("0", "1"))),
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
    add(
        "spot_cxc",
        local_only("CxC", stsb.source.official.read, label=tf.float32),
        stsb.preprocessors[0],
        [metrics.pearson, metrics.spearman],
        postprocess=answers.number,
        prefix="cxc",
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
    *(yelp2, sentiment140, goemotions, customer_reviews, cxc),
    *(race, drop, translation, gem),
):
    register()


# ---------------------------------------------------------------- source mixtures, by size up to 2**19


SIZES = {
    "spot_yelp2": 560000,
    "spot_sentiment140": 1600000,
    "spot_goemotions": 43410,
    "spot_cr": 3775,
    "spot_cxc": 88000,
}
WMT = {"spot_wmt_ende": 4548885, "spot_wmt_enfr": 40836715, "spot_wmt_enro": 610320}
SUMMARIES = {name: size for name, (*_, size) in summarization.SETS.items()}
GEM_SIZES = {name: size for name, (*_, size) in GEM.items()}
GEM_SIZES |= {name: SUMMARIES[name] for name in ("summarize_xsum", "summarize_wikilingua")}
# Every labelled source once: the mixture "all" of Vu et al. 2022, Table 1.
ALL = glue.SIZES | superglue.SIZES | nli.SIZES | SIZES | mrqa.IN_DOMAIN | rainbow.SIZES | WMT | SUMMARIES | GEM_SIZES


def sizes(*names: str) -> dict[str, int]:
    return {name: ALL[name] for name in names}


add_mixtures("spot_paraphrase", sizes("spot_cxc", "glue_mrpc", "glue_qqp", "glue_stsb"))
add_mixtures("spot_sentiment", sizes("spot_cr", "spot_goemotions", "spot_sentiment140", "glue_sst2", "spot_yelp2"))
add_mixtures("spot_gem", GEM_SIZES)
for name, members in (("spot_translation", WMT), ("spot_all", ALL)):
    seqio.MixtureRegistry.add(name, [(task, min(size, CAP)) for task, size in members.items()])
