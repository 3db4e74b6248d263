"""What to do about a run that failed, in the words of the errors that end it."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvpo.errors import CheckpointError, ConfigError, EnvError, NonFiniteError, WorkerError

# torch has no MemoryError: a size that cannot be had, on the CPU and on CUDA, and one that cannot even be told.
_NO_MEMORY = re.compile("allocate memory|out of memory|calculation overflowed")


@contextmanager
def failures(run: Path) -> Iterator[None]:
    """Say what to do about the run of a full disk, a folder that is gone, a failed simulator or a diverged network."""
    try:
        yield
    except OSError as error:
        if not run.is_dir():
            raise CheckpointError(
                f"{run} was removed or moved while the run went on. Where it was moved to, go on from its newest "
                "checkpoint: cvpo train --resume RUN. If it is lost, begin again, and leave it there until the end."
            ) from error
        raise CheckpointError(f"Cannot write to {run}: {error.strerror or error}. Free space{_go_on(run)}.") from error
    except (EnvError, WorkerError) as error:
        mend = ". Mend the environment" if isinstance(error, EnvError) and _go_on(run) else ""
        raise type(error)(f"{str(error).rstrip('.')}{mend}{_go_on(run)}.") from error
    except NonFiniteError as error:
        kept = f" The checkpoints in {run} are from before that, and stay." if _go_on(run) else ""
        raise NonFiniteError(
            f"{error}{kept} Start a new run with smaller steps, such as --set critic.learning_rate=3e-4 "
            f"--set mstep.learning_rate=3e-4."
        ) from error


@contextmanager
def room(what: str, settings: str) -> Iterator[None]:
    """Say of what does not fit into memory which settings it comes from."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        reason = str(error).rpartition("Allocator: ")[2].rstrip(".")
        raise ConfigError(f"There is no memory for {what}: {reason}. Give a smaller {settings}.") from error


def _go_on(run: Path) -> str:
    if not (run / "resume").is_dir():
        return ""
    return f", then go on from the newest checkpoint: cvpo train --resume {shlex.quote(str(run))}"
