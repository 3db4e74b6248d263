"""PolicyAdminService: what it tells, what it changes, and what it refuses."""

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

import serve.server.admin
from serve.gen.cvpo.v1 import admin_pb2 as pb
from serve.gen.cvpo.v1.admin_pb2_grpc import PolicyAdminServiceStub
from serve.server.plan import PLAN, ServingPlan, read_plan, write_plan
from serve.server.repository import PolicyVersions
from serve.server.settings import Settings
from serve.server.watch import Watcher
from tests.serve import bundles
from tests.serve.conftest import PATIENCE_SECONDS
from tests.serve.running import ServerThread

NEVER_SECONDS = 3600.0  # what is followed is followed because it was asked for, not because the folder was looked at


def stub_of(address: str) -> PolicyAdminServiceStub:
    return PolicyAdminServiceStub(grpc.insecure_channel(address))  # type: ignore[no-untyped-call]


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[PolicyAdminServiceStub]:
    """Of a server with versions 1 to 3 of goal, 4 with other constraints, pinned to 3, and a bundle that is refused."""
    for version in (1, 2, 3):
        bundles.write(tmp_path / "goal" / str(version), bundles.manifest(version=version))
    bundles.write(tmp_path / "goal" / "4", bundles.manifest(version=4, constraint_names=("heat", "tear")))
    bundles.write(tmp_path / "goal" / "5", bundles.manifest(version=5, calibration=None))
    write_plan(tmp_path, "goal", ServingPlan(pinned=3))
    server = ServerThread(
        Settings(repository=tmp_path, address="127.0.0.1:0", admin_address="127.0.0.1:0", poll_seconds=NEVER_SECONDS)
    )
    assert server.running.admin_address is not None
    yield stub_of(server.running.admin_address)
    server.stop(drain_seconds=0)


def get(admin: PolicyAdminServiceStub) -> pb.PolicyServing:
    (policy,) = admin.GetServing(pb.GetServingRequest(name="goal"), timeout=PATIENCE_SECONDS).policies
    assert isinstance(policy, pb.PolicyServing)
    return policy


def change(admin: PolicyAdminServiceStub, **plan: object) -> pb.PolicyServing:
    request = pb.SetServingRequest(name="goal", plan=pb.ServingPlan(**plan))  # type: ignore[arg-type]
    policy = admin.SetServing(request, timeout=PATIENCE_SECONDS).policy
    assert policy == get(admin)  # it has returned, so it is followed
    assert isinstance(policy, pb.PolicyServing)
    return policy


def roll_back(admin: PolicyAdminServiceStub) -> int:
    policy = admin.Rollback(pb.RollbackRequest(name="goal"), timeout=PATIENCE_SECONDS).policy
    assert policy == get(admin)
    assert policy.plan == pb.ServingPlan(pinned=policy.served)
    return int(policy.served)


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, str]:
    """Return the status, the message and the field of a call that must be refused."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    trailing = dict(error.trailing_metadata() or ())
    bad_request = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(trailing["grpc-status-details-bin"]).details:
        detail.Unpack(bad_request)
    field = bad_request.field_violations[0].field if bad_request.field_violations else ""
    return error.code(), error.details() or "", field


def test_what_is_served_and_what_is_refused_is_told(admin: PolicyAdminServiceStub) -> None:
    answer = admin.GetServing(pb.GetServingRequest(), timeout=PATIENCE_SECONDS)
    assert list(answer.policies) == [
        pb.PolicyServing(name="goal", plan=pb.ServingPlan(pinned=3), served=3, loaded=[1, 2, 3, 4])
    ]
    (bundle,) = answer.refused
    assert bundle.path == "goal/5"
    assert "no calibration" in bundle.reason


def test_a_plan_is_written_followed_and_told(admin: PolicyAdminServiceStub, tmp_path: Path) -> None:
    policy = change(admin, pinned=1, canary=pb.Canary(version=2, share=0.25), shadow=3)
    assert policy.served == 1
    assert policy.plan == pb.ServingPlan(pinned=1, canary=pb.Canary(version=2, share=0.25), shadow=3)
    assert not policy.problem
    document = json.loads((tmp_path / "goal" / PLAN).read_text())
    assert document == {
        "pinned": 1,
        "canary": {"version": 2, "share": 0.25},
        "shadow": 3,
        "history": [3, 1],
    }
    policy = change(admin, pinned=2)
    assert policy.plan == pb.ServingPlan(pinned=2)  # what is absent is off
    assert policy.served == 2


def test_the_log_tells_who_changed_a_plan(admin: PolicyAdminServiceStub, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "serve.server.admin")
    request = pb.SetServingRequest(name="goal", plan=pb.ServingPlan(pinned=2))
    admin.SetServing(request, timeout=PATIENCE_SECONDS, metadata=(("x-request-id", "shift-7"),))
    roll_back(admin)
    changed, rolled_back = (vars(record)["fields"] for record in caplog.records if record.name == "serve.server.admin")
    assert changed == {"policy": "goal", "plan": {"pinned": 2}, "request_id": "shift-7"}
    assert rolled_back["plan"] == {"pinned": 3}


def test_an_empty_plan_serves_the_highest(admin: PolicyAdminServiceStub) -> None:
    assert change(admin).served == 4


def test_rollback_goes_back_step_by_step_and_never_forward(admin: PolicyAdminServiceStub, tmp_path: Path) -> None:
    change(admin, pinned=1)
    change(admin, pinned=2, shadow=3)
    assert roll_back(admin) == 1
    assert roll_back(admin) == 3
    assert roll_back(admin) == 2  # nothing is known of before: the next below
    assert roll_back(admin) == 1
    code, message, _ = refused(lambda: roll_back(admin))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message.startswith("There is nothing to roll 'goal' back to: ")
    assert message.endswith("SetServing pins another; this server has 1, 2, 3, 4.")
    assert read_plan(tmp_path / "goal" / PLAN).pinned == 1


def test_a_change_ends_before_the_next_one_begins_although_its_caller_has_left(
    admin: PolicyAdminServiceStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    set_plan = Watcher.set_plan

    def slow(self: Watcher, name: str, plan: ServingPlan, timeout_seconds: float) -> PolicyVersions:
        if plan.pinned == 1:
            release.wait(PATIENCE_SECONDS)
        return set_plan(self, name, plan, timeout_seconds)

    monkeypatch.setattr(Watcher, "set_plan", slow)
    request = pb.SetServingRequest(name="goal", plan=pb.ServingPlan(pinned=1))
    with pytest.raises(grpc.RpcError):
        admin.SetServing(request, timeout=0.5)
    rolled_back = admin.Rollback.future(pb.RollbackRequest(name="goal"), timeout=PATIENCE_SECONDS)
    time.sleep(0.5)
    release.set()
    assert rolled_back.result().policy.served == 3  # from 1 to what was served before it


def test_a_rollback_begins_from_the_plan_that_is_written_although_it_is_not_followed_yet(
    admin: PolicyAdminServiceStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.server.admin, "_FOLLOW_SECONDS", 0.1)
    monkeypatch.setattr(Watcher, "poll", lambda self: None)  # as while a bundle is being loaded
    request = pb.SetServingRequest(name="goal", plan=pb.ServingPlan(pinned=1))
    for call, pinned in (
        (lambda: admin.SetServing(request, timeout=PATIENCE_SECONDS), 1),
        (lambda: admin.Rollback(pb.RollbackRequest(name="goal"), timeout=PATIENCE_SECONDS), 3),
    ):
        assert refused(call)[0] is grpc.StatusCode.UNAVAILABLE
        assert read_plan(tmp_path / "goal" / PLAN).pinned == pinned
    assert get(admin).served == 3


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (None, "plan"),
        (pb.ServingPlan(pinned=0), "plan.pinned"),
        (pb.ServingPlan(pinned=2**63), "plan.pinned"),
        (pb.ServingPlan(shadow=0), "plan.shadow"),
        (pb.ServingPlan(canary=pb.Canary(version=0, share=0.5)), "plan.canary.version"),
        (pb.ServingPlan(canary=pb.Canary(version=2, share=-0.1)), "plan.canary.share"),
        (pb.ServingPlan(canary=pb.Canary(version=2, share=1.1)), "plan.canary.share"),
        (pb.ServingPlan(canary=pb.Canary(version=2, share=float("nan"))), "plan.canary.share"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_changes(
    admin: PolicyAdminServiceStub, plan: pb.ServingPlan | None, field: str
) -> None:
    before = get(admin)
    request = pb.SetServingRequest(name="goal", plan=plan)
    code, _, told = refused(lambda: admin.SetServing(request, timeout=PATIENCE_SECONDS))
    assert (code, told) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert get(admin) == before


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (pb.ServingPlan(pinned=2, canary=pb.Canary(version=2, share=0.5)), "cannot be the canary"),
        (pb.ServingPlan(pinned=2, canary=pb.Canary(version=4, share=0.5)), "other spaces or constraints"),
        (pb.ServingPlan(pinned=2, shadow=4), "other spaces or constraints"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_not_written(
    admin: PolicyAdminServiceStub, tmp_path: Path, plan: pb.ServingPlan, says: str
) -> None:
    before = get(admin)
    request = pb.SetServingRequest(name="goal", plan=plan)
    code, message, _ = refused(lambda: admin.SetServing(request, timeout=PATIENCE_SECONDS))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert says in message
    assert get(admin) == before
    assert read_plan(tmp_path / "goal" / PLAN) == ServingPlan(pinned=3)


@pytest.mark.parametrize(
    ("plan", "says", "field"),
    [
        (pb.ServingPlan(pinned=9), "no version 9; this server has 1, 2, 3, 4", "plan.pinned"),
        (pb.ServingPlan(pinned=5), "no version 5", "plan.pinned"),
        (pb.ServingPlan(shadow=9), "no version 9", "plan.shadow"),
        (pb.ServingPlan(canary=pb.Canary(version=9, share=0.5)), "no version 9", "plan.canary.version"),
    ],
)
def test_a_plan_that_names_what_is_not_there_is_not_written(
    admin: PolicyAdminServiceStub, tmp_path: Path, plan: pb.ServingPlan, says: str, field: str
) -> None:
    before = get(admin)
    request = pb.SetServingRequest(name="goal", plan=plan)
    code, message, told = refused(lambda: admin.SetServing(request, timeout=PATIENCE_SECONDS))
    assert (code, told) == (grpc.StatusCode.NOT_FOUND, field)
    assert says in message
    assert get(admin) == before
    assert read_plan(tmp_path / "goal" / PLAN) == ServingPlan(pinned=3)


def test_an_unknown_policy_is_not_found(admin: PolicyAdminServiceStub, tmp_path: Path) -> None:
    for call in (
        lambda: admin.GetServing(pb.GetServingRequest(name="gaol"), timeout=PATIENCE_SECONDS),
        lambda: admin.SetServing(pb.SetServingRequest(name="gaol", plan=pb.ServingPlan()), timeout=PATIENCE_SECONDS),
        lambda: admin.Rollback(pb.RollbackRequest(name="../goal"), timeout=PATIENCE_SECONDS),
    ):
        code, message, _ = refused(call)
        assert code is grpc.StatusCode.NOT_FOUND
        assert "this server has goal" in message
    assert not (tmp_path / "gaol").exists()


def test_where_the_repository_cannot_be_written_it_says_so(admin: PolicyAdminServiceStub, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "goal")
    (tmp_path / "goal").write_text("no folder")  # root may write where it has no right to; not here
    code, message, _ = refused(lambda: change(admin, pinned=1))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "change the file where it is made" in message
    assert get(admin).served == 3


def test_the_admin_service_is_not_on_the_port_of_the_robots(tmp_path: Path) -> None:
    bundles.write(tmp_path / "goal" / "1")
    server = ServerThread(Settings(repository=tmp_path, address="127.0.0.1:0"))
    with pytest.raises(grpc.RpcError) as caught:
        stub_of(server.address).GetServing(pb.GetServingRequest(), timeout=PATIENCE_SECONDS)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    server.stop(drain_seconds=0)
