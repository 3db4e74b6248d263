"""Certificates for tests, made with the openssl command."""

import subprocess
from pathlib import Path


class Authority:
    """Signs certificates, for localhost and 127.0.0.1."""

    def __init__(self, folder: Path, name: str) -> None:
        self.certificate = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._folder = folder
        _openssl("req", "-x509", *_new_key(self._key), "-out", self.certificate, "-subj", f"/CN={name}", "-days", "2")

    def issue(self, name: str) -> tuple[Path, Path]:
        """Return the files of a new certificate and its key."""
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        _openssl(
            *("req", "-x509", *_new_key(key), "-out", certificate, "-subj", f"/CN={name}", "-days", "2"),
            *("-CA", self.certificate, "-CAkey", self._key, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
        return certificate, key


def _new_key(path: Path) -> tuple[str | Path, ...]:
    return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
