"""The service over a real channel: every rejection by its field, metadata, health, reflection, metrics."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.client import PolicyClient
from serve.errors import FingerprintError, InternalError, InvalidRequestError, NotFoundError, ResourceExhaustedError
from serve.gen.cvpo.v1 import control_pb2
from serve.gen.cvpo.v1 import policy_pb2 as pb
from serve.gen.cvpo.v1.policy_pb2_grpc import PolicyServiceStub
from serve.local import LocalPolicy
from serve.server.settings import Settings
from serve.values import CalibrationStatus, Deterministic, Mode, Sampled, Shielded
from tests.serve import bundles
from tests.serve.robots import Robot
from tests.serve.running import ServerThread

NAN, INF = float("nan"), float("inf")
GOAL = pb.PolicySelector(name="goal")


def situation(
    observation: Iterable[float] = (1, 2, -1), steps_left: int | None = None, cost_allowed: Iterable[float] = ()
) -> pb.Situation:
    return pb.Situation(observation=observation, steps_left=steps_left, cost_allowed=cost_allowed)


def act(*situations: pb.Situation, **fields: object) -> pb.ActRequest:
    return pb.ActRequest(policy=GOAL, situations=situations or [situation()], **fields)  # type: ignore[arg-type]


def evaluate(*pairs: tuple[pb.Situation, Iterable[float]]) -> pb.EvaluateActionRequest:
    situated = [pb.SituatedAction(situation=s, action=a) for s, a in pairs]
    return pb.EvaluateActionRequest(policy=GOAL, situated_actions=situated)


def refusal(stub: PolicyServiceStub, request: object) -> tuple[grpc.Call, status_pb2.Status]:
    """Send a request that must be refused, and return the call and its rich status."""
    method = stub.Act if isinstance(request, pb.ActRequest) else stub.EvaluateAction
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=30)
    call = caught.value
    assert isinstance(call, grpc.Call)
    trailing = dict(call.trailing_metadata() or ())
    return call, status_pb2.Status.FromString(trailing["grpc-status-details-bin"])


def refused_field(status: status_pb2.Status) -> str:
    bad_request = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad_request) for detail in status.details)
    (violation,) = bad_request.field_violations
    assert violation.description
    return str(violation.field)


good = situation()
REJECTIONS = [
    ("situations", pb.ActRequest(policy=GOAL)),
    ("situations", act(*[good] * 17)),
    ("situations[0].observation", act(situation(()))),
    ("situations[0].observation", act(situation((1, 2)))),
    ("situations[1].observation", act(good, situation((1, 2, 3, 4)))),
    ("situations[0].observation[1]", act(situation((1, NAN, 3)))),
    ("situations[1].observation[2]", act(good, situation((1, 2, INF)))),
    ("situations[0].observation[0]", act(situation((-INF, 2, 3)))),
    ("situations[0].steps_left", act(situation(steps_left=0))),
    ("situations[1].steps_left", act(good, situation(steps_left=101))),
    ("situations[0].steps_left", act(situation(steps_left=2**32 - 1))),
    ("situations[0].cost_allowed", act(situation(cost_allowed=(1,)))),
    ("situations[1].cost_allowed", act(good, situation(cost_allowed=(1, 2, 3)))),
    ("situations[0].cost_allowed[0]", act(situation(cost_allowed=(-0.5, 1)))),
    ("situations[0].cost_allowed[1]", act(situation(cost_allowed=(1, NAN)))),
    ("situations[0].cost_allowed[1]", act(situation(cost_allowed=(1, -INF)))),
    ("shielded.candidates", act(shielded=pb.Shielded(candidates=0))),
    ("shielded.candidates", act(shielded=pb.Shielded(candidates=1))),
    ("shielded.candidates", act(shielded=pb.Shielded(candidates=33))),
    ("shielded.candidates", act(*[good] * 5, shielded=pb.Shielded(candidates=26))),
    ("situated_actions", evaluate()),
    ("situated_actions", evaluate(*[(good, (0, 0))] * 17)),
    ("situated_actions[0].situation.observation", evaluate((situation((1, 2)), (0, 0)))),
    ("situated_actions[0].situation.observation[2]", evaluate((situation((1, 2, NAN)), (0, 0)))),
    ("situated_actions[0].situation.steps_left", evaluate((situation(steps_left=0), (0, 0)))),
    ("situated_actions[0].situation.cost_allowed", evaluate((situation(cost_allowed=(1,)), (0, 0)))),
    ("situated_actions[0].situation.cost_allowed[0]", evaluate((situation(cost_allowed=(NAN, 1)), (0, 0)))),
    ("situated_actions[0].action", evaluate((good, ()))),
    ("situated_actions[1].action", evaluate((good, (0, 0)), (good, (0, 0, 0)))),
    ("situated_actions[0].action[1]", evaluate((good, (0, NAN)))),
    ("situated_actions[0].action[0]", evaluate((good, (INF, 0)))),
    ("situated_actions[1].action[1]", evaluate((good, (0, 0)), (good, (0, 2.001)))),
]


@pytest.mark.parametrize(
    ("field", "request_"), REJECTIONS, ids=[f"{i}-{field}" for i, (field, _) in enumerate(REJECTIONS)]
)
def test_a_bad_request_names_its_field(stub: PolicyServiceStub, field: str, request_: object) -> None:
    call, status = refusal(stub, request_)
    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused_field(status) == field
    assert str(call.details()).startswith(field)


def test_situations_and_candidates_are_bounded_together(stub: PolicyServiceStub) -> None:
    """The server takes 16 situations, 32 candidates, and 128 of both: 4 * 32, and not 16 * 32 = 512."""
    most = act(*[good] * 4, shielded=pb.Shielded(candidates=32))
    assert len(stub.Act(most, timeout=30).results) == 4
    call, status = refusal(stub, act(*[good] * 16, shielded=pb.Shielded(candidates=32)))
    assert refused_field(status) == "shielded.candidates"
    assert "is 32 for 16 situations, 512 in all; this server takes 128" in str(call.details())


@pytest.mark.parametrize(
    ("selector", "code", "says"),
    [
        (pb.PolicySelector(name="gaol"), grpc.StatusCode.NOT_FOUND, "goal, other"),
        (pb.PolicySelector(), grpc.StatusCode.NOT_FOUND, "goal, other"),
        (pb.PolicySelector(name="goal", version=3), grpc.StatusCode.NOT_FOUND, "1, 2"),
        (pb.PolicySelector(name="goal", version=0), grpc.StatusCode.NOT_FOUND, "1, 2"),
        (pb.PolicySelector(name="goal", fingerprint="f" * 16), grpc.StatusCode.FAILED_PRECONDITION, "fingerprint"),
    ],
)
def test_a_policy_that_is_not_there_is_refused_by_every_call(
    stub: PolicyServiceStub, selector: pb.PolicySelector, code: grpc.StatusCode, says: str
) -> None:
    calls = (
        (stub.Act, pb.ActRequest(policy=selector, situations=[good])),
        (stub.EvaluateAction, pb.EvaluateActionRequest(policy=selector)),
        (stub.GetPolicy, pb.GetPolicyRequest(policy=selector)),
    )
    for method, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            method(request, timeout=30)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is code
        assert says in str(caught.value.details())


def test_the_client_raises_what_the_server_refused(server: ServerThread, client: PolicyClient) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        client.act(np.array([[1, 2, 3], [1, NAN, 3]]))
    assert caught.value.field == "situations[1].observation[1]"
    assert "nan" in caught.value.description
    with PolicyClient(server.address, "gaol") as other:
        with pytest.raises(NotFoundError, match="goal, other") as unknown:
            other.act([1, 2, 3])
        assert unknown.value.field == "policy.name"
    with PolicyClient(server.address, "goal", version=9) as other:
        with pytest.raises(NotFoundError, match="1, 2") as unknown:
            other.get_policy()
        assert unknown.value.field == "policy.version"
    with PolicyClient(server.address, "goal", fingerprint="0") as other, pytest.raises(FingerprintError):
        other.evaluate_action([1, 2, 3], [0, 0])


def test_our_own_fault_has_fixed_words_and_a_request_id(client: PolicyClient, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InternalError) as caught:
        client.act([1e20, 0, 0])  # the reward value becomes NaN
    assert "finite" not in str(caught.value)
    (record,) = [record for record in caplog.records if record.getMessage() == "request failed"]
    assert vars(record)["fields"]["request_id"] in str(caught.value)
    assert "not finite" in str(record.exc_info)


def test_the_callers_request_id_comes_back(stub: PolicyServiceStub) -> None:
    _, call = stub.Act.with_call(act(), metadata=(("x-request-id", "robot-7/42"),))
    assert dict(call.trailing_metadata())["x-request-id"] == "robot-7/42"


@pytest.mark.parametrize("given", [None, "x" * 129, "two words"])
def test_without_a_usable_request_id_one_is_made(stub: PolicyServiceStub, given: str | None) -> None:
    metadata = (("x-request-id", given),) if given else ()
    first, second = (
        dict(stub.Act.with_call(act(), metadata=metadata)[1].trailing_metadata())["x-request-id"] for _ in range(2)
    )
    assert first != second
    assert len(first) == 16


def test_a_refused_request_carries_its_id_too(stub: PolicyServiceStub) -> None:
    call, status = refusal(stub, act(situation(())))
    info = error_details_pb2.RequestInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert dict(call.trailing_metadata() or ())["x-request-id"] == info.request_id


def test_a_message_that_is_too_large_is_refused(client: PolicyClient) -> None:
    with pytest.raises(ResourceExhaustedError):
        client.act(np.zeros((16, 4000)))


def test_an_answer_worked_out_by_hand_arrives(client: PolicyClient) -> None:
    # As in test_runtime: action (0.25, -2), cost to go (2.5, 10); version 2 has limits of 20 and none, so 10 of 100
    # steps may cost 2.
    answer = client.act([1, 2, -1])
    assert answer.policy.name == "goal"
    assert answer.policy.version == 2
    assert answer.action.tolist() == [0.25, -2.0]
    assert answer.prediction.constraints == ("heat", "wear")
    assert answer.prediction.cost_to_go.tolist() == [2.5, 10.0]
    assert answer.prediction.cost_allowed.tolist() == [2.0, INF]
    assert answer.prediction.violation_probability.tolist() == pytest.approx([2.5 / 4.5, 0.0])
    assert not answer.prediction.flagged
    assert answer.feasible
    assert answer.chosen == 0
    assert answer.prediction.steps_left == 10
    assert answer.prediction.calibration_status == CalibrationStatus.CALIBRATED
    assert 0 < answer.compute_seconds < 1


def test_a_budget_and_its_steps_are_judged(client: PolicyClient) -> None:
    answer = client.act([1, 2, -1], steps_left=40, cost_allowed=[0.0, 60.0])
    assert answer.prediction.cost_to_go.tolist() == [10.0, 40.0]
    assert answer.prediction.violation_probability.tolist() == pytest.approx([1.0, 0.4])
    assert answer.prediction.violation.tolist() == [True, False]


def test_a_batch_is_answered_in_order(client: PolicyClient) -> None:
    observation = np.linspace(-2, 2, 48, dtype=np.float32).reshape(16, 3)
    answer = client.act(observation)
    np.testing.assert_allclose(answer.action, bundles.expected_u(observation) * bundles.HIGH, rtol=1e-6)
    assert answer.feasible.shape == (16,)
    assert answer.prediction.violation.shape == (16, 2)


def test_without_calibration_every_answer_says_so(server: ServerThread) -> None:
    with PolicyClient(server.address, "other") as client:
        answer = client.act([0, 0, 0], cost_allowed=[INF, INF])
        assert answer.prediction.calibration_status == CalibrationStatus.NONE
        assert answer.prediction.violation.tolist() == [True, True]
        assert not answer.feasible
        assert client.get_policy().calibration is None


def assert_same_but_for_time(one: object, other: object) -> None:
    for name, left in vars(one).items():
        right = vars(other)[name]
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=name, strict=True)
        elif name == "prediction":
            assert_same_but_for_time(left, right)
        elif name != "compute_seconds":
            assert left == right, name


@pytest.mark.parametrize("mode", [Deterministic(), Sampled(seed=3), Shielded(8, seed=3)])
@pytest.mark.parametrize("count", [None, 5])
def test_the_local_twin_answers_the_same_to_the_bit(
    repository: Path, client: PolicyClient, mode: Mode, count: int | None
) -> None:
    local = LocalPolicy.load(repository, "goal", allow_uncalibrated=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        observation = rng.normal(size=3 if count is None else (count, 3)) * 3
        kwargs = {"steps_left": int(rng.integers(1, 100)), "cost_allowed": rng.uniform(0, 10, 2)}
        served = client.act(observation, mode=mode, **kwargs)  # type: ignore[arg-type]
        assert_same_but_for_time(served, local.act(observation, mode=mode, **kwargs))  # type: ignore[arg-type]
        judged = client.evaluate_action(observation, served.action)
        assert_same_but_for_time(judged, local.evaluate_action(observation, served.action))
    assert local.list_policies() == client.list_policies()
    assert local.get_policy() == client.get_policy()


def test_the_local_twin_refuses_the_same(repository: Path, client: PolicyClient) -> None:
    local = LocalPolicy.load(repository, "goal", allow_uncalibrated=True)
    for policy in (client, local):
        with pytest.raises(InvalidRequestError) as caught:
            policy.act([1, NAN, 3])
        assert caught.value.field == "situations[0].observation[1]"


def test_a_seed_gives_the_same_draw_and_no_seed_another(client: PolicyClient) -> None:
    observation = [0.1, 0.2, 0.3]
    seeded = [client.act(observation, mode=Sampled(seed=9)).action.tolist() for _ in range(2)]
    assert seeded[0] == seeded[1]
    drawn = [client.act(observation, mode=Sampled()).action.tolist() for _ in range(2)]
    assert drawn[0] != drawn[1]


def test_policies_are_listed_by_name_with_their_versions(client: PolicyClient) -> None:
    goal, other = client.list_policies()
    assert (goal.policy.name, goal.policy.version, goal.versions) == ("goal", 2, (1, 2))
    assert (other.policy.name, other.versions) == ("other", (7,))


def test_a_policy_describes_itself(client: PolicyClient) -> None:
    policy = client.get_policy()
    assert policy.environment == "ByHand-v0"
    assert policy.observation.names == ("x", "y", "z")
    assert policy.observation.low == (-INF, -5.0, -INF)
    assert policy.action.high == (1.0, 2.0)
    assert policy.safe_action == (0.0, 0.0)
    assert policy.horizon_steps == 100
    assert policy.window_steps == 10
    assert policy.control_period_seconds == pytest.approx(0.02)
    assert policy.shift_threshold == 1.0
    heat, wear = policy.constraints
    assert (heat.name, heat.unit, heat.cost_limit, heat.discount) == ("heat", "J", 20.0, 0.9)
    assert heat.cost_threshold == pytest.approx(20 * (1 - 0.9**100) / (0.1 * 100))
    assert (wear.cost_limit, wear.cost_threshold) == (INF, INF)
    assert policy.calibration is not None
    assert policy.calibration.modes == ("deterministic", "shielded(8)")
    assert policy.calibration.alarm_levels == (0.6, 0.6)
    assert policy.calibration.episodes == {"fit": 50, "alarm": 30, "test": 20}


def test_an_older_version_is_described_as_itself(server: ServerThread) -> None:
    with PolicyClient(server.address, "goal", version=1) as client:
        assert client.get_policy().policy.version == 1
        assert client.get_policy().constraints[1].cost_limit == 8.0


def test_the_fingerprint_that_is_told_is_the_one_that_is_asked_for(server: ServerThread, client: PolicyClient) -> None:
    fingerprint = client.get_policy().policy.fingerprint
    with PolicyClient(server.address, "goal", fingerprint=fingerprint) as careful:
        assert careful.act([1, 2, 3]).policy.fingerprint == fingerprint


@pytest.mark.parametrize("service", ["", "cvpo.v1.PolicyService"])
def test_health_says_serving(server: ServerThread, service: str) -> None:
    with grpc.insecure_channel(server.address) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service_and_describes_its_messages(server: ServerThread) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="cvpo.v1.PolicyService"),
    ]
    with grpc.insecure_channel(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listed, described = stub.ServerReflectionInfo(iter(requests), timeout=30)
    names = {service.name for service in listed.list_services_response.service}
    assert {"cvpo.v1.PolicyService", "cvpo.v1.ControlService", "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


def scrape(server: ServerThread) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_metrics_count_requests_flags_and_bundles(server: ServerThread, client: PolicyClient) -> None:
    before = scrape(server)
    client.act([1, 2, -1])
    client.act([1, 2, -1], cost_allowed=[0, 0])
    client.act(np.zeros((3, 3)) + 4.5)
    with pytest.raises(InvalidRequestError):
        client.act([1, 2])
    after = scrape(server)

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown('cvpo_serve_requests_total{code="OK",method="Act"}') == 3
    assert grown('cvpo_serve_requests_total{code="INVALID_ARGUMENT",method="Act"}') == 1
    assert grown('cvpo_serve_request_seconds_count{method="Act"}') == 4
    assert grown('cvpo_serve_flags_total{constraint="heat",policy="goal",version="2"}') == 4
    assert grown('cvpo_serve_answers_total{calibration_status="CALIBRATED",policy="goal",version="2"}') == 2
    assert grown('cvpo_serve_answers_total{calibration_status="SHIFTED",policy="goal",version="2"}') == 3
    assert after['cvpo_serve_bundle_loaded{policy="goal",version="1"}'] == 1
    assert after['cvpo_serve_bundle_loaded{policy="other",version="7"}'] == 1


def test_the_time_of_the_last_look_stands_still_while_looks_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles.write(tmp_path / "goal")
    settings = Settings(repository=tmp_path, address="127.0.0.1:0", metrics_address="127.0.0.1:0", poll_seconds=0.01)
    server = ServerThread(settings)
    begun, failing = threading.Event(), threading.Event()
    poll = server.running.watcher.poll

    def counted() -> None:
        begun.set()
        if failing.is_set():
            raise OSError("stale file handle")
        poll()

    def last_look() -> float:
        """After another whole look, of which the event loop was told."""
        for _ in range(3):  # one that had begun, a whole one, and the next
            begun.clear()
            assert begun.wait(30)
        assert look(server, "/livez")[0] == 200
        return scrape(server)["cvpo_serve_last_look_timestamp_seconds"]

    monkeypatch.setattr(server.running.watcher, "poll", counted)
    try:
        first = last_look()
        assert last_look() > first
        failing.set()
        last = last_look()
        assert last_look() == last
    finally:
        server.stop(drain_seconds=0)


def test_answers_later_than_the_control_period_are_counted(tmp_path: Path) -> None:
    bundles.write(tmp_path / "relaxed", bundles.manifest("relaxed", control_period_ms=1e6))
    bundles.write(tmp_path / "hasty", bundles.manifest("hasty", control_period_ms=1e-6))
    bundles.write(tmp_path / "whenever", bundles.manifest("whenever", control_period_ms=None))
    server = ServerThread(Settings(repository=tmp_path, address="127.0.0.1:0", metrics_address="127.0.0.1:0"))
    try:
        for name in ("relaxed", "hasty", "whenever"):
            with PolicyClient(server.address, name, timeout_seconds=30) as client:
                client.act([1, 2, -1])
                client.act(np.zeros((64, 3)))
                client.evaluate_action([1, 2, -1], [0, 0])
        metrics = scrape(server)
    finally:
        server.stop(drain_seconds=0)
    paced = {key: value for key, value in metrics.items() if key.startswith("cvpo_serve_paced_answers_total")}
    late = {key: value for key, value in metrics.items() if key.startswith("cvpo_serve_late_answers_total")}
    assert sorted(paced.values()) == [3, 3]
    assert late == {'cvpo_serve_late_answers_total{policy="hasty",version="1"}': 3}


def look(server: ServerThread, path: str) -> tuple[int, str]:
    """Return status and text of a page of the monitoring port."""
    try:
        with urllib.request.urlopen(f"http://{server.metrics_address}{path}", timeout=30) as response:
            return response.status, response.read().decode().strip()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode().strip()


def test_probes_tell_whether_it_lives_and_may_be_asked(repository: Path) -> None:
    server = ServerThread(
        Settings(repository=repository / "goal", address="127.0.0.1:0", metrics_address="127.0.0.1:0")
    )
    try:
        assert look(server, "/livez") == (200, "the event loop turns")
        assert look(server, "/readyz?verbose") == (200, "ready")
        assert look(server, "/") == (404, "/metrics, /livez, /readyz")
        with ThreadPoolExecutor(1) as pool, Robot(server.address, control_pb2.OpenSession()) as robot:
            robot.opened()
            stopped = pool.submit(server.stop, 30)  # not before the session has ended
            robot.notice()
            assert look(server, "/livez")[0] == 200
            assert look(server, "/readyz") == (503, "stopping, or without a policy")
            robot.end()
            stopped.result(30)
    finally:
        server.stop(drain_seconds=0)


def test_a_log_event_is_one_json_object(caplog: pytest.LogCaptureFixture, stub: PolicyServiceStub) -> None:
    from serve.server.telemetry import JsonFormatter

    with caplog.at_level("DEBUG", logger="serve"):
        refusal(stub, act(situation(())))
    (record,) = [record for record in caplog.records if record.getMessage() == "request refused"]
    document = json.loads(JsonFormatter().format(record))
    assert document["event"] == "request refused"
    assert document["level"] == "debug"
    assert document["code"] == "INVALID_ARGUMENT"
    assert document["reason"].startswith("situations[0].observation")
    assert "\n" not in JsonFormatter().format(record)
