"""Generates serve/gen from protos/: `python protos/generate.py`; with `--check`, says whether what is there is current.

The generated code imports its own packages as `cvpo.v1`, where Python would find the learning package, so those
imports are rewritten to `serve.gen.cvpo.v1`.
"""

import argparse
import re
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]

PROTOS = Path(__file__).resolve().parent
GENERATED = PROTOS.parent / "serve" / "gen"
GRPCIO_TOOLS = "1.76.0"  # the oldest we support: newer ones write code that protobuf 6 refuses to import


def generate(target: Path) -> None:
    """Write the modules, stubs and packages of every proto into `target`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / "cvpo").rglob("*.proto"))
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={PROTOS / 'third_party'}",  # whose Python code packages of their own bring
        f"--proto_path={files('grpc_tools') / '_proto'}",
        f"--python_out={target}",
        f"--pyi_out={target}",
        f"--grpc_python_out={target}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        sys.exit("protoc failed; see above.")
    for path in (*target.rglob("*.py"), *target.rglob("*.pyi")):
        path.write_text(re.sub(r"^from cvpo\.", "from serve.gen.cvpo.", path.read_text(), flags=re.MULTILINE))
    for directory in (target, *(path for path in target.rglob("*") if path.is_dir())):
        (directory / "__init__.py").touch()


def contents(directory: Path) -> dict[str, bytes]:
    """Return what was generated, by path."""
    found = (path for path in directory.rglob("*.py*") if path.suffix in {".py", ".pyi"})
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when serve/gen is out of date")
    check: bool = parser.parse_args().check
    if version("grpcio-tools") != GRPCIO_TOOLS:
        sys.exit(f"grpcio-tools {version('grpcio-tools')} is installed; serve/gen is made with {GRPCIO_TOOLS}.")
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        fresh, present = contents(Path(temporary)), contents(GENERATED)
    stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    if check:
        sys.exit(f"serve/gen is out of date: {', '.join(stale)}. Run `python protos/generate.py`." if stale else 0)
    for name in stale:
        path = GENERATED / name
        if name in fresh:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(fresh[name])
        else:
            path.unlink()
    print(f"serve/gen: {', '.join(stale) or 'already up to date'}")


if __name__ == "__main__":
    main()
