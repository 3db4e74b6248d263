"""`python -m serve REPOSITORY`: what the container runs, and what `cvpo serve` calls."""

import os
import sys

from serve.errors import StartupError
from serve.server.signals import end_on_signal


def main(arguments: list[str], program: str = "python -m serve") -> int:
    """Serve as the arguments say and return the exit status: 2 for a wrong argument, 1 for any other failure."""
    # Read when grpc is imported, which would write lines of its own between the JSON, at any handshake that fails.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from serve.server.process import run
        from serve.server.settings import parse
    except ModuleNotFoundError as error:  # the bare package is the client
        print(f"The server needs {error.name}. Install it with: pip install 'cvpo[serve]'", file=sys.stderr)
        return 1
    try:
        settings = parse(arguments, program)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2
    return run(settings)


if __name__ == "__main__":
    end_on_signal(clean=True)  # before the imports of main, which take a second
    sys.exit(main(sys.argv[1:]))
