"""The environments of the peers: each peer has a virtual environment of its own, made when it is first needed.

`NAME/requirements.txt` pins what pip can resolve, `NAME/no-deps.txt` what is installed as it is, because it pins
versions of others that cannot be installed any more. pip makes them, so whatever tells the user's pip where to look
(its configuration, PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL) tells it here too.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from benchmarks.errors import BenchmarkError

RECIPES = Path(__file__).parent
ENVIRONMENTS = RECIPES.parent / ".peers"
LAST_LINES = 8  # of pip's complaint, shown


def peer_python(name: str) -> Path:
    """Make the environment of a peer, unless it is there and of today's requirements; its Python interpreter.

    Raises:
        BenchmarkError: there is no such peer, or pip cannot install it; says what pip said.
    """
    recipe, environment = RECIPES / name, ENVIRONMENTS / name
    steps = [recipe / "requirements.txt", recipe / "no-deps.txt"]
    if not steps[0].is_file():
        raise BenchmarkError(f"There is no peer {name}: {steps[0]} is missing.")
    steps = [step for step in steps if step.is_file()]
    python, stamp = environment / "bin" / "python", environment / "made-from"
    made_from = _digest(steps)
    if stamp.is_file() and stamp.read_text() == made_from:
        return python
    print(f"making the environment of {name} in {environment}", file=sys.stderr)
    shutil.rmtree(environment, ignore_errors=True)
    _run(name, [sys.executable, "-m", "venv", "--without-pip", str(environment)])
    for step in steps:
        as_it_is = ["--no-deps"] if step.name == "no-deps.txt" else []
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *as_it_is]
        _run(name, [*pip, "-r", str(step)])
    stamp.write_text(made_from)
    return python


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256(sys.version.encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _run(name: str, command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-LAST_LINES:])
        raise BenchmarkError(
            f"The environment of {name} cannot be made; a package index that has what "
            f"benchmarks/peers/{name}/*.txt pin is needed. {' '.join(command)} said:\n{said}"
        )
