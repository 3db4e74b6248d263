"""The Kubernetes objects: valid by the schemas, and true to each other, to the image and to the server."""

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import grpc
import kubernetes_validate
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.gen.cvpo.v1 import policy_pb2
from serve.server.settings import Settings, parse, split_address
from tests.deploy.files import (
    KUBERNETES,
    KUSTOMIZATION,
    ROOT,
    arguments,
    image_environment,
    kubernetes_files,
    kubernetes_object,
)
from tests.serve import bundles
from tests.serve.running import ServerThread

OLDEST, NEWEST = "1.30", "1.37"  # docs/deploy.md names them; 1.30 is the first whose preStop can sleep

DEPLOYMENT = kubernetes_object("deployment.yaml")
TEMPLATE = DEPLOYMENT["spec"]["template"]
SERVICE = kubernetes_object("service.yaml")
CLAIM = kubernetes_object("bundles.yaml")
PODS = {"deployment": TEMPLATE["spec"], "loader": kubernetes_object("loader.yaml")["spec"]}
(CONTAINER,) = TEMPLATE["spec"]["containers"]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
every_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server makes of the image's variables and the Deployment's arguments."""
    for name, value in image_environment().items():
        monkeypatch.setenv(name, value)
    return parse(CONTAINER["args"], "python -m serve")


def quantity(text: str) -> float:
    """Return a Kubernetes quantity as a number."""
    found = re.fullmatch(r"(\d+)(m|Mi|Gi)?", text)
    assert found, f"{text} is not a quantity"
    return int(found[1]) * {None: 1.0, "m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}[found[2]]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("path", kubernetes_files(), ids=lambda path: path.name)
def test_every_object_is_valid(path: Path, version: str) -> None:
    # An unknown kind or version of the API is an exception here, where the command line only warns.
    assert kubernetes_validate.validate(kubernetes_object(path.name), version, strict=True) == version


def test_the_schemas_refuse_a_misspelt_field() -> None:
    misspelt = copy.deepcopy(DEPLOYMENT)
    misspelt["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessprobe"):
        kubernetes_validate.validate(misspelt, OLDEST, strict=True)


def test_the_supported_versions_are_those_of_the_docs() -> None:
    assert f"Kubernetes {OLDEST} to {NEWEST}" in (ROOT / "docs" / "deploy.md").read_text()


@needs_kubectl
def test_kubectl_reads_the_deployment() -> None:
    command = ["kubectl", "set", "image", "--local", "-f", str(KUBERNETES / "deployment.yaml"), "*=x:y", "-o", "name"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "deployment.apps/cvpo-serve\n", done.stderr


@needs_kubectl
def test_the_kustomization_renders_everything_but_the_loader() -> None:
    command = ["kubectl", "kustomize", str(KUBERNETES)]
    rendered = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kinds = sorted(document["kind"] for document in yaml.safe_load_all(rendered))
    assert kinds == ["Deployment", "PersistentVolumeClaim", "Service"]


def test_the_kustomization_names_every_file_but_the_loader() -> None:
    resources = yaml.safe_load(KUSTOMIZATION.read_text())["resources"]
    assert {*resources, "loader.yaml"} == {path.name for path in kubernetes_files()}


def test_deployment_and_service_select_the_pods() -> None:
    labels = TEMPLATE["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert SERVICE["spec"]["selector"].items() <= labels.items()


def test_the_service_leads_to_ports_of_the_container() -> None:
    names = [port["name"] for port in CONTAINER["ports"]]
    assert [port["targetPort"] for port in SERVICE["spec"]["ports"]] == names
    assert all(len(name) <= 15 for name in names)  # a port's name must not be longer


def test_the_server_understands_the_arguments_and_listens_on_the_ports(settings: Settings) -> None:
    assert settings.metrics_address is not None
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {
        "grpc": split_address(settings.address)[1],
        "metrics": split_address(settings.metrics_address)[1],
    }
    assert settings.allow_plaintext_network  # else it would refuse to start


def test_the_bundles_are_mounted_read_only_where_the_server_looks(settings: Settings) -> None:
    (mount,) = CONTAINER["volumeMounts"]
    assert Path(mount["mountPath"]) == settings.repository
    assert mount["readOnly"]


@every_pod
def test_every_mount_has_a_volume_and_its_claim_is_there(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["bundles"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]


def test_a_stop_has_time_to_drain(settings: Settings) -> None:
    before = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert TEMPLATE["spec"]["terminationGracePeriodSeconds"] > before + settings.drain_seconds


def test_readiness_depends_on_the_policies_and_liveness_does_not() -> None:
    service = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
    assert CONTAINER["readinessProbe"]["grpc"]["service"] == service
    assert "service" not in CONTAINER["livenessProbe"]["grpc"]


def test_a_server_answers_every_probe(tmp_path: Path, settings: Settings) -> None:
    bundles.write(tmp_path / "goal")
    server = ServerThread(Settings(repository=tmp_path, address="127.0.0.1:0", metrics_address="127.0.0.1:0"))
    try:
        with grpc.insecure_channel(server.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = CONTAINER[probe]["grpc"]
                answer = health.Check(health_pb2.HealthCheckRequest(service=asked.get("service", "")), timeout=30)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
                assert asked["port"] == split_address(settings.address)[1]
    finally:
        server.stop(drain_seconds=0)


@every_pod
def test_requests_are_within_limits(pod: dict[str, Any]) -> None:
    resources = pod["containers"][0]["resources"]
    assert {"cpu", "memory"} == resources["requests"].keys()
    assert "memory" in resources["limits"]
    for name, limit in resources["limits"].items():
        assert 0 < quantity(resources["requests"][name]) <= quantity(limit)


@every_pod
def test_the_image_is_of_this_version(pod: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pod["containers"][0]["image"] == f"cvpo-serve:{project['version']}"


@every_pod
def test_pods_keep_to_the_restricted_security_standard_and_a_read_only_root(pod: dict[str, Any]) -> None:
    everyone, own = pod["securityContext"], pod["containers"][0]["securityContext"]
    assert everyone["runAsNonRoot"]
    assert arguments("USER") == [f"{everyone['runAsUser']}:{everyone['runAsGroup']}"]
    assert everyone["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
