"""Which server is asked next, for how long, and how it is reached."""

import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from serve.client.channel import Addresses, Attempts, Dialer, Tls
from serve.client.events import Ended, leave
from serve.errors import DeadlineExceededError, InvalidRequestError, NotFoundError, UnavailableError
from serve.gen.cvpo.v1 import control_pb2 as pb
from tests.serve.certificates import Authority


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Status(grpc.RpcError):
    """What a call that failed raises."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "so it is"

    def trailing_metadata(self) -> tuple[()]:
        return ()


class Refusing:
    """A stream that the server at a ended."""

    address = "a"

    def send(self, message: pb.ControlRequest) -> None: ...

    def finish(self) -> None: ...

    def cancel(self) -> None: ...


def test_the_address_that_works_is_asked_first_from_then_on() -> None:
    addresses = Addresses(["a", "b", "c"])
    assert addresses.in_order() == ["a", "b", "c"]
    addresses.worked("b")
    assert addresses.in_order() == ["b", "a", "c"]
    assert addresses.works("b")
    addresses.failed("b")
    assert addresses.in_order() == ["a", "c", "b"]
    assert not addresses.works("b")


def test_an_address_that_fails_is_left_alone_for_longer_each_time_up_to_five_seconds() -> None:
    clock = Clock()
    addresses = Addresses("a", clock, draw=lambda: 1.0)
    waits = []
    for _ in range(2000):
        addresses.failed("a")
        waits.append(addresses.wait_seconds())
        clock.now += waits[-1]
        assert addresses.wait_seconds() == 0.0
    assert waits[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
    assert waits[-1] == pytest.approx(5.0)
    addresses.worked("a")
    addresses.failed("a")
    assert addresses.wait_seconds() == pytest.approx(0.1)


def test_an_address_that_refuses_is_left_alone_for_half_a_second_each_time() -> None:
    clock = Clock()
    addresses = Addresses(["a", "b"], clock, draw=lambda: 1.0)
    addresses.refused("a")
    assert addresses.in_order() == ["b", "a"]
    assert not addresses.works("a")
    addresses.failed("b", retry_after_seconds=60.0)
    for _ in range(10):
        addresses.refused("a")
        assert addresses.wait_seconds() == pytest.approx(0.5)
        clock.now += 0.5


def test_who_refuses_a_session_is_asked_again_after_half_a_second_however_often_it_did() -> None:
    clock = Clock()
    addresses = Addresses("a", clock, draw=lambda: 1.0)
    for _ in range(6):
        assert leave(Ended(Refusing(), NotFoundError("no version 1")), addresses)
        assert addresses.wait_seconds() == pytest.approx(0.5)
        clock.now += 0.5


def test_the_jitter_takes_up_to_half_of_the_wait() -> None:
    addresses = Addresses("a", Clock(), draw=lambda: 0.0)
    addresses.failed("a")
    assert addresses.wait_seconds() == pytest.approx(0.05)
    addresses.refused("a")
    assert addresses.wait_seconds() == pytest.approx(0.25)


def test_an_address_is_left_alone_at_least_as_long_as_it_says_itself() -> None:
    addresses = Addresses(["a", "b"], Clock(), draw=lambda: 1.0)
    addresses.failed("a", retry_after_seconds=3.0)
    addresses.failed("b")
    assert addresses.in_order() == ["b", "a"]
    assert addresses.wait_seconds() == pytest.approx(0.1)


def test_no_address_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="address: is empty"):
        Addresses([])


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix:/" + "x" * 107, "unix:///" + "ü" * 54, "127.0.0.1:99999", 50051, None, b"a:1", Path("/run/a")],
)
def test_an_address_that_no_server_can_have_is_refused_before_it_hides_those_after_it(address: Any) -> None:
    for given in (address, ["127.0.0.1:50051", address]):
        with pytest.raises(InvalidRequestError, match="write HOST:PORT or unix:PATH") as caught:
            Addresses(given)
        assert caught.value.field == "address"
        assert f"is {address!r}; " in caught.value.description


def test_addresses_may_be_of_any_kind_that_grpc_knows() -> None:
    given = ["robot:65535", "unix:/" + "x" * 106, "unix:///run/a", "[::1]:50051", "dns:///servers:50051", "localhost"]
    assert Addresses(iter(given)).in_order() == given  # type: ignore[arg-type]  # as by a user without types


def test_tries_share_the_deadline_until_an_address_has_shown_that_it_works() -> None:
    addresses = Addresses(["a", "b", "c", "d"])
    first = next(iter(Attempts(addresses, 40.0)))
    assert first.address == "a"
    assert first.timeout_seconds == pytest.approx(10.0, rel=0.1)
    addresses.worked("a")
    assert next(iter(Attempts(addresses, 40.0))).timeout_seconds == pytest.approx(40.0, rel=0.1)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED]
)
def test_a_try_that_another_server_may_answer_goes_on_there(code: grpc.StatusCode) -> None:
    addresses = Addresses(["a", "b"])
    attempts = Attempts(addresses, 60.0)
    tries = iter(attempts)
    first = next(tries)
    attempts.failed(first, Status(code))
    second = next(tries)
    with pytest.raises((UnavailableError, DeadlineExceededError), match="a, b"):
        attempts.failed(second, Status(code))
    assert [first.address, second.address] == ["a", "b"]
    assert addresses.wait_seconds() > 0


def test_what_no_server_would_answer_is_told_at_once() -> None:
    addresses = Addresses(["a", "b"])
    attempts = Attempts(addresses, 60.0)
    with pytest.raises(InvalidRequestError):
        attempts.failed(next(iter(attempts)), Status(grpc.StatusCode.INVALID_ARGUMENT))
    assert addresses.wait_seconds() == 0.0


def test_no_try_begins_after_the_deadline() -> None:
    attempts = Attempts(Addresses(["a", "b"]), 0.0)
    with pytest.raises(UnavailableError):
        attempts.failed(next(iter(attempts)), Status(grpc.StatusCode.UNAVAILABLE))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"tls\.certificate_authority: cannot be read: .*missing\.pem"):
        Dialer(Tls(tmp_path / "missing.pem"))


def test_a_file_that_cannot_be_used_is_named_where_grpc_says_that_no_server_answers(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "factory")
    robot, key = authority.issue("robot")
    _, other_key = authority.issue("other")
    with pytest.raises(InvalidRequestError, match=r"tls\.certificate_authority: is .*robot\.key, which holds no cert"):
        Dialer(Tls(key))
    with pytest.raises(InvalidRequestError, match=r"tls\.certificate: and tls\.key, .*robot\.pem and .*other\.key"):
        Dialer(Tls(authority.certificate, robot, other_key))


@pytest.mark.parametrize("tls", ["ca.pem", True])
def test_tls_that_is_none_is_refused(tls: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"tls: is .*; give Tls\(certificate_authority\)"):
        Dialer(tls)


def test_credentials_are_renewed_with_their_files_and_kept_while_one_cannot_be_read_or_used(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    shutil.copy(Authority(tmp_path, "first").certificate, authority)
    dialer = Dialer(Tls(str(authority)))
    first = dialer.credentials()
    assert dialer.credentials() is first
    authority.unlink()
    assert dialer.credentials() is first
    authority.write_text("half of it")
    assert dialer.credentials() is first
    shutil.copy(Authority(tmp_path, "second").certificate, authority)
    assert dialer.credentials() is not first


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"tls\.key"):
        Dialer(Tls(certificate=tmp_path / "robot.pem"))
