"""The networks of a bundle compute what those in torch do, and go on as they were with another map of costs."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pytest
import torch

from cvpo.bundle import CRITIC_GRAPH, GRAPHS, POLICY_GRAPH, Bundle, read_bundle
from cvpo.calibration.costmap import uncalibrated_map
from cvpo.errors import BundleError, ExportError
from cvpo.exporting.export import export_bundle
from cvpo.exporting.exported import ExportedAnswering, ExportedNetworks
from cvpo.exporting.graphs import critic_graph, graph_again, policy_graph
from cvpo.exporting.parity import check_parity
from cvpo.exporting.served import PolicyOutput, Served
from tests.exporting.test_export import trained
from tests.exporting.test_graphs import run, session, situations
from tests.serve import bundles
from tests.small_policies import (
    ACTION_SIZE,
    HIGH,
    LOW,
    constraints,
    model,
    observations,
    random_forecast,
    random_map,
    served,
    shift_score,
)

LIMITS = (20.0, 10.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Not calibrated."""
    path = tmp_path_factory.mktemp("exported") / "1"
    return read_bundle(export_bundle(path, trained(LIMITS), observations(), calibrated=None))


def noises(count: int, candidates: int) -> torch.Tensor:
    noise = torch.randn(count, candidates, ACTION_SIZE, generator=torch.Generator().manual_seed(1))
    noise[:, 0] = 0
    return noise


def calibrated(bundle: Bundle) -> ExportedAnswering:
    return ExportedAnswering(ExportedNetworks(bundle), random_forecast(2), random_map(2), LOW, HIGH)


def graphs_again(bundle: Bundle, answering: ExportedAnswering) -> dict[str, bytes]:
    return {name: graph_again(name, bundle.graph(name), answering) for name in GRAPHS}


def assert_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(("num_costs", "covariance"), [(1, "diagonal"), (2, "full")])
@pytest.mark.parametrize("closeness", [(), (1, 4)])
@pytest.mark.parametrize("measured", [True, False])
def test_with_the_same_map_a_graph_is_the_same_to_the_byte(
    num_costs: int, covariance: Literal["diagonal", "full"], measured: bool, closeness: tuple[int, ...]
) -> None:
    cost_map = None if measured else uncalibrated_map(constraints((20.0,) * num_costs))
    policy = served(num_costs, cost_map=cost_map, covariance=covariance, closeness=closeness)
    for name, graph in ((POLICY_GRAPH, policy_graph(policy)), (CRITIC_GRAPH, critic_graph(policy))):
        assert graph_again(name, graph, policy) == graph


def test_with_another_map_the_networks_go_on_as_they_were_in_every_mode(bundle: Bundle) -> None:
    graphs, inputs = graphs_again(bundle, calibrated(bundle)), situations(60, 2)
    unchanged = "action", "reward_value", "cost_value", "shift_score"
    for noise in (noises(60, 1), noises(60, 2)[:, 1:]):  # deterministic and sampled
        asked = {**inputs, "noise": noise}
        before, after = (
            run(session(g), PolicyOutput._fields, asked) for g in (bundle.policy_graph, graphs[POLICY_GRAPH])
        )
        for name, one, other in zip(PolicyOutput._fields, before, after, strict=True):
            assert torch.equal(one, other) == (name in (*unchanged, "chosen")), name
    asked = {**inputs, "action": torch.from_numpy(np.tile(HIGH, (60, 1)).astype(np.float32))}
    before, after = (run(session(g), unchanged[1:], asked) for g in (bundle.critic_graph, graphs[CRITIC_GRAPH]))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_graph_made_again_answers_as_one_that_was_exported_with_that_map(bundle: Bundle) -> None:
    policy = model(2)
    whole = Served(policy, random_forecast(2), random_map(2), LOW, HIGH, 4.0, shift_score(policy)).eval()
    assert graphs_again(bundle, calibrated(bundle)) == {
        POLICY_GRAPH: policy_graph(whole),
        CRITIC_GRAPH: critic_graph(whole),
    }
    inputs = situations(60, 2)
    with torch.no_grad():
        answers = [policy.act(**inputs, noise=noises(60, 8)) for policy in (calibrated(bundle), whole)]
        verdicts = [policy.evaluate(**inputs, action=answers[0].action) for policy in (calibrated(bundle), whole)]
    assert_close(answers[0]._asdict(), answers[1]._asdict())
    assert_close(verdicts[0]._asdict(), verdicts[1]._asdict())
    assert not answers[1].feasible.all()
    assert answers[1].feasible.any()


def test_the_networks_values_are_those_of_torch_and_observations_are_normalized_to_the_bit(bundle: Bundle) -> None:
    networks, policy = ExportedNetworks(bundle), served(2)
    observation = torch.from_numpy(observations(60))
    action = torch.from_numpy(np.random.default_rng(0).uniform(LOW - 1, HIGH + 1, (60, 2)).astype(np.float32))
    with torch.no_grad():
        pairs = [
            (networks.policy_values(observation, noises(60, 5)), policy.policy_values(observation, noises(60, 5))),
            (networks.critic_values(observation, action), policy.critic_values(observation, action)),
        ]
        assert torch.equal(networks.normalize(observation), policy.model.normalizer(observation))
    for found, expected in pairs:
        assert_close(found._asdict(), expected._asdict())


@pytest.mark.parametrize("part", ["map", "forecast", "networks"])
def test_parity_notices_what_does_not_belong_to_the_graphs(part: str, bundle: Bundle) -> None:
    answering = calibrated(bundle)
    graphs = graphs_again(bundle, answering)

    def check() -> None:
        check_parity(answering, graphs[POLICY_GRAPH], graphs[CRITIC_GRAPH], observations(), bundle.manifest)

    check()
    if part == "map":
        answering.cost_map.table[1, 1] += 1
    elif part == "forecast":
        answering.forecast = random_forecast(2, seed=5)
    else:
        another = model(2, seed=9)
        other = policy_graph(Served(another, None, random_map(2), LOW, HIGH, 4.0, shift_score(another)))
        graphs[POLICY_GRAPH] = graph_again(POLICY_GRAPH, other, answering)
    with pytest.raises(ExportError, match=r"policy.onnx, deterministic: (action|cost_to_go|cost_upper) differs"):
        check()


def test_a_graph_that_does_not_name_its_networks_is_refused(bundle: Bundle) -> None:
    by_hand = {POLICY_GRAPH: bundles.policy_graph(), CRITIC_GRAPH: bundles.critic_graph()}
    for name, graph in by_hand.items():
        with pytest.raises(BundleError, match=f"{name} does not say what of it the networks are"):
            graph_again(name, graph, calibrated(bundle))
