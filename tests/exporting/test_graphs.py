"""Both graphs against torch at every kind of N and K, and the rule by which an action is chosen."""

import copy
import math
import os
from typing import Literal

import numpy as np
import pytest
import torch

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

from cvpo.bundle import Precision
from cvpo.calibration.costmap import uncalibrated_map
from cvpo.calibration.forecast import CostForecast
from cvpo.calibration.shift import ShiftScore
from cvpo.exporting.graphs import critic_graph, policy_graph
from cvpo.exporting.served import Answering, CriticOutput, NetworkValues, PolicyOutput, Served
from cvpo.learning.networks import VARIANCE_FLOOR
from tests.small_policies import (
    ACTION_SIZE,
    HIGH,
    LOW,
    OBSERVATION_SIZE,
    T,
    constraints,
    observations,
    random_map,
    served,
)

Inputs = dict[str, torch.Tensor]


def session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def run(graph: ort.InferenceSession, names: tuple[str, ...], inputs: Inputs) -> list[torch.Tensor]:
    values = graph.run(names, {name: value.numpy() for name, value in inputs.items()})
    return [torch.from_numpy(np.asarray(value)) for value in values]


def situations(count: int, num_costs: int, alarm_level: float = 0.5) -> Inputs:
    generator = torch.Generator().manual_seed(count)
    allowed = torch.rand(count, num_costs, generator=generator) * 40
    allowed[::3] = math.inf
    return {
        "observation": torch.from_numpy(observations(count)),
        "steps_left": torch.randint(1, T + 1, (count,), generator=generator),
        "cost_allowed": allowed,
        "alarm_level": torch.full((num_costs,), alarm_level),
    }


@pytest.mark.parametrize("closeness", [(), (1, 4)])
@pytest.mark.parametrize(("num_costs", "covariance"), [(1, "diagonal"), (2, "diagonal"), (2, "full")])
def test_the_graphs_compute_what_torch_does_at_any_n_and_k(
    num_costs: int, covariance: Literal["diagonal", "full"], closeness: tuple[int, ...]
) -> None:
    policy = served(num_costs, covariance=covariance, closeness=closeness)
    graphs = session(policy_graph(policy)), session(critic_graph(policy))
    for count, candidates in [(1, 1), (1, 8), (7, 1), (6, 5), (200, 3)]:
        inputs = situations(count, num_costs)
        noise = torch.randn(count, candidates, ACTION_SIZE, generator=torch.Generator().manual_seed(1))
        noise[:, 0] = 0
        with torch.no_grad():
            expected = policy.act(**inputs, noise=noise)
            judged = policy.evaluate(**inputs, action=expected.action)
        found = PolicyOutput(*run(graphs[0], PolicyOutput._fields, {**inputs, "noise": noise}))
        for name, value in expected._asdict().items():
            assert getattr(found, name).dtype == value.dtype, name
            # Sums of tens of float32 products of size 1, on costs of up to 100.
            np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, atol=1e-4, err_msg=name)
        again = CriticOutput(*run(graphs[1], CriticOutput._fields, {**inputs, "action": expected.action}))
        for name, value in judged._asdict().items():
            np.testing.assert_allclose(getattr(again, name), value, rtol=1e-5, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(value, getattr(expected, name), rtol=1e-4, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("num_costs", "covariance"), [(1, "diagonal"), (2, "full"), (17, "diagonal")])
def test_an_answer_is_the_same_to_the_bit_whoever_shares_the_run(
    num_costs: int, covariance: Literal["diagonal", "full"], precision: Precision
) -> None:
    graph = session(policy_graph(served(num_costs, covariance=covariance), precision))
    inputs = situations(40, num_costs)
    inputs["noise"] = torch.randn(40, 1, ACTION_SIZE, generator=torch.Generator().manual_seed(1))

    def rows(first: int, count: int) -> list[torch.Tensor]:
        own = {name: value if name == "alarm_level" else value[first : first + count] for name, value in inputs.items()}
        return run(graph, PolicyOutput._fields, own)

    alone = [torch.cat(values) for values in zip(*(rows(i, 1) for i in range(40)), strict=True)]
    for count in (2, 3, 5, 8, 13, 16, 40):
        for first in range(0, 41 - count, 3):
            for name, found, expected in zip(PolicyOutput._fields, rows(first, count), alone, strict=True):
                assert torch.equal(found, expected[first : first + count]), f"{name} of {count}"


def test_with_a_full_covariance_candidates_are_correlated_as_the_policy_is() -> None:
    # One candidate: the mean and one column of L, before tanh.
    policy, inputs = served(1, covariance="full"), situations(50, 1)
    with torch.no_grad():
        mean, scale = policy.model.distribution(inputs["observation"])
    assert scale[:, 1, 0].abs().max() > 0.1
    graph = session(policy_graph(policy))
    for column in range(ACTION_SIZE):
        noise = torch.zeros(50, 1, ACTION_SIZE)
        noise[:, 0, column] = 1.0
        (action,) = run(graph, ("action",), {**inputs, "noise": noise})
        expected = policy.environment_action((mean + scale[:, :, column]).tanh())
        torch.testing.assert_close(action, expected, rtol=0, atol=1e-5)


def test_the_signature_is_the_one_the_service_is_built_against() -> None:
    policy = served(2)
    graph = session(policy_graph(policy))
    assert {i.name: (i.type, i.shape) for i in graph.get_inputs()} == {
        "observation": ("tensor(float)", ["N", 5]),
        "noise": ("tensor(float)", ["N", "K", 2]),
        "steps_left": ("tensor(int64)", ["N"]),
        "cost_allowed": ("tensor(float)", ["N", 2]),
        "alarm_level": ("tensor(float)", [2]),
    }
    assert [(o.name, o.type, o.shape) for o in graph.get_outputs()] == [
        ("action", "tensor(float)", ["N", 2]),
        ("chosen", "tensor(int64)", ["N"]),
        ("feasible", "tensor(bool)", ["N"]),
        ("reward_value", "tensor(float)", ["N"]),
        ("cost_value", "tensor(float)", ["N", 2]),
        ("cost_to_go", "tensor(float)", ["N", 2]),
        ("cost_upper", "tensor(float)", ["N", 2]),
        ("violation_probability", "tensor(float)", ["N", 2]),
        ("violation", "tensor(bool)", ["N", 2]),
        ("shift_score", "tensor(float)", ["N"]),
    ]
    critic = session(critic_graph(policy))
    assert [i.name for i in critic.get_inputs()] == [
        "observation", "action", "steps_left", "cost_allowed", "alarm_level"
    ]  # fmt: skip
    assert [o.name for o in critic.get_outputs()] == list(CriticOutput._fields)


class Fixed(Answering):
    """Three candidates of given cost values, the same in each situation."""

    cost_value = torch.tensor([[2.0, 1.0, 3.0], [5.0, 8.0, 4.0]])  # [C, K]

    def policy_values(self, observation: torch.Tensor, noise: torch.Tensor) -> NetworkValues:
        N = len(noise)
        cost_value = self.cost_value.expand(N, -1, -1)
        return NetworkValues(observation, noise, torch.zeros(N, 3), cost_value, torch.zeros(N))

    def critic_values(self, observation: torch.Tensor, action: torch.Tensor) -> NetworkValues:
        return self.policy_values(observation, action.unsqueeze(1))


@pytest.mark.parametrize(("typical", "chosen"), [(None, [0, 1, 2, 2]), ([1.0, 10.0], [0, 1, 2, 1])])
def test_a_shield_by_hand(typical: list[float] | None, chosen: list[int]) -> None:
    # Without evidence, whatever is limited is flagged. Of both constraints the largest counts: 5, 8 and 4 of each
    # candidate; or in units of 1 and 10, 2, 1 and 3.
    forecast = None if typical is None else CostForecast(OBSERVATION_SIZE, T, np.array(typical)).eval()
    policy = Fixed(forecast, uncalibrated_map(constraints((9.0, 9.0))), LOW, HIGH, 1.0)
    allowed = torch.tensor([[math.inf, math.inf], [9, math.inf], [math.inf, 9], [9, 9]])
    with torch.no_grad():
        found = policy.act(
            torch.zeros(4, OBSERVATION_SIZE),
            torch.zeros(4, 3, ACTION_SIZE),
            torch.full((4,), T),
            allowed,
            torch.full((2,), 0.5),
        )
    assert found.chosen.tolist() == chosen
    assert found.feasible.tolist() == [True, False, False, False]
    assert found.cost_value[3].tolist() == Fixed.cost_value[:, chosen[3]].tolist()


def test_the_first_candidate_stands_unless_it_raises_a_flag_else_the_least_cost_value_of_the_fewest_flags() -> None:
    policy = served(2, cost_map=random_map(2))
    with torch.no_grad():  # candidates that differ
        policy.model.critics.action_weight.mul_(10)
        policy.model.critics.output_weight.mul_(3)
    inputs = situations(200, 2)
    noise = 2 * torch.randn(200, 6, ACTION_SIZE, generator=torch.Generator().manual_seed(2))
    found = PolicyOutput(*run(session(policy_graph(policy)), PolicyOutput._fields, {**inputs, "noise": noise}))
    with torch.no_grad():
        values = policy.policy_values(inputs.pop("observation"), noise)
        judged = policy.judge(values, **inputs)
    seen = set()
    for n in range(200):
        flagged = [c for c in range(2) if judged.violation[n, c, 0]]
        flags = judged.violation[n].sum(0).tolist()
        eligible = [k for k in range(6) if flags[k] == min(flags)]
        least = min(eligible, key=lambda k: max(float(judged.cost_value[n, c, k]) for c in flagged)) if flagged else 0
        assert (int(found.chosen[n]), bool(found.feasible[n])) == (least, min(flags) == 0)
        seen.add((len(flagged), min(flags), len(eligible) < 6))
    # Flags of the first candidate, the fewest of any, and whether that left some out.
    assert seen >= {(0, 0, False), (0, 0, True), (1, 0, True), (1, 1, True), (2, 1, True), (2, 2, False)}


def test_a_shield_is_served_as_it_was_rolled_out_and_judged_by_all_that_was_measured_of_it() -> None:
    # Its own episodes make the map more careful: that raises what is told of the chosen action, and not the choice.
    rolled_out = served(2)
    inputs = situations(200, 2)
    noise = 2 * torch.randn(200, 6, ACTION_SIZE, generator=torch.Generator().manual_seed(2))
    dearer = 0.7 * rolled_out.cost_map.covered
    found, policies = {}, {}
    for name, shielded in (("shielded", True), ("sampled", False)):
        policies[name] = copy.deepcopy(rolled_out)
        policies[name].cost_map = rolled_out.cost_map.also_covering(dearer, shielded)
    for name, policy in {"before": rolled_out, **policies}.items():
        graph = session(policy_graph(policy))
        found[name] = PolicyOutput(*run(graph, PolicyOutput._fields, {**inputs, "noise": noise}))
    for output in ("action", "chosen", "feasible", "cost_value", "cost_to_go"):
        assert torch.equal(getattr(found["shielded"], output), getattr(found["before"], output)), output
    before, after = (found[name].violation_probability for name in ("before", "shielded"))
    limited = inputs["cost_allowed"] < math.inf
    # 0.7 of the probability that was below any cost is left there, so 0.3 and 0.7 of what was beyond it are beyond.
    torch.testing.assert_close(after[limited], 0.3 + 0.7 * before[limited])
    assert (found["shielded"].violation & found["shielded"].feasible[:, None]).any()
    assert not torch.equal(found["sampled"].chosen, found["before"].chosen)
    # A second table is only where it must be: what is told of an action from elsewhere takes the one.
    assert critic_graph(policies["shielded"]) == critic_graph(policies["sampled"])
    with torch.no_grad():
        expected = policies["shielded"].act(**inputs, noise=noise)
    for output, value in expected._asdict().items():
        np.testing.assert_allclose(getattr(found["shielded"], output), value, rtol=1e-5, atol=1e-4, err_msg=output)


def test_without_calibration_the_least_cost_value_is_chosen_and_the_lowest_index_of_equals() -> None:
    policy = served(2, cost_map=uncalibrated_map(constraints((5.0, 5.0))))
    inputs = situations(9, 2, alarm_level=0.0)
    inputs["cost_allowed"][:] = 5.0
    noise = torch.randn(9, 2, ACTION_SIZE, generator=torch.Generator().manual_seed(0)).repeat(1, 2, 1)
    found = PolicyOutput(*run(session(policy_graph(policy)), PolicyOutput._fields, {**inputs, "noise": noise}))
    with torch.no_grad():
        cost_value = policy.policy_values(inputs["observation"], noise).cost_value
    assert not found.feasible.any()
    assert torch.equal(found.chosen, cost_value[..., :2].amax(1).argmin(1))
    assert set(found.chosen.tolist()) == {0, 1}
    assert (found.violation_probability == 1).all()
    assert found.violation.all()


def test_nothing_limited_raises_no_flag_even_without_calibration() -> None:
    policy = served(1, cost_map=uncalibrated_map(constraints((None,))))
    inputs = situations(5, 1, alarm_level=0.0)
    inputs["cost_allowed"][:] = math.inf
    noise = torch.randn(5, 4, ACTION_SIZE, generator=torch.Generator().manual_seed(0))
    found = PolicyOutput(*run(session(policy_graph(policy)), PolicyOutput._fields, {**inputs, "noise": noise}))
    assert found.feasible.all()
    assert not found.violation.any()
    assert (found.cost_upper == math.inf).all()
    assert not any(value.isnan().any() for value in found)


def test_actions_come_out_in_the_environments_units_and_within_its_bounds() -> None:
    policy = served(1)
    noise = 100 * torch.randn(200, 1, ACTION_SIZE, generator=torch.Generator().manual_seed(0))
    inputs = situations(200, 1)
    found = PolicyOutput(*run(session(policy_graph(policy)), PolicyOutput._fields, {**inputs, "noise": noise}))
    action = found.action.numpy()
    assert (action >= LOW.astype(np.float32)).all()
    assert (action <= HIGH.astype(np.float32)).all()
    # tanh saturates: with such noise nearly every action sits on a bound
    assert (np.isclose(action, LOW) | np.isclose(action, HIGH)).mean() > 0.9


def test_an_action_outside_the_bounds_is_judged_as_the_nearest_inside() -> None:
    policy = served(1)
    graph, inputs = session(critic_graph(policy)), situations(4, 1)
    high = torch.tensor(HIGH, dtype=torch.float32).expand(4, -1)
    inside = run(graph, CriticOutput._fields, {**inputs, "action": high})
    outside = run(graph, CriticOutput._fields, {**inputs, "action": high + 7})
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


def test_reward_values_come_out_in_the_environments_units() -> None:
    once = served(1)
    scale = 2 * once.reward_scale
    twice = Served(once.model, once.forecast, once.cost_map, LOW, HIGH, reward_scale=scale, shift=once.shift)
    inputs = {**situations(4, 1), "action": torch.zeros(4, ACTION_SIZE)}
    small, large = (run(session(critic_graph(p)), ("reward_value",), inputs)[0] for p in (once, twice))
    torch.testing.assert_close(2 * small, large)


def test_the_shift_score_is_the_distance_outside_of_what_was_seen_in_any_direction_and_always_a_number() -> None:
    # Five values within 3 of their means, and the difference of the first two within 1: (2, -2) is 3 outside.
    policy = served(1)
    difference = torch.tensor([[1.0], [-1.0], [0.0], [0.0], [0.0]])
    reach = torch.tensor([3.0] * 5 + [1.0])
    policy.shift = ShiftScore(torch.cat([torch.eye(5), difference], dim=1), -reach, reach)
    seen = policy.model.normalizer
    inputs = situations(5, 1)
    points = torch.zeros(4, 5)
    points[1, :2], points[2, :2], points[3, 3] = torch.tensor([2.0, 2.0]), torch.tensor([2.0, -2.0]), -5.0
    inputs["observation"][:4] = seen.mean + points * (seen.variance + VARIANCE_FLOOR).sqrt()
    inputs["observation"][4] = -3e38
    found = run(session(critic_graph(policy)), ("shift_score",), {**inputs, "action": torch.zeros(5, ACTION_SIZE)})[0]
    torch.testing.assert_close(found, policy.shift_score(inputs["observation"]))
    assert found[:4].tolist() == pytest.approx([0, 0, 3, 2], abs=1e-4)
    assert 1e5 < found[4] < math.inf
