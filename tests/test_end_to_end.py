"""One policy all the way: train, interrupt, go on, evaluate, export, serve, ask, plot; through the real commands."""

import json
import os
import re
import select
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvpo.bundle import read_bundle
from cvpo.evaluate import ServedActor, TorchActor
from cvpo.training.checkpoint import checkpoint_steps, load_policy
from cvpo.training.metrics import read_evaluations
from serve.client import PolicyClient
from tests.command import DRIFT, STEPS, cvpo, run_process, small, spawned, succeed, train

PATIENCE_SECONDS = 300.0  # for what takes a second on a quiet machine
LIMIT = 18.0  # of 20 steps: every policy is under it, so that --select finds one


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "drift"
    train(run, "--cost-limit", str(LIMIT))
    return run


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    path = run.parent / "bundles" / "drift" / "1"
    succeed("export", run, "--out", path, "--select", "--calibration-episodes", "20", "--workers", "0")
    return path


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    """Where a real server answers."""
    with spawned("serve", bundle.parent.parent, "--address", "127.0.0.1:0") as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], PATIENCE_SECONDS)[0], "the server did not say it is ready"
        ready = json.loads(process.stdout.readline())
        assert ready["policies"] == [{"name": "drift", "versions": [1]}]
        yield ready["address"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0


def test_training_leaves_what_its_help_names_and_says_what_comes_next(tmp_path: Path) -> None:
    run = tmp_path / "drift"
    said = train(run, "--cost-limit", "3")
    assert said.out == ""
    device, header, *rows, waits, where, then = said.err.splitlines()
    assert device.startswith("device  ")
    assert header.split() == ["steps", "return", "cost", "/", "limit", "lambda", "infeasible", "steps/s"]
    evaluated = sorted(read_evaluations(run))
    assert [row.split()[0] for row in rows] == [str(steps) for steps in evaluated]
    assert len(evaluated) == 3
    assert all("/ 3" in row for row in rows)
    assert waits.startswith("waits   learner ")
    assert where == f"run     {run}"
    assert then == f"next    cvpo export {run} --out bundles/drift/1   or   cvpo plot {run}"
    named = {
        "config.json",
        "metrics.jsonl",
        "evaluations.jsonl",
        "residuals.csv",
        "tensorboard",
        "checkpoints",
        "resume",
        "replay",
    }
    assert {path.name for path in run.iterdir()} == named | {"lock"}
    assert all(name in cvpo("train", "--help").out for name in named)
    assert checkpoint_steps(run) == evaluated
    assert evaluated[-1] == STEPS


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_saves_a_checkpoint_and_resume_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    run = tmp_path / "stopped"
    workers = small(environment__workers="1", schedule__evaluation_workers="1")
    with spawned("train", DRIFT, "--steps", "100000000", "--out", run, *workers) as process:
        assert process.stderr is not None
        _device, header, row = (process.stderr.readline() for _ in range(3))
        assert header.split()[0] == "steps"
        assert int(row.split()[0]) >= 200  # it learns by now
        os.killpg(process.pid, number)  # a terminal tells the simulator processes too
        _, said = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 128 + number
    assert "Traceback" not in said
    steps = checkpoint_steps(run)[-1]
    assert said.splitlines()[-2:] == [
        f"run     {run}",
        f"stopped at {steps:,} steps; go on with: cvpo train --resume {run}",
    ]
    assert "1 episodes of each mode" in succeed("evaluate", run, "--episodes", "1", "--workers", "0").out

    total = steps + 200
    resumed = run_process("train", "--resume", run, "--steps", str(total))
    assert resumed.code == 0, resumed
    assert checkpoint_steps(run)[-1] == total


def test_a_second_ctrl_c_stops_at_once_says_what_is_kept_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "stopped"
    outcome = run_process(  # five environments: the hundredth step of each is the run's 500th
        *("train", "tests.envs.toys:LateInterrupts", "--max-episode-steps", "20", "--steps", "600", "--out", run),
        *small(),
    )
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    assert outcome.err.splitlines()[-3:] == [
        "stopping after this step, and saving (again to stop at once)",
        f"stopped at once; go on from 400 steps with: cvpo train --resume {run}",
        "cvpo: stopped.",
    ]
    monkeypatch.chdir(tmp_path)
    Path("mended").touch()
    succeed("train", "--resume", run)
    assert checkpoint_steps(run)[-1] == 600


def test_a_second_ctrl_c_before_anything_is_saved_says_so(tmp_path: Path) -> None:
    late = small(schedule__checkpoint_every="1000")
    outcome = run_process(
        *("train", "tests.envs.toys:LateInterrupts", "--max-episode-steps", "20", "--out", tmp_path / "run"), *late
    )
    assert outcome.code == 130
    assert outcome.err.splitlines()[-2:] == ["stopped at once; nothing was saved", "cvpo: stopped."]


def test_a_run_can_be_made_longer_again_and_again(run: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    shutil.copytree(run, longer)
    for steps in (700, 800):
        succeed("train", "--resume", longer, "--steps", str(steps))
        assert checkpoint_steps(longer)[-1] == steps
    assert "complete at 800 steps" in cvpo("train", "--resume", longer).sentence


def test_run_bundle_and_service_are_the_same_policy(run: Path, bundle: Path, address: str) -> None:
    steps = str(read_bundle(bundle).manifest.provenance.steps)  # the chosen checkpoint
    results = [
        json.loads(succeed("evaluate", target, *chosen, "--episodes", "6", "--workers", "0", "--json").out)
        for target, chosen in ((run, ["--step", steps]), (bundle, []), (address, []))
    ]
    for target, document in zip((run, bundle, address), results, strict=True):
        assert {key: document[key] for key in ("target", "environment", "costs", "cost_limits")} == {
            "target": str(target),
            "environment": DRIFT,
            "costs": ["cost"],
            "cost_limits": [LIMIT],
        }
        assert [result["mode"] for result in document["evaluations"]] == ["deterministic", "sampled"]
    for result in (document["evaluations"][0] for document in results):
        assert result["episodes"] == 6
        first = results[0]["evaluations"][0]
        assert result["costs"] == first["costs"]  # whole steps, counted
        assert result["returns"] == pytest.approx(first["returns"], abs=1e-3)


def test_the_service_answers_what_torch_computes(run: Path, bundle: Path, address: str) -> None:
    trained = load_policy(run, read_bundle(bundle).manifest.provenance.steps)
    observations = np.random.default_rng(0).normal(0, 2, (100, 2)).astype(np.float32)
    expected = TorchActor(trained.model, trained.spec).act(observations, np.full(100, 20), np.zeros((100, 1)))
    with PolicyClient(address, timeout_seconds=PATIENCE_SECONDS) as client:
        answer = client.act(observations)
    np.testing.assert_allclose(answer.action, expected.action, rtol=0, atol=2e-6)
    assert expected.cost_value is not None
    np.testing.assert_allclose(answer.prediction.cost_value, expected.cost_value, rtol=1e-5, atol=1e-5)


def test_a_served_policy_is_asked_with_what_is_left_of_its_limit(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = ServedActor.from_bundle(bundle)
    act, asked = actor.caller.act, []

    def spy(observation: Any, *, cost_allowed: Any, **others: Any) -> Any:
        asked.append(cost_allowed)
        result = act(observation, cost_allowed=cost_allowed, **others)
        unflagged = replace(result.prediction, violation=np.zeros_like(result.prediction.violation))
        return replace(result, prediction=unflagged)

    monkeypatch.setattr(actor.caller, "act", spy)
    decision = actor.act(np.zeros((2, 2), np.float32), np.array([20, 10]), np.array([[5.0], [30.0]]))
    assert decision.violation is not None
    # The second is over the limit already: that is observed, whatever is predicted.
    np.testing.assert_array_equal(decision.violation, [[False], [True]])
    np.testing.assert_array_equal(asked, [[[13.0], [0.0]]])  # of 18, and never less than nothing


@pytest.mark.parametrize("mode", ["sampled", "shielded"])
def test_the_other_modes_are_evaluated_by_bundle_and_service(mode: str, bundle: Path, address: str) -> None:
    for target in (bundle, address):
        given = ("--mode", mode, *(("--candidates", "4") if mode == "shielded" else ()))
        said = succeed("evaluate", target, *given, "--episodes", "2", "--workers", "0").out
        title, returns, cost = said.splitlines()
        assert title.startswith(f"{target}: {DRIFT}, 2 episodes of each mode")
        assert returns.split()[:2] == [mode, "return"]
        assert cost.split()[0] == "cost"
        assert "the limit of 18" in cost


def test_a_run_samples_but_does_not_shield(run: Path) -> None:
    twice = ("--mode", "sampled", "--mode", "sampled")  # is once
    said = succeed("evaluate", run, *twice, "--episodes", "1", "--workers", "0").out
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["sampled", "cost"]
    assert "export it, then evaluate" in cvpo("evaluate", run, "--mode", "shielded").sentence


def test_the_service_is_asked_from_a_shell(address: str) -> None:
    served = succeed("query", address).out
    assert re.fullmatch(
        rf"drift version 1 \(fingerprint \w+\): {DRIFT}, observation \[2\], action \[2\]; cost <= 18 an episode; "
        r"calibrated\n",
        served,
    )
    answer = json.loads(succeed("query", address, "--observation", "[0.1, -0.2]", "--json").out)
    assert len(answer["action"]) == 2
    assert answer["policy"]["name"] == "drift"
    assert answer["prediction"]["calibration_status"] == "CALIBRATED"


def test_the_last_checkpoint_is_exported_without_calibration_where_asked(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "last"
    said = succeed("export", run, "--out", path, "--no-calibrate", "--evaluation-episodes", "4", "--workers", "0")
    manifest = read_bundle(path).manifest
    assert (manifest.name, manifest.version, manifest.calibration) == ("last", 1, None)
    assert manifest.provenance.steps == STEPS
    assert manifest.provenance.selection == f"the last checkpoint, at {STEPS} steps"
    assert manifest.evaluations[0].episodes == 4
    assert "under the limit of 18" in said.out
    refused = run_process("serve", path)
    assert refused.code == 1
    assert "start the server with --allow-uncalibrated" in refused.err.splitlines()[-1]


def test_the_chosen_checkpoint_is_evaluated_again_on_fresh_episodes(run: Path, bundle: Path) -> None:
    manifest = read_bundle(bundle).manifest
    assert "the highest return of 3 checkpoints under the limit" in manifest.provenance.selection
    assert manifest.provenance.steps in checkpoint_steps(run)
    (fresh,) = manifest.evaluations
    assert fresh.episodes == 50
    assert fresh.episode_return.mean != read_evaluations(run)[manifest.provenance.steps].episode_return.mean
    assert manifest.provenance.selection in (bundle / "MODEL_CARD.md").read_text()


def test_the_curves_are_drawn(run: Path) -> None:
    said = succeed("plot", run)
    assert said.out == f"{run}/curves.png\n"
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_policy_with_two_costs_goes_the_same_way(tmp_path: Path) -> None:
    run, bundle = tmp_path / "two", tmp_path / "bundles" / "two" / "3"
    train(run, "--cost", "cost", "--cost", "cost_fuel", "--cost-limit", "18", "--cost-limit", "inf")
    said = succeed("export", run, "--out", bundle, "--calibration-episodes", "12", "--evaluation-episodes", "4")
    manifest = read_bundle(bundle).manifest
    assert manifest.version == 3
    assert [(c.name, c.cost_limit) for c in manifest.constraints] == [("cost", 18.0), ("cost_fuel", None)]
    assert manifest.calibration is not None
    names = [line.split()[0] for line in said.out.splitlines()]
    assert names == [f"{bundle}:", "deterministic", "cost", "cost_fuel"]
    evaluated = succeed("evaluate", bundle, "--episodes", "2", "--workers", "0").out
    assert "under the limit of 18" in evaluated
    assert evaluated.endswith("no limit\n")
    assert succeed("plot", run).code == 0
