"""Makes the golden request of a bundle: asks both graphs about real observations, and keeps what is not rounding's."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import CRITIC_GRAPH, GRAPHS, OUTPUTS, POLICY_GRAPH, Arrays, Golden, Manifest, distance, slack
from cvpo.errors import ExportError
from cvpo.exporting.runtime import Session, open_graph

SITUATIONS = 16
CANDIDATES = 4
MOST_OBSERVATIONS = 256  # to take them from
# A situation is kept if flags and choices stay, and values move by half the tolerance at most, when what it says moves
# by as much: of an observation, in standard deviations; of a cost, as a share. Kernels round a tenth of it.
DISTURBANCE = 1e-5
_DISTURBANCES = 4


def record(graphs: Mapping[str, bytes], observations: NDArray[np.float32], manifest: Manifest) -> Golden:
    """Make the golden request.

    Args:
        graphs: by file name.
        observations: real ones, [N, O].
        manifest: of the bundle.

    Raises:
        ExportError: rounding decides every situation.
    """
    sessions = {name: open_graph(graphs[name]) for name in GRAPHS}
    generator = np.random.default_rng(0)
    inputs = _inputs(observations[:MOST_OBSERVATIONS], manifest, generator)
    inputs[CRITIC_GRAPH]["action"][::2] = ask(sessions, inputs)[POLICY_GRAPH]["action"][::2]
    stable = _stable(sessions, inputs, manifest, generator)
    if not stable.any():
        raise ExportError(
            f"{manifest.name} cannot be exported: in each of {len(stable)} situations its answer depends on rounding "
            f"beyond {manifest.golden_tolerance:g}, so another machine would answer otherwise. No bundle was written."
        )
    kept = np.flatnonzero(stable)[:SITUATIONS]
    chosen = {graph: {n: v if n == "alarm_level" else v[kept] for n, v in inputs[graph].items()} for graph in GRAPHS}
    return Golden(chosen, ask(sessions, chosen))


def ask(sessions: Mapping[str, Session], inputs: Mapping[str, Arrays]) -> dict[str, dict[str, NDArray[Any]]]:
    """Run both graphs and return their outputs by name."""
    return {
        name: dict(zip(OUTPUTS[name], session.run(list(OUTPUTS[name]), dict(inputs[name])), strict=True))
        for name, session in sessions.items()
    }


def _inputs(
    observation: NDArray[np.float32], manifest: Manifest, generator: np.random.Generator
) -> dict[str, dict[str, NDArray[Any]]]:
    """Windows, whole episodes and what lies between; the limit's share of them, up to twice as much, and no limit."""
    N, T, (A, C) = len(observation), manifest.horizon_steps, (manifest.sizes["A"], manifest.sizes["C"])
    steps_left = generator.integers(1, T, N, endpoint=True)
    steps_left[::4], steps_left[1::4] = manifest.window_steps, T
    limit = np.array([1.0 if c.cost_limit is None else c.cost_limit for c in manifest.constraints])
    cost_allowed = limit * steps_left[:, None] / T * generator.uniform(0.5, 2, (N, C))
    cost_allowed[::3] = limit * steps_left[::3, None] / T
    cost_allowed[5::8] = np.inf
    noise = generator.standard_normal((N, CANDIDATES, A))
    noise[:, 0] = 0
    low, high = (np.array(bound, np.float64) for bound in (manifest.action.low, manifest.action.high))
    situation: dict[str, NDArray[Any]] = {
        "observation": observation,
        "steps_left": steps_left,
        "cost_allowed": cost_allowed.astype(np.float32),
        "alarm_level": np.array(manifest.alarm_levels, np.float32),
    }
    return {
        POLICY_GRAPH: situation | {"noise": noise.astype(np.float32)},
        CRITIC_GRAPH: situation | {"action": generator.uniform(low, high, (N, A)).astype(np.float32)},
    }


def _stable(
    sessions: Mapping[str, Session],
    inputs: Mapping[str, Arrays],
    manifest: Manifest,
    generator: np.random.Generator,
) -> NDArray[np.bool_]:
    """Whether what is answered to a situation stays the same, [N], when the situation is disturbed a little."""
    expected = ask(sessions, inputs)
    observation, cost_allowed = (inputs[POLICY_GRAPH][name] for name in ("observation", "cost_allowed"))
    deviation = np.array(manifest.observation_statistics.standard_deviation)
    stable = np.ones(len(observation), np.bool_)
    for sign in np.resize([1, -1], _DISTURBANCES):
        disturbed = {
            "observation": observation + DISTURBANCE * deviation * generator.choice([-1, 1], observation.shape),
            "cost_allowed": cost_allowed * (1 + sign * DISTURBANCE),
        }
        moved = {name: value.astype(np.float32) for name, value in disturbed.items()}
        found = ask(sessions, {graph: {**inputs[graph], **moved} for graph in GRAPHS})
        for graph in GRAPHS:
            for name, values in expected[graph].items():
                bound = slack(name, values, manifest.golden_tolerance / 2)
                stable &= [distance(*rows) <= bound for rows in zip(found[graph][name], values, strict=True)]
    return stable
