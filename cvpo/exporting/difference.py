"""What changed between two bundles: in what they say of themselves, and in what they do in the situations they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import CRITIC_GRAPH, GRAPHS, OUTPUTS, POLICY_GRAPH, Bundle, scale
from cvpo.exporting.record import ask
from cvpo.exporting.runtime import open_graph

_MISSING = "(none)"
_UNTOLD = {"files", "digest"}  # they differ wherever anything does
_WHOLE = {"learning_curve", "costs", "example"}  # hundreds of values, of which each may differ: told as one change


@dataclass(frozen=True)
class Change:
    """A value of the manifest that is not the same."""

    where: str
    before: object
    after: object


@dataclass(frozen=True)
class Distance:
    """How far an output is from the other bundle's, over all situations."""

    output: str
    largest: float
    mean: float
    size: float  # largest finite value of the first bundle's, to judge by
    differing: int  # of all values
    values: int


@dataclass(frozen=True)
class Difference:
    """All that differs."""

    changes: tuple[Change, ...]
    distances: tuple[Distance, ...]  # empty where they cannot be asked the same
    situations: int
    why_not_asked: str

    def document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def compare_bundles(a: Bundle, b: Bundle) -> Difference:
    """Compare two verified bundles. Both are asked what both golden requests ask, at the first one's alarm level."""
    before, after = (bundle.manifest.model_dump(mode="json") for bundle in (a, b))
    changes = tuple(_changes(before, after))
    if a.manifest.sizes != b.manifest.sizes:
        return Difference(changes, (), 0, "their observations, actions or constraints differ in number")
    inputs = {graph: _joined(a, b, graph) for graph in GRAPHS}
    asked = [ask({graph: open_graph(bundle.graph(graph)) for graph in GRAPHS}, inputs) for bundle in (a, b)]
    answers = [answer[POLICY_GRAPH] for answer in asked]
    distances = tuple(_distance(name, *(answer[name] for answer in answers)) for name in OUTPUTS[POLICY_GRAPH])
    return Difference(changes, distances, len(inputs[CRITIC_GRAPH]["action"]), "")


def _joined(a: Bundle, b: Bundle, graph: str) -> dict[str, NDArray[Any]]:
    """The inputs of both golden requests, of as many candidates as both have."""
    one, other = dict(a.golden.inputs[graph]), dict(b.golden.inputs[graph])
    alarm_level = one.pop("alarm_level")
    if graph == POLICY_GRAPH:
        K = min(one["noise"].shape[1], other["noise"].shape[1])
        one["noise"], other["noise"] = one["noise"][:, :K], other["noise"][:, :K]
    return {**{name: np.concatenate([one[name], other[name]]) for name in one}, "alarm_level": alarm_level}


def _distance(name: str, before: NDArray[Any], after: NDArray[Any]) -> Distance:
    one, other = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(one == other, 0.0, np.abs(one - other))
    return Distance(name, float(apart.max()), float(apart.mean()), scale(before), int((apart > 0).sum()), apart.size)


def _changes(before: object, after: object, where: str = "") -> Iterator[Change]:
    if where.rpartition(".")[2] in _WHOLE:
        if before != after:
            yield Change(where, before, after)
    elif isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in [*before, *(name for name in after if name not in before)]:
            if where or name not in _UNTOLD:
                inner = f"{where}.{name}" if where else str(name)
                yield from _changes(before.get(name, _MISSING), after.get(name, _MISSING), inner)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _changes(one, other, f"{where}[{index}]")
    elif before != after:
        yield Change(where, before, after)
