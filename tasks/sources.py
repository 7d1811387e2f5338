"""Where examples come from: the official files under DATA_DIR, or TensorFlow Datasets at a pinned version."""

import copy
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import seqio
import tensorflow as tf

from prompt_tuning.errors import UserError
from prompt_tuning.records import Record, read_records

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class OfficialFiles:
    """A task's files as its authors publish them.

    Attributes:
      folders: where they stand below DATA_DIR; the first one that exists is taken.
      files: file names of each split; the first one that exists is taken.
      read: turns a file's rows into examples with the features that TensorFlow Datasets gives them.
      dtypes: of the features that are not text.
      columns: of a split whose file has no header line, the names of its columns.
      any_width: skip rows that lack a column, as TensorFlow Datasets does, instead of refusing the file.
      beside: the files that `read` opens besides the one it is given.
    """

    folders: tuple[str, ...]
    files: Mapping[str, tuple[str, ...]]
    read: Callable[[Path, Sequence[Record], str], Rows]
    dtypes: Mapping[str, tf.DType] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    any_width: bool = False
    beside: Callable[[Path], Sequence[Path]] = lambda path: ()

    def folder(self, data_dir: str | Path) -> Path | None:
        """The task's folder below DATA_DIR, which may also name one of the folders below it."""
        return next((place for place in self.places(data_dir) if place.is_dir()), None)

    def places(self, data_dir: str | Path) -> Iterator[Path]:
        """Where the folder is looked for, in turn."""
        root = Path(data_dir).expanduser()
        for folder in self.folders:
            if root.parts[-2:] == Path(folder).parts:
                yield root
            yield from (root / folder, root / Path(folder).name, root.parent / folder)

    def path(self, folder: Path, split: str) -> Path | None:
        return next((p for f in self.files[split] if (p := folder / f).is_file()), None)

    def rows(self, folder: Path, split: str) -> Rows:
        path = self.path(folder, split)
        if path is None:
            raise UserError(f"{folder} lacks the split {split!r}: expected {' or '.join(self.files[split])} there.")
        records = list(read_records(path, self.columns.get(split), self.any_width))
        if self.any_width:
            width = max((len(row) for _, row in records), default=0)
            records = [record for record in records if len(record[1]) == width]
        rows = self.read(path, records, split)
        if not rows:
            raise UserError(f"{path} holds no examples.")
        return rows


class Source(seqio.DataSource):
    """A SeqIO source over official files where DATA_DIR has them, else over TensorFlow Datasets; one schema for both.

    Args:
      tfds_name: name and pinned version, such as `super_glue/cb:1.0.2`; None where only files exist.
      splits: the names of the splits here, and what TensorFlow Datasets calls them.
      official: the files, if the task has any that this project reads.
      data_dir: the folder to look in; None reads the environment variable DATA_DIR at the moment of use.
      keep: of a split of which only some examples are wanted, which ones.
    """

    def __init__(
        self,
        tfds_name: str | None,
        splits: Mapping[str, str],
        official: OfficialFiles | None = None,
        data_dir: str | None = None,
        keep: Mapping[str, Callable[[Mapping[str, tf.Tensor]], tf.Tensor]] | None = None,
    ):
        super().__init__(splits)
        self.tfds_name, self.split_names, self.official, self.data_dir = tfds_name, dict(splits), official, data_dir
        self.keep = dict(keep or {})
        self._tfds = seqio.TfdsDataSource(tfds_name, splits=dict(splits)) if tfds_name else None

    def at(self, data_dir: str) -> "Source":
        """The same source, looking for official files in `data_dir`."""
        other = copy.copy(self)  # whatever a subclass has besides
        other.data_dir = data_dir
        return other

    def only(self, *splits: str) -> "Source":
        """The same source with some of its splits."""
        some, names = copy.copy(self), {s: self.split_names[s] for s in splits}
        some.split_names, some._splits = names, names
        if some.official:
            some.official = dataclasses.replace(some.official, files={s: some.official.files[s] for s in splits})
        if some.tfds_name:
            some._tfds = seqio.TfdsDataSource(some.tfds_name, splits=dict(names))
        return some

    @property
    def here(self) -> tuple[OfficialFiles, Path] | None:
        """The official files in use and their folder, or None where TensorFlow Datasets is used."""
        data_dir = self.data_dir or os.environ.get("DATA_DIR")
        folder = self.official.folder(data_dir) if self.official and data_dir else None
        return (self.official, folder) if self.official and folder else None

    def looked_at(self) -> list[Path] | None:
        """Every path that decides what is read; None where TensorFlow Datasets has not prepared the set here."""
        data_dir = self.data_dir or os.environ.get("DATA_DIR")
        paths = list(self.official.places(data_dir)) if self.official and data_dir else []
        if self.here is not None:
            official, folder = self.here
            files = [folder / file for names in official.files.values() for file in names]
            return [*paths, *files, *(path for file in files for path in official.beside(file))]
        root = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
        prepared = root / (self.tfds_name or "").replace(":", "/")
        if not self.tfds_name or ":" not in self.tfds_name or not prepared.is_dir():
            return None
        return [*paths, *(path for path in prepared.rglob("*") if path.is_file())]

    @property
    def splits(self) -> Sequence[str]:
        if self.here is None:
            return tuple(self.split_names)
        official, folder = self.here
        return tuple(s for s in official.files if official.path(folder, s))

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        if self.here is None:
            return self._from_tfds("list_shards", split)
        official, folder = self.here
        return [str(official.path(folder, split))]

    def num_input_examples(self, split: str) -> int | None:
        if split in self.keep:
            return sum(1 for _ in self.get_dataset(split, shuffle=False))
        if self.here is None:
            return self._from_tfds("num_input_examples", split)
        official, folder = self.here
        return len(official.rows(folder, split))

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        **unused: Any,
    ) -> tf.data.Dataset:
        if self.here is None:
            dataset = self._from_tfds("get_dataset", split=split, shuffle=shuffle, seed=seed, shard_info=shard_info)
        else:
            official, folder = self.here
            dataset = dataset_of(official.rows(folder, split), official.dtypes)
        return dataset.filter(self.keep[split]) if split in self.keep else dataset

    def _from_tfds(self, method: str, *args: Any, **kwargs: Any) -> Any:
        folder = self.official.folders[0] if self.official else ""
        if self._tfds is None:
            raise UserError(f"This set stands in no TensorFlow Datasets; put its files under DATA_DIR/{folder}.")
        try:
            return getattr(self._tfds, method)(*args, **kwargs)
        except Exception as error:  # the downloads of 30 sets fail in as many ways; each is the user's network or disk
            official = f", or set DATA_DIR to a folder with {folder}/" if folder else ""
            raise UserError(
                f"TensorFlow Datasets could not give {self.tfds_name} ({type(error).__name__}: {error}). Connect to "
                f"the network, set TFDS_DATA_DIR to a folder where it is prepared{official}."
            ) from error

    def __str__(self) -> str:
        if self.here is not None:
            files = sorted(p.name for p in self.here[1].iterdir() if p.is_file())
            return f"{self.here[1]} ({', '.join(files)})"
        if self.tfds_name:
            return f"TensorFlow Datasets {self.tfds_name}"
        return f"DATA_DIR/{self.official.folders[0]}" if self.official else "nowhere"

    __repr__ = __str__


LOCAL = {"train": ("train.tsv", "train.jsonl"), "validation": ("dev.tsv", "val.jsonl", "dev.jsonl")}


def local_only(
    folder: str, read: Callable[[Path, Sequence[Record], str], Rows], label: tf.DType = tf.int64,
    beside: Callable[[Path], Sequence[Path]] = lambda path: (),
) -> Source:  # fmt: skip
    """A set that stands in no TensorFlow Datasets: its files in DATA_DIR/spot, `{train,dev}.tsv` or `.jsonl`."""
    official = OfficialFiles((f"spot/{folder}",), LOCAL, read, {"label": label, "idx": tf.int32}, beside=beside)
    return Source(None, {split: split for split in LOCAL}, official)


def dataset_of(rows: Rows, dtypes: Mapping[str, tf.DType]) -> tf.data.Dataset:
    """Rows of text, numbers, lists of text and dictionaries of these; a field is text unless `dtypes` knows better."""
    return tf.data.Dataset.from_tensor_slices(_columns(rows, dtypes))


def _columns(rows: Rows, dtypes: Mapping[str, tf.DType]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        dtype = dtypes.get(name, tf.string)
        if isinstance(first, Mapping):
            columns[name] = _columns(values, dict.fromkeys(first, dtype))
        elif isinstance(first, list):
            columns[name] = tf.ragged.constant(values, dtype, ragged_rank=1)
        else:
            columns[name] = tf.constant(values, dtype)
    return columns


def field(path: Path, record: Record, name: str, kind: type = str) -> Any:
    """One field of a record, which must be there and of its kind."""
    line, row = record
    if name not in row:
        raise UserError(f"{path}:{line}: no field {name!r}; found {', '.join(row)}.")
    if not isinstance(row[name], kind):
        raise UserError(f"{path}:{line}: {name} should be {kind.__name__}, found {row[name]!r}.")
    return row[name]


def label(path: Path, record: Record, split: str, name: str, known: Sequence[Any]) -> int:
    """The place of a record's label in `known`; -1 where a test set keeps it back."""
    line, row = record
    if row.get(name) is None and split.startswith("test"):
        return -1
    if name not in row:
        raise UserError(f"{path}:{line}: no field {name!r}; found {', '.join(row)}.")
    # True == 1 in Python, so the kinds are compared too: a 1 among booleans is a wrong file, not a True.
    for i, k in enumerate(known):
        if row[name] == k and type(row[name]) is type(k):
            return i
    raise UserError(f"{path}:{line}: label {row[name]!r}; expected one of {', '.join(map(repr, known))}.")


def text_fields(
    fields: Mapping[str, str] | Sequence[str], classes: Sequence[Any], label_name: str = "label"
) -> Callable[[Path, Sequence[Record], str], Rows]:
    """A reader of sets whose rows are texts and a label: `fields` by feature name, with the file's names for them."""
    columns = dict(fields) if isinstance(fields, Mapping) else {f: f for f in fields}

    def read(path: Path, records: Sequence[Record], split: str) -> Rows:
        rows = []
        for n, record in enumerate(records):
            row: dict[str, Any] = {k: field(path, record, column) for k, column in columns.items()}
            if not any(map(str.strip, row.values())):
                raise UserError(f"{path}:{record[0]}: {' and '.join(columns.values())} empty.")
            row["label"] = label(path, record, split, label_name, classes)
            row["idx"] = n
            rows.append(row)
        return rows

    return read
