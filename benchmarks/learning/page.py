"""The tables of docs/results.md, from the committed results."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks import page
from benchmarks.contestant import ROOT
from benchmarks.learning.jobs import COMPARED_TASKS, LIMITS, LIMITS_TASK, NAMES, TASKS, Task
from benchmarks.learning.results import MODES, EvaluatedMode, Result, Statistics, select
from benchmarks.rounds import table

PAGE = ROOT / "docs" / "results.md"
FIGURES = PAGE.parent / "figures"
HEADER = ["return", "cost", "CVaR 0.9 of cost", "episodes over"]
Results = Sequence[Result]


def targets(results: Results) -> str:
    """Whether each task's target is met, and by how much."""
    rows = []
    for task in TASKS.values():
        ours = select(results, "cvpo", task.env_id, task.cost_limit)
        wanted = [f"{task.cost_limit:g}", f"{task.steps / 1e6:g} M"]
        rows.append([task.env_id, *wanted, *_policy(ours, "deterministic"), _to_target(ours), *_met(task, ours)])
    header = ["task", "limit", "steps", "seeds", *HEADER, "steps to the target", "return, must", "met"]
    return table(header, rows)


def published(results: Results) -> str:
    """What the targets are beside."""
    rows = [[task.env_id, f"{task.must:g}", task.aim, task.published] for task in TASKS.values()]
    return table(["task", "must", "aim", "published, return / cost"], rows)


def sampled(results: Results) -> str:
    """The stochastic policy, and what a run takes."""
    rows = []
    for task in TASKS.values():
        ours = select(results, "cvpo", task.env_id, task.cost_limit)
        minutes = _spread([run.seconds / 60 for run in ours], 0)
        rows.append([task.env_id, f"{task.cost_limit:g}", *_policy(ours, "sampled"), minutes])
    return table(["task", "limit", "seeds", *HEADER, "minutes of a run"], rows)


def limits(results: Results) -> str:
    """PointCircle1 at three limits."""
    rows = [
        [f"{limit:g}", *_policy(ours, "deterministic"), _spread([run.sampled.cost.mean for run in ours], 1)]
        for limit in LIMITS
        for ours in [select(results, "cvpo", LIMITS_TASK, limit)]
    ]
    return table(["limit", "seeds", *HEADER, "cost, sampled"], rows)


def compared(results: Results) -> str:
    """Ours, the paper's form and FSRL in equal steps."""
    rows = []
    for env_id in COMPARED_TASKS:
        task = TASKS[env_id]
        for variant, name in NAMES.items():
            found = select(results, variant, env_id, task.cost_limit)
            infeasible = [run.curve.infeasible_share[-1] for run in found]
            shares = [share for share in infeasible if share is not None]
            rows.append([f"{env_id}, {name}", *_policy(found, "deterministic"), _spread(shares, 2)])
    return table(["task and learner", "seeds", *HEADER, "infeasible updates in the end"], rows)


def level(results: Results) -> str:
    """Predicted over realized discounted cost, of last policies."""
    rows = []
    for task in TASKS.values():
        ours = select(results, "cvpo", task.env_id, task.cost_limit)
        levels = {
            mode: [run_level for run in ours if (run_level := _of(run, mode).cost_level) is not None] for mode in MODES
        }
        realized = [run.deterministic.discounted_cost for run in ours]
        known = _spread([cost for cost in realized if cost is not None], 2)
        costs = [run.deterministic.cost.mean / task.cost_limit for run in ours]
        rows.append([task.env_id, *(_spread(levels[mode], 2) for mode in MODES), known, _spread(costs, 2)])
    return table(["task", "deterministic", "sampled", "realized, discounted", "mean cost / limit"], rows)


def measured(results: Results) -> str:
    """Where and when results are from."""
    if not results:
        return "Nothing was measured yet."
    machines = {f"{run.machine['cpu']}, {run.machine['cores']} cores" for run in results}
    commits = {str(run.cvpo["commit"]) for run in results}
    return (
        f"Measured {_range(run.date for run in results)} at {'commits' if len(commits) > 1 else 'commit'} "
        f"{', '.join(sorted(commits))} on {' and '.join(sorted(machines))}."
    )


BLOCKS: Mapping[str, Callable[[Results], str]] = {
    "targets": targets,
    "published": published,
    "sampled": sampled,
    "limits": limits,
    "compared": compared,
    "level": level,
    "measured": measured,
}


PICTURES = {
    "curves.png": "Return and cost over environment steps, for each task",
    "cost_at_convergence.png": "Box plot of episode cost over the limit, for each task",
    "limits.png": "Return and cost for three limits, and the cost of last policies over the limit",
    "compared.png": "Return and cost of cvpo, of the paper's constraint, and of FSRL",
}


def filled(text: str, results: Results) -> str:
    """The page with its tables made anew, and the pictures that there are."""

    def block(name: str) -> str:
        if name in PICTURES:
            return f"![{PICTURES[name]}]({FIGURES.name}/{name})\n" if (FIGURES / name).exists() else ""
        return f"{BLOCKS[name](results)}\n"

    return page.fill(text, block)


def write(results: Results) -> Path:
    """Put the tables and the pictures into the page."""
    PAGE.write_text(filled(PAGE.read_text(), results))
    return PAGE


def _of(run: Result, mode: EvaluatedMode) -> Statistics:
    return run.deterministic if mode == "deterministic" else run.sampled


def _policy(runs: Results, mode: EvaluatedMode) -> list[str]:
    """Number of seeds, and means over them with the least and the greatest."""
    policies = [_of(run, mode) for run in runs]
    return [
        str(len(runs)),
        _spread([each.episode_return.mean for each in policies], 1),
        _spread([each.cost.mean for each in policies], 1),
        _spread([each.cost_cvar90 for each in policies], 1),
        _spread([100 * each.over_limit_share for each in policies], 0, " %"),
    ]


def _met(task: Task, runs: Results) -> list[str]:
    if not runs:
        return [f"{task.must:g}", "-"]
    returns = sum(run.deterministic.episode_return.mean for run in runs) / len(runs)
    cost = sum(run.deterministic.cost.mean for run in runs) / len(runs)
    missed = [name for name, missed in (("return", returns < task.must), ("cost", cost > task.cost_limit)) if missed]
    return [f"{task.must:g}", f"no: {' and '.join(missed)}" if missed else "yes"]


def _to_target(runs: Results) -> str:
    """Of each seed."""
    reached = [run.steps_to_target for run in runs]
    return ", ".join("never" if steps is None else f"{steps // 1000}k" for steps in reached) or "-"


def _spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Mean, and the least and the greatest where there are several."""
    if not values:
        return "-"
    mean = f"{sum(values) / len(values):.{digits}f}"
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean}{spread}{unit}"


def _range(dates: Iterable[str]) -> str:
    ordered = sorted(dates)
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"
