"""What every request passes first: limits on its body, counting, and a plain answer whatever goes wrong (ASGI)."""

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any, cast

from prompt_tuning.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

DRAINED = 8  # times the limit that is read, and dropped, of a body that is too large
BROKEN = "The server failed at this request; its log says how."

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
     b" img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
]  # fmt: skip


class Refusal(Exception):
    """A request that is not answered: the status, a sentence, and headers."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Gate:
    """An ASGI application around another."""

    def __init__(
        self, app: App, metrics: Metrics, body: int, seconds: float, stopping: Callable[[], bool],
        hosts: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        """Bodies have at most `body` bytes and arrive within `seconds`; requests are to one of `hosts`, if given."""
        self.app, self.metrics, self.body, self.seconds, self.stopping = app, metrics, body, seconds, stopping
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, answered = time.monotonic(), 0, False

        async def sending(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *HEADERS]
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            if self.stopping() and scope["path"] != "/health":
                raise Refusal(503, "The server is stopping.", retry_after="5", connection="close")
            self._check_host(scope)
            body = await self._whole(receive)
            await _while_wanted(lambda given: self.app(scope, given, sending), body, receive, lambda: answered)
        except Refusal as refusal:
            if not status:
                await refuse(sending, refusal)
        except Exception:
            logging.getLogger(__name__).exception("%s %s failed", scope["method"], scope["path"])
            if not status:
                await refuse(sending, Refusal(500, BROKEN))
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(route, status or 499, time.monotonic() - began)

    def _check_host(self, scope: Scope) -> None:
        """A name of somebody else's that leads here is how a page of theirs would come to speak to this server."""
        host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
        name = re.sub(r":\d*$", "", host).lower()
        if self.hosts is not None and name not in self.hosts:
            raise Refusal(421, f"This server is not {name or 'without a name'}; it listens to {', '.join(self.hosts)}.")

    async def _whole(self, receive: Receive) -> bytes:
        """Reads the body, within the limits."""
        try:
            async with asyncio.timeout(self.seconds):
                return await self._read(receive)
        except TimeoutError:
            sentence = f"The body did not arrive within {self.seconds:g} seconds."
            raise Refusal(408, sentence, connection="close") from None

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= DRAINED * self.body:  # a client that is still sending would not see why it is refused
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "The body ended early.")
            size += len(message.get("body", b""))
            if size <= self.body:
                parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        if size > self.body:
            raise Refusal(413, f"The body is larger than {self.body} bytes.", connection="close")
        return b"".join(parts)


async def _while_wanted(
    run: Callable[[Receive], Awaitable[None]], body: bytes, receive: Receive, answered: Callable[[], bool]
) -> None:
    """Runs an application on a body; it is cancelled if its client leaves before it is answered."""
    left, given = asyncio.Event(), False

    async def again() -> Message:
        nonlocal given
        if given:
            await left.wait()
            return {"type": "http.disconnect"}
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def leaves() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()
        if not answered():
            here.cancel()

    here, leaving = cast(asyncio.Task, asyncio.current_task()), asyncio.ensure_future(leaves())
    try:
        await run(again)
    except asyncio.CancelledError:
        if not left.is_set():
            raise
        here.uncancel()
    finally:
        leaving.cancel()


async def refuse(send: Send, refusal: Refusal) -> None:
    """Sends a refusal as JSON."""
    body = json.dumps({"error": refusal.sentence}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | refusal.headers
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
