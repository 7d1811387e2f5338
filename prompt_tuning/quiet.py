"""TensorFlow greets on standard error before its log level can be set; here it is imported without a word."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """Inside, what C++ writes to file descriptor 2 goes nowhere; afterwards absl logs errors only."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
        for name in ("absl", "urllib3"):  # a download that fails is told in a sentence, not at each attempt
            logging.getLogger(name).setLevel(logging.ERROR)
