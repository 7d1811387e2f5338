"""A process that starts again in huge pages, and memory that is given back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prompt_tuning import allocator, cli

SCRIPT = """
import os, re, sys, numpy as np
from pathlib import Path
from prompt_tuning import allocator
print("started", *sys.argv[1:], flush=True)
allocator.start_in_huge_pages()
megabytes = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/smaps_rollup").read_text())[1]) // 1024
ones = np.ones(25_000_000)  # 191 MiB
small = [bytes(10_000) for _ in range(20_000)]
print(os.environ["GLIBC_TUNABLES"], megabytes("AnonHugePages"))
before = megabytes("Rss")
last = small[-1]  # the end of the heap is in use, all before it is free
del ones, small
allocator.give_back_freed_memory()
print(before - megabytes("Rss"))
"""
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is meant")


def _told(**environment: str) -> list[list[str]]:
    there = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | environment
    command = [sys.executable, "-c", SCRIPT, "a word", "--flag=1"]
    ran = subprocess.run(command, env=there, capture_output=True, text=True, check=True)
    return [line.split() for line in ran.stdout.splitlines()]


@LINUX
def test_a_process_starts_again_once_in_huge_pages():
    denied = _denied()
    first, again, (tunables, huge), given_back = _told(GLIBC_TUNABLES="glibc.malloc.check=0")
    assert first == again == ["started", "a", "word", "--flag=1"]
    assert tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"
    assert int(given_back[0]) > 300
    allowed = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if allowed.exists() and "[never]" not in allowed.read_text():
        assert int(huge) > 100 or not _is_recent_glibc() or _denied() > denied, "or no memory was in one piece"


def _denied() -> int:
    """How many huge pages the kernel had no place for so far."""
    counters = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return int(counters.get("thp_fault_fallback", 0))


@LINUX
def test_what_somebody_chose_stays():
    started, (tunables, _), _ = _told(GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
    assert started[0] == "started"
    assert tunables == "glibc.malloc.hugetlb=0"


def test_a_command_starts_its_own_process_again_and_never_a_callers(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(allocator, "start_in_huge_pages", lambda: started.append(True))
    mistaken = ["infer", "--prompt", "/nowhere/a.safetensors", "a text"]
    assert cli.main(mistaken) == 2
    assert not started
    monkeypatch.setattr(sys, "argv", ["prompt-tuning", *mistaken])
    assert cli.main() == 2
    assert started == [True]
    assert "/nowhere/a.safetensors" in capsys.readouterr().err


def _is_recent_glibc() -> bool:
    """Whether it knows of huge pages (2.35)."""
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)
