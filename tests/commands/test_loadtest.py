"""`cvpo loadtest` against a real server: figures, errors by code, pictures, and what a user gets wrong."""

import errno
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from cvpo.commands.load import StreamAsker, UnaryAsker, act_request, control_messages, one_after_the_other
from serve.gen.cvpo.v1 import control_pb2
from serve.server.settings import Settings
from tests.command import cvpo, succeed
from tests.serve import bundles
from tests.serve.certificates import Authority
from tests.serve.running import ServerThread

SHORT = ("--seconds", "0.5", "--rate", "20", "--timeout-seconds", "30")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("repository")
    bundles.write(root / "goal", bundles.manifest())
    bundles.write(root / "other", bundles.manifest("other", 7, control_period_ms=None))
    server = ServerThread(Settings(repository=root, address="127.0.0.1:0"))
    yield server.address
    server.stop(drain_seconds=1)


def test_every_client_is_answered_and_counted(address: str) -> None:
    document = json.loads(succeed("loadtest", address, "--policy", "goal", "--clients", "3", *SHORT, "--json").out)
    assert (document["answered"], document["unanswered"], document["errors"]) == (30, 0, {})
    assert 0 < document["p50_us"] <= document["p99_us"] <= document["p99_9_us"] <= document["max_us"]
    assert document["control_period_seconds"] == 0.02
    assert 0 <= document["late_share"] <= 1


def test_steps_of_control_streams_are_answered_and_counted(address: str) -> None:
    said = succeed("loadtest", address, "--policy", "goal", "--stream", "--clients", "3", *SHORT, "--json").out
    document = json.loads(said)
    assert (document["way"], document["answered"], document["errors"]) == ("stream", 30, {})


def test_a_stream_that_is_refused_is_named_by_its_code(address: str) -> None:
    sentence = cvpo("loadtest", address, "--policy", "goal", "--stream", *SHORT, "--observation", "[1, 2]").sentence
    assert "no answer to the first question (INVALID_ARGUMENT)" in sentence


def test_a_person_gets_percentiles_lateness_errors_and_a_histogram(address: str) -> None:
    said = succeed("loadtest", address, "--policy", "goal", *SHORT).out
    assert "goal version 1, unary, 1 client at 20 Hz each for 0.5 s" in said
    assert "10 of 10 due" in said
    assert "within the control period of 20.0 ms" in said
    assert "errors    none" in said
    assert "#" in said


def test_the_rate_is_that_of_the_control_loop_where_none_is_given(address: str) -> None:
    arguments = ("loadtest", address, "--seconds", "0.2", "--timeout-seconds", "30", "--json", "--policy")
    assert json.loads(succeed(*arguments, "goal").out)["answered"] == 10  # 20 ms
    other = json.loads(succeed(*arguments, "other").out)
    assert other["rate_hz"] == 50  # it does not know its own
    assert "late_share" not in other


def test_the_histogram_becomes_a_picture(address: str, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "waits.png"
    succeed("loadtest", address, "--policy", "goal", *SHORT, "--figure", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_leaves_the_one_before(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    picture = tmp_path / "waits.png"
    picture.write_text("before")
    monkeypatch.setattr("cvpo.files.os.fsync", fail)
    said = cvpo("loadtest", address, "--policy", "goal", *SHORT, "--figure", picture)
    assert "No space left" in said.err
    assert said.code == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that opens a stream and answers nothing on it."""

    def converse(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        next(requests)
        yield control_pb2.ControlResponse(opened=control_pb2.SessionOpened()).SerializeToString()
        for _ in requests:
            """It hangs."""

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(converse)
    server = grpc.server(ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("cvpo.v1.ControlService", {"Control": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_a_step_that_is_not_answered_within_the_timeout_is_an_error_and_the_next_has_a_stream_of_its_own(
    silent: str, address: str
) -> None:
    for where, timeout_seconds, code in ((silent, 0.2, "DEADLINE_EXCEEDED"), (address, 30.0, "OK")):
        asker = StreamAsker(where, *control_messages("goal", [0.0, 0.0, 0.0], 5, 2), timeout_seconds)
        began = time.perf_counter()
        assert [asker.ask() for _ in range(3)] == [code] * 3
        asker.close()
        assert where == address or 0.6 <= time.perf_counter() - began < 10


def test_a_stream_outlasts_the_timeout_of_its_answers(address: str) -> None:
    asker = StreamAsker(address, *control_messages("goal", [0.0, 0.0, 0.0], 5, 2), 1.0)
    began, codes = time.perf_counter(), []
    while time.perf_counter() - began < 1.5:
        codes.append(asker.ask())
        time.sleep(0.1)
    assert set(codes) == {"OK"}
    assert asker._number == len(codes)  # all on one stream
    asker.close()


def test_answers_that_come_after_the_timeout_are_errors_by_code(address: str) -> None:
    # A deadline that is over when the question is asked.
    asker = UnaryAsker(address, "/cvpo.v1.PolicyService/Act", act_request("goal", [0, 0, 0]), -1.0)
    load = one_after_the_other([asker], 0.1)
    asker.close()
    assert len(load.waits) == 0
    assert set(load.errors) == {"DEADLINE_EXCEEDED"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--policy", "nobody"), "There is no policy 'nobody'"),
        (("--policy", "goal", "--observation", "[1, 2]"), "no answer to the first question (INVALID_ARGUMENT)"),
        (("--policy", "goal", "--observation", "north"), "not a JSON list of numbers"),
        (("--policy", "goal", "--seconds", "inf"), "--rate 20 for --seconds inf with --clients 1 makes inf questions"),
        (("--policy", "goal", "--seconds", "1e9"), "100,000,000 can be counted"),
        (("--policy", "goal", "--rate", "0.1", "--seconds", "2"), "due at --rate 0.1 within --seconds 2."),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(address: str, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in cvpo("loadtest", address, *SHORT, *arguments).sentence


@pytest.mark.parametrize("arguments", [("--timeout-seconds", "inf"), ("--seconds", "nan"), ("--rate", "nan")])
def test_times_that_are_none_are_refused(arguments: tuple[str, ...]) -> None:
    outcome = cvpo("loadtest", "127.0.0.1:1", *arguments)
    assert outcome.code == 2
    assert arguments[0] in outcome.err


def test_no_server_is_one_sentence() -> None:
    assert "No server answers at 127.0.0.1:1" in cvpo("loadtest", "127.0.0.1:1").sentence


def test_a_server_with_mutual_tls_is_asked_with_the_files_of_a_robot(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "factory")
    certificate, key = authority.issue("server")
    settings = Settings(
        repository=bundles.write(tmp_path / "goal", bundles.manifest()),
        address="127.0.0.1:0",
        tls_certificate=certificate,
        tls_key=key,
        tls_client_ca=authority.certificate,
    )
    robot, robot_key = authority.issue("robot")
    files = ("--tls-ca", authority.certificate, "--tls-certificate", robot, "--tls-key", robot_key)
    server = ServerThread(settings)
    try:
        for way in ("--unary", "--stream"):
            document = json.loads(succeed("loadtest", server.address, way, *SHORT, *files, "--json").out)
            assert (document["answered"], document["errors"]) == (10, {})
        assert "goal version 1" in succeed("query", server.address, *files).out
        assert "action" in succeed("query", server.address, *files, "--observation", "[1, 0, 0]").out
        for some in ((), files[:2]):
            assert "No server answers" in cvpo("loadtest", server.address, *SHORT, *some).sentence
            assert "No server answers" in cvpo("query", server.address, *some).sentence
        assert "tls.key" in cvpo("query", server.address, *files[:4]).sentence
    finally:
        server.stop(drain_seconds=0)


def test_only_a_service_is_evaluated_with_tls(tmp_path: Path) -> None:
    bundle = bundles.write(tmp_path / "goal", bundles.manifest())
    assert "only a service is asked with TLS" in cvpo("evaluate", bundle, "--tls-ca", "factory.pem").sentence
    said = cvpo("evaluate", "127.0.0.1:1", "--tls-ca", tmp_path / "missing.pem").sentence
    assert "tls.certificate_authority" in said
    assert "cannot be read" in said
