"""Fitting a forecast to episodes of the policy, and asking it along an episode."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cvpo.bundle import Constraint
from cvpo.calibration.forecast import QUANTILES, CostForecast
from cvpo.evaluate import Episode
from cvpo.learning.critics import follow
from cvpo.learning.returns import window_cost

Array = NDArray[np.float64]
Integers = NDArray[np.int64]

BATCH = 512
LEARNING_RATE = 3e-3
MOST_UPDATES, FEWEST_UPDATES = 4_000, 100
PASSES = 15.0  # over the steps of the episodes
MEAN_PART = 0.05  # of the updates: over about so many goes the running mean of the parameters that is kept
HELD_OUT = 0.2  # of the episodes, to stop by
CHECKS = 15  # of the held-out loss
SMALLEST = 1e-6  # mean cost of a step, and cost value: what is relative to them stays finite


def horizon_grid(horizon: int, window: int, count: int) -> Integers:
    """Numbers of steps at which costs are told: about `count`, geometric from 1 to the horizon, with the window."""
    return np.union1d(np.geomspace(1, horizon, count).round().astype(np.int64), [window, horizon])


class ForecastEpisode:
    """An episode with what is forecast at each of its steps, for any number of steps ahead."""

    def __init__(self, episode: Episode, forecast: CostForecast, normalize: Callable[[Tensor], Tensor]) -> None:
        """See the episode as the networks do.

        Args:
            episode: with cost values.
            forecast: to ask.
            normalize: maps observations [N, O] to those that the networks see.
        """
        self.cost, self.terminated, self._forecast = episode.cost, episode.terminated, forecast
        self._observation, cost_value = _inputs(episode, normalize)
        self._cost_value = cost_value.unsqueeze(-1)

    def __len__(self) -> int:
        return len(self.cost)

    def forecast(self, steps: Integers) -> Array:
        """Of the cost of the next steps[t] steps from step t on, [L, C], as the map of costs takes it."""
        with torch.no_grad():
            forecast = self._forecast(self._observation, self._cost_value, torch.from_numpy(steps))
        return np.asarray(forecast[..., 0].double())

    def window_cost(self, steps: Integers) -> tuple[Array, NDArray[np.bool_]]:
        """See `cvpo.learning.returns.window_cost`."""
        return window_cost(self.cost, steps, self.terminated)


def fit_forecast(
    episodes: Sequence[Episode],
    constraints: Sequence[Constraint],
    normalize: Callable[[Tensor], Tensor],
    seed: int,
) -> CostForecast:
    """Fit a forecast to the costs that came, by the pinball loss of its quantiles.

    Half of what it learns from speaks of all the steps that were left of an episode, the rest of W steps and of random
    numbers of steps. Kept is a running mean of the parameters (Polyak and Juditsky, 1992), as it was best on episodes
    that were held out; with fewer than two, at the end.

    Args:
        episodes: with cost values; at least one.
        constraints: C of them, in the order of the costs.
        normalize: maps observations [N, O] to those that the networks see.
        seed: of the parameters, the order and the episodes held out.
    """
    generator = np.random.default_rng(seed)
    order = [episodes[i] for i in generator.permutation(len(episodes))]
    held = round(HELD_OUT * len(order))
    window, horizon = constraints[0].window_steps, constraints[0].horizon_steps
    learning, checking = (_Steps(part, horizon, window, normalize) for part in (order[held:], order[:held]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        forecast = CostForecast(
            learning.observation.shape[1],
            horizon,
            np.maximum(learning.cost_value.double().mean(0).numpy(), SMALLEST),
        )
        updates = int(np.clip(PASSES * len(learning) / BATCH, FEWEST_UPDATES, MOST_UPDATES))
        optimizer = torch.optim.AdamW(forecast.parameters(), LEARNING_RATE, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=updates)
        mean_cost = torch.from_numpy(_mean_cost(order[held:]).astype(np.float32))
        checked = checking.draw(16 * BATCH, np.random.default_rng(seed)) if len(checking) else None
        mean = copy.deepcopy(forecast).eval()
        best, kept = np.inf, mean.state_dict()
        for update in range(1, updates + 1):
            loss = _loss(forecast, mean_cost, *learning.draw(BATCH, generator))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(forecast.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            follow(mean, forecast, 1 / (MEAN_PART * updates))
            if checked and (update % max(updates // CHECKS, 1) == 0 or update == updates):
                with torch.no_grad():
                    held_loss = float(_loss(mean, mean_cost, *checked))
                if held_loss < best:
                    best, kept = held_loss, {name: value.clone() for name, value in mean.state_dict().items()}
        mean.load_state_dict(kept)
    return mean.requires_grad_(False)


class _Steps:
    """All steps of some episodes, to draw situations from."""

    def __init__(
        self, episodes: Sequence[Episode], horizon: int, window: int, normalize: Callable[[Tensor], Tensor]
    ) -> None:
        self.window = window
        self._start = np.cumsum([0, *(len(episode.cost) for episode in episodes)])
        inputs = [_inputs(episode, normalize) for episode in episodes]
        self.observation = torch.cat([observation for observation, _ in inputs]) if inputs else torch.empty(0, 0)
        self.cost_value = torch.cat([cost_value for _, cost_value in inputs]) if inputs else torch.empty(0, 0)
        totals = [np.concatenate([np.zeros((1, e.cost.shape[1])), e.cost.cumsum(0)]) for e in episodes]
        self._total = np.concatenate(totals) if totals else np.empty((0, 0))  # one row more for each episode
        self._length = np.array([len(episode.cost) for episode in episodes], np.int64)
        # Steps whose cost is known: after a termination nothing costs anything, what follows a truncation is unknown.
        self._known = np.array([horizon if e.terminated else len(e.cost) for e in episodes], np.int64)

    def __len__(self) -> int:
        return int(self._start[-1])

    def draw(self, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Observation [N, O], cost value [N, C], a number of steps [N] and the cost [N, C] that came in them.

        Episodes are drawn alike, however long. What is left of an episode is what is left of the horizon, as it is
        asked for, also where it terminated.
        """
        which = generator.integers(0, len(self._length), count)
        length, known = self._length[which], self._known[which]
        ahead = np.exp(generator.random(count) * np.log(known + 1)).astype(np.int64).clip(1, known)
        kind = generator.random(count)
        ahead = np.where(kind < 0.75, np.minimum(self.window, known), ahead)
        start = (generator.random(count) * np.minimum(known - ahead + 1, length)).astype(np.int64)
        rest = kind < 0.5
        start = np.where(rest, (generator.random(count) * length).astype(np.int64), start)
        ahead = np.where(rest, known - start, ahead)
        row, first = self._start[which] + start, self._start[which] + which + start
        cost = self._total[first + np.minimum(ahead, length - start)] - self._total[first]
        return (
            self.observation[row],
            self.cost_value[row],
            torch.from_numpy(ahead),
            torch.from_numpy(cost.astype(np.float32)),
        )


def _inputs(episode: Episode, normalize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    assert episode.cost_value is not None  # `calibrate` refuses episodes without
    return normalize(torch.from_numpy(episode.observation)), torch.from_numpy(episode.cost_value.astype(np.float32))


def _mean_cost(episodes: Sequence[Episode]) -> Array:
    """Of a step, [C]; positive, also where nothing ever cost anything."""
    mean: Array = np.mean([episode.cost.mean(0) for episode in episodes], axis=0)
    return np.maximum(mean, SMALLEST)


def _loss(
    forecast: CostForecast, mean_cost: Tensor, observation: Tensor, cost_value: Tensor, steps: Tensor, cost: Tensor
) -> Tensor:
    """Pinball loss of the quantiles, in units between the mean cost of so many steps and that of an episode.

    In the former the few steps that cost much would decide, in the latter only long spans would count.
    """
    relative = forecast.increments(observation, cost_value.unsqueeze(-1), steps)[:, :, 0].cumsum(-1)  # [N, C, Q]
    unit = (steps * forecast.horizon).sqrt()
    off = ((cost / mean_cost).unsqueeze(-1) - steps[:, None, None] * relative) / unit[:, None, None]
    level = torch.tensor(QUANTILES)
    return torch.maximum(level * off, (level - 1) * off).mean()
