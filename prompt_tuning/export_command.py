"""prompt-tuning export | import: prompts to and from other programs' formats."""

import argparse
import dataclasses
from pathlib import Path

import jax.numpy as jnp

from prompt_tuning import export, prompt_file
from prompt_tuning.bank import PLACEMENTS
from prompt_tuning.base import base_of, load_base, spelling
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.examples import LENGTHS
from prompt_tuning.flags import whole_number
from prompt_tuning.vocabulary import Vocabulary

STABLEHLO = "stablehlo"


def export_parser() -> argparse.ArgumentParser:
    """The flags of `prompt-tuning export`."""
    parser = argparse.ArgumentParser(
        "prompt-tuning export", description="Writes a prompt as other programs read it.", allow_abbrev=False
    )
    parser.add_argument("source", help="a prompt file, a run's folder, a PEFT folder, or a T5X checkpoint")
    parser.add_argument("--out", required=True, metavar="PATH", help="a .npy or .safetensors file, else a folder")
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(_formats())}; default: as --out ends")
    group = parser.add_argument_group("for stablehlo, which holds the base too, and (--base alone) t5x, which may")
    group.add_argument("--base", metavar="PATH", help="default: for stablehlo, the one that the prompt's card names")
    group.add_argument("--vocabulary", metavar="FILE", help="SentencePiece model; default: the one beside the base")
    group.add_argument("--labels", nargs="+", metavar="LABEL", help="rank these; default: those of the prompt's card")
    group.add_argument("--input_length", type=whole_number(1), metavar="N", help="most tokens of an input; default: the card's, or 512")  # fmt: skip # noqa: E501
    return parser


def export_main(options: argparse.Namespace) -> int:
    """`prompt-tuning export`: one prompt, in the format asked for or the one that `--out` ends with."""
    out = Path(options.out).expanduser()
    name = options.format or export.ENDINGS.get(out.suffix)
    if name not in _formats():
        said = f"There is no format {name!r}.{nearest(name, _formats())}" if name else f"{out} does not end as one format does."  # fmt: skip # noqa: E501
        raise UserError(f"{said} Type --format NAME: {', '.join(_formats())}.")
    if out.is_file():
        raise UserError(f"{out} exists already. Give another name, or remove it.")
    if name == STABLEHLO:
        written = _export_program(options, out)
    elif name == "t5x" and options.base:
        written = export.with_base(options.base, options.source, out)
    else:
        written = export.export(options.source, name, out)
    print(f"{name}: {written}")
    return 0


def _formats() -> tuple[str, ...]:
    return (*export.FORMATS, STABLEHLO)


def _export_program(options: argparse.Namespace, out: Path) -> Path:
    from prompt_tuning import stablehlo  # JAX's export is needed for nothing else

    prompt = export.load(options.source)
    base = load_base(base_of([prompt.card], options.base, options.source), None, jnp.float32)
    vocabulary = Vocabulary(spelling(base, options.vocabulary))
    length = options.input_length or prompt.card.input_length or LENGTHS["inputs"]
    return stablehlo.write(prompt, base, vocabulary, options.labels or prompt.card.labels, length, out)


def import_parser() -> argparse.ArgumentParser:
    """The flags of `prompt-tuning import`."""
    parser = argparse.ArgumentParser(
        "prompt-tuning import",
        description="Reads a prompt from elsewhere into a .safetensors file with a card; flags fill in the card.",
        allow_abbrev=False,
    )
    parser.add_argument("source", help="a .npy or .safetensors file, a PEFT folder, or a T5X checkpoint")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--base", metavar="PATH", help="the frozen base it was tuned on, which is read to identify it")
    parser.add_argument("--name", help="what the prompt is called; default: as on its card, or as the file")
    parser.add_argument("--task", help="the task it was tuned on")
    parser.add_argument("--labels", nargs="+", metavar="LABEL", help="the answers it ranks, in the task's order")
    parser.add_argument("--placement", choices=PLACEMENTS, help="where it stands in the input; default: front")
    parser.add_argument("--input_length", type=whole_number(1), metavar="N", help="tokens that inputs were cut to")
    parser.add_argument("--target_length", type=whole_number(1), metavar="N", help="tokens that targets were cut to")
    return parser


def import_main(options: argparse.Namespace) -> int:
    """`prompt-tuning import`: any format into ours; what a flag says takes the place of what the source's card says."""
    out = prompt_file.named(Path(options.out).expanduser(), ".safetensors")
    if out.exists():
        raise UserError(f"{out} exists already. Give another name, or remove it.")
    prompt = export.load(options.source)
    told = {name: getattr(options, name) for name in ("name", "task", "placement", "input_length", "target_length")}
    told |= {"labels": tuple(options.labels) if options.labels else None}
    card = dataclasses.replace(prompt.card, **{name: value for name, value in told.items() if value})
    card = dataclasses.replace(card, name=card.name or out.stem, placement=card.placement or "front")
    if options.base:
        card = _identified(prompt, card, options.base, options.source)
    prompt_file.save_safetensors(out, prompt_file.Prompt(prompt.vectors, card))
    length, width = prompt.vectors.shape
    where = card.base or "a base that is not known (--base PATH)"
    print(f"{card.name}: {length} x {width} of {where}, in {out}")
    return 0


def _identified(prompt: prompt_file.Prompt, card: prompt_file.Card, path: str, source: str) -> prompt_file.Card:
    """The card with the base's path and digest, if it can be the prompt's base."""
    base = load_base(path, None, jnp.float32)
    base.check(prompt, source)
    if base.vocabulary and card.labels:
        Vocabulary(base.vocabulary).check_labels(card.labels, LENGTHS["inputs"], source)
    return dataclasses.replace(card, base=base.path, base_digest=base.digest)
