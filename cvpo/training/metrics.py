"""Every metric of a training run: its name, unit and meaning, and the files they are written to.

Nothing reads a metric back to decide something in training.
"""

import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from cvpo.bundle import Evaluation
from cvpo.errors import CheckpointError
from cvpo.evaluate import CostLevel
from cvpo.files import fsync_directory

METRICS = {
    "steps": "environment steps so far",
    "updates": "updates so far",
    "steps_per_second": "environment steps a second, learning included, over the newest seconds",
    "time/learner_waits": "share of the time that the learner waited for simulators, those of evaluations too",
    "time/simulators_wait": "share of the time that the simulator processes waited for the learner",
    "checkpoint/seconds": "that the newest checkpoint took, in which nothing else went on",
    "checkpoint/bytes": "that it wrote",
    "train/return": "undiscounted reward of the newest training episodes, mean; first episodes are cut short",
    "train/cost/NAME": "undiscounted cost per horizon over the newest steps of the measured environments; what is held",
    "train/cost_limit/NAME": "the limit on it at this step, which limit.schedule may change; not where there is none",
    "limit/unmet_steps/NAME": "steps in a row that it was over its limit, and no more could be asked of an update",
    "critic/loss": "mean squared error of reward and cost critics, summed over heads",
    "critic/cost_factor/NAME": "what checkpoints multiply Q_c by, so that its level is right (cvpo/learning/level.py)",
    "critic/cost_value/NAME": "Q_c of recent states under critic.cost_policy's policy, mean, cost units, discounted",
    "estep/temperature": "eta, scaled reward units",
    "estep/cost_multiplier/NAME": "lambda, scaled reward per cost unit",
    "estep/kl_residual_max": "largest mean KL(q || behavior policy) over its bound, minus 1",
    "estep/cost_residual_max/NAME": "largest excess of E_q over the threshold, standard deviations of Q_c over actions",
    "estep/infeasibility/NAME": "E_q[Q_c] over the threshold where no q could meet it, mean over updates, cost units",
    "estep/infeasible_share": "share of updates whose thresholds no q in the KL ball could meet",
    "estep/share/NAME": "share of the reachable cost change that was asked for; negative: allowed to grow; "
    "not with estep.constraint=critic",
    "mstep/kl_mean": "achieved KL of the mean over the bound that held, less what was pulled back, mean over periods; "
    "not while the policy is held (settle.proof), nor are mstep/kl_covariance and mstep/gap",
    "mstep/kl_covariance": "the same of the covariance",
    "mstep/gap/NAME": "|E[Q_c] of the policy − of q| on recent states after a period, mean over periods, cost units",
    "mstep/pulled_back": "periods so far that ended over twice a bound and were pulled back",
    "mstep/standard_deviation": "of the behavior policy before tanh, mean over states of the batch and dimensions",
    "evaluation/return": "undiscounted return of the deterministic policy, mean over evaluation episodes",
    "evaluation/cost/NAME": "undiscounted episode cost of the same, mean",
    "evaluation/discounted_cost/NAME": "realized in the same episodes after a step, mean over steps",
    "evaluation/cost_level/NAME": "what the critic predicted of that over what was realized; 1 is right",
}
"""What each metric means; NAME stands for a constraint's name."""

EVALUATIONS = "evaluations.jsonl"
RESIDUALS = ("update", "feasible", "temperature", "kl_residual")


class MetricsWriter:
    """Writes rows of metrics as JSON lines and TensorBoard events, and every update's residuals as CSV.

    Files are appended to, so a resumed run goes on in them; rows from after the checkpoint it resumes from are cut.
    """

    def __init__(self, run: Path, cost_names: tuple[str, ...], resume_steps: int = 0, resume_updates: int = 0) -> None:
        self._run, self._cost_names = run, cost_names
        metrics, residuals = run / "metrics.jsonl", run / "residuals.csv"
        _cut(run / EVALUATIONS, lambda line: json.loads(line)["steps"] <= resume_steps)
        _cut(metrics, lambda line: json.loads(line)["steps"] <= resume_steps)
        if resume_updates == 0:  # the header, too, may be of a run that saved nothing, with other costs
            residuals.unlink(missing_ok=True)
        _cut(residuals, lambda line: line.startswith("update") or int(line.split(",", 1)[0]) <= resume_updates)
        self._metrics = metrics.open("a", encoding="utf-8")
        self._residual_file = residuals.open("a", encoding="utf-8", newline="")
        self._residuals = csv.writer(self._residual_file)
        if residuals.stat().st_size == 0:
            columns = [f"{column}/{name}" for name in cost_names for column in ("cost_multiplier", "cost_residual")]
            self._residuals.writerow([*RESIDUALS, *columns])
        self._events = _EventFile(run / "tensorboard", resume_steps + 1)

    def row(self, row: Mapping[str, float | int]) -> None:
        """Write one row; `steps` is its time axis."""
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        self._events.write(row)

    def evaluation(self, steps: int, evaluation: Evaluation, levels: Sequence[CostLevel]) -> None:
        """Write the evaluation of a checkpoint to `evaluations.jsonl`, with the level of each cost critic."""
        record = {
            "steps": steps,
            "costs": self._cost_names,
            "discounted_cost": [level.realized for level in levels],
            "cost_level": [level.ratio for level in levels],
            "evaluation": evaluation.model_dump(mode="json"),
        }
        with (self._run / EVALUATIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        row: dict[str, float | int] = {"steps": steps, "evaluation/return": evaluation.episode_return.mean}
        for name, cost, level in zip(self._cost_names, evaluation.episode_cost, levels, strict=True):
            row[f"evaluation/cost/{name}"] = cost.mean
            row[f"evaluation/discounted_cost/{name}"] = level.realized
            if level.ratio is not None:
                row[f"evaluation/cost_level/{name}"] = level.ratio
        self._events.write(row)

    def residual(
        self, update: int, feasible: bool, temperature: float, kl_residual: float, costs: list[tuple[float, float]]
    ) -> None:
        """Write the residuals of one update; `costs` has multiplier and residual of each constraint."""
        values = [temperature, kl_residual, *(value for pair in costs for value in pair)]
        self._residuals.writerow([update, int(feasible), *(f"{value:.6g}" for value in values)])

    def flush(self) -> None:
        """Bring everything to disk, before a checkpoint says it is there."""
        for file in (self._metrics, self._residual_file):
            file.flush()
            os.fsync(file.fileno())
        fsync_directory(self._run)
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._residual_file.close()
        self._events.close()


class _EventFile:
    """TensorBoard events, written at once: its own writer does so from a thread, where a full disk goes unheard."""

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}").open("xb")
        self._records = RecordWriter(self._file)
        self._record(Event(wall_time=now, file_version="brain.Event:2"))
        # Rows from after the checkpoint that a resumed run goes on from are not shown.
        self._record(Event(wall_time=now, step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, float | int]) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "steps"]
        self._record(Event(wall_time=time.time(), step=int(row["steps"]), summary=Summary(value=values)))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _record(self, event: Event) -> None:
        self._records.write(event.SerializeToString())


def read_evaluations(run: Path) -> dict[int, Evaluation]:
    """The evaluation of each checkpoint of a run, by its steps.

    Raises:
        CheckpointError: the file was altered.
    """
    path = run / EVALUATIONS
    if not path.exists():
        return {}
    with _intact(path):
        records = [json.loads(line) for line in _lines(path)]
        return {record["steps"]: Evaluation.model_validate(record["evaluation"]) for record in records}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run, for people's pictures and tables.

    Raises:
        CheckpointError: the file was altered. FileNotFoundError: nothing was logged yet.
    """
    path = run / "metrics.jsonl"
    with _intact(path):
        return [json.loads(line) for line in _lines(path)]


def _cut(path: Path, wanted: Callable[[str], bool]) -> None:
    """Cut a text file off before the first line that is not wanted, or that a crash cut short.

    Raises:
        CheckpointError: the file was altered.
    """
    if not path.exists():
        return
    with _intact(path), path.open("r+b") as file:
        length = 0
        for line in file:
            if not line.endswith(b"\n") or not wanted(line.decode()):
                break
            length += len(line)
        file.truncate(length)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, without a last one that a crash cut short."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


@contextmanager
def _intact(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} was altered: a line of it is no record. Remove that line and try again."
        ) from error
