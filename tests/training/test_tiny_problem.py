"""A constrained problem whose optimum is known exactly (tests/budget.py), learned to it by the whole trainer."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cvpo.bundle import Evaluation
from cvpo.envs import VectorEnv
from cvpo.evaluate import Episode, TorchActor, cost_levels, run_episodes, summarize
from cvpo.learning.returns import discounted_returns
from cvpo.training.checkpoint import TrainedPolicy, checkpoint_steps, load_policy
from cvpo.training.trainer import train
from tests.budget import STEPS, Reports, best_return, never, small_config

WORTH = np.array([[1.0], [3.0]], np.float32)
STEPS_LEARNED = 3_600


@dataclass(frozen=True)
class Learned:
    run: Path
    policy: TrainedPolicy
    evaluation: Evaluation
    episodes: list[Episode]
    effort: tuple[float, float]  # of the deterministic policy, on steps worth 1 and 3

    @property
    def mean_return(self) -> float:
        return self.evaluation.episode_return.mean

    @property
    def mean_cost(self) -> float:
        return self.evaluation.episode_cost[0].mean


def learn(run: Path, cost_limit: float, steps: int) -> Learned:
    schedule = {"warmup_steps": 400, "warmup_updates": 100, "checkpoint_every": 10_000}
    train(small_config(cost_limit, steps, schedule=schedule), run, Reports(), never)
    policy = load_policy(run, checkpoint_steps(run)[-1])
    with VectorEnv("tests.budget:make", num_envs=10, workers=0, seed=99) as env:
        actor = TorchActor(policy.model, env.spec)
        episodes = run_episodes(env, actor, 50)
        effort = actor.act(WORTH, np.full(2, STEPS), np.zeros((2, 1))).action[:, 0]
    evaluation = summarize(episodes, [cost_limit], "deterministic")
    return Learned(run, policy, evaluation, episodes, (float(effort[0]), float(effort[1])))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """Limit 20: all effort on the steps worth 3, none on those worth 1. About nine seconds."""
    return learn(tmp_path_factory.mktemp("half") / "run", 20.0, STEPS_LEARNED)


# Tolerances: over seeds 0, 1 and 2 the cost ended at 10.1 to 10.8 of 10 and at 18.9, 19.8 and 16.9 of 20, the return
# within 3 % of the best at that cost. Under the slack limit seeds 1 and 2 had come to 28.5 of 40: the controller
# is slow from below.


def test_effort_goes_where_it_is_worth_most_and_cost_is_held_at_the_limit(half: Learned) -> None:
    assert half.effort[0] < 0.15
    assert half.effort[1] > 0.85
    assert half.mean_cost == pytest.approx(20, rel=0.12)
    assert half.mean_return >= 0.9 * best_return(half.mean_cost)


def test_a_tighter_limit_is_held_too(tmp_path: Path) -> None:
    quarter = learn(tmp_path / "run", 10.0, STEPS_LEARNED)
    assert quarter.effort[0] < 0.1
    assert quarter.effort[1] == pytest.approx(0.5, abs=0.12)  # half the effort on every step worth 3
    assert quarter.mean_cost == pytest.approx(10, rel=0.15)
    assert quarter.mean_return >= 0.9 * best_return(quarter.mean_cost)


def test_a_slack_limit_leaves_the_unconstrained_optimum_which_costs_more(tmp_path: Path) -> None:
    free = learn(tmp_path / "run", 60.0, STEPS_LEARNED)
    assert min(free.effort) > 0.9
    assert free.mean_cost > 36
    assert free.mean_return >= 0.9 * best_return(40)
    assert free.evaluation.over_limit_share == (0.0,)


def test_predicted_costs_are_those_realized(half: Learned) -> None:
    (level,) = cost_levels(half.episodes, half.policy.config.cost_discounts)
    assert level.ratio == pytest.approx(1, abs=0.15)


def test_the_critics_agree_with_monte_carlo_returns(half: Learned) -> None:
    # Discounted returns from the first step of each episode; 40 steps on, 0.8^40 is nothing. They end about a mean of
    # 0.5 / (1 − 0.8) = 2.5 in cost and 7.5 in reward, and 0.5 and 1.5 away by what the first step is worth.
    policy = half.policy
    for worth in (1.0, 3.0):
        starts = [episode for episode in half.episodes if episode.observation[0, 0] == worth]
        observation = torch.tensor([[worth]])
        mean, _ = policy.model.distribution(observation)
        reward_value, cost_value = policy.model.values(observation, mean.tanh().unsqueeze(1))
        discount = policy.config.critic.discount
        rewards = np.mean([discounted_returns(episode.reward, discount)[0] for episode in starts])
        costs = np.mean([discounted_returns(episode.cost[:, 0], discount)[0] for episode in starts])
        assert policy.reward_scale * reward_value.item() == pytest.approx(rewards, rel=0.15)
        assert cost_value.item() == pytest.approx(costs, rel=0.15)


def test_every_update_met_its_kl_bound_and_its_threshold(half: Learned) -> None:
    with (half.run / "residuals.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["update"]) for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) > 1_000
    assert {row["feasible"] for row in rows} == {"1"}
    assert max(float(row["kl_residual"]) for row in rows) <= 1e-6
    assert max(float(row["cost_residual/cost"]) for row in rows) <= 1e-6
    assert max(float(row["cost_multiplier/cost"]) for row in rows) > 0.1
