"""Soft prompts for a frozen T5 (Lester et al. 2021) and their transfer between tasks (Vu et al. 2022).

    import prompt_tuning as pt

    tuned = pt.tune("tiny", "demo_acceptability", "runs/acceptability", TRAIN_STEPS=200, PROMPT_LENGTH=20)
    tuned.predict("sentence: He sat the by fire.")

Letters in every shape: B examples, R packed rows, K slots, P prompt length, T input tokens, S encoder length (prompt
and input), L target length, D model width, H heads, V vocabulary.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_tuning.errors import UserError
    from prompt_tuning.export import export as export_prompt
    from prompt_tuning.export import load as load_prompt
    from prompt_tuning.infer import Answer
    from prompt_tuning.notebook import score, tune
    from prompt_tuning.predict import PromptTuned, Request
    from prompt_tuning.prompt_file import Card, Prompt
    from prompt_tuning.prompt_file import save_safetensors as save_prompt

__version__ = "0.1.0"

_HOMES = {
    "Answer": "infer.Answer",
    "Card": "prompt_file.Card",
    "Prompt": "prompt_file.Prompt",
    "PromptTuned": "predict.PromptTuned",
    "Request": "predict.Request",
    "UserError": "errors.UserError",
    "export_prompt": "export.export",
    "load_prompt": "export.load",
    "save_prompt": "prompt_file.save_safetensors",
    "score": "notebook.score",
    "tune": "notebook.tune",
}
__all__ = [
    "Answer",
    "Card",
    "Prompt",
    "PromptTuned",
    "Request",
    "UserError",
    "export_prompt",
    "load_prompt",
    "save_prompt",
    "score",
    "tune",
]


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported when it is first asked for: JAX takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name].split(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__
