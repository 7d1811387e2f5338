"""The HTTP application: routes, their answers, and the page (FastAPI)."""

import json
import mimetypes
from collections.abc import AsyncIterator, Collection, Sequence
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from prompt_tuning import __version__, infer
from prompt_tuning.bank import Entry
from prompt_tuning.serve import schemas
from prompt_tuning.serve.engine import Piece, Removed
from prompt_tuning.serve.gate import BROKEN, Gate, Refusal
from prompt_tuning.serve.metrics import CONTENT_TYPE_LATEST
from prompt_tuning.serve.service import Service

PAGE = ("index.html", "page.css", "page.js")
BUSY = {408: "The body came too slowly.", 413: "The body is too large.", 429: "Too many texts wait: try again.", 503: "The server is stopping."}  # fmt: skip # noqa: E501


def create_app(service: Service, hosts: Collection[str] | None = None) -> Gate:
    """The application around one service, for requests to one of `hosts`, or to any."""
    api = FastAPI(
        title="prompt-tuning", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False,
        description="A frozen T5 behind soft prompts: each text names the prompt it is answered behind.",
        exception_handlers={
            RequestValidationError: _invalid, HTTPException: _failed, Refusal: _refused,
            Exception: _broken,
        },
    )  # fmt: skip
    _answers(api, service)
    _prompts(api, service)
    _about(api, service)
    limits = service.limits
    return Gate(api, service.metrics, limits.body, limits.seconds, lambda: service.stopping, hosts)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    meaning = {404: "There is no such prompt.", 409: "The prompt is in another state.", 422: "It cannot be answered."}
    return {status: {"model": schemas.Error, "description": (meaning | BUSY)[status]} for status in statuses}


def _answers(api: FastAPI, service: Service) -> None:
    refused = _errors(404, 408, 409, 413, 422, 429, 503)

    @api.post("/v1/predict", responses=refused, tags=["answers"])
    async def predict(asked: schemas.Predict) -> schemas.Answers:
        """Answers texts with the prompt's likeliest label, or in the model's own words if it has none."""
        found = await service.answer(asked.prompt, asked.texts, service.entry(asked.prompt).labels)
        answers = [schemas.Answer.model_construct(**_fields(answer)) for answer in found]
        return schemas.Answers.model_construct(prompt=asked.prompt, answers=answers)

    @api.post("/v1/rank", responses=refused, tags=["answers"])
    async def rank(asked: schemas.Rank) -> schemas.Rankings:
        """Ranks labels, the prompt's own or those given, for each text."""
        labels = service.entry(asked.prompt).labels
        if asked.labels:
            labels = tuple(asked.labels)
            service.check_labels(labels)
        if not labels:
            raise Refusal(422, f"The prompt {asked.prompt!r} has no labels of its own: give 'labels'.")
        found = await service.answer(asked.prompt, asked.texts, labels)
        return schemas.Rankings.model_construct(prompt=asked.prompt, rankings=[_ranking(answer) for answer in found])

    events: dict[int | str, Any] = {
        200: {"content": {"text/event-stream": {}}, "description": "Events: token, then done or error."}
    }

    @api.post("/v1/stream", responses={**events, **refused}, tags=["answers"], response_class=StreamingResponse)
    async def stream(asked: schemas.Stream) -> StreamingResponse:
        """Writes one answer in the model's own words, greedily, an event a token."""
        heard = await service.stream(asked.prompt, asked.text)
        return StreamingResponse(_events(heard), media_type="text/event-stream", headers={"cache-control": "no-store"})


def _fields(answer: infer.Answer) -> dict[str, Any]:
    return {"text": answer.text, "score": answer.score, "probabilities": answer.probabilities}


def _ranking(answer: infer.Answer) -> list[schemas.Ranked]:
    ordered = sorted(answer.probabilities.items(), key=lambda pair: -pair[1])
    return [schemas.Ranked.model_construct(label=label, probability=p) for label, p in ordered]


async def _events(heard: AsyncIterator[Piece | infer.Answer]) -> AsyncIterator[str]:
    try:
        async for what in heard:
            if isinstance(what, Piece):
                yield _event("token", {"token": what.token, "piece": what.piece, "text": what.text})
            else:
                yield _event("done", {"text": what.text, "score": what.score})
    except Removed:
        yield _event("error", {"error": "The prompt was removed before its turn came."})
    except Exception:
        yield _event("error", {"error": BROKEN})


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n"


def _prompts(api: FastAPI, service: Service) -> None:
    @api.get("/v1/prompts", responses=_errors(503), tags=["prompts"])
    def list_prompts() -> schemas.Prompts:
        """The prompts that are loaded, and those that can be."""
        loaded = service.tuned.prompts
        return schemas.Prompts(
            prompts=[_prompt(service, entry) for _, entry in sorted(loaded.items())],
            available=[name for name in service.shelf.names() if name not in loaded],
            free=len(service.tuned.bank.entries) - len(loaded),
        )

    @api.put("/v1/prompts/{name}", status_code=201, responses=_errors(404, 408, 409, 413, 422, 503), tags=["prompts"])
    async def add_prompt(name: schemas.NameInPath) -> schemas.Prompt:
        """Loads NAME.safetensors or NAME.npy of the server's folder into a free slot; nothing is compiled."""
        return _prompt(service, await service.add(name))

    @api.delete("/v1/prompts/{name}", status_code=204, responses=_errors(404, 422, 503), tags=["prompts"])
    async def remove_prompt(name: schemas.NameInPath) -> Response:
        """Frees the prompt's slot; its file stays where it is."""
        await service.remove(name)
        return Response(status_code=204)


def _prompt(service: Service, entry: Entry) -> schemas.Prompt:
    card = entry.card
    return schemas.Prompt(
        name=entry.name, length=entry.slot.length, labels=list(entry.labels), task=card.task,
        input_length=min(entry.input_length, service.limits.input_length),
        step=card.step, score=card.score, metric=card.metric,
    )  # fmt: skip


def _about(api: FastAPI, service: Service) -> None:
    @api.get(
        "/health", responses={503: {"model": schemas.Health, "description": "It does not answer."}}, tags=["server"]
    )
    async def health() -> Response:
        """200 while it answers, 503 once it is stopping."""
        status: Any = "stopping" if service.stopping else "ready" if service.engine.alive else "broken"
        found = schemas.Health(status=status, prompts=len(service.tuned.prompts), waiting=len(service.queue))
        return JSONResponse(found.model_dump(), 200 if status == "ready" else 503)

    @api.get("/metrics", tags=["server"], response_class=Response)
    def metrics() -> Response:
        """Counts, in the text format of Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    files = resources.files("prompt_tuning.serve") / "page"
    for file in PAGE:
        _serve_file(api, "/" if file == "index.html" else f"/{file}", (files / file).read_bytes(), file)


def _serve_file(api: FastAPI, path: str, content: bytes, file: str) -> None:
    kind = mimetypes.guess_type(file)[0]

    @api.get(path, include_in_schema=False)
    async def serve() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


async def _invalid(request: Request, error: Exception) -> Response:
    """What pydantic found wrong, without the input it found it in."""
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind != "application/json" and request.method == "POST":
        return _error(422, f"The body is declared as {kind[:100] or 'nothing'}; send JSON, as content-type: application/json.")  # fmt: skip # noqa: E501
    errors = error.errors()[:5]
    if errors[0]["type"] == "json_invalid":
        return _error(422, f"The body is not JSON, at character {errors[0]['loc'][-1]}.")
    return _error(422, "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in errors))


async def _failed(request: Request, error: Exception) -> Response:
    """No such route, method, or body that is no JSON."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's one sentence for whatever else JSON's decoder raises
        return _error(400, "The body is not JSON: it is no UTF-8, or nested too deeply.", error.headers)
    return _error(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}", error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _error(error.status, error.sentence, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """The gate logs it: it is raised again once this is sent."""
    return _error(500, BROKEN)


def _error(status: int, sentence: str, headers: Any = None) -> Response:
    shown = sentence.encode("utf-8", "replace").decode()  # JSON can spell halves of characters that UTF-8 cannot
    return JSONResponse({"error": shown}, status, headers)


__all__: Sequence[str] = ["create_app"]
