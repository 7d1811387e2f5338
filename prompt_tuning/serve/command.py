"""prompt-tuning serve: loads, compiles, listens, and stops when told, after answering what waits."""

import argparse
import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from prompt_tuning.bank import room_for
from prompt_tuning.base import base_of
from prompt_tuning.errors import UserError
from prompt_tuning.predict import PromptTuned
from prompt_tuning.serve.app import create_app
from prompt_tuning.serve.gate import Gate
from prompt_tuning.serve.service import Limits, Service
from prompt_tuning.serve.shelf import Shelf

HEAD = 1 << 15  # bytes of a request before its body
IDLE = 10  # seconds that a connection may say nothing
CONNECTIONS = 1024
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")  # this machine, as its own browser calls it
GRACE = 30  # seconds for what waits when told to stop
SHORTEST_BANK = 100  # vectors, the paper's prompt length, so that longer prompts than those there now can be added


def main(options: argparse.Namespace) -> int:
    """Serves until SIGTERM or Ctrl-C."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("prompt_tuning", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    _check_free(options.host, options.port)
    service = load(options)
    server = Server(service, options.host, options.port)
    server.run()
    return 0 if server.started else 1


def _check_free(host: str, port: int) -> None:
    """Raises UserError where nobody can listen, before anything is compiled for it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened to ({error.strerror}). Type another --port or --host."
        ) from None


def load(options: argparse.Namespace) -> Service:
    """A service with every prompt of the folder, compiled."""
    shelf = Shelf(options.prompts)
    found = {name: shelf.read(name) for name in shelf.names()}
    if not found and not options.base:
        below = Path(options.prompts).expanduser() / "prompts"
        nearer = f"; {below} is there" if below.is_dir() else ""
        raise UserError(f"{options.prompts} holds no prompt (.safetensors or .npy){nearer}. Name a folder that does, or the base of those to come: --base PATH.")  # fmt: skip # noqa: E501
    base = base_of((prompt.card for prompt in found.values()), options.base, str(options.prompts))
    if len(found) > options.slots:
        raise UserError(f"{options.prompts} holds {len(found)} prompts and --slots is {options.slots}. Type --slots {len(found)}.")  # fmt: skip # noqa: E501
    longest, answers = room_for(found.values(), SHORTEST_BANK)
    tuned = PromptTuned.open(base, options.slots, longest, options.vocabulary, answer_length=answers)
    for name, prompt in found.items():
        tuned.add(prompt, name)
    limits = Limits(
        waiting=options.queue, window=options.window_ms / 1000, body=options.body_bytes,
        input_length=options.input_length, room=options.room, writers=options.writers,
    )  # fmt: skip
    service = Service(tuned, shelf, limits)
    logging.getLogger(__name__).info("compiling %d shapes", len(service.engine.shapes))
    service.engine.compile()
    service.metrics.ready()
    return service


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 that gives up on heads that are too large or too slow, and on connections that say nothing."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head: int | None = 0  # bytes of it so far; None inside a body
        self._due = self.loop.time() + IDLE  # when it must be whole
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and not self.transport.is_closing() and self.parser:
            if self._head > HEAD:
                self.send_400_response(f"The request's head is larger than {HEAD} bytes.")
            elif self._head:
                self._wait()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._due = 1, self.loop.time() + IDLE

    def on_headers_complete(self) -> None:
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head = 0

    def _wait(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(self._due, self.timeout_keep_alive_handler)


class Server(uvicorn.Server):
    """Answers what waits when it is told to stop, and then ends with 0."""

    def __init__(self, service: Service, host: str, port: int) -> None:
        self.service = service
        hosts = LOCAL if host in LOCAL else None  # elsewhere a proxy, or who set it up, knows its names
        config = uvicorn.Config(
            create_app(service, hosts), host=host, port=port, http=Protocol, ws="none", lifespan="off", log_config=None,
            access_log=False, server_header=False, proxy_headers=False, limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE, timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        super().__init__(config)

    async def startup(self, sockets: Any = None) -> None:
        """Starts the model's thread first."""
        self.service.engine.start(asyncio.get_running_loop().call_soon_threadsafe)
        await super().startup(sockets)

    async def shutdown(self, sockets: Any = None) -> None:
        """Refuses what comes, answers what waits, then lets the model's thread end."""
        self.service.stopping = True
        await super().shutdown(sockets)
        await asyncio.to_thread(self.service.engine.stop, GRACE)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a stop that was asked for is a success."""
        with contextlib.suppress(KeyboardInterrupt), super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal stops it gracefully, the second at once."""
        self.force_exit = self.should_exit
        self.service.stopping = True
        self.should_exit = True
        logging.getLogger(__name__).info("%s: answering what waits", signal.Signals(sig).name)


__all__ = ["Gate", "Server", "load", "main"]
