"""What changed between two bundles: in what they say of themselves, and in what they do in the situations they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvpo.bundle import OUTPUTS, POLICY_GRAPH, Bundle, scale
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
    distances: tuple[Distance, ...]  # of deterministic actions; empty where they cannot be asked the same
    situations: int
    candidates: int  # of a shield
    chosen_otherwise: int  # situations in which the two shields choose different ones of the same candidates
    why_not_asked: str
    constraints: tuple[str, ...]  # of the first bundle

    def document(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def compare_bundles(a: Bundle, b: Bundle) -> Difference:
    """Compare two verified bundles. Both are asked what both golden requests ask, at the first one's alarm level: for
    the deterministic action, and for a shield's choice of the candidates, which depends on what is predicted."""
    before, after = (bundle.manifest.model_dump(mode="json") for bundle in (a, b))
    changes, constraints = tuple(_changes(before, after)), tuple(each.name for each in a.manifest.constraints)
    if a.manifest.sizes != b.manifest.sizes:
        why = "their observations, actions or constraints differ in number"
        return Difference(changes, (), 0, 0, 0, why, constraints)
    shielded = _joined(a, b)
    noise = shielded["noise"]
    sessions = [open_graph(bundle.graph(POLICY_GRAPH)) for bundle in (a, b)]
    chosen, answers = (
        [ask({POLICY_GRAPH: session}, {POLICY_GRAPH: inputs})[POLICY_GRAPH] for session in sessions]
        for inputs in (shielded, {**shielded, "noise": noise[:, :1]})
    )
    names = [name for name in OUTPUTS[POLICY_GRAPH] if name != "chosen"]  # which there is one of
    distances = tuple(_distance(name, *(answer[name] for answer in answers)) for name in names)
    otherwise = int((chosen[0]["chosen"] != chosen[1]["chosen"]).sum())
    return Difference(changes, distances, len(noise), noise.shape[1], otherwise, "", constraints)


def _joined(a: Bundle, b: Bundle) -> dict[str, NDArray[Any]]:
    """What both golden requests ask the policy, with as many candidates as both have, of which the first is certain."""
    one, other = dict(a.golden.inputs[POLICY_GRAPH]), dict(b.golden.inputs[POLICY_GRAPH])
    alarm_level = one.pop("alarm_level")
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
