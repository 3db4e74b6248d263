"""Who signed a bundle: only what a trusted key signed is read where keys are given, and openssl agrees."""

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cvpo.bundle import MANIFEST, SIGNATURE, make_keys, read_bundle, read_private_key, read_trusted_keys, sign_bundle
from cvpo.errors import BundleError, KeyFileError
from tests.serve import bundles


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path / "keys" / "release")


@pytest.fixture
def signed(keys: tuple[Path, Path], tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "bundle", key=read_private_key(keys[0]))


def test_a_bundle_is_known_by_the_key_that_signed_it(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    make_keys(tmp_path / "keys" / "another")
    for trusted in ([keys[1]], [tmp_path / "keys"]):
        bundle = read_bundle(signed, read_trusted_keys(trusted))
        assert bundle.signed
        assert bundle.signer == keys[1]


def test_signing_adds_a_file_and_changes_none(keys: tuple[Path, Path], tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    trusted, private = read_trusted_keys([keys[1]]), read_private_key(keys[0])
    with pytest.raises(BundleError, match="is not signed, and only what is signed with"):
        read_bundle(path, trusted)
    sign_bundle(path, private)
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != SIGNATURE} == before
    assert read_bundle(path, trusted).signer == keys[1]
    with pytest.raises(BundleError, match="is signed already"):
        sign_bundle(path, private)


def test_another_key_is_not_trusted(signed: Path, tmp_path: Path) -> None:
    _, other = make_keys(tmp_path / "other")
    with pytest.raises(BundleError, match=r"not signed with a trusted key \(.*other\.pub\)"):
        read_bundle(signed, read_trusted_keys([other]))


def test_the_signature_of_another_bundle_is_none(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = bundles.write(tmp_path / "other", bundles.manifest(version=2))
    shutil.copy(signed / SIGNATURE, other)
    with pytest.raises(BundleError, match="not signed with a trusted key"):
        read_bundle(other, read_trusted_keys([keys[1]]))


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_size_is_refused_whoever_is_trusted(signed: Path, size: int) -> None:
    (signed / SIGNATURE).write_bytes(b"x" * size)
    with pytest.raises(BundleError, match=SIGNATURE):
        read_bundle(signed)


def test_openssl_verifies_what_was_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    command: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin"]
    subprocess.run(
        [*command, "-in", signed / MANIFEST, "-sigfile", signed / SIGNATURE], check=True, capture_output=True
    )


def test_the_private_key_is_for_its_owner_alone_and_never_written_over(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "a")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    kept = private.read_bytes()
    with pytest.raises(KeyFileError, match=r"a\.key exists"):
        make_keys(tmp_path / "a")
    private.unlink()
    with pytest.raises(KeyFileError, match=r"a\.pub exists"):
        make_keys(tmp_path / "a")
    assert not private.exists()
    assert kept != public.read_bytes()
    with pytest.raises(KeyFileError, match="Cannot write"):
        make_keys(public / "a")  # no folder can be made where a file is


def test_a_folder_without_keys_trusts_nobody_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="holds no key"):
        read_trusted_keys([tmp_path])
    with pytest.raises(KeyFileError, match="Cannot read"):
        read_trusted_keys([tmp_path / "nothing.pub"])


def test_what_is_no_key_is_refused_by_its_file(keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    file = tmp_path / "file.pem"
    file.write_text("-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----\n")
    for wrong in (file, private):
        with pytest.raises(KeyFileError, match=f"{wrong.name} is no public key"):
            read_trusted_keys([wrong])
    for wrong in (file, public):
        with pytest.raises(KeyFileError, match=f"{wrong.name} is no private key"):
            read_private_key(wrong)
    other = X25519PrivateKey.generate()
    file.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileError, match="not of Ed25519"):
        read_trusted_keys([file])
    file.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(KeyFileError, match="not of Ed25519"):
        read_private_key(file)
    secret = read_private_key(private)
    file.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word")))
    with pytest.raises(KeyFileError, match="encrypted"):
        read_private_key(file)
