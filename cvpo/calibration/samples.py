"""What a bundle keeps to be drawn: the learning curve, the costs of single episodes, and an episode with its flags."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import (
    MOST_COSTS,
    MOST_CURVE_POINTS,
    MOST_EXAMPLE_STEPS,
    CurvePoint,
    EpisodeExample,
    Evaluation,
)
from cvpo.calibration.sessions import Session

Array = NDArray[np.float64]


def learning_curve(evaluations: Mapping[int, Evaluation], steps: int) -> tuple[CurvePoint, ...]:
    """Evaluations of the checkpoints up to the one at `steps`; evenly spread where a manifest cannot hold them all."""
    reached = sorted(at for at in evaluations if at <= steps)
    return tuple(
        CurvePoint(
            steps=reached[i],
            episode_return=evaluations[reached[i]].episode_return,
            episode_cost=evaluations[reached[i]].episode_cost,
        )
        for i in _spread(len(reached), MOST_CURVE_POINTS)
    )


def single_costs(costs: Sequence[Array]) -> tuple[tuple[float, ...], ...]:
    """What each episode cost, of costs [T, C] by step; of the first ones where a manifest cannot hold them all."""
    return tuple(tuple(cost.sum(0).tolist()) for cost in costs[:MOST_COSTS])


def example(cost: Array, session: Session, budget: float) -> EpisodeExample:
    """What was spent and said along a session, at steps evenly spread.

    Args:
        cost: of the episode, by step, [L].
        session: the episode with the budget.
        budget: in the environment's cost units.
    """
    spent = np.concatenate([[0.0], cost.cumsum()[:-1]])
    steps = _spread(len(cost), MOST_EXAMPLE_STEPS)
    return EpisodeExample(
        budget=budget,
        crossing=session.crossing,
        steps=tuple(steps),
        spent=tuple(spent[steps].tolist()),
        violation_probability=tuple(session.probability[steps].tolist()),
    )


def _spread(count: int, most: int) -> list[int]:
    """Indices of at most so many of `count`, evenly spread, with the first and the last."""
    return [int(i) for i in np.linspace(0, count - 1, min(count, most)).round()]
