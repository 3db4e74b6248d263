"""What a loaded graph must not send: a bound that is not a number, and answers to another number of situations."""

from collections.abc import Callable
from typing import Any

import pytest

from cvpo.bundle import CRITIC_GRAPH, POLICY_GRAPH
from serve.errors import InternalError
from serve.server.graph import SHARED_ROWS, Graph
from tests.serve import bundles

OVERFLOWS = [1e20, 0.0, 0.0]  # its square is infinite in float32
GRAPHS = pytest.mark.parametrize("name", [POLICY_GRAPH, CRITIC_GRAPH])
COUNTS = pytest.mark.parametrize("count", [1, 3, SHARED_ROWS + 1])  # many situations go another way than few


def graph(name: str, *changes: tuple[str, str]) -> Graph:
    """One of the graphs by hand, with changes of its text."""

    def changed(text: str) -> str:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return text

    make: Callable[..., bytes] = bundles.policy_graph if name == POLICY_GRAPH else bundles.critic_graph
    return Graph(name, make(changed), bundles.manifest().sizes)


def with_bound_of_its_own(name: str, value: str) -> Graph:
    """A graph whose cost_upper alone takes in what an observation makes infinite, or no number."""
    reward = ("Add(total, poison_k)" if name == POLICY_GRAPH else "Add(total, poison)", "Mul(total, one)")
    bound = f"own = Unsqueeze({value}, middle)  plain = Add(doubled, one)  cost_upper = Add(plain, own)"
    return graph(name, reward, ("cost_upper = Add(doubled, one)", bound))


def inputs(name: str, observation: list[float], count: int) -> dict[str, Any]:
    free = {"noise": [[[0.0, 0.0]]] * count} if name == POLICY_GRAPH else {"action": [[0.5, -0.5]] * count}
    return {
        "observation": [[0.0, 0.0, 0.0]] * (count - 1) + [observation],
        "steps_left": [10] * count,
        "cost_allowed": [[2.0, 4.0]] * count,
        "alarm_level": bundles.ALARM,
        **free,
    }


@GRAPHS
@COUNTS
def test_a_bound_that_is_not_a_number_is_never_sent(name: str, count: int) -> None:
    with pytest.raises(InternalError, match="bound that is not a number"):
        with_bound_of_its_own(name, "poison").run(inputs(name, OVERFLOWS, count))  # infinity times 0


@GRAPHS
@COUNTS
def test_a_bound_may_be_infinite(name: str, count: int) -> None:
    found = with_bound_of_its_own(name, "square").run(inputs(name, OVERFLOWS, count))
    assert found["cost_upper"][-1] == [float("inf")] * 2


@GRAPHS
def test_answers_to_another_number_of_situations_are_never_sent(name: str) -> None:
    first = "first_row = Constant <value = int64[1] {0}> ()  shift_score = Gather <axis = 0> (scores, first_row)"
    fewer = graph(name, ("shift_score = Relu(beyond)", f"scores = Relu(beyond)  {first}"))
    with pytest.raises(InternalError, match="shift_score"):
        fewer.run(inputs(name, [1.0, 2.0, -1.0], 3))
    with pytest.raises(InternalError, match=r"gave shift_score of shape \(1,\) for 20 situations"):
        fewer.run(inputs(name, [1.0, 2.0, -1.0], 20))
