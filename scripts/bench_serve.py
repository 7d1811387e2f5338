"""How much of offline batches' throughput `prompt-tuning serve` reaches, and what else it promises.

    python scripts/bench_serve.py --prompts MODEL_DIR/prompts [--base PATH] [--requests 10000] [--clients 64]

Offline and server take turns, in rounds, so that a busy machine is busy for both; each has a process
of its own. Prints, for each round and over all: texts a second, the ratio, p50 and p99 of a request, errors, the
server's memory before and after, how long adding a prompt took (idle and under load), and programs compiled meanwhile.
CPU seconds are told beside the clock's: on a machine that does other work too, their ratio is the steadier number.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OFFLINE = 512  # texts that are answered offline in each round, eight batches of 64
LETTERS = "etaoinshrdlucmfwyp"


def texts(count: int, seed: int) -> list[str]:
    """Texts of 4 to 15 words that no language has, 2 to 8 letters long: a dozen to four dozen tokens."""
    draw = random.Random(seed)
    word = lambda: "".join(draw.choices(LETTERS, k=draw.randint(2, 8)))
    return [" ".join(word() for _ in range(draw.randint(4, 15))) for _ in range(count)]


def offline(pipe: Any, base: str | None, folder: str) -> None:
    """Answers batches of texts as `prompt-tuning infer` does, when told to; one prompt after another over the texts."""
    from prompt_tuning.predict import PromptTuned
    from prompt_tuning.serve.shelf import Shelf

    shelf = Shelf(folder)
    loaded = {name: shelf.read(name) for name in shelf.names()}
    ranking = [prompt for prompt in loaded.values() if prompt.card.labels]
    tuned = PromptTuned.load(base, ranking)
    names = list(tuned.prompts)
    while asked := pipe.recv():
        before, began = time.process_time(), time.monotonic()
        tuned.predict(asked, prompt=[names[i % len(names)] for i in range(len(asked))])
        pipe.send((time.monotonic() - began, time.process_time() - before))


class Client:
    """One connection that asks one question after another (HTTP/1.1, kept alive)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.seconds: list[float] = []
        self.errors: list[str] = []

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """The status and the body of one answer."""
        if not hasattr(self, "reader") or self.reader.at_eof():  # the server closes connections that say nothing
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)
        answer = await self.reader.readuntil(b"\r\n\r\n")
        lines = answer.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        return int(answer[9:12]), await self.reader.readexactly(length)

    async def run(self, questions: list[dict]) -> None:
        """Takes questions from the end of the list until none is left."""
        while questions:
            question = questions.pop()
            began = time.monotonic()
            status, body = await self.ask("POST", "/v1/rank", question)
            self.seconds.append(time.monotonic() - began)
            if status != 200:
                self.errors.append(f"{status} {body[:200]!r}")


def questions(chunk: list[str], prompts: list[str]) -> list[dict]:
    """One request a text, the prompts in turn."""
    return [{"prompt": prompts[i % len(prompts)], "texts": [text]} for i, text in enumerate(chunk)]


async def load(clients: list[Client], asked: list[dict]) -> tuple[float, float]:
    """Seconds, and CPU seconds of this process, that the clients needed."""
    before, began = time.process_time(), time.monotonic()
    await asyncio.gather(*(client.run(asked) for client in clients))
    return time.monotonic() - began, time.process_time() - before


async def add_and_remove(client: Client, name: str, times: int, pause: float = 0.0) -> list[float]:
    """Seconds that adding a prompt took, each time."""
    taken = []
    for _ in range(times):
        await client.ask("DELETE", f"/v1/prompts/{name}")
        began = time.monotonic()
        status, body = await client.ask("PUT", f"/v1/prompts/{name}")
        taken.append(time.monotonic() - began)
        assert status == 201, body
        await asyncio.sleep(pause)
    return taken


def serve(options: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    """A server as its own process, ready, and its port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "prompt_tuning.cli", "serve", "--prompts", options.prompts, "--port", str(port)]
    process = subprocess.Popen([*command, *(["--base", options.base] if options.base else []), *options.flags])
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, port
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the server ended") from None
            time.sleep(0.5)


def cpu(process: int) -> float:
    """CPU seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> float:
    """Resident megabytes (Linux)."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def rounds(
    options: argparse.Namespace, worker: Any, server: int, clients: list[Client], prompts: list[str]
) -> None:
    """Offline and server in turns; prints each round and the median ratios."""
    each, ratios, cpu_ratios = options.requests // options.rounds, [], []
    print(
        f"{'round':>5} {'offline/s':>10} {'server/s':>10} {'ratio':>6}   CPU ms a text: offline, server, clients; ratio"
    )
    chunk = texts(each, 0)
    for number in range(options.rounds):
        worker.send(chunk[:OFFLINE])
        answer = await asyncio.to_thread(worker.recv)  # the loop hears of closed connections meanwhile
        seconds, offline_cpu = (x * each / OFFLINE for x in answer)
        before = cpu(server)
        served, client_cpu = await load(clients, questions(chunk, prompts))
        server_cpu = cpu(server) - before
        ratios.append(seconds / served)
        cpu_ratios.append(offline_cpu / (server_cpu + client_cpu))
        shares = " ".join(f"{1000 * x / each:6.2f}" for x in (offline_cpu, server_cpu, client_cpu))
        clock = f"{number + 1:>5} {each / seconds:>10.0f} {each / served:>10.0f} {ratios[-1]:>6.2f}"
        print(f"{clock}   {shares}   {cpu_ratios[-1]:6.2f}", flush=True)
    by_clock, by_cpu = statistics.median(ratios), statistics.median(cpu_ratios)
    print(f"ratio (median of rounds): {by_clock:.2f} by the clock, {by_cpu:.2f} by CPU time")


async def measure(options: argparse.Namespace, worker: Any, server: int, port: int) -> int:
    """Everything, printed; how many requests failed."""
    clients = [Client(port) for _ in range(options.clients)]
    _, listed = await Client(port).ask("GET", "/v1/prompts")
    prompts = [p["name"] for p in json.loads(listed)["prompts"] if p["labels"]]
    warm = texts(OFFLINE, 0)
    worker.send(warm)  # the same texts each time: others could ask for another shape, and compile
    await asyncio.to_thread(worker.recv)
    await load(clients, questions(warm, prompts))
    for client in clients:
        client.seconds.clear()
    idle = await add_and_remove(Client(port), prompts[-1], 10)
    sizes = [memory(server)]
    await rounds(options, worker, server, clients, prompts)
    sizes.append(memory(server))
    seconds = sorted(s for client in clients for s in client.seconds)
    adding = asyncio.create_task(add_and_remove(Client(port), prompts[-1], 10, 0.1))  # nobody asks for it meanwhile
    await load(clients, questions(texts(len(warm), 77), prompts[:-1]))
    busy = await adding
    _, counts = await Client(port).ask("GET", "/metrics")
    compiled = next(x for x in counts.decode().splitlines() if x.startswith("prompt_tuning_compilations ")).split()[1]
    errors = [e for client in clients for e in client.errors]
    p99 = seconds[int(0.99 * len(seconds))]
    print(f"{len(seconds)} requests of {len(clients)} clients: {len(errors)} errors {errors[:1]}")
    print(f"p50 {1000 * statistics.median(seconds):.0f} ms, p99 {1000 * p99:.0f} ms")
    print(f"server's memory: {sizes[0]:.0f} MB after warming up, {sizes[1]:.0f} MB after the rounds")
    for name, taken in (("idle", idle), ("under load", busy)):
        print(f"adding a prompt, {name}: median {1000 * statistics.median(taken):.0f} ms, most {1000 * max(taken):.0f}")
    print(f"programs compiled while it served: {compiled}")
    return len(errors)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--base")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("flags", nargs="*", help="further flags of the server, behind --")
    options = parser.parse_args()
    here, there = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=offline, args=(there, options.base, options.prompts))
    worker.start()
    server, port = serve(options)
    try:
        return bool(asyncio.run(measure(options, here, server.pid, port)))
    finally:
        here.send(None)
        server.send_signal(signal.SIGTERM)
        print("the server ended with", server.wait(60))
        worker.join(60)


if __name__ == "__main__":
    raise SystemExit(main())
