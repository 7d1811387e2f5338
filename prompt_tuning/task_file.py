"""A task without code: a TOML file, or a table in Python, that names the data, the text, the answer and the metric.

inputs = "hypothesis: {hypothesis} premise: {premise}"   # {column} stands for that column's text
target = "label"                                         # the column with the answer, or a template as above
labels = ["entailment", "contradiction", "neutral"]      # optional: the answers to choose from
metric = "accuracy"                                      # optional: one name or a list
train = "train.jsonl"                                    # .jsonl, .csv, .tsv or .parquet; one name or a list
validation = "dev.jsonl"

In Python the same names are keys, and a split may be rows instead of files: [{"premise": "...", ...}, ...].
"""

import dataclasses
import itertools
import os
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning import metrics
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import Examples, Mixture, part_of
from prompt_tuning.records import read_records
from prompt_tuning.vocabulary import Vocabulary, encodable, warn_of_cut

SPLITS = ("train", "validation", "test")
KEYS = ("name", "inputs", "target", "labels", "metric", *SPLITS)
METRICS = ("accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman", "squad", "rouge")
_COLUMN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def open_task_file(path: str | Path, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Mixture:
    """The task that a TOML file describes, as a mixture of one; relative paths start at the file's folder.

    Raises:
      UserError: with the file, and the line where there is one, for anything that is not as it should be.
    """
    where = Path(path).expanduser()
    if not where.is_file():
        raise UserError(f"The task file {path} does not exist.")
    if where.suffix.lower() in (".jsonl", ".csv", ".tsv", ".parquet"):
        raise UserError(f"{path} is data; a TASK_FILE is a TOML file that describes it, such as:\n{EXAMPLE}")
    try:
        settings = tomllib.loads(where.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8.") from None
    except (ValueError, RecursionError) as error:  # Python's limit on digits is no TOMLDecodeError
        raise UserError(f"{path} is not TOML: {error}. It should look like:\n{EXAMPLE}") from None
    return _opened(where, settings, vocabulary, lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class Description:
    """What a task file says, in Python: `{"inputs": "message: {text}", "target": "label", "train": rows, ...}`.

    Files stand where the caller is. Without a name the task is called "task".
    """

    settings: Mapping[str, Any] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        once = lambda value: list(value) if isinstance(value, Iterator) else value  # it may be opened again
        object.__setattr__(self, "settings", {key: once(value) for key, value in self.settings.items()})

    def __deepcopy__(self, memo: Any) -> "Description":
        return self  # gin copies what it hands out, and nobody changes these rows

    def open(self, vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Mixture:
        """The task, as a mixture of one. Raises UserError with the row, for anything that is not as it should be."""
        if wrong := [key for key in self.settings if not isinstance(key, str)]:
            raise UserError(f"A task is described by {', '.join(KEYS)}; {wrong[0]!r} is none of them.")
        return _opened(Path("task"), self.settings, vocabulary, lengths)


def _opened(where: Path, given: Mapping[str, Any], vocabulary: Vocabulary, lengths: Mapping[str, int]) -> Mixture:
    task = FileTask(where, _checked(where, given), vocabulary, dict(lengths))
    vocabulary.check_labels(task.labels, lengths["targets"], str(where))
    return Mixture(task.name, (task,), (1.0,))


EXAMPLE = textwrap.dedent("\n".join((__doc__ or "").splitlines()[2:-2]))


@dataclasses.dataclass(frozen=True, eq=False)
class FileTask:
    """A task read from rows by a template (an `examples.Task`)."""

    path: Path
    settings: Mapping[str, Any]
    vocabulary: Vocabulary
    lengths: Mapping[str, int]
    _loaded: dict[str, Examples] = dataclasses.field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        return self.settings["name"]

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if s in self.settings)

    @property
    def scored(self) -> bool:
        return True

    @property
    def metrics(self) -> tuple[str, ...]:
        """What `score` gives."""
        return tuple(self.settings["metric"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._answers.values()))

    @property
    def _answers(self) -> dict[str, str]:
        """From what the target column may hold to the label's text."""
        return self.settings["labels"]

    def load(self, split: str) -> Examples:
        """All examples of a split, in file order."""
        if split not in self._loaded:
            self._loaded[split] = self._load(split)
        return self._loaded[split]

    def texts(self, split: str) -> list[dict[str, Any]]:
        """What `load` tokenises; for looking at a task rather than training on it."""
        name, count = part_of(split, self.splits, self.name, self.path)
        texts = [self._text(at, row) for at, row in itertools.islice(self._rows(name), count)]
        if not texts:
            files = ", ".join(part for part in self.settings[name] if isinstance(part, str))
            raise UserError(f"{files or split} of {self.path} holds no examples.")
        return texts

    def _rows(self, split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every row of a split, behind where it stands."""
        for i, part in enumerate(self.settings[split]):
            if isinstance(part, str):
                file = self.path.parent / part
                yield from ((f"{file}:{line}", row) for line, row in read_records(file))
            else:
                yield f"{split}[{i}]", part

    def _load(self, split: str) -> Examples:
        texts = self.texts(split)
        inputs, cut = self.vocabulary.tokenise([t["inputs_pretokenized"] for t in texts], self.lengths["inputs"])
        targets, lost = self.vocabulary.tokenise([t["targets_pretokenized"] for t in texts], self.lengths["targets"])
        warn_of_cut(lost, len(texts), f"{self.name}, {split},", self.lengths["targets"])
        return Examples(self.name, split, inputs, targets, texts, cut, lost)

    def _text(self, at: str, row: Mapping[str, Any]) -> dict[str, Any]:
        right = self._right_answers(at, row)
        inputs = _fill(self.settings["inputs"], at, row)
        target = right[0] if right else _fill(self.settings["target"], at, row)
        if self._answers:
            if target not in self._answers:  # 1.0: pandas makes floats of whole numbers where one of them is missing
                target = target.removesuffix(".0")
            if target not in self._answers:
                listed = set(self.labels) <= self._answers.keys()  # else the file has a table from values to labels
                known = ", ".join(map(repr, self.labels if listed else self._answers))
                raise UserError(f"{at}: label {target!r}; {self.path} knows {known}.{nearest(target, self._answers)}")
            target = self._answers[target]
        for kind, text in (("inputs", inputs), ("target", target)):
            if not text.strip():
                raise UserError(f"{at}: the {kind} is empty.")
            encodable(text, f"{at}: the {kind}")
        if {"pearson", "spearman"} & set(self.settings["metric"]) and not _NUMBER.fullmatch(target.strip()):
            raise UserError(f"{at}: the target {target!r} is no number, which a correlation needs.")
        made: dict[str, Any] = {"inputs_pretokenized": inputs, "targets_pretokenized": target}
        return made | ({"answers": right} if right else {})

    def _right_answers(self, at: str, row: Mapping[str, Any]) -> list[str]:
        """The answers that all count as right, of which the first is trained on, where the column holds a list."""
        column = re.fullmatch(r"\{([^{}]*)\}", self.settings["target"])
        value = row.get(column[1]) if column else None
        if not isinstance(value, list) or self.settings["metric"] != ["squad"]:
            return []
        if not value or not all(isinstance(answer, str) and answer for answer in value):
            raise UserError(f"{at}: the target is {value!r}; a list of answers holds texts, one or more.")
        return value

    def score(self, examples: Examples, predictions: Sequence[str]) -> dict[str, float]:
        """The file's metrics, in percent."""
        targets = [t["targets_pretokenized"] for t in examples.texts]
        right = [t.get("answers", [t["targets_pretokenized"]]) for t in examples.texts]
        if len(predictions) != len(targets):
            raise UserError(f"{len(predictions)} predictions for the {len(targets)} examples of {self.name}.")
        scores: dict[str, float] = {}
        for name in self.settings["metric"]:
            scores.update(_score(name, right if name == "squad" else targets, predictions, self.labels))
        return scores


def _score(name: str, targets: Sequence[Any], predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    match name:
        case "squad":
            return metrics.squad(targets, predictions)
        case "rouge":
            return metrics.rouge(targets, predictions)
        case "pearson" | "spearman":
            return getattr(metrics, name)([float(t) for t in targets], [metrics.number(p) for p in predictions])
    if not labels:
        return metrics.accuracy([t.strip() for t in targets], [p.strip() for p in predictions])
    place = {label: i for i, label in enumerate(labels)}
    ids = [place[t] for t in targets], [place.get(p, -1) for p in predictions]
    return metrics.mean_class_f1(len(labels))(*ids) if name == "macro_f1" else getattr(metrics, name)(*ids)


def _fill(template: str, at: str, row: Mapping[str, Any]) -> str:
    def value(match: re.Match[str]) -> str:
        column = match.group(1)
        if column is None:
            return match.group(0)[0]
        if column not in row:
            raise UserError(f"{at}: no column {column!r}; found {', '.join(row)}.{nearest(column, row)}")
        found = row[column]
        if isinstance(found, list | tuple | Mapping | np.ndarray):
            several = ' As target, with metric = "squad" alone, a list is the answers that count as right.'
            raise UserError(f"{at}: the column {column!r} holds {found!r:.60}, which is no text.{several}")
        if found is None or found in ("", b"") or found != found:  # the last is pandas' NaN
            raise UserError(f"{at}: the column {column!r} is empty.")
        return _decoded(at, column, found) if isinstance(found, bytes) else str(found)

    return _COLUMN.sub(value, template)


def _decoded(at: str, column: str, found: bytes) -> str:
    try:
        return found.decode()  # of TensorFlow Datasets, or a binary column of Parquet
    except UnicodeDecodeError as error:
        raise UserError(f"{at}: byte {error.start + 1} of the column {column!r} is not UTF-8.") from None


def _checked(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with every default filled in and every list a list."""
    for key in given:
        if key not in KEYS:
            raise UserError(f"{path}: unknown setting {key!r}.{nearest(key, KEYS)} Known: {', '.join(KEYS)}.")
    for key in ("inputs", "target"):
        if not isinstance(given.get(key), str):
            raise UserError(
                f"{path}: {key} is {'not a text' if key in given else 'missing'}. It should look like:\n{EXAMPLE}"
            )
    settings: dict[str, Any] = {"name": given.get("name", path.stem), "inputs": given["inputs"]}
    if not isinstance(settings["name"], str) or not settings["name"].strip():
        raise UserError(f"{path}: name is {settings['name']!r}; it is a word that files can be called by.")
    if not re.search(r"\{[^{}]+\}", settings["inputs"]):
        raise UserError(f'{path}: inputs names no column; write one in braces, as in "sentence: {{sentence}}".')
    settings["target"] = given["target"] if "{" in given["target"] else "{" + given["target"] + "}"
    settings["labels"] = _labels(path, given.get("labels", {}))
    settings["metric"] = _listed(path, "metric", given.get("metric", "accuracy"))
    for metric in settings["metric"]:
        if metric not in METRICS:
            raise UserError(
                f"{path}: unknown metric {metric!r}.{nearest(metric, METRICS)} Known: {', '.join(METRICS)}."
            )
        if metric in ("f1", "macro_f1", "matthews") and not settings["labels"]:
            raise UserError(f"{path}: the metric {metric} needs labels.")
        if metric == "f1" and (count := len(set(settings["labels"].values()))) != 2:
            raise UserError(f"{path}: the metric f1 is of the second of two labels, and there are {count}; macro_f1 is of any number.")  # fmt: skip # noqa: E501
    settings |= {split: _parts(path, split, given[split]) for split in SPLITS if split in given}
    if not any(split in settings for split in SPLITS):
        raise UserError(f'{path} names no data; add train, validation or test, as in: train = "train.jsonl".')
    return settings


def _listed(path: Path, key: str, value: Any) -> list[str]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(v, str) for v in values):
        raise UserError(f"{path}: {key} should be a text or a list of texts, found {value!r}.")
    return values


def _parts(path: Path, split: str, value: Any) -> list[str | Mapping[str, Any]]:
    """The files and rows of a split."""
    if hasattr(value, "iloc"):  # going through it gives the names of its columns
        raise UserError(f"{path}: {split} is a pandas table; give its rows: table.to_dict(orient='records').")
    several = isinstance(value, Iterable) and not isinstance(value, str | Mapping)
    parts = list(value) if several else [value]
    wrong = [part for part in parts if not isinstance(part, str | os.PathLike | Mapping)]
    if wrong or not parts:
        raise UserError(
            f'{path}: {split} is a file, or a list of files, or of rows such as {{"text": "...", "label": "..."}};'
            f" found {repr(wrong[0])[:80] if wrong else 'an empty list'}."
        )
    return [part if isinstance(part, Mapping) else os.fspath(part) for part in parts]


def _labels(path: Path, given: Any) -> dict[str, str]:
    """From the column's value to the label: a table says so; in a list a label stands for itself and for its number."""
    if isinstance(given, list | tuple) and all(isinstance(v, str) for v in given) and len(set(given)) == len(given):
        numbered = {} if any(v.isdigit() for v in given) else {str(i): label for i, label in enumerate(given)}
        truth = {"False": given[0], "True": given[1]} if len(given) == 2 else {}
        return {label: label for label in given} | {k: v for k, v in (numbered | truth).items() if k not in given}
    if isinstance(given, dict) and all(isinstance(v, str) for v in given.values()):
        # Python spells a JSON or Parquet boolean with a capital.
        return {k.capitalize() if k in ("false", "true") else str(k): v for k, v in given.items()}
    raise UserError(
        f"{path}: labels should be a list of different texts, or a table from the column's values to the labels, as in "
        f'labels = {{0 = "negative", 1 = "positive"}}; found {given!r}.'
    )
