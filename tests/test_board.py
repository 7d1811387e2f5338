"""TensorBoard reads what is written without TensorFlow."""

import subprocess
import sys


def test_tensorboard_reads_every_number_and_tensorflow_is_not_imported(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code = f"""
import sys
from pathlib import Path
from prompt_tuning.log import Log
log = Log(Path({str(tmp_path)!r}))
log.record(3, {{"loss": {{"a": 0.5, "b": None}}, "memory": 7, "note": "text"}})
log.record(6, {{"loss": {{"a": 0.25}}}})
log.close()
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    (file,) = (tmp_path / "tensorboard").iterdir()
    read = EventAccumulator(str(file)).Reload()
    assert read.Tags()["scalars"] == ["loss/a", "memory"]
    assert [(event.step, event.value) for event in read.Scalars("loss/a")] == [(3, 0.5), (6, 0.25)]
