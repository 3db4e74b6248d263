"""The parity check passes what is the same, and names what is not."""

import copy
import re
from collections.abc import Callable

import pytest
import torch

from cvpo.bundle import Manifest
from cvpo.calibration.costmap import CostMap, uncalibrated_map
from cvpo.calibration.shift import ShiftThreshold
from cvpo.errors import ExportError
from cvpo.exporting.export import NamedPolicy, make_manifest
from cvpo.exporting.graphs import critic_graph, policy_graph
from cvpo.exporting.parity import check_parity
from cvpo.exporting.served import Served
from tests.small_policies import constraints, observations, provenance, served, spec


def manifest(policy: Served, limits: tuple[float | None, ...]) -> Manifest:
    trained = NamedPolicy("small", 1, policy.model, 4.0, spec(len(limits)), constraints(limits), provenance())
    return make_manifest(trained, calibrated=None, shift=ShiftThreshold(1.0), frozen_after_steps=(), evaluations=())


def check(exported: Served, torch_policy: Served, limits: tuple[float | None, ...]) -> None:
    check_parity(
        torch_policy, policy_graph(exported), critic_graph(exported), observations(), manifest(torch_policy, limits)
    )


@pytest.mark.parametrize("limits", [(20.0,), (20.0, 3.0), (0.0,), (None,), (None, 8.0)])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_graphs_of_a_policy_pass(limits: tuple[float | None, ...], calibrated: bool) -> None:
    policy = served(len(limits), cost_map=None if calibrated else uncalibrated_map(constraints(limits)))
    check(policy, policy, limits)


def test_one_observation_is_enough() -> None:
    policy = served(1)
    check_parity(policy, policy_graph(policy), critic_graph(policy), observations()[:1], manifest(policy, (20.0,)))


def _policy_mean(policy: Served) -> None:
    policy.model.policy.mean.weight[0, 0] += 0.01


def _spread(policy: Served) -> None:
    policy.model.policy.spread.bias[1] += 0.01


def _reward(policy: Served) -> None:
    policy.model.critics.output_bias[0] += 0.01


def _cost(policy: Served) -> None:
    policy.model.critics.second_weight[-1, 0, 0] += 0.05


def _unit(policy: Served) -> None:
    policy.action_high[1] += 0.01


def _shift(policy: Served) -> None:
    policy.shift.directions *= 1.01


def _atoms(policy: Served) -> None:
    policy.cost_map.table[1, 1] += 1


def _bound(policy: Served) -> None:
    policy.cost_map.bound[1:, 0, 1:] = -torch.inf


def _tail(policy: Served) -> None:
    policy.cost_map.tail[1:, 0, 1:] -= 0.01


@pytest.mark.parametrize(
    ("tamper", "names"),
    [
        (_policy_mean, "policy.onnx, deterministic: action differs .* by up to"),
        (_spread, "policy.onnx, sampled: action differs .* by up to"),
        (_reward, "policy.onnx, deterministic: reward_value differs .* by up to 0.02"),  # half a head, scaled by 4
        (_cost, "policy.onnx, deterministic: cost_value differs .* by up to"),
        (_unit, "policy.onnx, deterministic: action differs .* by up to"),
        (_shift, "policy.onnx: shift_score differs .* by up to"),
        (_atoms, "policy.onnx, deterministic: cost_(to_go|upper) differs .* by up to"),
        (_bound, "policy.onnx, deterministic: cost_upper differs .* by up to"),
        (_tail, "policy.onnx, deterministic: (violation_probability|feasible) differs"),
    ],
)
def test_a_tampered_part_is_named_with_its_mode_and_size(tamper: Callable[[Served], None], names: str) -> None:
    torch_policy = served(2)
    tampered = copy.deepcopy(torch_policy)
    with torch.no_grad():
        tamper(tampered)
    with pytest.raises(ExportError, match=names) as refusal:
        check(tampered, torch_policy, (20.0, 3.0))
    assert re.search(r"No bundle was written", str(refusal.value))


def test_a_tampered_critic_graph_is_named() -> None:
    policy = served(1)
    tampered = copy.deepcopy(policy)
    with torch.no_grad():
        _cost(tampered)
    with pytest.raises(ExportError, match=r"critic.onnx: cost_value differs"):
        check_parity(policy, policy_graph(policy), critic_graph(tampered), observations(), manifest(policy, (20.0,)))


def test_a_graph_that_chooses_by_another_rule_is_named() -> None:
    policy = served(1)
    reversed_rule = b"ArgMax".join(policy_graph(policy).rsplit(b"ArgMin", 1))
    with pytest.raises(ExportError, match=r"policy.onnx, shielded: chosen differs"):
        check_parity(policy, reversed_rule, critic_graph(policy), observations(), manifest(policy, (20.0,)))


def test_a_shield_that_chooses_by_another_map_than_it_was_rolled_out_with_is_named() -> None:
    policy = served(1)
    rolled_out = policy.cost_map
    policy.cost_map = rolled_out.also_covering(0.5 * rolled_out.covered, shielded=True)
    check(policy, policy, (20.0,))
    other = copy.deepcopy(policy)
    other.cost_map = rolled_out.also_covering(0.5 * rolled_out.covered, shielded=False)
    with pytest.raises(ExportError, match=r"policy.onnx, \w+: (chosen|feasible) differs"):
        check(other, policy, (20.0,))


def test_candidates_that_float32_cannot_tell_apart_may_be_chosen_either_way() -> None:
    policy = served(1)
    with torch.no_grad():  # all candidates within a thousandth of each other, and rewards that hardly differ
        policy.model.policy.spread.weight.zero_()
        policy.model.policy.spread.bias.fill_(-30.0)
        policy.model.critics.output_weight[:2] *= 1e-5
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.model.critics.action_weight[:2] *= -1  # every ranking is reversed
    check(other, policy, (20.0,))


def test_a_map_of_no_evidence_is_compared_too() -> None:
    policy = served(1, cost_map=uncalibrated_map(constraints((20.0,))))
    other = copy.deepcopy(policy)
    assert isinstance(other.cost_map, CostMap)
    other.cost_map.bound.zero_()
    with pytest.raises(ExportError, match=r"cost_upper differs .* by up to inf"):
        check(other, policy, (20.0,))
