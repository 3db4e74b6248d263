"""One process at a time trains in a run's folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from cvpo.errors import CheckpointError

LOCK = "lock"


@contextlib.contextmanager
def locked(run: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run; the kernel takes it back when this process ends, however it ends.

    Args:
        run: a folder; the file `lock` in it is made where it is missing, and stays.
        say: is told where the file system has no locks.

    Raises:
        CheckpointError: another process trains there (names it), or the file cannot be written.
    """
    try:
        file = (run / LOCK).open("a+")
    except OSError as error:
        raise CheckpointError(f"Cannot write {error.filename}: {error.strerror}.") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            raise CheckpointError(f"{run} is being trained by {holder}. Wait until it ends, or stop it.") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            say(f"{run} is on a file system without locks: see that no second process trains there")
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            os.truncate(file.fileno(), 0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
