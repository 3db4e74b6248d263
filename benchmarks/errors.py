"""What can go wrong with a benchmark that is not the fault of what it measures."""

import os
import select
import sys
from collections.abc import Callable

# Of the standard library alone, as all that a peer's environment imports.
from cvpo.errors import CvpoError
from serve.errors import PolicyServiceError


class BenchmarkError(Exception):
    """A benchmark cannot be run here, or a contestant failed; says what to do."""


def run(main: Callable[[], None]) -> None:
    """Run the command; what cannot be done is said without a traceback, with exit code 1.

    Where nobody reads what it prints any more (`| head`), it ends with that code and without a word.
    """
    try:
        main()
        sys.stdout.flush()
    except (BenchmarkError, CvpoError, PolicyServiceError) as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        if not _unread():  # it is a contestant's
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is written at exit
        sys.exit(1)


def _unread() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    stdout = select.poll()
    stdout.register(sys.stdout, 0)  # errors alone
    return bool(stdout.poll(0))
