"""Memory that is given back: kept by the process, or not."""

import subprocess
import sys

import pytest

SCRIPT = """
import re, numpy as np
from pathlib import Path
from prompt_tuning import allocator
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
kept = allocator.keep_freed_memory()
before = resident()
np.ones(25_000_000)  # 191 MiB, freed at once
between = resident()
allocator.give_back_freed_memory()
print(kept, between - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is meant")
def test_freed_memory_is_kept_until_it_is_given_back():
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split()
    if told[0] == "False":
        pytest.skip("this C library is not glibc")
    assert int(told[1]) > 150 and int(told[2]) < 50
