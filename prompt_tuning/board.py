"""What TensorBoard reads, written without TensorFlow: records of events, one scalar a number."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


class Board:
    """An event file in `folder`, which is made with the first numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None
        self._records: Any = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers of one step, by their tags."""
        from tensorboard.compat.proto import event_pb2, summary_pb2

        if self._file is None:
            self._start(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        values = [summary_pb2.Summary.Value(tag=tag, simple_value=number) for tag, number in scalars.items()]
        event = event_pb2.Event(wall_time=time.time(), step=step, summary=summary_pb2.Summary(value=values))
        self._records.write(event.SerializeToString())

    def _start(self, version: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.v2"
        self._file = (self.folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._records.write(version.SerializeToString())

    def flush(self) -> None:
        """Every number so far is in the file when this returns."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
