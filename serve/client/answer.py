"""What a control session hands a robot at each step."""

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from serve.client.watchdog import WatchdogTaken
from serve.control_values import FallbackTaken, SessionOpened, StepResult, StepTiming
from serve.values import Bools, Floats, PolicyDescription, Prediction, ServedPolicy


class Source(Enum):
    """Whose action it is."""

    POLICY = "policy"
    FALLBACK = "fallback"  # of the session, chosen in the server
    WATCHDOG = "watchdog"  # of the client, since no answer came in time


@dataclass(frozen=True)
class ControlAnswer:
    """An action, what is predicted of it, and what may still be spent.

    Shapes are for A action dimensions and C constraints. A watchdog's action has no prediction and no timing; its
    budgets, its step number and its policy are those of the last answer.
    """

    source: Source
    action: Floats  # [A], environment units, within the bounds
    prediction: Prediction | None  # of this action, without the axis N; None: nothing can be predicted
    feasible: bool  # this action raises no flag; False of a watchdog's
    chosen: int  # index of the chosen candidate; 0 is the deterministic action
    fallback: FallbackTaken | None  # why, where the source is FALLBACK
    watchdog: WatchdogTaken | None  # why, where the source is WATCHDOG
    step: int | None  # number of the step in the session; None: none was answered yet
    constraints: tuple[str, ...]  # names, in the order of every axis C
    cost_spent: NDArray[np.float64]  # [C], observed: since the session began, or over the last window
    cost_left: NDArray[np.float64]  # [C], zero where no more may be spent; infinity: unconstrained
    budget_exhausted: Bools  # [C], nothing is left
    steps_left: int  # that what is left must last
    policy: ServedPolicy
    timing: StepTiming | None  # spent in the server
    seconds: float  # from the call of `step` to its answer


def answer_of(result: StepResult, seconds: float) -> ControlAnswer:
    """Return the answer that the result of a step, with the axis N, is for the robot."""
    account = result.account
    left = np.array(account.left)
    return ControlAnswer(
        source=Source.POLICY if result.fallback is None else Source.FALLBACK,
        action=result.action[0],
        prediction=result.prediction and result.prediction.single(),
        feasible=result.feasible,
        chosen=result.chosen,
        fallback=result.fallback,
        watchdog=None,
        step=result.step,
        constraints=result.constraints,
        cost_spent=np.array(account.spent),
        cost_left=left,
        budget_exhausted=left <= 0,
        steps_left=account.steps_left,
        policy=result.policy,
        timing=result.timing,
        seconds=seconds,
    )


def watchdog_answer(last: ControlAnswer, action: Floats, taken: WatchdogTaken, seconds: float) -> ControlAnswer:
    """Return the answer of the watchdog, after the last one of the server."""
    return replace(
        last,
        source=Source.WATCHDOG,
        action=action,
        prediction=None,
        feasible=False,
        chosen=0,
        fallback=None,
        watchdog=taken,
        timing=None,
        seconds=seconds,
    )


def before_the_first(opened: SessionOpened, description: PolicyDescription) -> ControlAnswer:
    """Return what stands for the last answer where there is none yet: nothing is spent."""
    budget = np.array(opened.cost_budget)
    return ControlAnswer(
        source=Source.WATCHDOG,
        action=np.array(description.safe_action, np.float32),
        prediction=None,
        feasible=False,
        chosen=0,
        fallback=None,
        watchdog=None,
        step=None,
        constraints=tuple(constraint.name for constraint in description.constraints),
        cost_spent=np.zeros_like(budget),
        cost_left=budget,
        budget_exhausted=budget <= 0,
        steps_left=opened.extent_steps,
        policy=opened.policy,
        timing=None,
        seconds=0.0,
    )
