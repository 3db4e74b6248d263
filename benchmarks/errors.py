"""What can go wrong with a benchmark that is not the fault of what it measures."""

import sys
from collections.abc import Callable


class BenchmarkError(Exception):
    """A benchmark cannot be run here, or a contestant failed; says what to do."""


def run(main: Callable[[], None]) -> None:
    """Run the command; what cannot be done is said without a traceback, with exit code 1."""
    try:
        main()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
