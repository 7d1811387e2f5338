"""One job of several processes, a process for each host or accelerator: how they meet, who writes, what ends them all.

Every process runs the same command and lays out the same batches; each puts its own rows on its own devices. Process 0
writes the files. A process that is lost ends the others, so that a job never hangs: the same command goes on.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jax

from prompt_tuning.errors import UserError

MEETING = 300  # seconds that processes wait for the last one to start
HEARTBEAT = 100  # seconds without a sign of life until a process counts as lost; a dead one is noticed at once
LEAVING = 60  # seconds that leaving takes at most, when all have come to the end
LOST = ("gloo", "nccl", "connection closed", "connection reset", "heartbeat", "coordination service", "barrier",
        "unavailable", "deadline_exceeded", "another task died")  # fmt: skip


def join(address: str | None, count: int | None, index: int | None, heartbeat: int = HEARTBEAT) -> None:
    """Meets the other processes, before JAX looks for its devices; without an `address` where TPU, SLURM or MPI say it.

    Raises UserError if what is given does not fit together or somebody did not come.
    """
    told = [f"--{n}" for n, v in (("process_count", count), ("process_index", index)) if (v is None) == bool(address)]
    if told:
        raise UserError(
            f"{' and '.join(told)} {'is missing' if address else 'says nothing without --coordinator_address'}. Type on"
            " every host: --coordinator_address=HOST:PORT (a free port of process 0's host) --process_count=N"
            " --process_index=I, or on a TPU pod or under srun --multihost alone."
        )
    if address and not (":" in address and 0 <= (index or 0) < (count or 0)):
        raise UserError(
            f"--coordinator_address={address} --process_count={count} --process_index={index} do not fit together: the"
            " address is HOST:PORT, and processes count from 0."
        )
    loopback = (address or "").rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]")
    try:
        jax.distributed.initialize(
            address, count, index, coordinator_bind_address=address if loopback else None,
            initialization_timeout=MEETING, heartbeat_timeout_seconds=heartbeat, shutdown_timeout_seconds=LEAVING,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"The processes of this job did not meet ({str(error).splitlines()[0]:.200}). Start the same command on all"
            f" hosts within {MEETING} seconds, with an address of process 0's host that the others reach."
        ) from error


def several() -> bool:
    """Whether this process is one of several."""
    return jax.process_count() > 1


def writes() -> bool:
    """Whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def together(what: str) -> None:
    """Returns when every process is here."""
    if several():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def first(context: contextlib.AbstractContextManager) -> Iterator[None]:
    """Enters `context` in process 0 alone, and goes on in all of them when it has been entered."""
    with context if writes() else contextlib.nullcontext():
        together("process 0 is ready")
        yield


def lost(error: BaseException) -> UserError | None:
    """What to say of an error that a lost process is the reason of; None of any other error."""
    if not jax.distributed.is_initialized() or not isinstance(error, RuntimeError | ValueError):
        return None
    if not any(sign in str(error).lower() for sign in LOST):
        return None
    reason = str(error).splitlines()[0][:160]
    return UserError(
        f"Another process of this job is gone, so process {jax.process_index()} of {jax.process_count()} ends too"
        f" ({reason}). Every checkpoint that was saved is whole: type the same command on every host to go on."
    )


def leave(code: int) -> int:
    """The end of the command: waits for the others if all went well, else ends at once, which ends them."""
    if not jax.distributed.is_initialized():
        return code
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # JAX would wait for the others, and they for this one
    together("the end")  # however long process 0 still writes
    jax.distributed.shutdown()
    return code


def flags(options: Any) -> None:
    """Joins the job that a command's flags describe, if they do."""
    given = options.coordinator_address, options.process_count, options.process_index
    if options.multihost or any(value is not None for value in given):
        join(*given)
