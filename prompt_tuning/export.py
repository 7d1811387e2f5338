"""Prompts that travel: npy, safetensors with a card, a PEFT folder, T5X's tree; written and read."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

from safetensors.numpy import save

from prompt_tuning import disk, prompt_file
from prompt_tuning.base_source import numbers
from prompt_tuning.errors import UserError, nearest
from prompt_tuning.prompt_file import PEFT_CONFIG, Prompt

PEFT_WEIGHTS, PEFT_TENSOR = "adapter_model.safetensors", "prompt_embeddings"
T5X_NAME = "encoder/prompt/prompt/prompt"  # in the authors' models


def export(source: str | Path | Prompt, format: str, out: str | Path) -> Path:
    """Writes a prompt, or what `load` reads in `source`, as `format`, one of `FORMATS`; returns what was written.

    npy and safetensors write the file `out`, peft the folder `out`, t5x the folder `out/checkpoint_STEP`. Folders that
    exist are left as they are. Only safetensors and peft keep the card. Raises UserError.
    """
    if format not in FORMATS:
        near = nearest(format, FORMATS)
        raise UserError(f"There is no prompt format {format!r}, only {', '.join(FORMATS)}.{near}")
    place = Path(out).expanduser()
    if format not in ENDINGS.values() and place.suffix in ENDINGS:
        raise UserError(f"{out} is the name of a file, and {format} is a folder. Give the name of one.")
    return FORMATS[format](source if isinstance(source, Prompt) else load(source), place)


def load(path: str | Path) -> Prompt:
    """Reads a prompt file, a PEFT folder, the prompt of a T5X checkpoint (`checkpoint_N` or the folder of such), or the
    only prompt of a run's folder.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return prompt_file.load(path)
    names = {entry.name for entry in path.iterdir()}
    if PEFT_CONFIG in names:
        return _load_peft(path)
    if prompt_file.is_of_t5x(names):
        return _load_t5x(path)
    inside = sorted((path / "prompts" if "prompts" in names else path).glob("*.safetensors"))
    if len(inside) > 1:
        raise UserError(f"There are {len(inside)} prompts in {path}. Give one: {' or '.join(map(str, inside[:4]))}")
    if inside:
        return prompt_file.load(inside[0])
    raise UserError(
        f"There is no prompt in the folder {path}: expected PEFT's {PEFT_CONFIG}, a T5X checkpoint, or a run's prompts."
        " For a single file, give its path: a .npy or .safetensors file."
    )


def _write_npy(prompt: Prompt, out: Path) -> Path:
    prompt_file.save_npy(prompt_file.named(out, ".npy"), prompt.vectors)
    return out


def _write_safetensors(prompt: Prompt, out: Path) -> Path:
    prompt_file.save_safetensors(out, prompt)
    return out


def _write_peft(prompt: Prompt, out: Path) -> Path:
    """A folder that `PeftModel.from_pretrained` reads; the prompt stands before the encoder's input only."""
    if prompt.card.placement not in ("", "front"):
        raise UserError(
            f"This prompt stands {prompt.card.placement} in the input, and PEFT puts prompts in front of it only:"
            " the model would compute something else. Export it as safetensors."
        )
    length, width = prompt.vectors.shape
    settings = {
        "base_model_name_or_path": prompt.card.base or None,
        "inference_mode": True,
        "num_attention_heads": None,  # PEFT fills both in from the model
        "num_layers": None,
        "num_transformer_submodules": 1,  # its default for sequence to sequence is 2: the decoder gets a prompt too
        "num_virtual_tokens": length,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": "SEQ_2_SEQ_LM",
        "token_dim": width,
        "tokenizer_name_or_path": None,
    }
    with disk.new_folder(out) as folder:
        (folder / PEFT_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
        card = {k: json.dumps(v) for k, v in dataclasses.asdict(prompt.card).items()}  # PEFT passes over it
        weights = save({PEFT_TENSOR: prompt.vectors}, metadata={"format": "pt", **card})
        (folder / PEFT_WEIGHTS).write_bytes(weights)  # safetensors itself would write for the file's owner alone
    return out


def _load_peft(folder: Path) -> Prompt:
    try:
        settings = json.loads((folder / PEFT_CONFIG).read_text())
        kind, parts = settings["peft_type"], settings.get("num_transformer_submodules")
        length = int(settings["num_virtual_tokens"]) if kind == "PROMPT_TUNING" else 0
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / PEFT_CONFIG} is not a readable PEFT configuration ({error!r}).") from error
    if kind != "PROMPT_TUNING":
        raise UserError(f"{folder} is a PEFT adapter of type {kind}; only PROMPT_TUNING is a prompt before the input.")
    if parts != 1 or settings.get("task_type") not in ("SEQ_2_SEQ_LM", None):
        raise UserError(
            f"{folder} was tuned for {settings.get('task_type')} with num_transformer_submodules={parts}: its prompt"
            " stands before the decoder's input too, which T5 prompt tuning has none of. Tune it in PEFT with"
            ' PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1, ...).'
        )
    weights = folder / PEFT_WEIGHTS
    if not weights.is_file():
        raise UserError(
            f"{folder} has no {PEFT_WEIGHTS}. A .bin file can run code when it is opened, so it is not read here: load"
            " it with PEFT and type model.save_pretrained(FOLDER), which writes safetensors."
        )
    prompt = prompt_file.load(weights)
    if len(prompt.vectors) != length:
        raise UserError(f"{weights} holds {len(prompt.vectors)} vectors, its {PEFT_CONFIG} says {length}.")
    base = prompt.card.base or str(settings.get("base_model_name_or_path") or "")
    return Prompt(prompt.vectors, dataclasses.replace(prompt.card, base=base))


def with_base(base_path: str | Path, source: str | Path, out: str | Path) -> Path:
    """Writes base and prompt as one T5X checkpoint, as the authors' runs leave it; returns `out/checkpoint_STEP`.

    STEP counts from the base's own step, as T5X does. Raises UserError, also for a prompt of another base.
    """
    from prompt_tuning import base, t5x_checkpoint  # JAX and TensorStore take longer to import than everything else

    loaded, prompt = base.load_base(base_path), load(source)
    loaded.check(prompt, str(source))
    params = {**loaded.params, "encoder": {**loaded.params["encoder"], **_tree(prompt)["encoder"]}}
    step = (loaded.step or 0) + (prompt.card.step or 0)
    return Path(t5x_checkpoint.save_t5x(params, Path(out).expanduser(), step))


def _tree(prompt: Prompt) -> dict:
    """The prompt where T5X's parameters have it."""
    tree: dict = {}
    at = tree
    *folders, leaf = T5X_NAME.split("/")
    for name in folders:
        at = at.setdefault(name, {})
    at[leaf] = prompt.vectors
    return tree


def _write_t5x(prompt: Prompt, out: Path) -> Path:
    """A checkpoint of the prompt alone, for T5X's partial restore and the authors' `extract_variable`."""
    from prompt_tuning import t5x_checkpoint  # TensorStore takes longer to import than everything else here

    return Path(t5x_checkpoint.save_t5x(_tree(prompt), out, prompt.card.step or 0))


def _load_t5x(folder: Path) -> Prompt:
    from prompt_tuning import t5x_checkpoint

    path = t5x_checkpoint.newest(str(folder.resolve()))
    contents = t5x_checkpoint.read_index(path)
    state, target = t5x_checkpoint.state_and_target(path, contents)
    found = {k: v for k, v in t5x_checkpoint.open_tensors(path, target).items() if "prompt" in k}
    name = T5X_NAME if T5X_NAME in found else next(iter(found)) if len(found) == 1 else None
    if name is None:
        raise UserError(
            f"{path} holds {len(found) or 'no'} tensors named after prompts ({', '.join(sorted(found)) or 'none'});"
            f" expected one, {T5X_NAME}."
        )
    shape, wanted = found[name].shape, "expected finite numbers [prompt length, embedding width]"
    if len(shape) != 2 or 0 in shape or 4 * math.prod(shape) > prompt_file.MAX_BYTES:
        raise UserError(f"{name} in {path} is {list(shape)}, not a prompt: {wanted}.")
    return Prompt(numbers(path, name, found[name]), prompt_file.Card(step=t5x_checkpoint.step_of(state)))


ENDINGS = {".npy": "npy", ".safetensors": "safetensors"}  # the other formats are folders
FORMATS: dict[str, Callable[[Prompt, Path], Path]] = {
    "npy": _write_npy,
    "safetensors": _write_safetensors,
    "peft": _write_peft,
    "t5x": _write_t5x,
}
