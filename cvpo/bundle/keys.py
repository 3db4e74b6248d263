"""Ed25519 keys: who says that a bundle is the one that was tested. In PEM files, as openssl reads and writes them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cvpo.errors import KeyFileError

SIGNATURE_BYTES = 64
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"
_MOST_BYTES = 16_384


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys, by the file each came from; a bundle must be signed with one of their private halves."""

    keys: tuple[tuple[Path, Ed25519PublicKey], ...]

    def signer(self, data: bytes, signature: bytes) -> Path | None:
        """Return the file of the key whose signature of `data` it is; None: of none of these keys."""
        for path, key in self.keys:
            try:
                key.verify(signature, data)
            except InvalidSignature:
                continue
            return path
        return None


def read_trusted_keys(paths: Sequence[Path]) -> TrustedKeys:
    """Read public keys: files, and folders whose files end in .pub.

    Raises:
        KeyFileError: a file is no public Ed25519 key, or there is none at all.
    """
    files: list[Path] = []
    for path in paths:
        files += sorted(path.glob(f"*{PUBLIC_SUFFIX}")) if path.is_dir() else [path]
    if not files:
        raise KeyFileError(f"{', '.join(map(str, paths))} holds no key (*{PUBLIC_SUFFIX}); nothing could be trusted.")
    return TrustedKeys(tuple((file, _read_public_key(file)) for file in files))


def _read_public_key(path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is no public key in PEM form. `cvpo keygen` makes a pair of keys.") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyFileError(f"{path} is a public key, but not of Ed25519. `cvpo keygen` makes a pair of keys.")
    return key


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read the key to sign with.

    Raises:
        KeyFileError: it cannot be read, is encrypted, or is no private Ed25519 key.
    """
    try:
        key = load_pem_private_key(_read(path), password=None)
    except TypeError as error:
        raise KeyFileError(f"{path} is encrypted; give a key without a passphrase.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is no private key in PEM form. `cvpo keygen` makes a pair of keys.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is a private key, but not of Ed25519. `cvpo keygen` makes a pair of keys.")
    return key


def make_keys(path: Path) -> tuple[Path, Path]:
    """Make a new pair of keys and return its files: PATH.key, for its owner alone, and PATH.pub, for all.

    The folder is made where there is none.

    Raises:
        KeyFileError: one of them exists, or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    files = path.with_name(path.name + PRIVATE_SUFFIX), path.with_name(path.name + PUBLIC_SUFFIX)
    for file in files:
        if file.exists():
            raise KeyFileError(f"{file} exists, and what it signed could not be verified without it. Name another.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, data, mode in zip(files, (secret, public), (0o600, 0o644), strict=True):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
    except OSError as error:
        raise KeyFileError(f"Cannot write {error.filename or path}: {error.strerror}.") from error
    return files


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise KeyFileError(f"Cannot read {path}: {error.strerror}.") from error
