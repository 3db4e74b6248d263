"""From a small model to a bundle that the service reads; refusals leave nothing behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cvpo.bundle import Evaluation, Interval, Precision, read_bundle
from cvpo.calibration.calibrate import CalibratedMap, calibrate
from cvpo.errors import BundleError, ExportError
from cvpo.evaluate import Episode
from cvpo.exporting.export import NamedPolicy, export_bundle
from cvpo.exporting.graphs import policy_graph
from cvpo.exporting.served import Served
from cvpo.learning.networks import Normalizer
from serve.server.runtime import load
from serve.values import Deterministic, Sampled, Shielded, Situations
from tests.small_policies import (
    ACTION_SIZE,
    HIGH,
    LOW,
    OBSERVATION_SIZE,
    T,
    W,
    constraints,
    model,
    observations,
    provenance,
    spec,
)

EVALUATION = Evaluation(
    mode="deterministic",
    episodes=20,
    episode_return=Interval(mean=12.0, low=11.0, high=13.0),
    episode_cost=(Interval(mean=8.0, low=6.0, high=10.0), Interval(mean=30.0, low=28.0, high=32.0)),
    cost_cvar90=(19.5, 33.25),
    over_limit_share=(0.1, 0.9),
)


def trained(limits: tuple[float | None, ...], version: int = 1) -> NamedPolicy:
    return NamedPolicy("small", version, model(len(limits)), 4.0, spec(len(limits)), constraints(limits), provenance())


def measured(policy: NamedPolicy, count: int = 40) -> CalibratedMap:
    """Calibrated on episodes whose cost has nothing to do with the policy; export does not mind."""
    generator = np.random.default_rng(0)
    num_costs = len(policy.constraints)
    episodes = []
    for _ in range(count):
        observation = observations(T)
        _, cost_value = policy.model.values(torch.from_numpy(observation), torch.zeros(T, 1, ACTION_SIZE))
        cost = (generator.random((T, num_costs)) < generator.random()).astype(np.float64)
        value = cost_value[:, 0].detach().double().numpy()
        episodes.append(Episode(observation, np.zeros(T), cost, False, value, None, None))
    return calibrate(episodes, policy.constraints, policy.model.normalizer, seed=0)


def situations(count: int, allowed: tuple[float, ...]) -> Situations:
    return Situations(
        observation=observations(count).tolist(),
        steps_left=[W] * count,
        cost_allowed=[list(allowed)] * count,
    )


def test_a_calibrated_bundle_is_read_verified_and_served(tmp_path: Path) -> None:
    policy = trained((20.0, 10.0), version=3)
    path = export_bundle(tmp_path / "3", policy, observations(), calibrated=measured(policy), evaluations=(EVALUATION,))
    bundle = read_bundle(path)
    manifest = bundle.manifest
    assert (manifest.name, manifest.version, manifest.control_period_ms) == ("small", 3, 20.0)
    assert manifest.action.low == tuple(LOW)
    assert manifest.safe_action == (0.0, 0.0)
    assert manifest.calibration is not None
    assert manifest.calibration.episodes == {"fit": 12, "calibrate": 12, "alarm": 10, "test": 6}
    statistics = manifest.observation_statistics
    assert statistics.mean == pytest.approx(observations().mean(0), rel=1e-4)
    assert statistics.standard_deviation == pytest.approx(observations().std(0), rel=1e-4)
    assert statistics.low == pytest.approx(observations().min(0))

    runtime = load(bundle)
    for mode in (Deterministic(), Sampled(seed=1), Shielded(candidates=16, seed=1)):
        acted = runtime.act(situations(7, (4.0, np.inf)), mode)
        assert np.shape(acted.action) == (7, ACTION_SIZE)
        assert not any(second for _, second in acted.prediction.violation)
    with torch.no_grad():
        mean, _ = policy.model.distribution(torch.from_numpy(observations(7)))
    unit = mean.tanh().numpy()
    acted = runtime.act(situations(7, (4.0, np.inf)), Deterministic())
    np.testing.assert_allclose(acted.action, LOW + (unit + 1) / 2 * (HIGH - LOW), atol=1e-5)


def test_an_uncalibrated_bundle_flags_every_answer(tmp_path: Path) -> None:
    bundle = read_bundle(export_bundle(tmp_path / "1", trained((20.0,)), observations(), calibrated=None))
    assert bundle.manifest.calibration is None
    acted = load(bundle).act(situations(3, (1e6,)), Deterministic())
    assert np.all(acted.prediction.violation)
    assert np.isinf(acted.prediction.cost_upper).all()


def test_a_policy_that_saw_a_value_that_never_varied_is_exported(tmp_path: Path) -> None:
    # As PointGoal1's, where one never does: outside of it the shift score is a rounding over a deviation near zero.
    policy = trained((20.0,))
    seen = observations()
    seen[:, 2] = 0.0
    policy.model.normalizer = Normalizer(seen.shape[1])
    policy.model.normalizer.update(torch.from_numpy(seen))
    bundle = read_bundle(export_bundle(tmp_path / "1", policy, seen, calibrated=None))
    load(bundle)


def test_an_unconstrained_policy_is_exported_and_never_flagged_once_calibrated(tmp_path: Path) -> None:
    policy = trained((None,))
    bundle = read_bundle(export_bundle(tmp_path / "1", policy, observations(), calibrated=measured(policy)))
    acted = load(bundle).act(situations(3, (np.inf,)), Shielded(candidates=4, seed=0))
    assert not np.any(acted.prediction.violation)
    assert all(acted.feasible)


def test_the_safe_action_is_the_nearest_to_zero_within_the_bounds(tmp_path: Path) -> None:
    policy = trained((20.0,))
    policy.spec.action_low[:] = [-1.0, 0.5]
    try:
        bundle = read_bundle(export_bundle(tmp_path / "1", policy, observations(), calibrated=None))
    finally:
        policy.spec.action_low[:] = [-1.0, 0.0]
    assert bundle.manifest.safe_action == (0.0, 0.5)


def test_the_card_says_which_policy_how_good_and_what_it_is_not(tmp_path: Path) -> None:
    policy = trained((20.0, 10.0))
    path = export_bundle(tmp_path / "1", policy, observations(), calibrated=measured(policy), evaluations=(EVALUATION,))
    card = read_bundle(path).model_card
    for expected in (
        "# small, version 1",
        "no safety-rated function",
        "Keep an independent stop",
        "The last checkpoint. Trained for 1,000 steps with seed 0",
        "12 (11 to 13)",
        "cost_0 8 (6 to 10) under the limit of 20, CVaR 0.9 19.5, 10% of episodes over",
        "cost_1 30 (28 to 32) **over** the limit of 10",
        "Measured on 40 deterministic episodes (12 to fit, 12 to calibrate, 10 to set alarm levels, 6 to test)",
        "with probability 0.9 or more, where those steps are a window of 10",
    ):
        assert expected in card, expected


def test_the_card_does_not_claim_what_the_episodes_were_too_few_for(tmp_path: Path) -> None:
    policy = trained((20.0,))
    few = measured(policy, 12)  # 6 calibrate, of 9 that a bound of confidence 0.9 needs
    card = read_bundle(export_bundle(tmp_path / "1", policy, observations(), calibrated=few)).model_card
    assert "Claimed, except where the episodes were too few (below)" in card
    for sentence in few.record.not_claimed:
        assert f"**Not claimed.** {sentence}" in card
    assert any("cost_upper is infinite" in sentence for sentence in few.record.not_claimed)


def test_the_card_of_an_unmeasured_policy_says_so(tmp_path: Path) -> None:
    card = read_bundle(export_bundle(tmp_path / "1", trained((None,)), observations(), calibrated=None)).model_card
    assert "It was not evaluated." in card
    assert "Nothing was measured." in card


def test_a_graph_that_differs_from_torch_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = model(1, seed=9)

    def of_another_policy(served: Served, precision: Precision) -> bytes:
        forecast, scale = served.forecast, served.reward_scale
        return policy_graph(Served(other, forecast, served.cost_map, LOW, HIGH, scale, served.shift), precision)

    monkeypatch.setattr("cvpo.exporting.export.policy_graph", of_another_policy)
    with pytest.raises(ExportError, match=r"policy.onnx, deterministic: action differs"):
        export_bundle(tmp_path / "1", trained((20.0,)), observations(), calibrated=None)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    export_bundle(tmp_path / "1", trained((20.0,)), observations(), calibrated=None)
    before = {file.name: file.read_bytes() for file in (tmp_path / "1").iterdir()}
    with pytest.raises(BundleError, match="exists"):
        export_bundle(tmp_path / "1", trained((10.0,)), observations(), calibrated=None)
    assert {file.name: file.read_bytes() for file in (tmp_path / "1").iterdir()} == before


@pytest.mark.parametrize("given", [np.zeros((0, OBSERVATION_SIZE)), np.zeros((4, 3)), np.zeros(OBSERVATION_SIZE)])
def test_observations_of_another_shape_are_refused(tmp_path: Path, given: NDArray[np.float64]) -> None:
    with pytest.raises(ExportError, match=r"needs real observations of Small-v0 \[N, 5\]"):
        export_bundle(tmp_path / "1", trained((20.0,)), given.astype(np.float32), calibrated=None)


def test_a_policy_that_never_saw_an_observation_is_refused(tmp_path: Path) -> None:
    policy = trained((20.0,))
    policy.model.normalizer = Normalizer(OBSERVATION_SIZE)
    with pytest.raises(ExportError, match=r"small cannot be exported: ObservationStatistics, low.0"):
        export_bundle(tmp_path / "1", policy, observations(), calibrated=None)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    policy = trained((20.0,))
    with torch.no_grad():
        policy.model.critics.output_bias[-1] = np.nan
    with pytest.raises(ExportError, match="cost_value differs"):
        export_bundle(tmp_path / "1", policy, observations(), calibrated=None)
    assert list(tmp_path.iterdir()) == []
