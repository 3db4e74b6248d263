"""Networks in fewer bits: what is stored of them, how far that may move them, and bundles of them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cvpo.bundle import CRITIC_GRAPH, FLOAT, GRAPHS, INT64, POLICY_GRAPH, Precision, check_graph, read_bundle
from cvpo.errors import ExportError
from cvpo.exporting.difference import compare_bundles
from cvpo.exporting.export import NamedPolicy, export_bundle
from cvpo.exporting.exported import ExportedAnswering, ExportedNetworks
from cvpo.exporting.graphs import critic_graph, graph_again, policy_graph
from cvpo.exporting.parity import check_parity
from cvpo.exporting.precision import MOST_DIFFERENCE, rounded, store
from cvpo.exporting.verify import call_microseconds, verify_bundle
from cvpo.learning.networks import Model
from serve.server.runtime import load
from serve.values import Deterministic
from tests.command import succeed
from tests.exporting.test_export import measured, situations, trained
from tests.exporting.test_parity import manifest
from tests.small_policies import HIGH, LOW, model, observations, random_forecast, random_map, served

NARROW: tuple[Precision, ...] = ("float16", "int8")
LIMITS = (20.0, 10.0)


def in_precision(precision: Precision, limits: tuple[float | None, ...] = LIMITS) -> NamedPolicy:
    return replace(trained(limits), precision=precision)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the same policy in each precision, calibrated."""
    folder = tmp_path_factory.mktemp("precision")
    calibrated = measured(trained(LIMITS))
    return {
        precision: export_bundle(
            folder / precision / "1", in_precision(precision), observations(), calibrated=calibrated
        )
        for precision in ("float32", *NARROW)
    }


# What is stored


def test_int8_is_within_half_a_step_of_the_scale_of_each_unit() -> None:
    # The largest weights of the three units that go in are 1.27, 0.635 and 0: steps of 0.01, of 0.005, and none.
    matrix = np.array([[1.27, -0.333], [0.0101, 0.635], [0.0, 0.0]], np.float32)
    stored = store(matrix, "int8", outputs=-1)
    np.testing.assert_array_equal(stored.values, [[127, -33], [2, 127], [0, 0]])
    assert stored.restored() == pytest.approx(np.array([[1.27, -0.33], [0.01, 0.635], [0, 0]]), rel=1e-6)
    assert stored.scale is not None
    assert stored.scale.shape == (3, 1)
    np.testing.assert_array_equal(store(matrix.T, "int8", outputs=-2).values, stored.values.T)


@pytest.mark.parametrize(("precision", "outputs"), [("float16", None), ("float16", -1), ("int8", None)])
def test_float16_has_eleven_bits_and_no_scale(precision: Precision, outputs: int | None) -> None:
    matrix = np.random.default_rng(0).normal(0, 1, (50, 40)).astype(np.float32)
    stored = store(matrix, precision, outputs)
    assert stored.scale is None
    assert np.abs(stored.restored() / matrix - 1).max() <= 2**-11


@pytest.mark.parametrize("precision", NARROW)
def test_every_matrix_is_rounded_and_nothing_else(precision: Precision) -> None:
    learned = model(2, covariance="full")
    narrow = rounded(learned, precision)
    moved = {name for name, value in narrow.state_dict().items() if not torch.equal(value, learned.state_dict()[name])}
    assert moved == {
        *(f"policy.{layer}.weight" for layer in ("first", "second", "mean", "spread", "correlation")),
        *(f"critics.{layer}_weight" for layer in ("observation", "action", "second", "output")),
    }


# How far it moves


def test_the_differences_are_those_of_what_is_served(bundles: dict[str, Path]) -> None:
    # float16 rounds a weight by up to 2^-11 of itself, int8 by 1/254 of the largest of its unit. With three layers, and
    # drawn actions three standard deviations away, that comes to less than ten times as much.
    found = {precision: read_bundle(path).manifest.stored_weights for precision, path in bundles.items()}
    assert found["float32"] is None
    coarse, fine = found["int8"], found["float16"]
    assert coarse is not None
    assert fine is not None
    for stored, step in ((fine, 2**-11), (coarse, 1 / 254)):
        assert 0 < stored.action_difference < 10 * step
        assert 0 < stored.value_difference < 10 * step
        assert stored.most_difference == MOST_DIFFERENCE
    assert fine.action_difference < coarse.action_difference
    assert fine.value_difference < coarse.value_difference

    asked = situations(200, (1.0, 1.0))
    actions = {name: load(read_bundle(path)).act(asked, Deterministic()).action for name, path in bundles.items()}
    for name, stored in (("float16", fine), ("int8", coarse)):
        share = np.abs(np.subtract(actions[name], actions["float32"])).max(0) / (HIGH - LOW)
        assert 0 < share.max() <= stored.action_difference * (1 + 1e-3)


def _steep(learned: Model) -> None:
    learned.policy.mean.weight *= 30


def _uneven(learned: Model) -> None:
    # A step of int8 is now as large as the other weights of each unit, and they are all that the output depends on.
    learned.critics.second_weight[-1, :, 0] *= 100
    learned.critics.output_weight[-1] *= 30
    learned.critics.output_weight[-1, 0] = 0


def _too_large(learned: Model) -> None:
    learned.critics.second_weight[0, 0, 0] = 1e5  # float16 ends at 65504


@pytest.mark.parametrize(
    ("precision", "change", "says"),
    [
        ("int8", _steep, r"Stored in int8, the networks give another action: .* by up to [\d.]+% of its range, and 5%"),
        (
            "int8",
            _uneven,
            r"Stored in int8, the networks give another cost value: .* of its largest, and 5% is",
        ),
        ("float16", _too_large, r"Stored in float16, the networks give another reward value: .* nan%"),
    ],
)
def test_what_differs_by_more_than_the_bound_is_not_exported(
    precision: Precision, change: Callable[[Model], None], says: str, tmp_path: Path
) -> None:
    policy = in_precision(precision)
    with torch.no_grad():
        change(policy.model)
    with pytest.raises(ExportError, match=says):
        export_bundle(tmp_path / "1", policy, observations(), calibrated=None)
    assert not list(tmp_path.iterdir())
    export_bundle(tmp_path / "1", replace(policy, precision="float32"), observations(), calibrated=None)


def test_a_graph_of_other_networks_than_the_rounded_ones_is_no_parity() -> None:
    policy = served(1)
    coarse = policy_graph(policy, "int8")
    with pytest.raises(ExportError, match=r"action differs between onnxruntime"):
        check_parity(policy, coarse, coarse, observations(), manifest(policy, (20.0,)))


# Bundles


@pytest.mark.parametrize("precision", NARROW)
def test_the_graphs_hold_their_matrices_in_that_precision(precision: Precision, bundles: dict[str, Path]) -> None:
    for name in GRAPHS:
        graph = onnx.load_model_from_string(read_bundle(bundles[precision]).graph(name)).graph
        kinds = Counter(numpy_helper.to_array(c).dtype.name for c in graph.initializer)
        of_policy, critics = (name == POLICY_GRAPH), 6  # each critic's second matrix is one of its own
        hidden = of_policy + critics
        if precision == "int8":
            assert kinds["int8"] == hidden
        assert kinds["int8"] + kinds["float16"] == hidden + 3 + 3 * of_policy
        assert {port.type.tensor_type.elem_type for port in graph.input} == {FLOAT, INT64}


@pytest.mark.parametrize("precision", NARROW)
def test_a_bundle_in_fewer_bits_is_verified_and_says_so(precision: Precision, bundles: dict[str, Path]) -> None:
    path = bundles[precision]
    verified = verify_bundle(path, None)
    stored = verified.manifest.stored_weights
    assert stored is not None
    assert stored.precision == precision
    assert f"Its networks are stored in {precision}" in verified.model_card
    assert f"by up to {stored.action_difference:.2%} of its range" in verified.model_card
    for name in GRAPHS:
        assert f"`{name}` has {len(verified.graph(name)):,} bytes" in verified.model_card
    assert f"weights     {precision}; from float32 actions differ by up to" in succeed("inspect", path).out
    assert (
        f" us a call with one observation, in a loop of them, with weights in {precision} on "
        in succeed("verify", path).out
    )
    assert 1 < call_microseconds(verified) < 1e5


def test_a_bundle_in_float32_says_so(bundles: dict[str, Path]) -> None:
    path = bundles["float32"]
    assert "stored in float32, as they learned" in read_bundle(path).model_card
    assert "weights     float32, as they learned" in succeed("inspect", path).out
    assert "with weights in float32 on " in succeed("verify", path).out


@pytest.mark.parametrize("precision", NARROW)
def test_its_networks_go_on_with_another_map_of_costs(precision: Precision, bundles: dict[str, Path]) -> None:
    bundle = read_bundle(bundles[precision])
    networks = ExportedNetworks(bundle)
    answering = ExportedAnswering(networks, random_forecast(2), random_map(2), LOW, HIGH)
    again = {name: graph_again(name, bundle.graph(name), answering) for name in GRAPHS}
    check_parity(answering, again[POLICY_GRAPH], again[CRITIC_GRAPH], observations(), bundle.manifest)
    policy = served(2)
    policy.model = rounded(policy.model, precision)
    for name, make in ((POLICY_GRAPH, policy_graph), (CRITIC_GRAPH, critic_graph)):
        exported = make(policy, precision)
        assert graph_again(name, exported, policy) == exported  # to the byte
        check_graph(name, again[name], bundle.manifest.sizes)


def test_the_difference_of_two_precisions_is_told(bundles: dict[str, Path]) -> None:
    one, other = (read_bundle(bundles[precision]) for precision in ("float32", "int8"))
    difference = compare_bundles(one, other)
    assert "stored_weights" in {change.where for change in difference.changes}
    distances = {d.output: d for d in difference.distances}
    assert 0 < distances["action"].largest < MOST_DIFFERENCE * (HIGH - LOW).max()
    assert 0 < distances["cost_value"].largest < MOST_DIFFERENCE * distances["cost_value"].size
