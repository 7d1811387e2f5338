"""A run over prompts that were trained before, as their cards say."""

import dataclasses
from collections.abc import Sequence

from prompt_tuning import bank
from prompt_tuning.examples import LENGTHS
from prompt_tuning.prompt_file import Card, Prompt
from prompt_tuning.run import Data, Run
from prompt_tuning.slots import Slot


def over_prompts(run: Run, prompts: Sequence[tuple[str, Prompt]]) -> Run:
    """The run with a slot for each named prompt, of the configured task, base and lengths.

    Where none is configured, the card says it; of several lengths the longest is taken. Likewise its labels. A prompt
    without a card stands where PROMPT_PLACEMENT says.
    """
    configured, rows = Slot(), []
    for name, prompt in prompts:
        card, row = prompt.card, {"name": name, "length": len(prompt.vectors)}
        if card.placement:
            row["placement"] = bank.placement(card, name)
        if card.labels and not configured.labels:
            row["labels"] = card.labels
        if card.task and not (run.data.task_file or configured.task):
            row["task"] = card.task
        rows.append(row)
    base = run.frozen.path or next((prompt.card.base for _, prompt in prompts if prompt.card.base), None)
    data = _as_trained(run.data, [prompt.card for _, prompt in prompts])
    return dataclasses.replace(run, slots=rows, grid=None, data=data, frozen=dataclasses.replace(run.frozen, path=base))


def _as_trained(data: Data, cards: Sequence[Card]) -> Data:
    """With examples cut where prompts of these cards were trained, unless lengths were set."""
    if not data.lengths == data.eval_lengths == LENGTHS:
        return data
    told = {"inputs": [c.input_length for c in cards], "targets": [c.target_length for c in cards]}
    lengths = {name: max((n for n in each if n), default=LENGTHS[name]) for name, each in told.items()}
    return dataclasses.replace(data, lengths=lengths, eval_lengths=lengths)
