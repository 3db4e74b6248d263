"""The fixed interface of a bundle's graphs: type and axes of every input and output, by name."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cvpo.bundle.onnxfile import BOOL, FLOAT, INT64

POLICY_GRAPH = "policy.onnx"
CRITIC_GRAPH = "critic.onnx"


class Port(NamedTuple):
    """An input or output. N situations and K candidates are free; O, A and C are sizes that the manifest states."""

    type: int
    axes: str


DTYPES: Mapping[int, type[np.generic]] = {FLOAT: np.float32, INT64: np.int64, BOOL: np.bool_}  # of ports, by type

PORTS: Mapping[str, Port] = {
    "observation": Port(FLOAT, "NO"),
    "noise": Port(FLOAT, "NKA"),
    "steps_left": Port(INT64, "N"),
    "cost_allowed": Port(FLOAT, "NC"),
    "alarm_level": Port(FLOAT, "C"),
    "action": Port(FLOAT, "NA"),
    "chosen": Port(INT64, "N"),
    "feasible": Port(BOOL, "N"),
    "reward_value": Port(FLOAT, "N"),
    "cost_value": Port(FLOAT, "NC"),
    "cost_to_go": Port(FLOAT, "NC"),
    "cost_upper": Port(FLOAT, "NC"),
    "violation_probability": Port(FLOAT, "NC"),
    "violation": Port(BOOL, "NC"),
    "shift_score": Port(FLOAT, "N"),
}

# What is asked of a situation, and no network sees.
SITUATION = ("steps_left", "cost_allowed", "alarm_level")
_PREDICTED = (
    "reward_value",
    "cost_value",
    "cost_to_go",
    "cost_upper",
    "violation_probability",
    "violation",
    "shift_score",
)

# Names of inputs and outputs, in the order of `cvpo.exporting.served`.
INPUTS: Mapping[str, tuple[str, ...]] = {
    POLICY_GRAPH: ("observation", "noise", *SITUATION),
    CRITIC_GRAPH: ("observation", "action", *SITUATION),
}
OUTPUTS: Mapping[str, tuple[str, ...]] = {
    POLICY_GRAPH: ("action", "chosen", "feasible", *_PREDICTED),
    CRITIC_GRAPH: _PREDICTED,
}
