"""prompt-tuning data prepare: the official files of SuperGLUE and GLUE, downloaded, checked and listed."""

import argparse
import dataclasses
import hashlib
import http.client
import importlib.util
import os
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from prompt_tuning import disk, terminal
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.records import read_records

SUPERGLUE_URL = "https://dl.fbaipublicfiles.com/glue/superglue/data/v2"
GLUE_URL = "https://dl.fbaipublicfiles.com/glue/data"
MRPC_URL = "https://dl.fbaipublicfiles.com/senteval/senteval_data"
MRPC_DEV_IDS = (
    "https://firebasestorage.googleapis.com/v0/b/mtl-sentence-representations.appspot.com/o/data%2Fmrpc_dev_ids.tsv"
    "?alt=media&token=ec5c0836-31d5-48f4-b431-7480817f1adc"
)
SUMS = "SHA256SUMS"  # of the files below DATA_DIR, written when they were prepared
JSONL = ("train.jsonl", "val.jsonl")
TABLES = ("train.tsv", "dev.tsv")
MNLI_TEST = ("test_matched.tsv", "test_mismatched.tsv")


@dataclasses.dataclass(frozen=True)
class Published:
    """A set as its authors publish it: the folder below DATA_DIR, what belongs into it, and where it comes from.

    The test sets, whose labels are kept back, are taken along but not missed.
    """

    folder: str
    files: tuple[str, ...]
    urls: tuple[str, ...]
    extras: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.folder).name


SETS = [
    *(
        Published(f"superglue/{n}", JSONL, (f"{SUPERGLUE_URL}/{n}.zip",), ("test.jsonl",))
        for n in ("BoolQ", "CB", "COPA", "MultiRC", "ReCoRD", "RTE", "WiC", "WSC")
    ),
    *(Published(f"superglue/{n}", (f"{n}.jsonl",), (f"{SUPERGLUE_URL}/{n}.zip",)) for n in ("AX-b", "AX-g")),
    *(
        Published(f"glue/{n}", TABLES, (f"{GLUE_URL}/{'QNLIv2' if n == 'QNLI' else n}.zip",), ("test.tsv",))
        for n in ("CoLA", "SST-2", "QQP", "STS-B", "QNLI", "RTE", "WNLI")
    ),
    Published(
        "glue/MNLI", ("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"), (f"{GLUE_URL}/MNLI.zip",), MNLI_TEST
    ),
    Published(
        "glue/MRPC",
        ("train.tsv", "dev.tsv"),
        (f"{MRPC_URL}/msr_paraphrase_train.txt", MRPC_DEV_IDS),
    ),
]


def main(options: argparse.Namespace) -> int:
    """Downloads what is missing, checks what is there; 0 if every asked set is whole and unchanged, else 1."""
    if options.tfds:
        return _prepare_tfds(options.names)
    root = Path(options.data_dir or os.environ.get("DATA_DIR", "")).expanduser()
    if not (options.data_dir or os.environ.get("DATA_DIR")):
        raise UserError("Say where the files go: --data_dir DIR, or the environment variable DATA_DIR.")
    chosen = _chosen(options.names)
    console = terminal.console()
    failures = {}
    if not options.verify:
        for published in chosen:
            if missing(root, published):
                try:
                    download(root, published, console)
                except UserError as error:
                    failures[published.folder] = str(error)
    changed = check_sums(root, chosen)
    console.print(_report(root, chosen, changed))
    for folder, why in failures.items():
        console.print(f"{folder}: {why}", style="red", soft_wrap=True)
    lacking = [p for p in chosen if missing(root, p)]
    if lacking:
        console.print(f"{len(lacking)} of {len(chosen)} sets are not whole. Where there is no network, put the files")
        console.print(f"from these addresses below {root}, in the folders named above:")
        for published in lacking:
            console.print("  " + "\n  ".join(published.urls), soft_wrap=True)
    return 1 if lacking or changed else 0


def _chosen(names: Sequence[str]) -> list[Published]:
    """Every set of these names, such as RTE of either benchmark, or superglue/RTE; all sets without a name."""
    known = {name for p in SETS for name in (p.name, p.folder)}
    for name in names:
        if name not in known:
            listed = ", ".join(p.folder for p in SETS)
            raise UserError(f"No set is called {name!r}.{nearest(name, known)} Known: {listed}.")
    return [p for p in SETS if not names or p.name in names or p.folder in names]


def missing(root: Path, published: Published) -> list[str]:
    """The set's files that do not stand below the root."""
    return [f for f in published.files if not (root / published.folder / f).is_file()]


def download(root: Path, published: Published, console: Console) -> None:
    """Fetches a set and puts its missing files in place, each complete or not at all."""
    folder = root / published.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        fetched = [_fetch(url, Path(scratch) / f"download{i}", console) for i, url in enumerate(published.urls)]
        if published.name == "MRPC":
            made = _split_mrpc(*fetched)
        else:
            made = _unzip(fetched[0], [f for f in (*published.files, *published.extras) if not (folder / f).is_file()])
        for name, content in made.items():
            part = Path(scratch) / name
            part.write_bytes(content)
            part.replace(folder / name)
    _write_sums(root, [folder / name for name in made])


def _fetch(url: str, to: Path, console: Console) -> Path:
    """Downloads with a progress bar, and compares with the checksum that TensorFlow Datasets knows of the address."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, to.open("wb") as file:  # noqa: S310 - addresses above
            size = int(answer.headers.get("Content-Length") or 0)
            with Progress(*columns, console=console, transient=True) as progress:
                task = progress.add_task(url.split("?")[0].rsplit("/", 1)[-1], total=size or None)
                while block := answer.read(1 << 20):
                    file.write(block)
                    digest.update(block)
                    progress.advance(task, len(block))
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise UserError(f"could not download {url} ({error}).") from None
    expected = published_sums().get(url)
    if expected and digest.hexdigest() != expected:
        raise UserError(f"{url} has the checksum {digest.hexdigest()}; TensorFlow Datasets expects {expected}.")
    return to


def published_sums() -> dict[str, str]:
    """SHA-256 by address, from the lists that TensorFlow Datasets brings; found without importing it."""
    spec = importlib.util.find_spec("tensorflow_datasets")
    sums: dict[str, str] = {}
    for folder in spec.submodule_search_locations or () if spec else ():
        for name in ("glue.txt", "super_glue.txt"):
            path = Path(folder) / "url_checksums" / name
            if path.is_file():
                rows = (line.split("\t") for line in path.read_text().splitlines())
                sums |= {row[0]: row[2] for row in rows if len(row) >= 3}
    return sums


def _unzip(archive: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """The wanted files of an archive, wherever in it they stand."""
    try:
        with zipfile.ZipFile(archive) as opened:
            by_name = {Path(m).name: m for m in opened.namelist() if "original" not in m and "__MACOSX" not in m}
            return {name: opened.read(by_name[name]) for name in wanted if name in by_name}
    except zipfile.BadZipFile as error:
        raise UserError(f"the download is no zip archive ({error}).") from None


def _split_mrpc(pairs: Path, dev_ids: Path) -> dict[str, bytes]:
    """GLUE's own division of MRPC: the pairs whose ids are listed are the development set."""
    tables = [p.rename(p.with_suffix(".tsv")) for p in (pairs, dev_ids)]
    dev = {(row["first"], row["second"]) for _, row in read_records(tables[1], ("first", "second"), any_width=True)}
    rows = [row for _, row in read_records(tables[0])]
    parts = {
        "train.tsv": [r for r in rows if (r["#1 ID"], r["#2 ID"]) not in dev],
        "dev.tsv": [r for r in rows if (r["#1 ID"], r["#2 ID"]) in dev],
    }
    header = "\t".join(rows[0]) + "\n"
    return {
        name: (header + "".join("\t".join(r.values()) + "\n" for r in part)).encode() for name, part in parts.items()
    }


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_sums(root: Path) -> dict[str, str]:
    path = root / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text ({error}). Remove it: without it, files are not compared.") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        match line.split(maxsplit=1):
            case [digest, name]:
                sums[name] = digest
            case [_]:
                raise UserError(f"{path}:{number} is {line[:80]!r}, not a checksum and a file: remove that line.")
    return sums


def _write_sums(root: Path, files: Sequence[Path]) -> None:
    """Adds the files to the list of checksums, in the format of `sha256sum --check`."""
    sums = _read_sums(root) | {f.relative_to(root).as_posix(): _sum(f) for f in files}
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    with disk.replacing(root / SUMS) as file:
        file.write("".join(lines).encode())


def check_sums(root: Path, chosen: Sequence[Published]) -> set[str]:
    """The files, by their path below the root, that are no longer what they were when they were prepared."""
    known = _read_sums(root)
    names = [f"{p.folder}/{f}" for p in chosen for f in (*p.files, *p.extras)]
    return {n for n in names if n in known and (root / n).is_file() and _sum(root / n) != known[n]}


def _report(root: Path, chosen: Sequence[Published], changed: set[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"Official files below {root}", title_justify="left")
    for column in ("set", "files", "MB", "state"):
        table.add_column(column, justify="right" if column == "MB" else "left", overflow="fold")
    for published in chosen:
        here = [f for f in (*published.files, *published.extras) if (root / published.folder / f).is_file()]
        size = sum((root / published.folder / f).stat().st_size for f in here) / 1e6
        state = [Text(f"missing {f}", "red") for f in missing(root, published)]
        state += [
            Text(f"changed {Path(n).name}", "red") for n in sorted(changed) if n.startswith(f"{published.folder}/")
        ]
        table.add_row(published.folder, " ".join(here), f"{size:.1f}", Text(", ").join(state) or Text("whole", "green"))
    return table


def _prepare_tfds(names: Sequence[str]) -> int:
    """Has TensorFlow Datasets download and prepare the sets of tasks, which it shows and checks itself."""
    from prompt_tuning import data

    if not names:
        raise UserError("Name the tasks to prepare, as in `prompt-tuning data prepare --tfds glue_sst2 squad`.")
    for name in names:
        data.prepare_tfds(name)
    return 0
