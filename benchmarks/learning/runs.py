"""One job from wherever it was left to its result: trained, evaluated, written."""

import json
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.contestant import ROOT, versions
from benchmarks.learning import results
from benchmarks.learning.cores import Core
from benchmarks.learning.jobs import Job
from benchmarks.learning.results import MODES, Curve, Result, Statistics
from benchmarks.peers import peer_python
from benchmarks.rounds import provenance
from cvpo.envs.bullet_tasks import TASK_IDS as BULLET
from cvpo.errors import CvpoError
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.training.checkpoint import CONFIG, read_config
from cvpo.training.metrics import EVALUATIONS, read_evaluations, read_metrics

RUNS = ROOT / "benchmarks" / ".runs"  # git-ignored
EPISODES = 100
PACKAGES = ["torch", "numpy", "scipy", "gymnasium"]
Tell = Callable[[str], None]

_making_peer = threading.Lock()


def stands(job: Job, tell: Tell) -> bool:
    """Whether the job has a result; tells where its config is not today's."""
    path = results.path(job)
    if not path.exists():
        return False
    if job.variant != "fsrl" and _differs(results.read(path).config, job.config()):
        tell(f"{job.name}: its result is of other settings than today's, and is kept; --again makes it anew")
    return True


def finish(job: Job, core: Core, runs_at_once: int, tell: Tell) -> Result:
    """Train, go on with training, or only evaluate, and write the result.

    Raises:
        BenchmarkError: a process failed. StoppedError: the benchmark is; the run goes on another time.
    """
    found = _fsrl(job, core, tell) if job.variant == "fsrl" else _ours(job, core, tell)
    found |= {mode: Statistics.of(cost_limit=job.cost_limit, **found[mode]) for mode in MODES}
    result = Result(**asdict(job), runs_at_once=runs_at_once, **provenance(), **found)
    tell(f"finished, {results.write(result).relative_to(ROOT)}")
    return result


def discard(job: Job) -> None:
    """Remove a run and its result."""
    results.path(job).unlink(missing_ok=True)
    shutil.rmtree(RUNS / job.name, ignore_errors=True)


def _ours(job: Job, core: Core, tell: Tell) -> dict[str, Any]:
    """What is found by `cvpo train`, from where it was stopped, and an evaluation."""
    run, config = RUNS / job.name, job.config()
    begun = (run / CONFIG).exists()
    if begun and _differs(json.loads((run / CONFIG).read_text()), config):
        tell("what was trained so far is of other settings than today's; beginning anew")
        shutil.rmtree(run)
        begun = False
    if not begun:
        core.run(job.command(run), tell)
    elif max(read_evaluations(run), default=0) < job.steps:
        core.run([sys.executable, "-m", "cvpo", "train", "--resume", str(run)], tell)
    tell(f"evaluating, {EPISODES} episodes")
    found = run / "benchmark.json"
    core.run([sys.executable, "-m", "benchmarks.learning.evaluate", str(run), str(EPISODES), str(found)], tell)
    simulator = ["pybullet", "bullet-safety-gym"] if job.env_id in BULLET else ["mujoco", "safety-gymnasium"]
    return {
        "seconds": training_seconds(read_metrics(run)),
        "versions": versions([*PACKAGES, *simulator]),
        "config": read_config(run).model_dump(mode="json"),
        "curve": curve(run),
        **json.loads(found.read_text()),
    }


def _fsrl(job: Job, core: Core, tell: Tell) -> dict[str, Any]:
    """What is found by FSRL, which does not go on with a run that was stopped."""
    with _making_peer:
        python = peer_python("fsrl")
    found = RUNS / f"{job.name}.json"
    RUNS.mkdir(exist_ok=True)
    command = [str(python), "-m", "benchmarks.peers.fsrl.learning", job.env_id, "--steps", str(job.steps)]
    command += ["--cost-limit", f"{job.cost_limit:g}", "--seed", str(job.seed), "--episodes", str(EPISODES)]
    core.run([*command, "--out", str(found)], tell)
    done: dict[str, Any] = json.loads(found.read_text())
    unknown = [None] * len(done["curve"]["steps"])
    done["curve"] |= {"cost_level": unknown, "discounted_cost": unknown, "infeasible_share": unknown}
    return done


def curve(run: Path) -> Curve:
    """Of a run of ours, with one cost."""
    rows, last = read_metrics(run), 0
    points: dict[str, list[Any]] = {name: [] for name in Curve.model_fields}
    for line in (run / EVALUATIONS).read_text().splitlines():
        record = json.loads(line)
        (cost,), steps = record["costs"], record["steps"]
        since = [row for row in rows if last < row["steps"] <= steps]
        points["steps"].append(steps)
        points["episode_return"].append(record["evaluation"]["episode_return"]["mean"])
        points["cost"].append(record["evaluation"]["episode_cost"][0]["mean"])
        points["cost_level"].append(record["cost_level"][0])
        points["discounted_cost"].append(record["discounted_cost"][0])
        points["train_return"].append(_mean(since, "train/return"))
        points["train_cost"].append(_mean(since, f"train/cost/{cost}"))
        points["infeasible_share"].append(_mean(since, "estep/infeasible_share"))
        last = steps
    return Curve.model_validate(points)


def _mean(rows: list[dict[str, float]], name: str) -> float | None:
    values = [row[name] for row in rows if name in row]
    return round(sum(values) / len(values), 4) if values else None


def training_seconds(rows: list[dict[str, float]]) -> float:
    """What the steps that count took, by the rate at each row: also right for a run that was stopped and resumed."""
    steps = [0.0, *(row["steps"] for row in rows)]
    seconds = sum((row["steps"] - before) / row["steps_per_second"] for row, before in zip(rows, steps, strict=False))
    return round(seconds, 1)


def _differs(document: object, config: TrainConfig) -> bool:
    """Whether a run with the config in the document learns otherwise; settings added since then have their defaults."""
    try:
        return parse_config(document) != config
    except CvpoError:
        return True
