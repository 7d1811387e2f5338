"""Sends a running `prompt-tuning serve` requests that are wrong, made from its OpenAPI document, and says what it did.

    python scripts/fuzz_serve.py --port 8000 --requests 1000 [--seed 0]

Ends with 1 if anything got a 5xx, a connection was dropped without an answer, an answer showed a traceback, or the
server no longer answers as before. Prints the statuses and the server's memory at the start, half-way and at the end.
"""

import argparse
import collections
import http.client
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import malformed


def send(port: int, wrong: malformed.Wrong) -> tuple[int, bytes]:
    """The answer to one request; 0 if there was none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.putrequest(wrong.method, wrong.path.replace(" ", "%20"), skip_accept_encoding=True)
        for name, value in wrong.headers.items():
            connection.putheader(name, value.encode("utf-8"))
        connection.putheader("content-length", str(len(wrong.body)))
        connection.endheaders(wrong.body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def get(port: int, path: str) -> bytes:
    """What stands there."""
    return send(port, malformed.Wrong("GET", path, {}, b"", ""))[1]


def memory(port: int) -> float:
    """The server's resident megabytes, as it tells itself."""
    lines = get(port, "/metrics").decode().splitlines()
    return next(float(x.split()[1]) for x in lines if x.startswith("process_resident_memory_bytes ")) / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    document = json.loads(get(options.port, "/openapi.json"))
    before = get(options.port, "/v1/prompts")
    statuses: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    failures, sizes = [], [memory(options.port)]
    prompts = [prompt["name"] for prompt in json.loads(before)["prompts"]]
    for number, wrong in enumerate(malformed.requests(document, prompts, options.requests, options.seed)):
        status, answer = send(options.port, wrong)
        statuses[wrong.how][status] += 1
        if status == 0 or status >= 500 or b"Traceback" in answer:
            failures.append((status, wrong.method, wrong.path[:80], wrong.how, wrong.body[:80], answer[:200]))
        if number == options.requests // 2:
            sizes.append(memory(options.port))
    sizes.append(memory(options.port))
    for how, counted in sorted(statuses.items()):
        print(f"{how:>24}  " + "  ".join(f"{status}: {n}" for status, n in sorted(counted.items())))
    same = get(options.port, "/v1/prompts") == before
    print(f"{options.requests} requests, {len(failures)} failures; prompts {'as before' if same else 'CHANGED'}")
    print(
        "server's memory: " + ", ".join(f"{size:.0f}" for size in sizes) + " MB at the start, half-way and at the end"
    )
    for failure in failures[:20]:
        print(failure)
    return bool(failures) or not same


if __name__ == "__main__":
    raise SystemExit(main())
