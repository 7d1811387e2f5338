"""What requests and answers look like; FastAPI checks the ones and documents both."""

from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field

from prompt_tuning.serve.shelf import NAME

TEXTS, CHARACTERS, LABELS = 64, 20_000, 64

PromptName = Annotated[str, Field(pattern=NAME, examples=["glue_sst2"], description="a prompt that is loaded")]
NameInPath = Annotated[str, Path(pattern=NAME, examples=["glue_sst2"])]
Text = Annotated[str, Field(min_length=1, max_length=CHARACTERS, examples=["sentence: a charming journey ."])]
Texts = Annotated[list[Text], Field(min_length=1, max_length=TEXTS)]
Label = Annotated[str, Field(min_length=1, max_length=200)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: PromptName


class Predict(_Request):
    """Texts to answer: with the prompt's likeliest label, or in the model's own words if the prompt has no labels."""

    texts: Texts


class Rank(_Request):
    """Texts whose labels are ranked."""

    texts: Texts
    labels: Annotated[list[Label] | None, Field(min_length=1, max_length=LABELS)] = None  # None: the prompt's own


class Stream(_Request):
    """One text, answered in the model's own words, token by token."""

    text: Text


class Answer(BaseModel):
    """One text's answer."""

    text: str
    score: Annotated[float, Field(description="log-likelihood of the answer")]
    probabilities: Annotated[dict[str, float], Field(description="of each label; empty where it was written")]


class Answers(BaseModel):
    """One answer a text, in their order."""

    prompt: str
    answers: list[Answer]


class Ranked(BaseModel):
    """One label and how likely it is among the others."""

    label: str
    probability: float


class Rankings(BaseModel):
    """Each text's labels, likeliest first."""

    prompt: str
    rankings: list[list[Ranked]]


class Prompt(BaseModel):
    """A prompt that is loaded, as its card tells."""

    name: str
    length: Annotated[int, Field(description="vectors")]
    labels: Annotated[list[str], Field(description="what it ranks; empty if it writes")]
    input_length: Annotated[int, Field(description="tokens of a text at most")]
    task: str
    step: int | None
    score: float | None
    metric: str


class Prompts(BaseModel):
    """What is loaded, what else the folder holds, and how many more there is room for."""

    prompts: list[Prompt]
    available: list[str]
    free: int


class Health(BaseModel):
    """Whether it answers."""

    status: Literal["ready", "stopping", "broken"]
    prompts: int
    waiting: Annotated[int, Field(description="texts")]


class Error(BaseModel):
    """What was found, and what was expected."""

    error: str
