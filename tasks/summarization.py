"""Summarisation, as SPoT sources, for XSum and CNN/DailyMail also as Lester et al. have them."""

import tensorflow as tf

from prompt_tuning import metrics
from tasks import formats
from tasks.registry import add, add_mixtures
from tasks.sources import Source

SPLITS = {"train": "train", "validation": "validation", "test": "test"}
# name: TensorFlow Datasets, the text's feature, the summary's feature, training examples.
# CNN/DailyMail and Multi-News stand in TFDS in newer versions only than the papers used.
SETS = {
    "summarize_aeslc": ("aeslc:1.0.0", "email_body", "subject_line", 14436),
    "summarize_billsum": ("billsum:3.0.0", "text", "summary", 18949),
    "summarize_cnn_dailymail": ("cnn_dailymail:3.4.0", "article", "highlights", 287113),
    "summarize_wikilingua": ("gem/wiki_lingua_english_en:1.1.0", "source", "target", 99020),
    "summarize_gigaword": ("gigaword:1.2.0", "document", "summary", 3803957),
    "summarize_multi_news": ("multi_news:2.1.0", "document", "summary", 44972),
    "summarize_newsroom": ("newsroom:1.0.0", "text", "summary", 995041),
    "summarize_samsum": ("samsum:1.0.0", "dialogue", "summary", 14732),
    "summarize_xsum": ("xsum:1.1.0", "document", "summary", 203577),
}


def summarize(name: str, tfds_name: str, text: str, summary: str) -> None:
    """Say it shorter.

    inputs:  summarize: Amanda: I baked cookies. Do you want some? Jerry: Sure! ...
    targets: Amanda baked cookies and will bring Jerry some tomorrow.
    """
    splits = SPLITS if name != "summarize_billsum" else {"train": "train", "validation": "test"}

    @formats.on_batches
    def to_text(example):
        return {"inputs": tf.strings.join(["summarize: ", example[text]]), "targets": example[summary]}

    add(name, Source(tfds_name, splits), to_text, [metrics.rouge], prefix=name.removeprefix("summarize_"))


for name, (tfds_name, text, summary, _) in SETS.items():
    summarize(name, tfds_name, text, summary)

# All nine: a SPoT source.
add_mixtures("spot_summarization", {name: size for name, (*_, size) in SETS.items()})
