"""The papers' metrics, in percent; each takes what the task's postprocessor made of targets and predictions."""

import numpy as np


def accuracy(targets, predictions) -> dict[str, float]:
    """Share of predictions equal to their target."""
    return {"accuracy": 100 * float(np.mean([t == p for t, p in zip(targets, predictions, strict=True)]))}


def mean_class_f1(num_classes: int):
    """Macro F1: the mean over classes of each class's F1 (CB's first metric, with three)."""

    def mean_class_f1(targets, predictions) -> dict[str, float]:
        import sklearn.metrics

        f1 = sklearn.metrics.f1_score(
            targets, predictions, labels=range(num_classes), average="macro", zero_division=0.0
        )
        return {f"mean_{num_classes}class_f1": 100 * float(f1)}

    return mean_class_f1
