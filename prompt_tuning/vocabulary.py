"""Sentencepiece without TensorFlow: text to ids and back, the same ids as SeqIO's vocabulary."""

import functools
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import sentencepiece

from prompt_tuning.errors import UserError
from prompt_tuning.examples import Ragged

PAD_ID = 0
EOS_ID = 1
EXTRA_ID = "▁<extra_id_{}>"
FILES = ("spiece.model", "sentencepiece.model")  # what a model is called beside a base
SHIPPED = {"tiny": Path(__file__).parent / "tiny"}  # folders by the name of the base that comes along


class Vocabulary:
    """T5's vocabulary: the pieces of a sentencepiece model, then the extra ids that mark spans.

    As in T5, the extra ids count backwards from the end: `<extra_id_0>` is `size - 1`. They are added to a model that
    has none, such as T5's `spiece.model`, and not to one that has them (`cc_all.32000.100extra`, mT5's).

    Raises:
      UserError: the model file is missing or is no sentencepiece model.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID

    def __init__(self, path: str | Path, extra_ids: int = 100):
        self.path = str(_model_file(Path(path).expanduser()))
        self._model, self.extra_ids = _processor(self.path, extra_ids)

    @property
    def size(self) -> int:
        """Number of ids, extra ids included (32,100 for T5; its embedding table is padded beyond that)."""
        return int(self._model.get_piece_size())

    def save(self, path: str | Path) -> None:
        """Writes the model with its extra ids, so that sentencepiece alone gives the same ids."""
        Path(path).write_bytes(self._model.serialized_model_proto())

    @property
    def unk_id(self) -> int:
        return int(self._model.unk_id())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without EOS."""
        return self._model.encode(text)

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts, encoded on all cores."""
        return self._model.encode(list(texts), num_threads=-1)

    def tokenise(
        self, texts: Sequence[str], limit: int, add_eos: bool = True, keep_eos: bool = True
    ) -> tuple[Ragged, int]:
        """The ids of many texts, EOS added, none longer than `limit`; and how many had to be cut.

        A cut text still ends in EOS with `keep_eos`, as in SeqIO's `append_eos_after_trim`; else it ends where it was
        cut, as in `append_eos`.
        """
        tokens = self.encode_all(texts)
        cut = 0
        for ids in tokens:
            if add_eos:
                ids.append(EOS_ID)
            if len(ids) > limit:
                cut += 1
                del ids[limit:]
                if add_eos and keep_eos:
                    ids[-1] = EOS_ID
        return Ragged.of(tokens), cut

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first EOS; padding is dropped and ids past the end read as unknown."""
        kept = []
        for i in ids:
            if i == EOS_ID:
                break
            if i != PAD_ID:
                kept.append(int(i) if i < self.size else self.unk_id)
        return self._model.decode(kept)

    def piece(self, id: int) -> str:
        """The piece behind one id, for people; ids in the table's padding have none and show as their number."""
        return self._model.id_to_piece(int(id)) if 0 <= id < self.size else f"<{id}>"

    def check_labels(self, labels: Sequence[str], limit: int, of: str) -> None:
        """Raises UserError for a label that is there twice, has an unknown piece, or is longer than targets may be."""
        if len(set(labels)) < len(labels):
            raise UserError(f"The labels of {of} are {', '.join(map(repr, labels))}: each stands there once.")
        for label in labels:
            if not self.can_spell(label):
                raise UserError(f"The vocabulary {self.path} cannot spell the label {label!r} of {of}.")
            if (length := len(self.encode(label)) + 1) > limit:
                raise UserError(
                    f"The label {label!r} of {of} has {length} tokens, EOS included; targets of {limit} would cut it. "
                    "Raise the targets' length in TASK_FEATURE_LENGTHS."
                )
        spelled: dict[tuple[int, ...], str] = {}
        for label in labels:
            if (other := spelled.setdefault(tuple(self.encode(label)), label)) != label:
                raise UserError(
                    f"The labels {other!r} and {label!r} of {of} are the same pieces to the vocabulary, so that one of"
                    " them is never the answer: leave one out, or let both be one label."
                )

    def can_spell(self, text: str) -> bool:
        """Whether a text has at least one piece and no unknown one."""
        ids = self.encode(text)
        return bool(ids) and self.unk_id not in ids


def _model_file(path: Path) -> Path:
    """The model in a folder, as it stands beside a base, or in one of `SHIPPED`; any other path as it is."""
    folder = path if path.is_dir() else SHIPPED.get(str(path), path)
    inside = [folder / name for name in FILES]
    return next((p for p in inside if p.is_file()), path)


def encodable(text: str, what: str) -> str:
    """The text. Raises UserError, which begins with `what` it is, where half of a character stands in it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} {text!a} is not UTF-8: character {error.start + 1} is half of one.") from None
    return text


def warn_of_cut(lost: int, total: int, of: str, limit: int) -> None:
    """Says that targets were cut, which no training puts right."""
    if lost:
        warnings.warn(
            f"{lost:,} of {total:,} targets of {of} are longer than {limit} tokens and were cut; raise the targets' "
            "length in TASK_FEATURE_LENGTHS.",
            stacklevel=3,
        )


@functools.lru_cache(maxsize=8)
def _processor(path: str, extra_ids: int) -> tuple[sentencepiece.SentencePieceProcessor, int]:
    """The model with so many extra ids, and how many of them were added to its own."""
    where = Path(path).expanduser()
    if not where.is_file():
        found = "is a folder" if where.is_dir() else "does not exist"
        raise UserError(f"The vocabulary {path} {found}; expected a sentencepiece model such as T5's spiece.model.")
    processor = sentencepiece.SentencePieceProcessor()
    model = where.read_bytes()
    try:
        if not model:
            raise RuntimeError("the file is empty")
        if EXTRA_ID.format(0).encode() in model:
            extra_ids = 0
        # A serialised protocol buffer grows by concatenation, so the extra ids are appended as further pieces.
        extra = b"".join(_user_defined_piece(EXTRA_ID.format(i)) for i in reversed(range(extra_ids)))
        processor.LoadFromSerializedProto(model + extra)
        if processor.get_piece_size() <= extra_ids:
            raise RuntimeError("it holds no pieces")
    except RuntimeError as error:
        raise UserError(f"{path} is not a sentencepiece model ({len(model):,} bytes): {error}") from None
    if (processor.pad_id(), processor.eos_id()) != (PAD_ID, EOS_ID):
        raise UserError(
            f"{path} has padding id {processor.pad_id()} and end-of-sequence id {processor.eos_id()}; "
            f"a T5 vocabulary has {PAD_ID} and {EOS_ID}."
        )
    return processor, extra_ids


def _user_defined_piece(piece: str) -> bytes:
    """One `ModelProto.pieces` entry: field 1 {1: piece, 2: score 0.0, 3: type USER_DEFINED}."""
    text = piece.encode()
    body = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0.0) + b"\x18\x04"
    return b"\x0a" + bytes([len(body)]) + body
