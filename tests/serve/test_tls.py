"""TLS and mutual TLS over real connections, and files that will not do."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from serve.errors import StartupError
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.server.settings import Settings
from serve.server.tls import CertificateFiles
from tests.serve.certificates import Authority
from tests.serve.conftest import ServerProcess
from tests.serve.running import ServerThread

PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "factory")


def ask(address: str, credentials: grpc.ChannelCredentials | None) -> list[str]:
    """Return the names of the policies on a new connection."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    with (
        grpc.insecure_channel(address, options)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        stub = PolicyServiceStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.ListPolicies(pb.ListPoliciesRequest(), timeout=PATIENCE_SECONDS)
    return [policy.policy.name for policy in answer.policies]


def trust(authority: Authority, client: tuple[Path, Path] | None = None) -> grpc.ChannelCredentials:
    certificate, key = (None, None) if client is None else (file.read_bytes() for file in client)
    return grpc.ssl_channel_credentials(authority.certificate.read_bytes(), key, certificate)


def test_tls_lets_in_who_trusts_the_server_and_nobody_in_plaintext(authority: Authority, repository: Path) -> None:
    certificate, key = authority.issue("server")
    settings = Settings(repository=repository / "goal", address="127.0.0.1:0", tls_certificate=certificate, tls_key=key)
    server = ServerThread(settings)
    try:
        assert ask(server.address, trust(authority)) == ["goal"]
        for credentials in (None, grpc.ssl_channel_credentials()):
            with pytest.raises(grpc.RpcError) as caught:
                ask(server.address, credentials)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(drain_seconds=0)


def test_of_handshakes_that_fail_the_log_has_no_lines_that_are_no_json(
    authority: Authority,
    repository: Path,
    serve_process: Callable[..., ServerProcess],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    certificate, key = authority.issue("server")
    files = ("--tls-certificate", str(certificate), "--tls-key", str(key))
    server = serve_process(str(repository / "goal"), "--address", "127.0.0.1:0", *files)
    for credentials in (None, grpc.ssl_channel_credentials()):
        with pytest.raises(grpc.RpcError):
            ask(server.address, credentials)
    assert server.terminate() == 0
    assert server.process.stderr is not None
    assert [json.loads(line)["event"] for line in server.process.stderr][-2:] == ["stopping", "stopped"]


def test_mutual_tls_lets_in_only_clients_of_its_authority_on_every_port(
    authority: Authority, repository: Path, tmp_path: Path
) -> None:
    certificate, key = authority.issue("server-of-few")
    settings = Settings(
        repository=repository / "goal",
        address="127.0.0.1:0",
        admin_address="127.0.0.1:0",
        tls_certificate=certificate,
        tls_key=key,
        tls_client_ca=authority.certificate,
    )
    server = ServerThread(settings)
    stranger = Authority(tmp_path, "stranger").issue("robot")
    try:
        assert ask(server.address, trust(authority, authority.issue("robot"))) == ["goal"]
        assert server.running.admin_address is not None
        for address in (server.address, server.running.admin_address):
            for client in (None, stranger):
                with pytest.raises(grpc.RpcError) as caught:
                    ask(address, trust(authority, client))
                assert isinstance(caught.value, grpc.Call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(drain_seconds=0)


def test_a_renewed_certificate_is_taken_up_and_a_broken_one_is_not(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def install(issued: tuple[Path, Path]) -> None:
        for source, target in zip(issued, (certificate, key), strict=True):
            shutil.copy(source, tmp_path / "next")
            (tmp_path / "next").rename(target)

    install(old.issue("first"))
    settings = Settings(repository=repository / "goal", address="127.0.0.1:0", tls_certificate=certificate, tls_key=key)
    server = ServerThread(settings)
    try:
        assert ask(server.address, trust(old)) == ["goal"]
        certificate.write_text("half a certificate")
        with caplog.at_level(logging.ERROR):
            assert ask(server.address, trust(old)) == ["goal"]
        assert "certificates not renewed" in caplog.text
        install(new.issue("second"))
        assert ask(server.address, trust(new)) == ["goal"]
    finally:
        server.stop(drain_seconds=0)


def test_a_certificate_that_is_renewed_while_the_server_starts_is_taken_up(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
    certificate, key = old.issue("first")
    read = CertificateFiles._read

    def read_and_renew(self: CertificateFiles) -> grpc.ServerCertificateConfiguration:
        configuration = read(self)
        monkeypatch.undo()
        for source, target in zip(new.issue("second"), (certificate, key), strict=True):
            source.rename(target)
        return configuration

    monkeypatch.setattr(CertificateFiles, "_read", read_and_renew)
    settings = Settings(repository=repository / "goal", address="127.0.0.1:0", tls_certificate=certificate, tls_key=key)
    server = ServerThread(settings)
    try:
        assert ask(server.address, trust(new)) == ["goal"]
    finally:
        server.stop(drain_seconds=0)


def test_files_that_will_not_do_are_one_sentence(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.issue("mine")
    other, _ = authority.issue("other")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    missing = tmp_path / "missing.pem"
    for files, says in (
        (CertificateFiles(missing, key, None), f"Cannot read {missing}: No such file or directory. Check --tls-cert"),
        (CertificateFiles(certificate, missing, None), f"Cannot read {missing}: .* Check --tls-key"),
        (CertificateFiles(certificate, key, missing), f"Cannot read {missing}: .* Check --tls-client-ca"),
        (CertificateFiles(certificate, tmp_path, None), "Is a directory. Check --tls-key"),
        (CertificateFiles(other, key, None), "are not a certificate and its unencrypted key.*KEY_VALUES_MISMATCH"),
        (CertificateFiles(empty, key, None), "are not a certificate and its unencrypted key"),
        (CertificateFiles(certificate, certificate, None), "are not a certificate and its unencrypted key"),
        (CertificateFiles(certificate, key, empty), f"{empty} holds no certificate in PEM"),
    ):
        with pytest.raises(StartupError, match=says):
            files.credentials()
    assert CertificateFiles(certificate, key, authority.certificate).credentials()


@pytest.mark.parametrize(
    "given", [{"tls_certificate": Path("a")}, {"tls_key": Path("a")}, {"tls_client_ca": Path("a")}]
)
def test_half_of_tls_is_refused(given: dict[str, Path]) -> None:
    with pytest.raises(StartupError, match="both --tls-certificate and --tls-key"):
        _ = Settings(repository=Path(), **given).certificate_files  # type: ignore[arg-type]
