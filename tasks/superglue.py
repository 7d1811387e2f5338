"""SuperGLUE (Wang et al. 2019), TFDS 1.0.2 or the official JSON lines, in T5's text-to-text form."""

from collections.abc import Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from prompt_tuning import metrics
from prompt_tuning.errors import UserError
from prompt_tuning.examples import HIDDEN
from prompt_tuning.records import Record
from tasks import answers, formats
from tasks.registry import add, add_mixtures
from tasks.sources import OfficialFiles, Rows, Source, field, label, text_fields

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
FILES = {"train": ("train.jsonl",), "validation": ("val.jsonl", "dev32.jsonl"), "test": ("test.jsonl",)}
TRUTH = ("False", "True")
ENTAILMENT = ("entailment", "not_entailment")
# Training examples, the proportions of T5's SuperGLUE mixture; ReCoRD counts one example per answer.
SIZES = {"superglue_boolq": 9427, "superglue_cb": 250, "superglue_copa": 400, "superglue_multirc": 27243}
SIZES |= {"superglue_record": 138854, "superglue_rte": 2490, "superglue_wic": 5428, "superglue_wsc": 259}
DPR_SIZE = 1322


def source(name: str, folders: str | tuple[str, ...], read, **more) -> Source:
    folders = (folders,) if isinstance(folders, str) else folders
    dtypes = {"label": tf.int64, "idx": tf.int32, "span1_index": tf.int32, "span2_index": tf.int32}
    official = OfficialFiles(tuple(f"superglue/{f}" for f in folders), FILES, read, dtypes)
    return Source(f"super_glue/{name}:1.0.2", SPLITS, official, **more)


def boolq() -> None:
    """Is the answer to the question yes, by the passage?

    inputs:  passage: Ethanol fuel -- All biomass goes through ... question: does ethanol take more energy make that
             produces
    targets: False
    """
    fields = ("passage", "question")
    read = text_fields(fields, (False, True))
    add(
        "superglue_boolq",
        source("boolq", "BoolQ", read),
        formats.classify(fields, TRUTH),
        [metrics.accuracy],
        labels=TRUTH,
        prefix="boolq",
    )


def cb() -> None:
    """Does the speaker of the premise commit to the hypothesis?

    inputs:  hypothesis: the language was peeled down premise: It was a complex language. Not written down but ...
    targets: entailment
    """
    fields, labels = ("hypothesis", "premise"), ("entailment", "contradiction", "neutral")
    add(
        "superglue_cb",
        source("cb", "CB", text_fields(fields, labels)),
        formats.classify(fields, labels),
        [metrics.mean_class_f1(3), metrics.accuracy],
        labels=labels,
        prefix="cb",
    )


def copa() -> None:
    """Which of two sentences is the cause, or the effect, of the premise?

    inputs:  choice1: The sun was rising. choice2: The grass was cut. premise: My body cast a shadow over the grass.
             question: cause
    targets: choice1
    """
    fields, labels = ("choice1", "choice2", "premise", "question"), ("choice1", "choice2")
    add(
        "superglue_copa",
        source("copa", "COPA", text_fields(fields, (0, 1))),
        formats.classify(fields, labels),
        [metrics.accuracy],
        labels=labels,
        prefix="copa",
    )


def multirc() -> None:
    """Is this one of the answers to the question, by the paragraph?

    inputs:  question: Would the mass of a baseball affect how much force you have to use to pick it up? answer: No
             paragraph: What causes a change in motion? The application of a force. ...
    targets: False
    """
    fields = ("question", "answer", "paragraph")

    @formats.on_batches
    def text(example):
        joined = tf.strings.regex_replace(formats.named(example, fields), "<br>", " ")
        inputs = tf.strings.regex_replace(joined, "</?b>", "")
        targets = formats.label_text(example["label"], TRUTH)
        return {"inputs": inputs, "targets": targets} | {f"idx/{k}": v for k, v in example["idx"].items()}

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        rows = []
        for line, row in records:
            passage = field(path, (line, row), "passage", dict)
            for q, question in enumerate(field(path, (line, passage), "questions", list)):
                for a, answer in enumerate(field(path, (line, question), "answers", list)):
                    at = {"paragraph": row.get("idx", line), "question": question.get("idx", q)}
                    at["answer"] = answer.get("idx", a)
                    rows.append(
                        {
                            "paragraph": field(path, (line, passage), "text"),
                            "question": field(path, (line, question), "question"),
                            "answer": field(path, (line, answer), "text"),
                            "label": label(path, (line, answer), split, "label", (0, 1)),
                            "idx": at,
                        }
                    )
        return rows

    add(
        "superglue_multirc",
        source("multirc", "MultiRC", read),
        text,
        [metrics.multirc],
        labels=TRUTH,
        postprocess=answers.multirc,
        prefix="multirc",
    )


def record() -> None:
    """Which entity of the passage stands for @placeholder in the query? One example for each right answer.

    inputs:  query: ... the best thing was that @placeholder made it difficult. entities: Cesc Fabregas, Chelsea, ...
             passage: By Hamish Mackay Goals from Diego Costa and Kurt Zouma ensured Chelsea came back ...
    targets: Olimpija Ljubljana
    """

    def one_per_answer(dataset: tf.data.Dataset) -> tf.data.Dataset:
        def spread(example):
            found = tf.size(example["answers"]) > 0
            targets = tf.cond(found, lambda: example["answers"], lambda: tf.constant([HIDDEN]))
            alike = tf.data.Dataset.from_tensors(example).repeat(tf.size(targets, tf.int64))
            return tf.data.Dataset.zip(alike, tf.data.Dataset.from_tensor_slices(targets))

        return dataset.flat_map(spread).map(text, num_parallel_calls=tf.data.AUTOTUNE)

    def text(example, target):
        # A highlight becomes a sentence of its own, closed by a full stop unless it has one.
        passage = tf.strings.regex_replace(example["passage"], r"""(\.|\?|\!|\"|\')\n@highlight\n""", r"\1 ")
        passage = tf.strings.regex_replace(passage, r"\n@highlight\n", ". ")
        entities = tf.strings.reduce_join(example["entities"], separator=", ")
        parts = {"query": example["query"], "entities": entities, "passage": passage}
        return {
            "inputs": formats.named(parts, tuple(parts)),
            "targets": target,
            "answers": example["answers"],
            "idx/passage": example["idx"]["passage"],
            "idx/query": example["idx"]["query"],
        }

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        rows = []
        for line, row in records:
            passage = field(path, (line, row), "passage", dict)
            body = field(path, (line, passage), "text")
            spans = field(path, (line, passage), "entities", list)
            for q, query in enumerate(field(path, (line, row), "qas", list)):
                found = query.get("answers") if split == "test" else field(path, (line, query), "answers", list)
                rows.append(
                    {
                        "passage": body,
                        "query": field(path, (line, query), "query"),
                        "entities": sorted({body[s["start"] : s["end"] + 1] for s in spans}),
                        "answers": sorted({a["text"] for a in found or ()}),
                        "idx": {"passage": row.get("idx", line), "query": query.get("idx", q)},
                    }
                )
        return rows

    add(
        "superglue_record",
        source("record", ("ReCoRD", "ReCoRD_32"), read),
        one_per_answer,
        [metrics.record],
        postprocess=answers.record,
        prefix="record",
    )


def rte() -> None:
    """Does the hypothesis follow from the premise?

    inputs:  hypothesis: Weapons of Mass Destruction Found in Iraq. premise: No Weapons of Mass Destruction Found in
             Iraq Yet.
    targets: not_entailment
    """
    fields = ("hypothesis", "premise")
    add(
        "superglue_rte",
        source("rte", "RTE", text_fields(fields, ENTAILMENT)),
        formats.classify(fields, ENTAILMENT),
        [metrics.accuracy],
        labels=ENTAILMENT,
        prefix="rte",
    )


def wic() -> None:
    """Does the word mean the same in both sentences?

    inputs:  sentence1: Do you want to come over to my place later? sentence2: A political system with no place for
             the less prominent groups. word: place
    targets: False
    """
    fields = ("sentence1", "sentence2", "word")
    add(
        "superglue_wic",
        source("wic", "WiC", text_fields(fields, (False, True))),
        formats.classify(fields, TRUTH),
        [metrics.accuracy],
        labels=TRUTH,
        prefix="wic",
    )


def wsc() -> None:
    """Whom does the marked pronoun mean? T5 trains on the 259 examples that name the right referent only.

    In evaluation the referent on trial is the target; a prediction that matches it says True.

    inputs:  Mark told Pete many lies about himself, which Pete included in his book. *He* should have been more
             skeptical.
    targets: Pete
    """

    @seqio.map_over_dataset
    def text(example):
        made = {"inputs": mark_pronoun(example["text"], example["span2_text"], example["span2_index"])}
        return made | {"targets": example["span1_text"], "label": example["label"], "idx": example["idx"]}

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        rows = []
        for n, (line, row) in enumerate(records):
            target = field(path, (line, row), "target", dict)
            fixed = {"text": field(path, (line, row), "text")}
            for span in ("span1", "span2"):
                index = field(path, (line, target), f"{span}_index", int)
                fixed |= fix_span(fixed["text"], span, field(path, (line, target), f"{span}_text"), index, path, line)
            rows.append(fixed | {"label": label(path, (line, row), split, "label", (False, True)), "idx": n})
        return rows

    add(
        "superglue_wsc",
        source("wsc.fixed", "WSC", read, keep={"train": lambda example: example["label"] == 1}),
        text,
        [metrics.accuracy],
        postprocess=answers.referent,
        prefix="wsc:",
    )


def mark_pronoun(text: tf.Tensor, pronoun: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """The text with *pronoun* at the word `index`, or at the nearest word that is the pronoun but for punctuation."""
    words = tf.strings.split(text, " ")
    exact = words == pronoun
    bare = exact | (tf.strings.regex_replace(words, r"[^\w']", "") == pronoun)
    far = tf.size(words)
    at = tf.argmin(tf.abs(tf.range(far) - index) + far * tf.where(bare, 0, 1), output_type=tf.int32)
    marked = tf.strings.join(["*", pronoun, "*"])
    end = tf.minimum(tf.strings.length(pronoun), tf.strings.length(words[at]))
    rest = tf.strings.substr(words[at], end, -1)  # punctuation that sticks to the pronoun
    rest = tf.where(tf.logical_or(exact[at], ~bare[at]), "", tf.strings.join([" ", rest]))
    before, after = (tf.strings.reduce_join(w, separator=" ") for w in (words[:at], words[at + 1 :]))
    return tf.strings.strip(tf.strings.join([before, tf.strings.join([marked, rest]), after], " "))


def fix_span(text: str, span: str, words: str, index: int, path: Path, line: int) -> dict[str, str | int]:
    """A span that is no part of its text, spelled as the text spells it (the set `wsc.fixed` of TFDS)."""
    if words not in text and words not in ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin"):
        index = 10 if "theyscold" in words else index
        if not 0 <= index < len(text.split()):
            raise UserError(f"{path}:{line}: {span}_index {index} is beyond the {len(text.split())} words of the text.")
        first = words[0].lower() if text.split()[index][0].islower() else words[0].upper()
        words = (first + words[1:]).rstrip(".").replace("\n", " ")
    return {f"{span}_text": words, f"{span}_index": index}


def dpr() -> None:
    """Definite pronoun resolution (Rahman and Ng 2012), which T5 adds to WSC.

    inputs:  The bee landed on the flower because *it* had pollen.
    targets: The flower
    """

    @seqio.map_over_dataset
    def text(example):
        pattern = tf.strings.join([" (", example["pronoun"], r")( |\.|,)"])
        inputs = tf.strings.regex_replace(example["sentence"], pattern, r" *\1*\2", replace_global=False)
        return {"inputs": inputs, "targets": example["candidates"][example["label"]]}

    splits = {"train": "train", "validation": "test"}
    add(
        "superglue_dpr",
        Source("definite_pronoun_resolution:1.1.0", splits),
        text,
        [metrics.accuracy],
        prefix="wsc:",
    )


def diagnostics() -> None:
    """AX-b and AX-g, which ask what RTE asks of constructed sentences and of gendered pronouns.

    inputs:  hypothesis: The cat did not sit on the mat. premise: The cat sat on the mat.
    targets: not_entailment
    """
    as_rte = ("hypothesis", "premise")
    for name, fields, metric in (
        ("axb", ("sentence2", "sentence1"), metrics.matthews),
        ("axg", as_rte, metrics.accuracy),
    ):
        folder = {"axb": "AX-b", "axg": "AX-g"}[name]
        read = text_fields(fields, ENTAILMENT)
        dtypes = {"label": tf.int64, "idx": tf.int32}
        official = OfficialFiles((f"superglue/{folder}",), {"test": (f"{folder}.jsonl",)}, read, dtypes)
        add(
            {"axb": "superglue_axb", "axg": "superglue_axg"}[name],
            Source(f"super_glue/{name}:1.0.2", {"test": "test"}, official),
            formats.classify(dict(zip(as_rte, fields, strict=True)), ENTAILMENT),
            [metric],
            labels=ENTAILMENT,
            prefix="rte",
        )


for register in (boolq, cb, copa, multirc, record, rte, wic, wsc, dpr, diagnostics):
    register()

# superglue: the eight tasks by size; superglue_and_dpr: T5's training mixture; superglue_equal: alike.
add_mixtures("superglue", SIZES)
add_mixtures("superglue_and_dpr", SIZES | {"superglue_dpr": DPR_SIZE})
