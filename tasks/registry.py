"""One way to add a task: its source, its text, its answers and its metrics."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from prompt_tuning.examples import CAP
from tasks import answers, formats

# Read only when a task is used as it is registered, without the vocabulary of a base.
T5_VOCABULARY = seqio.SentencePieceVocabulary("gs://t5-data/vocabs/cc_all.32000.100extra/sentencepiece.model")
FEATURES = {name: seqio.Feature(T5_VOCABULARY, add_eos=True) for name in ("inputs", "targets")}


def add(
    name: str,
    source: seqio.DataSource,
    text: formats.Preprocessor | Sequence[formats.Preprocessor],
    metrics: Sequence[Callable[..., dict[str, Any]]],
    labels: Sequence[str] = (),
    postprocess: Callable[..., Any] | None = None,
    prefix: str | None = None,
) -> None:
    """Register a task, and with `prefix` its twin `<name>_prefixed` that opens with the task's name.

    Args:
      text: preprocessors from the source's features to `inputs` and `targets`.
      metrics: functions of (targets, predictions) as the postprocessor makes them.
      labels: the answers to choose from, in label order; empty where the answer is free text.
      postprocess: from predicted text to what the metrics compare; the label's place where labels are given.
    """
    steps = list(text) if isinstance(text, Sequence) else [text]
    if labels:
        postprocess = functools.partial(postprocess or answers.label_id, label_classes=list(labels))
    variants = {name: steps}
    if prefix:
        variants[f"{name}_prefixed"] = [*steps, formats.prefix(prefix)]
    for variant, to_text in variants.items():
        seqio.TaskRegistry.add(
            variant,
            source=source,
            preprocessors=[
                *to_text,
                seqio.preprocessors.tokenize,
                seqio.CacheDatasetPlaceholder(),
                seqio.preprocessors.append_eos_after_trim,
            ],
            output_features=FEATURES,
            postprocess_fn=postprocess,
            metric_fns=list(metrics),
        )


def add_mixtures(name: str, sizes: Mapping[str, int | Callable[..., float]], cap: int = CAP) -> None:
    """Register `name`, in proportion to the sizes up to the cap, and `<name>_equal`; and both over prefixed tasks."""
    for suffix in ("", "_prefixed"):
        rates = [(task + suffix, size if callable(size) else min(size, cap)) for task, size in sizes.items()]
        seqio.MixtureRegistry.add(name + suffix, rates)
        seqio.MixtureRegistry.add(f"{name}_equal{suffix}", [task for task, _ in rates], default_rate=1.0)
