"""`python -m serve REPOSITORY`: what the container runs."""

import sys

from serve.errors import StartupError
from serve.server import run
from serve.settings import parse


def main(arguments: list[str], program: str = "python -m serve") -> int:
    """Serve as the arguments say and return the exit status: 2 for a wrong argument."""
    try:
        settings = parse(arguments, program)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 2
    return run(settings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
