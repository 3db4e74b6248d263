"""Bad bundles without end: `python -m benchmarks.bundle_fuzz --seconds 600` damages bundles until one gets through.

Each try copies a bundle, spoils it, and has it verified and loaded as a server does. Whoever spoils it either does not
know the checksums, and then every try must be refused; or writes them anew, and then it may be served only if it still
answers its golden request. Anything but a refusal with a reason is a failure: another exception, a file opened by
Python outside of the bundle's folder (native code's are not noticed), a pipe that is waited for, memory or time without
end. A try depends on its number and the seed.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.errors import BenchmarkError, run
from cvpo.bundle import (
    CRITIC_GRAPH,
    GOLDEN,
    GRAPHS,
    MANIFEST,
    MODEL_CARD,
    POLICY_GRAPH,
    SIGNATURE,
    TrustedKeys,
    make_keys,
    read_bundle,
    read_private_key,
    read_trusted_keys,
    sign_bundle,
)
from cvpo.bundle.storage import seal
from cvpo.errors import BundleError
from serve.errors import RefusedBundleError
from serve.server.runtime import load

RESULTS = Path(__file__).parent / "results" / "bundle_fuzz.json"
FILES = (MANIFEST, POLICY_GRAPH, CRITIC_GRAPH, MODEL_CARD, GOLDEN, SIGNATURE)
MOST_MEMORY_BYTES = 6 * 2**30  # of address space: torch's libraries alone take some
PATIENCE_SECONDS = 300.0  # for one try, on a busy machine

Outcome = tuple[str, bool, str]  # kind of damage, whether it was refused, what failed


def reseal(path: Path, document: dict[str, Any] | None = None) -> None:
    """Write the checksums anew, of the files or of another manifest."""
    if document is None:
        document = json.loads((path / MANIFEST).read_bytes())
        for name, entry in document["files"].items():
            data = (path / name).read_bytes()
            entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (path / MANIFEST).write_bytes(seal(document))


def damage_bytes(path: Path, chance: random.Random) -> None:
    """Change, insert, remove, repeat or exchange bytes of a file."""
    file = path / chance.choice([name for name in FILES if (path / name).exists()])
    before = file.read_bytes()
    after = before
    while after == before:
        after = _mutate(before, chance)
    file.write_bytes(after)


def _mutate(data: bytes, chance: random.Random) -> bytes:
    place, size = chance.randrange(len(data) + 1), chance.choice((1, 1, 1, 4, 32))
    noise = chance.randbytes(size)
    match chance.randrange(6):
        case 0:
            return data[:place] + noise + data[place + size :]
        case 1:
            return data[:place] + noise + data[place:]
        case 2:
            return data[:place] + data[place + size :]
        case 3:
            return data[:place]
        case 4:
            return data[:place] + data[max(0, place - size) :]
        case _:
            flipped = bytearray(data)
            flipped[place % len(data)] ^= 1 << chance.randrange(8)
            return bytes(flipped)


def damage_folder(path: Path, chance: random.Random) -> None:
    """Take a file away, or put something else in its place or beside it."""
    file = path / chance.choice(FILES)
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_bytes(file.read_bytes())
    match chance.randrange(8):
        case 0:
            (path / chance.choice(["extra", ".hidden", "policy.onnx.data", "\n", "ü" * 100])).write_bytes(b"x")
            return
        case 1:
            (path / "folder").mkdir()
            return
        case 2:
            (path / "link").symlink_to(chance.choice(["/etc/passwd", "../elsewhere", "nothing"]))
            return
    file.unlink()
    match chance.randrange(5):
        case 0:
            file.symlink_to(chance.choice([elsewhere, Path("../elsewhere"), Path("/dev/zero"), file]))
        case 1:
            os.mkfifo(file)
        case 2:
            file.mkdir()
        case 3:
            with file.open("wb") as sparse:
                sparse.truncate(2**40)


def damage_manifest(path: Path, chance: random.Random) -> None:
    """Put something else in the place of a value of the manifest, and write its checksums anew."""
    document = json.loads((path / MANIFEST).read_bytes())
    place: Any = document
    parent: Any = None
    key: Any = None
    while isinstance(place, dict | list) and place and (parent is None or chance.random() < 0.8):
        parent, key = place, chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place = parent[key]
    values: list[Any] = [None, True, 0, -1, 2**63, 2**200, 1e308, "", [], {}]
    values += [
        "../../etc/passwd",
        "/etc/passwd",
        "\x1b[2J",
        "x" * 10**5,
        "\ud800",
        1.0,
        _nested(chance.choice([40, 340])),
    ]
    match chance.randrange(3):
        case 0:
            parent[key] = chance.choice(values)
        case 1 if isinstance(parent, dict):
            parent[chance.choice(["../x", "/etc/passwd", "more", ""])] = chance.choice([place, *values])
        case _ if isinstance(parent, dict):
            del parent[key]
        case _:
            parent.insert(0, chance.choice([place, *values]))
    reseal(path, document)


def _nested(depth: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(depth):
        nested = [nested]
    return nested


def damage_graph_bytes(path: Path, chance: random.Random) -> None:
    """Change bytes of a graph, and write the checksums anew."""
    file = path / chance.choice(GRAPHS)
    data = file.read_bytes()
    for _ in range(chance.choice((1, 1, 2, 8))):
        data = _mutate(data, chance)
    file.write_bytes(data)
    reseal(path)


def damage_graph(path: Path, chance: random.Random) -> None:
    """Change a graph as one who knows ONNX, and write the checksums anew."""
    file = path / chance.choice(GRAPHS)
    model = onnx.load_from_string(file.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 4))):
        chance.choice(_GRAPH_CHANGES)(model, chance)
    file.write_bytes(model.SerializeToString())
    reseal(path)


def damage_golden(path: Path, chance: random.Random) -> None:
    """Change values of the golden request, and write the checksums anew."""
    file = path / GOLDEN
    document = json.loads(file.read_bytes())
    values = document[chance.choice(GRAPHS)][chance.choice(["inputs", "outputs"])]
    name = chance.choice(list(values))
    match chance.randrange(4):
        case 0:
            del values[name]
        case 1:
            values[name] = chance.choice([[], {}, None, 1e400, "x", [[]], [values[name]], 10**400])
        case 2:
            values[name] = values[name][1:]
        case _:
            place = values[name]
            while isinstance(place[0], list):
                place = chance.choice(place)
            place[chance.randrange(len(place))] = chance.choice([None, -1, 1e30, 2**70, "1", [1], True])
    file.write_text(json.dumps(document))
    reseal(path)


def _any_name(model: onnx.ModelProto, chance: random.Random) -> str:
    graph = model.graph
    names: list[str] = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return chance.choice(names + [output for node in graph.node for output in node.output])


def _any_operator(model: onnx.ModelProto, chance: random.Random) -> str:
    known: str = chance.choice(_OPERATORS if chance.random() < 0.3 else [node.op_type for node in model.graph.node])
    return known


def _constant(model: onnx.ModelProto, chance: random.Random) -> str:
    name = f"made_{chance.randrange(10**9)}"
    size = chance.choice([1, 2, 1_000, 100_000])
    value = np.full(size, chance.choice([0, 1, 9]), chance.choice([np.float32, np.int64]))
    shapes = [(size,), (size, 1), (1, size)]
    model.graph.initializer.append(numpy_helper.from_array(value.reshape(chance.choice(shapes)), name))
    return name


def _add_node(model: onnx.ModelProto, chance: random.Random) -> None:
    operator = _any_operator(model, chance)
    names = [
        _constant(model, chance) if chance.random() < 0.4 else _any_name(model, chance)
        for _ in range(chance.randrange(4))
    ]
    attributes: dict[str, Any] = {}
    if chance.random() < 0.4:
        known = ["axis", "keepdims", "perm", "to", "start", "end", "batch_dims", "alpha"]
        attributes[chance.choice(known)] = chance.choice([0, 1, -1, 2**40, [1, 0], [-1], 1.5])
    node = helper.make_node(operator, names, [f"out_{chance.randrange(10**9)}"], **attributes)
    model.graph.node.insert(chance.randrange(len(model.graph.node) + 1), node)


def _change_node(model: onnx.ModelProto, chance: random.Random) -> None:
    node = chance.choice(model.graph.node)
    match chance.randrange(5):
        case 0:
            node.op_type = _any_operator(model, chance)
        case 1 if node.input:
            node.input[chance.randrange(len(node.input))] = _any_name(model, chance)
        case 2:
            node.domain = chance.choice(["com.microsoft", "ai.onnx.ml", "evil"])
        case 3 if node.attribute:
            node.attribute[0].i = chance.choice([-1, 0, 5, 2**62])
        case _:
            model.graph.node.remove(node)


def _change_constant(model: onnx.ModelProto, chance: random.Random) -> None:
    tensor = chance.choice(model.graph.initializer)
    match chance.randrange(6):
        case 0:
            tensor.data_location = TensorProto.EXTERNAL
            tensor.ClearField("raw_data")
            tensor.external_data.add(
                key="location", value=chance.choice(["../../etc/passwd", "/etc/passwd", MODEL_CARD])
            )
            tensor.external_data.add(key="length", value="8")
        case 1:
            tensor.dims[:] = [chance.choice([0, -1, 2**62, 2**31, 3]) for _ in range(chance.randrange(1, 4))]
        case 2:
            tensor.data_type = chance.randrange(25)
        case 3:
            tensor.raw_data = chance.randbytes(len(tensor.raw_data))
        case 4:
            tensor.dims.extend([1] * chance.choice([9, 33, 65]))
        case _:
            model.graph.initializer.remove(tensor)


def _change_port(model: onnx.ModelProto, chance: random.Random) -> None:
    value = chance.choice([*model.graph.input, *model.graph.output])
    match chance.randrange(3):
        case 0:
            value.name = _any_name(model, chance)
        case 1:
            value.type.tensor_type.elem_type = chance.randrange(20)
        case _:
            value.type.tensor_type.shape.dim.add(dim_value=chance.choice([0, 1, -1, 2**62]))


_OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
_GRAPH_CHANGES: tuple[Callable[[onnx.ModelProto, random.Random], None], ...] = (
    _add_node,
    _change_node,
    _change_constant,
    _change_port,
)

# Of each kind, whether the checksums were written anew: then it may be served if it answers as it says.
DAMAGES: dict[str, tuple[Callable[[Path, random.Random], None], bool]] = {
    "bytes": (damage_bytes, False),
    "folder": (damage_folder, False),
    "manifest": (damage_manifest, True),
    "graph bytes": (damage_graph_bytes, True),
    "graph": (damage_graph, True),
    "golden request": (damage_golden, True),
}


def sign(bundle: Path, keys: Path) -> TrustedKeys:
    """Sign a bundle with new keys in that folder, and return what trusts them."""
    private, public = make_keys(keys / "fuzz")
    sign_bundle(bundle, read_private_key(private))
    return read_trusted_keys([public])


def try_once(bundle: Path, trusted: TrustedKeys, seed: int, number: int) -> Outcome:
    """Spoil a copy of a signed bundle and have it verified and loaded."""
    chance = random.Random(f"{seed}/{number}")
    kind = list(DAMAGES)[number % len(DAMAGES)]
    damage, sealed = DAMAGES[kind]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "bundle"
        shutil.copytree(bundle, path)
        if sealed:
            (path / SIGNATURE).unlink()
        damage(path, chance)
        opened: list[str] = []
        try:
            with _watching(path, opened):
                load(read_bundle(path, None if sealed else trusted))
        except (BundleError, RefusedBundleError) as error:
            failed = "" if str(error) and "\n" not in str(error) else f"no reason in one line: {error!r}"
            return kind, True, failed or _outside(opened)
        except BaseException as error:
            return kind, True, f"{type(error).__name__}: {error}"
        return kind, False, _outside(opened) or ("" if sealed else "served")


def _outside(opened: list[str]) -> str:
    return f"opened {opened}" if opened else ""


_watched: list[tuple[Path, list[str]]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _watched:
        path, opened = _watched[-1]
        name = arguments[0]
        if isinstance(name, int) or os.fspath(name) in (*FILES, str(path)):
            return
        if not str(name).endswith((".py", ".pyc", ".so")):  # what Python imports when it is first needed
            opened.append(str(name))


@contextmanager
def _watching(path: Path, opened: list[str]) -> Iterator[None]:
    """Note every file that Python opens, but for the bundle's folder and names within."""
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked.append(True)
    _watched.append((path, opened))
    try:
        yield
    finally:
        _watched.pop()


_hooked: list[bool] = []


def _work(bundle: Path, keys: Path, seed: int, first: int, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES,) * 2)
    trusted = read_trusted_keys([keys])
    load(read_bundle(bundle, trusted))  # whatever is imported at the first call is imported now
    number = first
    while True:
        connection.send((number, None))
        started = time.perf_counter()
        outcome = try_once(bundle, trusted, seed, number)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        connection.send((number, (outcome, time.perf_counter() - started, used)))
        number += 1


def fuzz(bundle: Path, seconds: float, seed: int) -> dict[str, Any]:
    """Spoil copies of a bundle for so long, in a process of its own, and return what came of it."""
    tries: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    failures: list[dict[str, Any]] = []
    slowest, most_memory, number = 0.0, 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        signed = Path(scratch) / "bundle"
        shutil.copytree(bundle, signed)
        sign(signed, Path(scratch))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            ours, theirs = multiprocessing.get_context("spawn").Pipe()
            worker = multiprocessing.get_context("spawn").Process(
                target=_work, args=(signed, Path(scratch), seed, number, theirs), daemon=True
            )
            worker.start()
            theirs.close()
            try:
                while time.monotonic() < end:
                    if not ours.poll(PATIENCE_SECONDS):
                        raise EOFError
                    number, done = ours.recv()
                    if done is None:
                        continue
                    (kind, was_refused, failed), took, used = done
                    tries[kind] += 1
                    refused[kind] += was_refused
                    slowest, most_memory = max(slowest, took), max(most_memory, used)
                    if failed:
                        failures.append({"number": number, "kind": kind, "failed": failed})
            except EOFError:
                failures.append({"number": number, "failed": "the process died or hung"})
                number += 1
            finally:
                worker.kill()
                worker.join()
    return {
        "seconds": seconds,
        "seed": seed,
        "tries": dict(tries),
        "refused": dict(refused),
        "failures": failures,
        "slowest_seconds": round(slowest, 2),
        "most_memory_mib": most_memory // 2**20,
        "packages": {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "pydantic", "cryptography")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, help="bundle to damage copies of")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file to write")
    arguments = parser.parse_args()
    if not arguments.out.parent.is_dir():
        raise BenchmarkError(f"--out {arguments.out}: there is no folder {arguments.out.parent}.")
    read_bundle(arguments.bundle)  # says what is wrong with it before it is damaged
    result = fuzz(arguments.bundle, arguments.seconds, arguments.seed)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    if result["failures"]:
        raise BenchmarkError(f"{len(result['failures'])} of the tries failed; {arguments.out} has them.")


if __name__ == "__main__":
    run(main)
