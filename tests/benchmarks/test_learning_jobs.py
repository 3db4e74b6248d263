import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.learning.jobs import TASKS, Job, plan


def test_each_task_of_a_group_has_a_run_before_any_has_two() -> None:
    jobs = plan(["1"], seeds=[10, 11])
    tasks = [task.env_id for task in TASKS.values() if task.group == "1"]
    assert [(job.seed, job.env_id) for job in jobs] == [(seed, task) for seed in (10, 11) for task in tasks]


def test_a_run_that_two_groups_have_is_done_once() -> None:
    jobs = plan(["1", "limits"], ["SafetyPointCircle1-v0"], [10])
    assert [job.cost_limit for job in jobs] == [25, 5, 60]


def test_the_paper_s_form_and_fsrl_are_compared_on_two_tasks_in_equal_steps() -> None:
    compared = {(job.variant, job.env_id, job.steps) for job in plan(["paper", "fsrl"], seeds=[10])}
    ours = {(job.env_id, job.steps) for job in plan(["1"], seeds=[10])}
    assert len(compared) == 4
    assert {(env_id, steps) for _, env_id, steps in compared} <= ours


def test_tasks_that_a_group_has_not_are_refused() -> None:
    with pytest.raises(BenchmarkError, match="Group 2 has no run of SafetyBallCircle-v0"):
        plan(["2"], ["SafetyBallCircle-v0"])


def test_other_seeds_and_other_lengths_are_trials() -> None:
    (job,) = plan(["1"], ["SafetyBallCircle-v0"], [10])
    assert job.reported
    assert not any(trial.reported for trial in plan(["1"], seeds=[0, 1, 2, 3, 4]))
    assert not any(trial.reported for trial in plan(["1"], seeds=[10], steps=2_000))


@pytest.mark.parametrize("job", plan(["1", "2", "limits", "paper"], seeds=[10]), ids=lambda job: job.name)
def test_a_run_simulates_in_its_own_process(job: Job) -> None:
    config = job.config()
    assert (config.environment.env_id, config.seed, config.cost_limits) == (job.env_id, job.seed, (job.cost_limit,))
    assert (config.environment.workers, config.schedule.evaluation_workers) == (0, 0)
    assert config.estep.constraint == ("critic" if job.variant == "paper" else "measured")
    assert config.schedule.steps == job.steps == TASKS[job.env_id].steps
