"""Certificates from files: who the server is, and which clients it lets in. Renewed files are taken up as they come."""

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from serve.errors import StartupError
from serve.server.telemetry import log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CertificateFiles:
    """The PEM files of a server."""

    certificate: Path  # its own certificate, then those between it and the root
    key: Path
    client_ca: Path | None  # who must have signed a client's certificate; None: any client may come

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a port is opened with. Later connections get the files as they are by then.

        Raises:
            StartupError: a file cannot be read, is no certificate or key, or the two do not belong together.
        """
        taken = self._stamp()  # before they are read: what is replaced meanwhile is taken up at the next connection
        configuration = self._read()

        def renew() -> grpc.ServerCertificateConfiguration | None:
            """Return the files if they have changed and are whole; gRPC asks at each new connection."""
            nonlocal taken
            try:
                stamp = self._stamp()
                if stamp == taken:
                    return None
                renewed = self._read()
            except (StartupError, OSError) as error:
                log(logger, logging.ERROR, "certificates not renewed", reason=str(error))
                return None
            taken = stamp
            log(logger, logging.INFO, "certificates renewed", certificate=str(self.certificate))
            return renewed

        return grpc.dynamic_ssl_server_credentials(
            configuration,
            renew,  # type: ignore[arg-type]  # grpc documents None for "no change"; its stubs do not know
            require_client_authentication=self.client_ca is not None,
        )

    def _stamp(self) -> list[tuple[int, int, int]] | None:
        """Return what differs when a file was written or replaced; None where one is not there to be read."""
        files = [self.certificate, self.key] + ([self.client_ca] if self.client_ca else [])
        try:
            return [(s.st_mtime_ns, s.st_size, s.st_ino) for s in (file.stat() for file in files)]
        except OSError:
            return None

    def _read(self) -> grpc.ServerCertificateConfiguration:
        certificate = _read(self.certificate, "--tls-certificate")
        key = _read(self.key, "--tls-key")
        client_ca = None if self.client_ca is None else _read(self.client_ca, "--tls-client-ca")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: b"")  # or OpenSSL asks the terminal
        except ssl.SSLError as error:
            raise StartupError(
                f"{self.certificate} and {self.key} are not a certificate and its unencrypted key, both in PEM "
                f"({error.reason or 'OpenSSL does not say why'}). Check --tls-certificate and --tls-key."
            ) from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise StartupError(f"{self.client_ca} holds no certificate in PEM. Check --tls-client-ca.") from error
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _read(path: Path, flag: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"Cannot read {path}: {error.strerror}. Check {flag}.") from error
