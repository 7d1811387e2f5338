"""prompt-tuning eval: a run's best prompts, or a prompt from a file, scored on a split of their tasks."""

import json

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from prompt_tuning import device, infer, inits, prompt_file
from prompt_tuning.checkpoint import Checkpointer
from prompt_tuning.errors import UserError
from prompt_tuning.run import Opened, Run, open_run


def evaluate_run(run: Run) -> list[dict[str, float]]:
    """Prints each slot's metrics on EVAL_SPLIT and adds them to `MODEL_DIR/eval.jsonl`."""
    opened = open_run(run)
    bank, steps = _prompts(opened)
    params = opened.base.params | {"prompt": {"bank": jnp.asarray(bank)}}
    params = params | {"prompt": device.put_everywhere(params["prompt"], opened.mesh)}
    held_out = opened.held_out()
    with device.on(opened.mesh):
        metrics = infer.evaluate(opened.answerer(), params, held_out, run.predict)
    table = Table("prompt", "step", "split", "examples", "metrics", box=None, header_style="bold")
    for slot, step, pairs, found in zip(opened.slots, steps, held_out, metrics, strict=True):
        shown = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
        table.add_row(slot.name, step, run.data.eval_split, f"{sum(len(e) for _, e in pairs):,}", shown)
    Console().print(table)
    if run.model_dir:
        named = {slot.name: found for slot, found in zip(opened.slots, metrics, strict=True)}
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "eval.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"split": run.data.eval_split, "step": steps, "metrics": named}) + "\n")
    return metrics


def _prompts(opened: Opened) -> tuple[np.ndarray, list[str]]:
    """The bank to score and the step each prompt is of; a prompt that is not there is an error."""
    run = opened.run
    if any(getattr(slot.init, "__name__", "") == inits.from_file.__name__ for slot in opened.slots):
        return opened.start_bank(), ["file"] * len(opened.slots)
    bank = np.zeros((len(opened.slots), opened.model.length, opened.base.config.emb_dim), np.float32)
    if not (run.folder / "checkpoints").is_dir() or Checkpointer(run.folder).latest is None:
        raise UserError(
            f"There is no checkpoint in {run.folder}. Train first, or type --gin_file=prompts/from_file.gin"
            " --gin.PROMPT_FILE=PATH to score a prompt from a file."
        )
    steps = []
    for k, slot in enumerate(opened.slots):
        path = run.folder / "prompts" / f"{slot.name}.safetensors"
        prompt = prompt_file.load(path)
        if prompt.card.base_digest and prompt.card.base_digest != opened.base.digest:
            raise UserError(f"The prompt {path} was tuned on another base, {prompt.card.base}.")
        bank[k, : slot.length] = prompt.vectors
        steps.append(str(prompt.card.step))
    return bank, steps
