"""Rows of JSONL, CSV, TSV and Parquet files, each with the line it stands on, so that a mistake can be pointed at."""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from prompt_tuning.errors import UserError

Record = tuple[int, dict[str, Any]]  # line number (row number in Parquet), counted from 1; columns by name
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # how such a file begins
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_records(path: Path, columns: Sequence[str] | None = None, any_width: bool = False) -> Iterator[Record]:
    """The rows of a file, by its ending.

    Args:
      path: a .jsonl, .csv, .tsv or .parquet file. TSV knows no quotes, as in GLUE; CSV has the usual ones.
      columns: names for the columns of a CSV or TSV file without a header line.
      any_width: let a row of a table have fewer or more columns than its header, as some published files do.

    Raises:
      UserError: with file and line: no such file, not UTF-8, not an object, a row of another width than the header.
    """
    try:
        there, folder = path.is_file(), path.is_dir()
    except OSError as error:  # such as a name of 300 letters
        raise UserError(f"{path} cannot be looked for ({error.strerror}); expected a file of examples.") from error
    if not there:
        raise UserError(f"{path} {'is a folder' if folder else 'does not exist'}; expected a file of examples.")
    match path.suffix.lower():
        case ".jsonl" | ".json":
            return _jsonl(path)
        case ".tsv":
            return _table(path, ((n, line.split("\t")) for n, line in _lines(path)), columns, any_width)
        case ".csv":
            return _table(path, _csv(path), columns, any_width)
        case ".parquet":
            return _parquet(path)
    raise UserError(f"{path} ends in {path.suffix!r}; expected one of {', '.join(FORMATS)}.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        yield from lines(file, str(path))


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Lines, from 1, by \\n alone: Python's own text mode would also break at characters that occur inside sentences.

    Raises UserError for one that is not UTF-8.
    """
    for n, raw in enumerate(file, 1):
        try:
            line = raw.decode("utf-8-sig" if n == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{name}:{n}: byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8. "
                f"Convert the file, for example with `iconv -f {'utf-16' if raw[:2] in UTF_16 else 'latin1'} -t utf-8`."
            ) from None
        yield n, line.rstrip("\r\n")


def _jsonl(path: Path) -> Iterator[Record]:
    for n, line in _lines(path):
        if not line.strip():
            continue
        if line.lstrip().startswith("["):  # the whole file as one value, often over many lines
            raise UserError(
                f"{path}:{n}: expected a JSON object {{...}} on each line, found a list. `jq -c '.[]' {path.name} >"
                f" {path.stem}_lines.jsonl` writes what is in it on a line each."
            )
        row = parsed(line, f"{path}:{n}")
        if not isinstance(row, dict):
            raise UserError(f"{path}:{n}: expected a JSON object {{...}} on each line, found {type(row).__name__}.")
        yield n, row


def parsed(line: str, at: str) -> Any:
    """The JSON value of a line. Raises UserError, which starts with `at`, for what is none or cannot be text again."""
    try:
        value = json.loads(line)
        if "\\u" in line:
            json.dumps(value, ensure_ascii=False).encode()  # JSON can spell half a character, and UTF-8 cannot
        return value
    except json.JSONDecodeError as error:
        cut = " The line looks truncated." if error.pos >= len(line.rstrip()) or "Unterminated" in error.msg else ""
        raise UserError(f"{at}: not JSON: {error.msg} at column {error.colno}.{cut}") from None
    except UnicodeEncodeError as error:
        raise UserError(f"{at}: the escape \\u{ord(error.object[error.start]):x} is half a character.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{at}: not JSON that can be read: {error}.") from None


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)  # else a text of more than 131,072 letters is taken for no CSV
    reader = csv.reader((line + "\n" for _, line in _lines(path)), strict=True)
    start = 1
    try:
        for row in reader:
            yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{start}: not CSV: {error}.") from None


def _table(
    path: Path, rows: Iterator[tuple[int, list[str]]], columns: Sequence[str] | None, any_width: bool
) -> Iterator[Record]:
    for n, row in rows:
        if not row or row == [""]:
            continue
        if columns is None:
            columns = row
            if twice := next((name for name in columns if name and columns.count(name) > 1), None):
                raise UserError(f"{path}:{n}: two columns are called {twice!r}. Give one of them another name.")
            continue
        if len(row) != len(columns) and not any_width:
            raise UserError(
                f"{path}:{n}: {len(row)} columns where {len(columns)} were expected ({', '.join(columns)})."
            )
        yield n, dict(zip(columns, row, strict=False))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}") from None
