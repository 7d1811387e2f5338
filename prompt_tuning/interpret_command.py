"""prompt-tuning interpret: what a prompt lies near, as a table, a picture and JSON."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from prompt_tuning import disk, export, interpret, terminal
from prompt_tuning.base import base_of, open_source, spelling
from prompt_tuning.errors import UserError
from prompt_tuning.flags import whole_number
from prompt_tuning.interpret import Reading
from prompt_tuning.vocabulary import Vocabulary

EMBEDDING = "token_embedder/embedding"
SHOWN = 16  # clusters in the picture
MOST_NEIGHBOURS = 100  # of a vector: every pair of them is compared, and every vocabulary has its 100 extra ids


def parser() -> argparse.ArgumentParser:
    """The flags of `prompt-tuning interpret`."""
    made = argparse.ArgumentParser(
        "prompt-tuning interpret",
        description="Shows which words a prompt's vectors lie near (Lester et al. 2021, section 7).",
        allow_abbrev=False,
    )
    made.add_argument("prompt", help="a prompt file, a run's folder, a PEFT folder, or a T5X checkpoint")
    made.add_argument("--base", metavar="PATH", help="the frozen base; default: the one that the prompt's card names")
    made.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model; default: the one beside the base")
    made.add_argument("--labels", nargs="+", metavar="LABEL", help="look for these; default: those of the card")
    made.add_argument("--before", metavar="FILE", help="the prompt before training; default: drawn again as the card says")  # fmt: skip # noqa: E501
    made.add_argument("--neighbours", type=whole_number(2, MOST_NEIGHBOURS), default=5, metavar="N", help="pieces to show for each vector; default: 5")  # fmt: skip # noqa: E501
    made.add_argument("--out", metavar="FOLDER", help="write interpret.json and interpret.png there")
    return made


def main(options: argparse.Namespace) -> int:
    """`prompt-tuning interpret`."""
    folder = Path(options.out).expanduser() if options.out else None
    if folder and folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and --out takes a folder: name another.")
    reading = _read(options)
    show(reading)
    if folder:
        with disk.replacing(folder / "interpret.json") as file:
            file.write((json.dumps(as_json(reading), indent=1, ensure_ascii=False) + "\n").encode())
        draw(reading, folder / "interpret.png")
        print(f"{folder / 'interpret.json'}, {folder / 'interpret.png'}")
    return 0


def _read(options: argparse.Namespace) -> Reading:
    prompt = export.load(options.prompt)
    own = card = prompt.card
    if options.labels:
        card = dataclasses.replace(card, labels=tuple(options.labels))
    prompt = dataclasses.replace(prompt, card=dataclasses.replace(card, name=card.name or Path(options.prompt).stem))
    source = open_source(base_of([card], options.base, options.prompt))
    vocabulary = Vocabulary(spelling(source, options.vocabulary))
    length, width = prompt.vectors.shape
    prompt.check_width(source.config.emb_dim, options.prompt, f"the base {source.path}")
    if EMBEDDING not in source.tensors:
        raise UserError(f"The base {source.path} has no embedding table: it is no T5, or a part of one is missing.")
    table = source.read(EMBEDDING)  # of the base, only this is read
    if options.before:
        before: np.ndarray | None = export.load(options.before).vectors
        if before is not None and before.shape != prompt.vectors.shape:
            raise UserError(f"{options.before} is {before.shape[0]} x {before.shape[1]}, the prompt {length} x {width}: give the prompt it began as.")  # fmt: skip # noqa: E501
    else:
        before = interpret.first_prompt(own, length, table, vocabulary)
    return interpret.read(prompt, table, vocabulary, before, options.neighbours)


def show(reading: Reading) -> None:
    """The table, and what it comes to."""
    known = reading.positions[0].norm_before is not None
    table = Table(box=None, header_style="bold", title=f"{reading.name} {reading.task}".strip(), title_justify="left")
    for name in ("", "norm before", "norm", "cosine to before") if known else ("", "norm"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("nearest pieces (cosine)")
    table.add_column("tight", justify="right")
    for i, p in enumerate(reading.positions):
        norms = [f"{p.norm_before:.1f}", f"{p.norm:.1f}", f"{p.cosine_before:.2f}"] if known else [f"{p.norm:.1f}"]
        text = Text()
        for piece, cosine in zip(p.neighbours, p.cosines, strict=True):
            label = interpret.word_of(piece) in p.label_words
            text.append(piece.removeprefix("▁"), style="bold green" if label else "").append(f" {cosine:.2f}  ", "dim")
        table.add_row(str(i), *norms, text, Text(f"{p.tightness:.2f}{'*' if p.clustered else ' '}"))
    console = terminal.console()
    console.print(table)
    for line in summary(reading):
        console.print(line)


def summary(reading: Reading) -> list[str]:
    """The reading in a few sentences."""
    count, positions = len(reading.positions), reading.positions
    low, middle, high = reading.embedding_norms
    lines = [
        f"* {len(reading.clustered)} of {count} vectors have neighbours that form a cluster: tightness above"
        f" {reading.threshold:.2f}, as 1 in 100 random vectors has.",
        f"{reading.distinct} different pieces are the nearest of a vector.",
    ]
    for label, at in reading.label_hits.items():
        lines.append(f"{label}: near {len(at)} of {count} vectors{' (' + ', '.join(map(str, at[:12])) + ')' if at else ''}.")  # fmt: skip # noqa: E501
    before = [p.norm_before for p in positions if p.norm_before is not None]
    was = f", {np.mean(before):.1f} before training" if before else ""
    lines.append(
        f"Mean norm {np.mean([p.norm for p in positions]):.1f}{was}; embeddings {low:.1f} to {high:.1f},"
        f" half of them below {middle:.1f}."
    )
    return lines


def as_json(reading: Reading) -> dict[str, Any]:
    """Everything that was found, in plain values."""
    plain = dataclasses.asdict(reading)
    return plain | {"clustered": reading.clustered, "distinct_nearest": reading.distinct, "summary": summary(reading)}


def draw(reading: Reading, path: Path) -> None:
    """Norms before and after, tightness beside that of random vectors, and the tightest clusters."""
    from matplotlib import figure  # not pyplot: no display, no global state

    picture = figure.Figure(figsize=(11, 6), layout="constrained")
    grid = picture.add_gridspec(2, 2, width_ratios=[1, 1.05])
    _norms(picture.add_subplot(grid[0, 0]), reading)
    _tightness(picture.add_subplot(grid[1, 0]), reading)
    _clusters(picture.add_subplot(grid[:, 1]), reading)
    picture.suptitle(f"{reading.name}: {len(reading.positions)} vectors", x=0.01, ha="left", fontsize=11)
    picture.savefig(path, dpi=150)


def _norms(axes: Any, reading: Reading) -> None:
    at, norms = range(len(reading.positions)), [p.norm for p in reading.positions]
    low, _, high = reading.embedding_norms
    axes.axhspan(low, high, color="0.9", label="embeddings, 5 to 95%")
    before = [p.norm_before for p in reading.positions]
    if before[0] is not None:
        axes.plot(at, before, ".", ms=4, color="C1", label="before training")
    axes.plot(at, norms, ".-", ms=4, lw=0.8, color="C0", label="after")
    if max(norms) > 10 * low:  # long training makes them large
        axes.set_yscale("log")
    axes.set_xlabel("position")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98))
    _plain(axes, "norm")


def _tightness(axes: Any, reading: Reading) -> None:
    found = [p.tightness for p in reading.positions]
    edges = np.histogram_bin_edges([*found, *reading.random_tightness], 40)
    share = lambda values: np.full(len(values), 100 / len(values))
    for values, name, colour in ((reading.random_tightness, "random vectors", "0.75"), (found, "this prompt", "C0")):
        axes.hist(values, edges, weights=share(values), color=colour, alpha=0.8, label=name)
    axes.axvline(reading.threshold, color="0.3", lw=0.8, ls="--")
    axes.set_xlabel("mean cosine between a vector's neighbours")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes, "vectors (%)")


def _clusters(axes: Any, reading: Reading) -> None:
    tightest = sorted(range(len(reading.positions)), key=lambda i: -reading.positions[i].tightness)[:SHOWN]
    axes.set_axis_off()
    axes.set_title("tightest neighbours (position, pieces)", loc="left", fontsize=10)
    for line, i in enumerate(tightest):
        position = reading.positions[i]
        words = "  ".join(piece.replace("▁", "").replace("$", r"\$") for piece in position.neighbours)
        height = 1 - (line + 0.5) / SHOWN
        colour = "0" if position.clustered else "0.55"
        axes.text(0.06, height, str(i), transform=axes.transAxes, ha="right", va="center", fontsize=8, color="0.5")
        axes.text(0.09, height, words, transform=axes.transAxes, va="center", fontsize=9, color=colour, clip_on=True)


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
