"""A real server on a real socket: it answers as Python does, refuses what it should, and stops losing nothing."""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import malformed
import numpy as np
import pytest

pytest.importorskip("fastapi")

from prompt_tuning import cli, infer, prompt_file
from prompt_tuning.predict import PromptTuned, Request
from prompt_tuning.serve import command, gate
from prompt_tuning.serve.metrics import Metrics

LABELS = ("negative", "positive")
TEXTS = ["review: a fine film about love", "review: a dull film about rain", "review: an awful film", "review: great"]


def write_prompts(home: Path, folder: Path) -> Path:
    """Prompts of several lengths and labels, one without labels, one that is kept back, and things that are none."""
    rng = np.random.default_rng(5)
    kinds = {"short": (3, LABELS), "long": (9, LABELS), "three": (5, ("fine", "dull", "great")), "free": (4, ())}
    for name, (length, labels) in kinds.items():
        answers = 70 if name == "free" else None  # its answers may be longer than the others'
        card = prompt_file.Card(name="another name", labels=labels, base=str(home / "base"), target_length=answers)
        vectors = rng.normal(size=(length, 16)).astype(np.float32)
        prompt_file.save_safetensors(folder / f"{name}.safetensors", prompt_file.Prompt(vectors, card))
    (folder / "notes.txt").write_text("not a prompt")
    return folder


def options(folder: Path, **changes) -> argparse.Namespace:
    """The command's flags."""
    flags = {
        "prompts": folder, "base": None, "vocabulary": None, "host": "127.0.0.1", "port": 0, "slots": 6,
        "input_length": 40, "room": 512, "writers": 4, "window_ms": 5, "queue": 64, "body_bytes": 20_000,
    }  # fmt: skip
    return argparse.Namespace(**flags | changes)


@pytest.fixture(scope="module")
def folder(home, tmp_path_factory) -> Path:
    return write_prompts(home, tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def server(folder) -> Iterator[SimpleNamespace]:
    """A server in a thread of this process: its port and its service."""
    service = command.load(options(folder))
    running = command.Server(service, "127.0.0.1", 0)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()))
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(port=port, service=service, gate=running.config.app)
    running.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def ask(server, method: str, path: str, body=None, **headers) -> tuple[int, dict | str]:
    """The status and what was answered, as JSON where it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json"} | headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = "json" in (answer.getheader("content-type") or "")
    return answer.status, json.loads(text) if is_json else text


def count(server, name: str) -> float:
    """One of the server's metrics; 0 before its first event."""
    _, text = ask(server, "GET", "/metrics")
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)


def answers(server, prompt: str, texts: list[str]) -> list[dict]:
    status, found = ask(server, "POST", "/v1/predict", {"prompt": prompt, "texts": texts})
    assert status == 200, found
    return found["answers"]


def test_answers_are_those_of_python(server, folder, home):
    tuned = PromptTuned.load(None, [folder / "short.safetensors"])
    for got, expected in zip(answers(server, "short", TEXTS), tuned.predict(TEXTS), strict=True):
        assert got["text"] == expected.text
        assert got["probabilities"] == pytest.approx(expected.probabilities, rel=1e-4)
        assert got["score"] == pytest.approx(expected.score, rel=1e-4)


def test_a_prompt_may_have_more_labels_than_a_request_may_give(home, tmp_path):
    labels = tuple(f"{a} {b}" for a in TEXTS for b in ("love", "war", "rain", "a film", "great"))
    card = prompt_file.Card(labels=labels, base=str(home / "base"), target_length=80)
    vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    prompt_file.save_safetensors(tmp_path / "many.safetensors", prompt_file.Prompt(vectors, card))
    service = command.load(options(tmp_path))
    assert service.engine.label_tokens(labels) > 256 and service.engine.writer.max_length == 80

    async def first_answer():
        service.engine.start(asyncio.get_running_loop().call_soon_threadsafe)
        return (await service.answer("many", TEXTS[:1], labels))[0]

    try:
        assert asyncio.run(first_answer()).text in labels
    finally:
        service.engine.stop(30)


def test_a_ranking_is_ordered_and_its_labels_can_be_given(server):
    asked = {"prompt": "free", "texts": TEXTS, "labels": ["fine", "weak", "moving"]}
    status, found = ask(server, "POST", "/v1/rank", asked)
    assert status == 200
    for ranking in found["rankings"]:
        shares = [row["probability"] for row in ranking]
        assert {row["label"] for row in ranking} == {"fine", "weak", "moving"}
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1)


def test_requests_of_many_clients_and_prompts_share_batches_and_keep_their_answers(server):
    expected = {(name, text): answers(server, name, [text])[0] for name in ("short", "long", "three") for text in TEXTS}
    before = count(server, 'prompt_tuning_batch_texts_count{work="rank"}')
    pairs = list(expected) * 8
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda pair: answers(server, pair[0], [pair[1]])[0], pairs))
    for pair, answer in zip(pairs, found, strict=True):
        assert answer["text"] == expected[pair]["text"]
        assert answer["probabilities"] == pytest.approx(expected[pair]["probabilities"], rel=1e-4)
    batches = count(server, 'prompt_tuning_batch_texts_count{work="rank"}') - before
    assert batches < len(pairs) / 2


def stream(server, prompt: str, text: str) -> list[tuple[str, dict]]:
    """The events of one written answer."""
    status, found = ask(server, "POST", "/v1/stream", {"prompt": prompt, "text": text})
    assert status == 200, found
    events = [event.split("\n") for event in found.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in events]


def test_texts_written_together_are_those_that_greedy_decoding_writes_alone(server, folder, home):
    tuned = PromptTuned.open(str(home / "base"), slots=2, length=4, answer_length=70)
    pairs = [(name, text) for name in ("short", "free") for text in TEXTS]
    for name in ("short", "free"):
        tuned.add(folder / f"{name}.safetensors", name)
    expected = tuned.answer([Request(text, name, decode=True) for name, text in pairs])
    with ThreadPoolExecutor(8) as pool:  # more than there are places
        found = list(pool.map(lambda pair: stream(server, *pair), pairs))
    for events, answer in zip(found, expected, strict=True):
        kind, last = events[-1]
        assert kind == "done" and last["text"] == answer.text
        assert last["score"] == pytest.approx(answer.score, rel=1e-3)
        assert [k for k, _ in events[:-1]] == ["token"] * len(events[:-1])
        assert not events[:-1] or events[-2][1]["text"] == answer.text
    written = answers(server, "free", TEXTS)
    assert [a["text"] for a in written] == [a.text for a in expected[len(TEXTS) :]]


def test_prompts_come_and_go_without_anything_being_compiled(server, folder):
    expected, before = answers(server, "three", TEXTS), count(server, "prompt_tuning_compilations ")
    extra = prompt_file.load(folder / "three.safetensors")
    (folder / "late.safetensors").write_bytes((folder / "three.safetensors").read_bytes())
    prompt_file.save_npy(folder / "bare.npy", extra.vectors)
    assert ask(server, "GET", "/v1/prompts")[1]["available"] == ["bare", "late"]
    for name in ("late", "bare"):
        assert ask(server, "PUT", f"/v1/prompts/{name}")[0] == 201
    assert ask(server, "PUT", "/v1/prompts/late") == (409, {"error": "The prompt 'late' is loaded already. DELETE it first to load it anew."})  # fmt: skip # noqa: E501
    status, full = ask(server, "PUT", "/v1/prompts/short2")
    assert status == 404 and "'short'" in full["error"]
    for got, known in zip(answers(server, "late", TEXTS), expected, strict=True):
        assert got["probabilities"] == pytest.approx(known["probabilities"], rel=1e-4)
    assert ask(server, "DELETE", "/v1/prompts/late")[0] == 204
    assert ask(server, "DELETE", "/v1/prompts/bare")[0] == 204
    assert ask(server, "POST", "/v1/predict", {"prompt": "late", "texts": TEXTS})[0] == 404
    assert ask(server, "DELETE", "/v1/prompts/late")[0] == 404
    (folder / "late.safetensors").unlink()
    (folder / "bare.npy").unlink()
    assert count(server, "prompt_tuning_compilations ") == before


def test_a_full_bank_a_damaged_file_and_another_base_are_refused(server, folder):
    whole = (folder / "three.safetensors").read_bytes()
    for n in range(3):
        (folder / f"more{n}.safetensors").write_bytes(whole)
    assert [ask(server, "PUT", f"/v1/prompts/more{n}")[0] for n in range(3)] == [201, 201, 409]
    assert [ask(server, "DELETE", f"/v1/prompts/more{n}")[0] for n in range(3)] == [204, 204, 404]
    (folder / "more0.safetensors").write_bytes(whole[:100])
    prompt_file.save_npy(folder / "more1.npy", np.zeros((3, 99), np.float32))
    (folder / "more1.safetensors").unlink()
    np.save(folder / "more3.npy", np.array([{"a": 1}], object), allow_pickle=True)
    for name, expected in (("more0", "readable"), ("more1", "99 wide"), ("more3", "readable")):
        status, found = ask(server, "PUT", f"/v1/prompts/{name}")
        assert status == 422 and expected in found["error"]
        assert str(folder) not in found["error"]
    for file in folder.glob("more*"):
        file.unlink()


REFUSED = {
    "a prompt that is not loaded": ({"prompt": "shrt", "texts": ["a"]}, 404, "'short'"),
    "a path for a name": ({"prompt": "../base", "texts": ["a"]}, 422, "prompt"),
    "no texts": ({"prompt": "short", "texts": []}, 422, "texts"),
    "an empty text": ({"prompt": "short", "texts": [""]}, 422, "texts.0"),
    "too many texts": ({"prompt": "short", "texts": ["a"] * 65}, 422, "texts"),
    "a text with too many tokens": ({"prompt": "short", "texts": ["a", "film " * 60]}, 422, "Text 2 of 2 has"),
    "a field that is unknown": ({"prompt": "short", "texts": ["a"], "path": "/etc"}, 422, "path"),
    "half a character": (b'{"prompt": "short", "texts": ["\\ud800"]}', 422, "texts.0"),
    "labels that stand twice": ({"prompt": "short", "texts": ["a"], "labels": ["fine", "fine"]}, 422, "twice"),
    "labels that cannot be spelled": ({"prompt": "short", "texts": ["a"], "labels": ["日本"]}, 422, "spell"),
    "labels that are too long":
        ({"prompt": "short", "texts": ["a"], "labels": ["fine " * 40, "e" * 200]}, 422, "256"),
    "no labels": ({"prompt": "free", "texts": ["a"]}, 422, "labels"),
    "something that is no JSON": (b'{"prompt"', 422, "JSON"),
    "something that is nested too deeply": (b"[" * 20_000, 400, "nested too deeply"),
    "something that is no UTF-8": ('{"prompt": "short", "texts": ["é"]}'.encode("latin-1"), 400, "UTF-8"),
    "a body that is too large": (b" " * 20_001, 413, "20000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("body, status, expected", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_answered_is_refused_with_a_sentence(server, body, status, expected):
    found, said = ask(server, "POST", "/v1/rank", body)
    assert (found, list(said)) == (status, ["error"])
    assert expected in said["error"] and "Traceback" not in said["error"]


def test_a_body_must_say_that_it_is_json(server):
    body = json.dumps({"prompt": "short", "texts": ["a"]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask(server, "POST", "/v1/rank", body, **{"content-type": kind})[0] == 422


def test_a_name_in_a_path_stays_inside_the_folder(server, folder):
    (folder.parent / "outside.safetensors").write_bytes((folder / "short.safetensors").read_bytes())
    for name in ("..%2foutside", "../outside", "..", ".hidden", "%2e%2e%2foutside", "a%00b", "short%0a"):
        assert ask(server, "PUT", f"/v1/prompts/{name}")[0] in (404, 405, 422)


def test_more_texts_than_may_wait_get_429(server):
    queue = server.service.queue
    queue.bound, bound = 1, queue.bound
    try:
        status, found = ask(server, "POST", "/v1/rank", {"prompt": "short", "texts": TEXTS})
    finally:
        queue.bound = bound
    assert status == 429 and "Try again" in found["error"]


def test_only_a_request_to_this_machine_by_its_own_name_is_answered(server):
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        status, found = ask(server, "GET", "/health", host=host)
        assert status == 421 and "127.0.0.1" in found["error"]
    for host in ("localhost", "LOCALHOST:1234", "[::1]:80", "127.0.0.1"):
        assert ask(server, "GET", "/health", host=host)[0] == 200


def test_a_head_that_comes_in_drops_is_given_up(server, monkeypatch):
    monkeypatch.setattr(command, "IDLE", 0.5)
    with socket.create_connection(("127.0.0.1", server.port), 5) as one, pytest.raises(ConnectionError):
        for letter in b"GET / HTTP/1.1\r\nx: " + b"x" * 100:
            one.sendall(bytes([letter]))
            time.sleep(0.1)


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_body_that_no_method_needs_has_to_arrive_as_well(server, monkeypatch, method):
    monkeypatch.setattr(server.gate, "seconds", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(f"{method} /health HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{{".encode())
        assert b" 408 " in one.recv(4096)


def test_a_client_that_leaves_while_it_waits_is_not_answered(server, monkeypatch):
    monkeypatch.setattr(server.service.queue, "window", 60.0)
    body = json.dumps({"prompt": "short", "texts": TEXTS}).encode()
    before = count(server, 'prompt_tuning_texts_total{work="rank"}')
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        one.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
        assert eventually(lambda: len(server.service.queue) == len(TEXTS), 10)
    assert eventually(lambda: all(job.given_up for job in server.service.queue._waiting), 10)
    monkeypatch.undo()
    assert len(answers(server, "short", TEXTS[:1])) == 1, "which wakes the model"
    assert count(server, 'prompt_tuning_texts_total{work="rank"}') == before + 1
    assert count(server, 'prompt_tuning_requests_total{route="/v1/rank",status="499"}') >= 1


def test_texts_that_are_written_are_counted_as_texts(server):
    named = lambda work: f'prompt_tuning_texts_total{{work="{work}"}}'
    of = lambda kind: f'prompt_tuning_positions_total{{kind="{kind}",work="write"}}'
    read = count(server, named("read"))
    assert stream(server, "free", TEXTS[0])[-1][0] == "done"
    assert count(server, named("read")) == read + 1
    assert 0 < count(server, of("held")) <= count(server, of("computed"))


def test_heads_without_end_and_idle_connections_are_given_up(server, monkeypatch):
    monkeypatch.setattr(command, "IDLE", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(b"GET / HTTP/1.1\r\nx: ")
        with pytest.raises(OSError):
            for _ in range(100):
                one.sendall(b"x" * 8192)
                time.sleep(0.001)
            raise OSError if b"400" in one.recv(4096) else AssertionError
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        assert one.recv(10) == b""
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(b"GET / HT")
        assert one.recv(10) == b""


def test_a_body_that_never_ends_gets_408(server, monkeypatch):
    monkeypatch.setattr(server.gate, "seconds", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), 5) as one:
        one.sendall(b"POST /v1/rank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in one.recv(4096)


def test_a_client_that_leaves_frees_its_place(server):
    body = json.dumps({"prompt": "short", "text": TEXTS[0]}).encode()
    for _ in range(8):
        with socket.create_connection(("127.0.0.1", server.port), 5) as one:
            one.sendall(b"POST /v1/stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
            one.sendall(b"content-length: %d\r\n\r\n%b" % (len(body), body))
            one.recv(20)
    assert stream(server, "short", TEXTS[0])[-1][0] == "done"
    deadline = time.monotonic() + 10
    while server.service.engine.writer.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.service.engine.writer.busy and len(server.service.queue) == 0


def test_the_page_needs_nothing_from_elsewhere(server):
    for path in ("/", "/page.css", "/page.js"):
        status, text = ask(server, "GET", path)
        assert status == 200 and len(text) > 1000
        assert not [word for word in ("http://", "https://") if word in text.replace("http://www.w3.org/2000/svg", "")]


def test_serving_says_how_to_install_what_it_needs(folder):
    code = "import sys; sys.modules['uvicorn'] = None; from prompt_tuning import cli; sys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, "serve", "--prompts", folder], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'prompt-tuning[serve]'" in done.stderr


MISTAKES = {
    "a folder that is not there": (["--prompts", "/nowhere"], "There is no folder /nowhere"),
    "no prompts, and no base": (["--prompts", "EMPTY"], "prompts is there. Name a folder that does, or the base"),
    "a port that is taken": (
        ["--prompts", "FOLDER", "--port", "TAKEN"],
        "listened to (Address already in use)",
    ),
    "too few slots": (["--prompts", "FOLDER", "--slots", "2"], "--slots 4"),
}


@pytest.mark.parametrize("argv, expected", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_explained_before_anything_is_served(folder, tmp_path, capsys, argv, expected):
    (tmp_path / "prompts").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"EMPTY": str(tmp_path), "FOLDER": str(folder), "TAKEN": str(taken.getsockname()[1])}
        assert cli.main(["serve", *(places.get(word, word) for word in argv)]) == 2
    assert expected in capsys.readouterr().err


def eventually(what, seconds: float = 120):
    """What it returns once that is true and nothing refuses the connection."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError):
            if found := what():
                return found
        time.sleep(0.05)
    raise TimeoutError


def test_a_server_that_is_stopping_takes_nothing_new(server, monkeypatch):
    monkeypatch.setattr(server.service, "stopping", True)
    assert ask(server, "GET", "/health")[1]["status"] == "stopping"
    status, found = ask(server, "POST", "/v1/rank", {"prompt": "short", "texts": TEXTS})
    assert status == 503 and "stopping" in found["error"]


def test_a_server_that_is_told_to_stop_answers_what_waits_and_ends_well(folder):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    argv = ["serve", "--prompts", str(folder), "--port", str(port), "--input_length", "40", "--room", "128"]
    argv += ["--window_ms", "8000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "prompt_tuning.cli", *argv],
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},
        stderr=subprocess.PIPE,
    )
    there = SimpleNamespace(port=port)
    try:
        assert eventually(lambda: ask(there, "GET", "/health"))[1] == {"status": "ready", "prompts": 4, "waiting": 0}
        with ThreadPoolExecutor(2) as pool:
            ranked = pool.submit(ask, there, "POST", "/v1/rank", {"prompt": "short", "texts": TEXTS})
            written = pool.submit(stream, there, "free", TEXTS[0])
            assert eventually(lambda: ask(there, "GET", "/health")[1]["waiting"] == 5)
            process.send_signal(signal.SIGTERM)
            assert ranked.result()[0] == 200 and len(ranked.result()[1]["rankings"]) == 4
            assert written.result()[-1][0] == "done"
        assert process.wait(30) == 0
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_malformed_requests_from_its_own_document_get_no_5xx(server):
    document = ask(server, "GET", "/openapi.json")[1]
    statuses, before = collections.Counter(), count(server, "prompt_tuning_compilations ")
    for wrong in malformed.requests(document, ["short", "free"], 150):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            connection.request(wrong.method, wrong.path, wrong.body, {k: v.encode() for k, v in wrong.headers.items()})
            answer = connection.getresponse()
            assert answer.status < 500 and b"Traceback" not in answer.read(), wrong
            statuses[answer.status] += 1
        except ConnectionError:  # closed behind a 413, while more was being sent than is drained
            assert len(wrong.body) > gate.DRAINED * server.gate.body, wrong
        connection.close()
    assert {404, 405, 422} <= statuses.keys()
    assert count(server, "prompt_tuning_compilations ") == before


def test_a_batch_that_fails_is_told_to_all_it_touched_and_the_next_is_answered(server, monkeypatch):
    expected, writer = stream(server, "free", TEXTS[0]), server.service.engine.writer
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(writer, "step", lambda params: time.sleep(0.01) or [])  # a text that does not end
        patch.setattr(infer, "rank", lambda *_: 1 / 0)
        writing = pool.submit(stream, server, "free", TEXTS[0])
        assert eventually(lambda: writer.busy, 10)
        status, found = ask(server, "POST", "/v1/rank", {"prompt": "short", "texts": TEXTS})
        assert status == 500 and found == {"error": "The server failed at this request; its log says how."}
        assert [kind for kind, _ in writing.result(10)] == ["error"]
        assert eventually(lambda: not writer.busy, 10)
    assert len(answers(server, "short", TEXTS)) == len(TEXTS)
    assert stream(server, "free", TEXTS[0]) == expected


def test_texts_that_wait_for_a_prompt_that_is_removed_are_told_so(server, folder, monkeypatch):
    (folder / "late.safetensors").write_bytes((folder / "three.safetensors").read_bytes())
    (folder / "next.safetensors").write_bytes((folder / "three.safetensors").read_bytes())
    assert ask(server, "PUT", "/v1/prompts/late")[0] == 201
    monkeypatch.setattr(server.service.queue, "window", 60.0)
    with ThreadPoolExecutor(2) as pool:
        ranking = pool.submit(ask, server, "POST", "/v1/rank", {"prompt": "late", "texts": TEXTS})
        writing = pool.submit(stream, server, "late", TEXTS[0])
        assert eventually(lambda: len(server.service.queue) == len(TEXTS) + 1, 10)
        assert ask(server, "DELETE", "/v1/prompts/late")[0] == 204
        assert ask(server, "PUT", "/v1/prompts/next")[0] == 201, "which stands in the same slot"
        monkeypatch.undo()
        assert len(answers(server, "short", TEXTS[:1])) == 1, "which wakes the model"
        status, found = ranking.result(10)
        assert status == 409 and "'late' was removed" in found["error"]
        assert [(kind, "removed" in said["error"]) for kind, said in writing.result(10)] == [("error", True)]
    assert ask(server, "DELETE", "/v1/prompts/next")[0] == 204
    for name in ("late", "next"):
        (folder / f"{name}.safetensors").unlink()


def test_a_prompt_that_was_trained_on_short_texts_is_asked_no_longer_ones(server, folder):
    trained = prompt_file.load(folder / "short.safetensors")
    card = dataclasses.replace(trained.card, input_length=12)
    prompt_file.save_safetensors(folder / "brief.safetensors", prompt_file.Prompt(trained.vectors, card))
    status, told = ask(server, "PUT", "/v1/prompts/brief")
    assert status == 201 and told["input_length"] == 12
    status, found = ask(server, "POST", "/v1/rank", {"prompt": "brief", "texts": ["film " * 5]})
    assert status == 422 and "brief reads at most 12" in found["error"]
    assert ask(server, "POST", "/v1/rank", {"prompt": "short", "texts": ["film " * 5]})[0] == 200
    assert ask(server, "DELETE", "/v1/prompts/brief")[0] == 204
    (folder / "brief.safetensors").unlink()


@pytest.mark.parametrize("error", [ValueError("x"), gate.Refusal(409, "x")], ids=["a failure", "a refusal"])
def test_an_answer_that_has_begun_is_not_begun_again(error):
    sent: list = []

    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        raise error

    async def request():
        coming = iter([{"type": "http.request", "body": b""}])

        async def receive():
            return next(coming, None) or await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
        await gate.Gate(broken, Metrics(), 10, 1.0, lambda: False)(scope, receive, send)

    asyncio.run(request())
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert set(gate.HEADERS) <= set(sent[0]["headers"])
