"""What the physics of SafetyPointCircle1 allow: `python -m benchmarks.learning.reach`, ten minutes on a core.

A return that is published or wanted may be out of reach. Here the robot is a point that knows all, whose thrust turns
at once to where it is wanted (the simulated one turns by at most 3 rad/s and has to find out where it is). The paths
with the most return at so much cost an episode are searched for by gradients through its equations of motion, from
places where the task starts and from several first guesses each. So it is what such a point can reach, as good as the
search is. Beyond `bound`, the reward of an episode at top speed on the circle, no policy of the task comes.
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.errors import BenchmarkError, run
from benchmarks.rounds import finish
from cvpo.envs import make_env

TASK = "SafetyPointCircle1-v0"
STEPS = 500
BUDGETS = (0.0, 25.0, 60.0, float("inf"))
STARTS, GUESSES, ITERATIONS = 12, 8, 1_500
THROTTLE_STEPS = 60  # at full thrust, to compare the point with the simulator


@dataclass(frozen=True)
class Point:
    """m·dv/dt = F − c·v, and what the task makes of it; SI units."""

    mass: float
    force: float  # at full thrust
    damping: float
    seconds_a_step: float
    circle: float  # radius
    wall: float  # |x| beyond which a step costs 1
    reward_factor: float

    @property
    def top_speed(self) -> float:
        return self.force / self.damping

    def bound(self) -> float:
        """No episode has more return."""
        return self.reward_factor * self.top_speed * STEPS

    def drive(self, thrust: Tensor, start: Tensor, softness: float) -> tuple[Tensor, Tensor, Tensor]:
        """Drive N points from `start` [N, 2] with shares of full thrust [N, T, 2].

        Returns:
            Episode return, cost with walls that are soft over `softness` metres, and cost, [N] each.
        """
        kept = float(np.exp(-self.damping * self.seconds_a_step / self.mass))
        gained = (1 - kept) / self.damping * self.force
        place, velocity = start, torch.zeros_like(start)
        places, velocities = [], []
        for share in thrust.unbind(1):
            velocity = kept * velocity + gained * share
            place = place + self.seconds_a_step * velocity
            places.append(place)
            velocities.append(velocity)
        x, y = torch.stack(places, 1).unbind(-1)
        u, v = torch.stack(velocities, 1).unbind(-1)
        radius = torch.hypot(x, y).clamp_min(1e-6)
        reward = self.reward_factor * (v * x - u * y) / radius / (1 + (radius - self.circle).abs())
        beyond = x.abs() - self.wall
        return reward.sum(1), torch.sigmoid(beyond / softness).sum(1), (beyond > 0).double().sum(1)


def simulated(seeds: int) -> tuple[Point, NDArray[np.float64]]:
    """The point as the simulator has it, and where `seeds` episodes start, [seeds, 2].

    Raises:
        BenchmarkError: the point does not drive as the simulated robot does.
    """
    env = make_env(TASK)
    starts = []
    for seed in range(seeds):
        env.reset(seed=seed)
        task = env.unwrapped.task
        starts.append(task.agent.pos[:2].copy())
    model = task.model
    point = Point(
        mass=float(model.body_subtreemass[model.body("agent").id]),
        force=float(model.actuator_forcerange[0, 1] * model.actuator_gear[0, 0]),
        damping=float(model.dof_damping[0]),
        seconds_a_step=float(model.opt.timestep * task.sim_conf.frameskip_binom_n),
        circle=float(task.circle.radius),
        wall=float(task.sigwalls.locate_factor),
        reward_factor=float(task.reward_factor),
    )
    for _ in range(THROTTLE_STEPS):
        env.step(np.array([1.0, 0.0]))
    speed = float(np.linalg.norm(task.agent.vel[:2]))
    expected = point.top_speed * -np.expm1(-point.damping * THROTTLE_STEPS * point.seconds_a_step / point.mass)
    if abs(speed / expected - 1) > 0.02:
        raise BenchmarkError(f"The robot drives at {speed:.3f} m/s after {THROTTLE_STEPS} steps, not {expected:.3f}.")
    env.close()
    return point, np.array(starts)


def search(point: Point, starts: NDArray[np.float64], guesses: int, iterations: int) -> NDArray[np.float64]:
    """The most return found for each budget and start, [budgets, starts]; NaN where no path kept the budget.

    Gradient descent on the direction and share of thrust of every step, with a multiplier of the cost for each path,
    while the walls get harder.
    """
    generator = torch.Generator().manual_seed(0)
    paths = (len(BUDGETS), len(starts), guesses)
    count = int(np.prod(paths))
    budget = torch.tensor(BUDGETS).repeat_interleave(len(starts) * guesses).double()
    start = torch.from_numpy(starts).repeat_interleave(guesses, 0).repeat(len(BUDGETS), 1)
    rate = 0.7 + 0.7 * torch.rand(count, 1, generator=generator)  # rad/s of a circle as the first guess
    heading = torch.atan2(start[:, 1:], start[:, :1]) + np.pi / 2 + rate * point.seconds_a_step * torch.arange(STEPS)
    heading = heading.double().requires_grad_()
    share = torch.full((count, STEPS), 3.0, dtype=torch.float64, requires_grad=True)
    multiplier = torch.where(torch.isinf(budget), 0.0, 0.02).double()
    best = torch.full((count,), -torch.inf).double()
    optimizer = torch.optim.Adam([heading, share], lr=0.05)
    fall = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1 ** (1 / iterations))
    for iteration in range(iterations):
        softness = 0.08 * (0.003 / 0.08) ** min(1.0, iteration / (0.8 * iterations))
        thrust = torch.sigmoid(share).unsqueeze(-1) * torch.stack([heading.cos(), heading.sin()], -1)
        episode_return, soft_cost, cost = point.drive(thrust, start, softness)
        optimizer.zero_grad()
        (multiplier * soft_cost - episode_return).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        fall.step()
        excess = torch.where(torch.isinf(budget), 0.0, cost - budget)
        multiplier = (multiplier + 2e-5 * excess).clamp(0, 2)
        found = torch.where(excess <= 0, episode_return.detach(), -torch.inf)
        best = torch.maximum(best, found)
    most = best.reshape(paths).amax(2).numpy()
    return np.where(np.isfinite(most), most, np.nan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a try of seconds, which writes nothing")
    smoke = parser.parse_args().smoke
    starts, guesses, iterations = (2, 2, 5) if smoke else (STARTS, GUESSES, ITERATIONS)
    torch.set_num_threads(1)
    point, places = simulated(starts)
    most = search(point, places, guesses, iterations)
    headline = {
        "task": TASK,
        "top_speed": point.top_speed,
        "bound": point.bound(),
        "return_by_budget": {f"{budget:g}": float(row.mean()) for budget, row in zip(BUDGETS, most, strict=True)},
    }
    finish(
        "learning_reach",
        headline,
        {"starts": starts, "guesses": guesses, "iterations": iterations, "return_by_start": most.tolist()},
        save=not smoke,
    )


if __name__ == "__main__":
    run(main)
