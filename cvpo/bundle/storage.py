"""A bundle on disk: written whole, read through its own folder alone, and every byte of it verified."""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from cvpo.bundle.golden import Golden, read_golden
from cvpo.bundle.graph import check_graph
from cvpo.bundle.interface import CRITIC_GRAPH, POLICY_GRAPH
from cvpo.bundle.keys import SIGNATURE_BYTES, TrustedKeys
from cvpo.bundle.manifest import SCHEMA_VERSION, FileEntry, Manifest, canonical
from cvpo.errors import BundleError
from cvpo.files import write_directory

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"  # the only file that may be missing, or be added later
MODEL_CARD = "MODEL_CARD.md"
GOLDEN = "golden.json"

MOST_DEPTH = 32  # of lists and objects in one another; ours have about ten

_NAMED = 3  # bundles of a repository, where one of them should have been

_MIB = 2**20
_MOST_BYTES: Mapping[str, int] = {
    MANIFEST: _MIB,
    SIGNATURE: SIGNATURE_BYTES,
    POLICY_GRAPH: 256 * _MIB,
    CRITIC_GRAPH: 256 * _MIB,
    MODEL_CARD: _MIB,
    GOLDEN: 8 * _MIB,
}
_LISTED = {POLICY_GRAPH, CRITIC_GRAPH, MODEL_CARD, GOLDEN}


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory: what is served is what was checked, whatever happens to the folder afterwards."""

    path: Path
    manifest: Manifest
    manifest_data: bytes  # as in its file: what is signed
    policy_graph: bytes
    critic_graph: bytes
    model_card: str
    golden: Golden = field(compare=False)  # arrays; the manifest has its hash
    signed: bool  # by whom is only known of trusted keys
    signer: Path | None  # file of the trusted key that signed it; None where none was asked for

    def graph(self, name: str) -> bytes:
        """Return the graph of that file name."""
        return {POLICY_GRAPH: self.policy_graph, CRITIC_GRAPH: self.critic_graph}[name]


def write_bundle(
    path: Path,
    manifest: Manifest,
    *,
    policy_graph: bytes,
    critic_graph: bytes,
    model_card: str,
    golden: Golden,
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Write a bundle whole or not at all, signed where a key is given, and return its path.

    Raises:
        BundleError: something is already there, or the folder cannot be written.
    """
    if path.exists():
        raise BundleError(
            f"{path} already exists, and bundles are immutable. Choose another --out, or remove it first."
        )
    contents = {
        POLICY_GRAPH: policy_graph,
        CRITIC_GRAPH: critic_graph,
        MODEL_CARD: model_card.encode(),
        GOLDEN: golden.render(),
    }
    files = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data)) for name, data in contents.items()
    }
    contents[MANIFEST] = seal(json.loads(manifest.model_copy(update={"files": files}).model_dump_json()))
    if key is not None:
        contents[SIGNATURE] = key.sign(contents[MANIFEST])
    write_directory(path, contents, BundleError)
    return path


def sign_bundle(path: Path, key: Ed25519PrivateKey) -> None:
    """Sign a bundle that is not signed. Nothing of it changes: the signature, of the manifest's bytes, is a file more.

    Raises:
        BundleError: it fails verification, is signed already, or cannot be written.
    """
    bundle = read_bundle(path)
    if bundle.signed:
        raise BundleError(f"{path} is signed already. To sign it with another key, remove its {SIGNATURE} first.")
    with _opened(path) as folder:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with os.fdopen(os.open(SIGNATURE, flags, 0o644, dir_fd=folder), "wb") as file:
                file.write(key.sign(bundle.manifest_data))
                file.flush()
                os.fsync(file.fileno())
            os.fsync(folder)
        except OSError as error:
            raise BundleError(f"Cannot write {path / SIGNATURE}: {error.strerror}.") from error


def read_bundle(path: Path, trusted: TrustedKeys | None = None) -> Bundle:
    """Read a bundle and verify every byte of it. Nothing is run; nothing outside of its folder is opened.

    Args:
        path: its folder.
        trusted: the keys one of which must have signed it; None: it need not be signed, and a signature says nothing.

    Raises:
        BundleError: it is missing, cut short or altered, not signed by a trusted key, holds what the manifest does not
            list, was written for another schema version, or its graphs are not what our exporter writes.
    """
    with _opened(path) as folder:
        manifest_data = _read(folder, path, MANIFEST)
        names = os.listdir(folder)  # noqa: PTH208  # pathlib has no way through a descriptor
        signature = _read(folder, path, SIGNATURE) if SIGNATURE in names else None
        if signature is not None and len(signature) != SIGNATURE_BYTES:
            raise BundleError(f"{path / SIGNATURE} is cut short. Remove it, and sign again.")
        signer = None if trusted is None else _check_signature(path, manifest_data, signature, trusted)
        manifest = _parse_manifest(path, manifest_data)
        unlisted = set(names) - _LISTED - {MANIFEST, SIGNATURE}
        if unlisted:
            raise BundleError(
                f"{path} holds {sorted(unlisted)}, which its manifest does not list. Remove it or export again."
            )
        data = {name: _read_verified(folder, path, name, entry) for name, entry in manifest.files.items()}
    try:
        for name in (POLICY_GRAPH, CRITIC_GRAPH):
            check_graph(name, data[name], manifest.sizes)
        golden = read_golden(data[GOLDEN], manifest.sizes)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    return Bundle(
        path=path,
        manifest=manifest,
        manifest_data=manifest_data,
        policy_graph=data[POLICY_GRAPH],
        critic_graph=data[CRITIC_GRAPH],
        model_card=data[MODEL_CARD].decode(errors="replace"),
        golden=golden,
        signed=signature is not None,
        signer=signer,
    )


def _check_signature(path: Path, data: bytes, signature: bytes | None, trusted: TrustedKeys) -> Path:
    keys = ", ".join(str(file) for file, _ in trusted.keys)
    if signature is None:
        raise BundleError(f"{path} is not signed, and only what is signed with {keys} is trusted. See `cvpo sign`.")
    signer = trusted.signer(data, signature)
    if signer is None:
        raise BundleError(
            f"{path} is not signed with a trusted key ({keys}): another key signed it, or it was changed afterwards."
        )
    return signer


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    document = _parse_document(path / MANIFEST, data)
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:  # 2.0 is equal, and no version
        later = isinstance(version, int) and version > SCHEMA_VERSION
        raise BundleError(
            f"{path / MANIFEST} has schema_version {version!r}; this cvpo reads {SCHEMA_VERSION}. "
            + ("Use a later cvpo." if later else "Export the bundle again with this version.")
        )
    if document.pop("digest", None) != _digest(document):
        raise BundleError(
            f"{path / MANIFEST} does not match its own digest: it was changed after export. Export again."
        )
    try:
        manifest = Manifest.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise BundleError(f"{path / MANIFEST}: {where}: {first['msg']}. Export the bundle again.") from error
    if set(manifest.files) != _LISTED:
        raise BundleError(f"{path / MANIFEST} must list exactly {sorted(_LISTED)}, not {sorted(manifest.files)}.")
    return manifest


def seal(document: dict[str, object]) -> bytes:
    """A manifest as its file, with its own digest; anyone can make it, so only a signature says who did."""
    unsealed = {name: value for name, value in document.items() if name != "digest"}
    return _render({**unsealed, "digest": _digest(unsealed)})


def _digest(document: dict[str, object]) -> str:
    return hashlib.sha256(canonical(document)).hexdigest()


def _render(document: dict[str, object]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def _parse_document(path: Path, data: bytes) -> dict[str, object]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not valid JSON (cut short or altered): {error}. Export again.") from error
    if not isinstance(document, dict):
        raise BundleError(f"{path} is not a manifest. Export again.")
    if fault := _fault(document):
        raise BundleError(f"{path} is not a manifest: it holds {fault}. Export again.")
    if data != _render(document):  # the digest covers the values; this covers the bytes between them
        raise BundleError(f"{path} is not as it was written: it was changed after export. Export again.")
    return document


def _fault(value: object, depth: int = 0) -> str | None:
    """What JSON can say and a manifest may not, if it does."""
    if depth > MOST_DEPTH:
        return f"lists or objects nested more than {MOST_DEPTH} deep"
    if isinstance(value, dict | list):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((fault for part in parts if (fault := _fault(part, depth + 1))), None)
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{value[:40]!r}, which is no text in UTF-8"
    return None


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The folder as a descriptor, so that every file is looked for in this very folder, whatever its name becomes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{path} is not a bundle: there is no such folder. `cvpo export` writes one.") from error
    except OSError as error:
        raise BundleError(f"Cannot read {path}: {error.strerror}.") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(folder: int, path: Path, name: str) -> bytes:
    """Read a file of the bundle: a plain one, of a size within bounds; a link is not followed."""
    most = _MOST_BYTES[name]

    def within(name: str, flags: int) -> int:
        # Not waiting, for a pipe in the file's place would never open.
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)

    try:
        with open(name, "rb", opener=within) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BundleError(f"{path / name} is no plain file. Export again; this version stays unserved.")
            data = file.read(most + 1)
    except FileNotFoundError as error:
        if name == MANIFEST:
            raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}. {_instead(path)}") from error
        raise BundleError(f"Cannot read {path / name}: {error.strerror}. Export the bundle again.") from error
    except OSError as error:
        reason = "it is a link" if (path / name).is_symlink() else error.strerror
        raise BundleError(f"Cannot read {path / name}: {reason}. Export the bundle again.") from error
    if len(data) > most:
        raise BundleError(f"{path / name} is larger than {most:,} bytes, the most that a bundle's may be.")
    return data


def _instead(path: Path) -> str:
    """What to do about a folder that is no bundle: it may be a repository, with bundles at REPOSITORY/NAME/VERSION."""
    held = [str(file.parent) for depth in ("", "[!.]*/") for file in path.glob(f"{depth}[!.]*/{MANIFEST}")]
    if not held:
        return "`cvpo export` writes one."
    others = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    return f"Name one of the bundles in it: {', '.join(sorted(held)[:_NAMED])}{others}."


def _read_verified(folder: int, path: Path, name: str, entry: FileEntry) -> bytes:
    data = _read(folder, path, name)
    if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(
            f"{name} does not match its SHA-256 in {MANIFEST} ({path}). "
            "The file was changed or cut short after export. Export again; this version stays unserved."
        )
    return data
