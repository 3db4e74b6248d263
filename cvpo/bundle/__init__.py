"""The contract between learning and serving: what a bundle holds, how it is written whole, and how it is verified.

A bundle is a directory: `policy.onnx` and `critic.onnx`, `golden.json` with real situations and what the graphs
answered to them, `MODEL_CARD.md`, and `manifest.json`, which carries the SHA-256 of the others and of itself.
`manifest.sig` may sign the manifest. It is immutable: calibrating or training again writes a new version.
"""

from cvpo.bundle.golden import GRAPHS, Arrays, Golden, distance, scale, slack
from cvpo.bundle.graph import check_graph
from cvpo.bundle.interface import CRITIC_GRAPH, INPUTS, OUTPUTS, POLICY_GRAPH, PORTS, SITUATION, Port
from cvpo.bundle.keys import TrustedKeys, make_keys, read_private_key, read_trusted_keys
from cvpo.bundle.manifest import (
    NAME_PATTERN,
    SCHEMA_VERSION,
    BoundCoverage,
    CalibratedMode,
    Calibration,
    CalibrationResult,
    Constraint,
    Evaluation,
    Interval,
    Manifest,
    Mode,
    ModeResult,
    ObservationStatistics,
    Provenance,
    ReliabilityBin,
    Space,
)
from cvpo.bundle.onnxfile import BOOL, FLOAT, INT64, IR_VERSION, OPSET
from cvpo.bundle.storage import (
    GOLDEN,
    MANIFEST,
    MODEL_CARD,
    SIGNATURE,
    Bundle,
    read_bundle,
    sign_bundle,
    write_bundle,
)

__all__ = [
    "BOOL",
    "CRITIC_GRAPH",
    "FLOAT",
    "GOLDEN",
    "GRAPHS",
    "INPUTS",
    "INT64",
    "IR_VERSION",
    "MANIFEST",
    "MODEL_CARD",
    "NAME_PATTERN",
    "OPSET",
    "OUTPUTS",
    "POLICY_GRAPH",
    "PORTS",
    "SCHEMA_VERSION",
    "SIGNATURE",
    "SITUATION",
    "Arrays",
    "BoundCoverage",
    "Bundle",
    "CalibratedMode",
    "Calibration",
    "CalibrationResult",
    "Constraint",
    "Evaluation",
    "Golden",
    "Interval",
    "Manifest",
    "Mode",
    "ModeResult",
    "ObservationStatistics",
    "Port",
    "Provenance",
    "ReliabilityBin",
    "Space",
    "TrustedKeys",
    "check_graph",
    "distance",
    "make_keys",
    "read_bundle",
    "read_private_key",
    "read_trusted_keys",
    "scale",
    "sign_bundle",
    "slack",
    "write_bundle",
]
