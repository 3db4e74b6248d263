"""Runs the image as the Deployment would, asks it from outside with the robot's client, and stops it.

    python deploy/smoke.py IMAGE BUNDLES [--engine podman]

IMAGE is built from deploy/Dockerfile; BUNDLES is a folder of bundles that everyone may read. It prints what it saw and
ends with status 1 at the first thing that is not as it should be.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.client import PolicyClient
from serve.errors import PolicyServiceError, UnavailableError

DEPLOYMENT = Path(__file__).parent / "kubernetes" / "deployment.yaml"
PATIENCE_SECONDS = 60
REQUESTS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("bundles", type=Path)
    parser.add_argument("--engine", default="docker", help="docker or podman")
    options = parser.parse_args()

    pod = yaml.safe_load(DEPLOYMENT.read_text())["spec"]["template"]["spec"]
    container = start(options.engine, options.image, options.bundles.resolve(), pod)
    try:
        check(options.engine, container, pod)
    except (SystemExit, grpc.RpcError, PolicyServiceError):
        print(run(options.engine, "logs", container, check=False), file=sys.stderr)
        raise
    finally:
        run(options.engine, "rm", "--force", container, check=False)


def run(*command: str, check: bool = True) -> str:
    """Run a command and return all it printed."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}")
    return done.stdout.strip()


def expect(truth: bool, complaint: str) -> None:
    if not truth:
        sys.exit(complaint)


def start(engine: str, image: str, bundles: Path, pod: dict[str, Any]) -> str:
    """Start a container with the pod's restrictions and arguments, and return its id."""
    (container,) = pod["containers"]
    user = pod["securityContext"]["runAsUser"]
    command = [engine, "run", "--detach", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges"]
    if Path(engine).name == "podman":
        command.append("--read-only-tmpfs=false")  # podman would mount a writable /tmp; Kubernetes does not
    command += [f"--user={user}:{pod['securityContext']['runAsGroup']}"]
    command += [f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}"]
    command += [f"--publish=127.0.0.1::{port['containerPort']}" for port in container["ports"]]
    command += [f"--volume={bundles}:{container['volumeMounts'][0]['mountPath']}:ro", image, *container["args"]]
    return run(*command).splitlines()[-1]


def wait_until_ready(engine: str, name: str) -> None:
    """Wait for the line with which the server says that it answers."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while '"event": "ready"' not in run(engine, "logs", name):
        expect(run(engine, "inspect", "--format={{.State.Running}}", name) == "true", "The server did not start.")
        expect(time.monotonic() < deadline, f"The server is not ready after {PATIENCE_SECONDS} s.")
        time.sleep(0.1)


def check(engine: str, name: str, pod: dict[str, Any]) -> None:
    """Look at the container from inside and outside, ask its policies, and stop it while it is being asked."""
    (container,) = pod["containers"]
    wait_until_ready(engine, name)
    ports = {port["name"]: run(engine, "port", name, str(port["containerPort"])) for port in container["ports"]}
    with grpc.insecure_channel(ports["grpc"]) as channel:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            request = health_pb2.HealthCheckRequest(service=container[probe]["grpc"].get("service", ""))
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=PATIENCE_SECONDS)
            expect(answer.status == health_pb2.HealthCheckResponse.SERVING, f"{probe} fails: {answer}")
    print("probes       all SERVING")

    status = run(engine, "exec", name, "cat", "/proc/1/status").splitlines()
    seen = {key: value.split() for key, _, value in (line.partition(":") for line in status)}
    for key in ("Uid", "CapEff", "NoNewPrivs", "Seccomp", "VmRSS", "Threads"):
        print(f"{key:<12} {' '.join(seen[key])}")
    expect(set(seen["Uid"]) == {str(pod["securityContext"]["runAsUser"])}, "It runs as another user.")
    expect(int(seen["CapEff"][0], 16) == 0, "It has capabilities.")
    expect(seen["NoNewPrivs"] == ["1"], "It can gain privileges.")
    expect(seen["Seccomp"] == ["2"], "No seccomp filter is in force.")
    for folder in ("/", "/tmp", "/opt/venv", container["volumeMounts"][0]["mountPath"]):
        said = run(engine, "exec", name, "touch", f"{folder.rstrip('/')}/written", check=False)
        expect("Read-only file system" in said, f"{folder} can be written. {said}")
    print("writing      refused everywhere")

    with PolicyClient(ports["grpc"], timeout_seconds=PATIENCE_SECONDS) as client:
        policies = client.list_policies()
    for description in policies:
        with PolicyClient(ports["grpc"], description.policy.name, timeout_seconds=PATIENCE_SECONDS) as client:
            observation = np.clip(0.0, description.observation.low, description.observation.high)
            result = client.act(observation)
            seconds = []
            for _ in range(REQUESTS):
                started = time.perf_counter()
                client.act(observation)
                seconds.append(time.perf_counter() - started)
            p50, p99 = np.percentile(seconds, [50, 99]) * 1000
            print(
                f"policy       {description.policy.name} {description.policy.version}: action {result.action},", end=" "
            )
            print(
                f"violation probability {result.prediction.violation_probability}; p50 {p50:.2f} ms, p99 {p99:.2f} ms"
            )

    with urllib.request.urlopen(f"http://{ports['metrics']}/metrics", timeout=PATIENCE_SECONDS) as page:
        metrics = page.read().decode().splitlines()
    expected = len(policies) * (REQUESTS + 1)
    line = f'cvpo_serve_requests_total{{code="OK",method="Act"}} {expected:.1f}'
    expect(line in metrics, f"/metrics lacks the line {line}")
    print(f"metrics      {expected} requests counted")

    stop(engine, name, ports["grpc"], policies[0].policy.name, observation, pod["terminationGracePeriodSeconds"])


def stop(engine: str, name: str, address: str, policy: str, observation: Any, grace_seconds: int) -> None:
    """Send SIGTERM while a client asks without pause; every request is answered, or refused as UNAVAILABLE."""
    answered = 0
    problem: Exception | None = None
    asking = threading.Event()

    def ask() -> None:
        nonlocal answered, problem
        try:
            with PolicyClient(address, policy, timeout_seconds=PATIENCE_SECONDS) as client:
                while True:
                    client.act(observation)
                    answered += 1
                    asking.set()
        except Exception as error:
            problem = error

    client = threading.Thread(target=ask)
    client.start()
    expect(asking.wait(PATIENCE_SECONDS), f"The first request got no answer: {problem!r}")
    started = time.monotonic()
    run(engine, "stop", "-t", str(grace_seconds), name)
    seconds = time.monotonic() - started
    client.join(PATIENCE_SECONDS)
    exit_code = run(engine, "inspect", "--format={{.State.ExitCode}}", name)
    log = run(engine, "logs", name)
    events = [json.loads(line)["event"] for line in log.splitlines() if line.startswith("{")]
    expect(isinstance(problem, UnavailableError), f"A request was lost when the server stopped: {problem!r}")
    expect(exit_code == "0", f"The exit status is {exit_code}.")
    expect(events[-2:] == ["stopping", "stopped"], f"The log does not end with a stop: {events}")
    print(f"SIGTERM      {answered} answered, the next refused: {problem}")
    print(f"             status 0 after {seconds:.2f} s; log: {', '.join(events)}")


if __name__ == "__main__":
    main()
