"""What the files in deploy/ say: the Dockerfile's instructions and the Kubernetes objects."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = KUBERNETES / "kustomization.yaml"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order: keyword and arguments, one line each."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines())]


def arguments(keyword: str) -> list[str]:
    """Return the arguments of all instructions of that name."""
    return [rest for name, rest in instructions() if name == keyword]


def image_environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    (variables,) = arguments("ENV")
    return dict(variable.split("=", 1) for variable in variables.split())


def kubernetes_files() -> list[Path]:
    """Return the files that hold Kubernetes objects, one object each."""
    return sorted(path for path in KUBERNETES.iterdir() if path != KUSTOMIZATION)


def kubernetes_object(name: str) -> dict[str, Any]:
    """Return the object of a file."""
    document: dict[str, Any] = yaml.safe_load((KUBERNETES / name).read_text())
    return document
