"""Where the guess comes from that the map of costs is asked with: ways that are calibrated alike, on the same episodes.

The forecast is what a bundle has: fitted to the costs that came. A distributional critic learns the same by temporal
differences, from transitions. The plain critic is the one of training, whose discounted mean says everything.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.calibration.figures import bound_figures, probability_figures
from benchmarks.calibration.measure import MeasuredMap, Tell, budgets_of, roll_out
from benchmarks.rounds import provenance
from cvpo.bundle import Constraint
from cvpo.calibration.calibrate import Fit, calibrate
from cvpo.calibration.forecast import HIDDEN, QUANTILES, CostForecast
from cvpo.calibration.forecast_fit import BATCH, CHECKS, HELD_OUT, MOST_UPDATES, SMALLEST, fit_forecast
from cvpo.evaluate import Episode

LEVELS = (torch.arange(32) + 0.5) / 32
READ = [int((LEVELS - level).abs().argmin()) for level in QUANTILES]  # what the map is asked with: as of the forecast
LEARNING_RATE = 1e-3
AVERAGING = 0.01  # of the target network, an update
Normalize = Callable[[Tensor], Tensor]


class PlainCritic(nn.Module):
    """The cost value of training as the guess, whatever the number of steps."""

    def __init__(self, typical_value: float) -> None:
        super().__init__()
        self.typical_value = typical_value

    def forward(self, observation: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        return cost_value / self.typical_value


class DistributionalCritic(nn.Module):
    """Quantiles of the undiscounted cost of the next steps, Z(s, h); nothing costs anything where h is 0."""

    def __init__(self, observation_size: int, horizon: int, mean_cost: float, typical_value: float) -> None:
        super().__init__()
        self.horizon, self.mean_cost, self.typical_value = horizon, mean_cost, typical_value
        self.first = nn.Linear(observation_size + 3, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, len(LEVELS))
        with torch.no_grad():
            self.output.weight.mul_(0.1)
            self.output.bias.fill_(1.0)

    def forward(self, observation: Tensor, cost_value: Tensor, steps_left: Tensor) -> Tensor:
        """The mean of some quantiles, as a share of what as many steps cost on average, [N, 1, 1]."""
        cost = self.quantiles(observation, cost_value[:, 0, 0], steps_left)[:, READ].mean(1)
        return (cost / (steps_left * self.mean_cost)).clamp(min=0)[:, None, None]

    def quantiles(self, observation: Tensor, cost_value: Tensor, steps: Tensor) -> Tensor:
        """Costs [N, Q] that go with LEVELS, for observations [N, O], cost values [N] and numbers of steps [N]."""
        value = cost_value / (cost_value + self.typical_value)
        time = torch.stack([value, 2 * steps / self.horizon - 1, steps.log1p() / np.log1p(self.horizon)], 1)
        hidden = self.second(self.first(torch.cat([observation, time], 1)).relu()).relu()
        relative: Tensor = self.output(hidden)
        return relative * (steps * self.mean_cost)[:, None]


def fit_plain(
    episodes: Sequence[Episode], constraints: Sequence[Constraint], normalize: Normalize, seed: int
) -> CostForecast:
    """The critic as it is."""
    values = np.concatenate([_cost_value(episode) for episode in episodes])
    return cast(CostForecast, PlainCritic(max(float(values.mean()), SMALLEST)))


def fit_distributional(
    episodes: Sequence[Episode],
    constraints: Sequence[Constraint],
    normalize: Normalize,
    seed: int,
) -> CostForecast:
    """Learn Z(s, h) of the first constraint by quantile regression of its own next guess (Dabney et al., 2018).

    The target at step t is the cost of n steps and Z(s[t + n], h - n) of a slow copy, n being W, or h where that is
    less. It is the slow copy that is kept, as it was when the costs that came, of episodes that were held out, had the
    least pinball loss. Arguments are those of `fit_forecast`.
    """
    generator = np.random.default_rng(seed)
    order = [episodes[i] for i in generator.permutation(len(episodes))]
    held = round(HELD_OUT * len(order))
    learning, checking = _Transitions(order[held:], normalize), _Transitions(order[:held], normalize)
    window, horizon = constraints[0].window_steps, constraints[0].horizon_steps
    mean_cost = max(float(np.mean([episode.cost[:, 0].mean() for episode in order[held:]])), SMALLEST)
    typical = max(float(learning.cost_value.mean()), SMALLEST)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = DistributionalCritic(learning.observation.shape[1], horizon, mean_cost, typical)
        slow = DistributionalCritic(learning.observation.shape[1], horizon, mean_cost, typical)
    slow.load_state_dict(critic.state_dict())
    optimizer = torch.optim.Adam(critic.parameters(), LEARNING_RATE)
    check = checking.draw(8 * BATCH, window, horizon, np.random.default_rng(seed))
    best, kept = np.inf, critic.state_dict()
    for update in range(1, MOST_UPDATES + 1):
        row, steps, ahead, cost = learning.draw(BATCH, window, window, generator)
        with torch.no_grad():
            target = cost[:, None] + slow.quantiles(*learning.at(row + ahead, steps - ahead))
        loss = _loss(critic.quantiles(*learning.at(row, steps)), target, steps * horizon, mean_cost)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        with torch.no_grad():
            for one, other in zip(slow.parameters(), critic.parameters(), strict=True):
                one.lerp_(other, AVERAGING)
            if update % (MOST_UPDATES // CHECKS) == 0:
                row, steps, _, cost = check
                found = float(
                    _loss(slow.quantiles(*checking.at(row, steps)), cost[:, None], steps * horizon, mean_cost)
                )
                if found < best:
                    best, kept = found, {name: value.clone() for name, value in slow.state_dict().items()}
    critic.load_state_dict(kept)
    return cast(CostForecast, critic.eval().requires_grad_(False))


WAYS: dict[str, Fit] = {
    "plain critic": fit_plain,
    "distributional critic": fit_distributional,
    "forecast": fit_forecast,
}


def compare(env_id: str, tell: Tell) -> dict[str, Any]:
    """What each way comes to in a task, as it is committed."""
    rollouts = roll_out(env_id, tell)
    trained = rollouts.trained
    ways = compared(rollouts.calibrating, rollouts.fresh, trained.constraints[0], trained.model.normalizer)
    episodes = {"calibrating": len(rollouts.calibrating), "fresh": len(rollouts.fresh)}
    return {**rollouts.described(), "episodes": episodes, "ways": ways, **provenance()}


def compared(
    calibrating: Sequence[Episode], fresh: Sequence[Episode], constraint: Constraint, normalize: Normalize
) -> dict[str, dict[str, Any]]:
    """By way: loss over the best constant's, of what is left and of the window, and how good the probabilities are."""
    budgets, found = budgets_of(constraint, len(fresh)), {}
    for name, fit in WAYS.items():
        made = MeasuredMap(calibrate(calibrating, [constraint], normalize, seed=0, fit=fit), normalize, fresh)
        confidence, sessions = made.calibrated.record.confidence, made.sessions(constraint, budgets)
        probability = probability_figures(sessions, sessions)
        rest, window = (
            bound_figures(bounds, bounds, confidence)["pinball_ratio_constant"]["mean"]
            for bounds in (made.rest(constraint), made.window(constraint))
        )
        found[name] = {
            "rest": rest,
            "window": window,
            "calibration_error": probability["calibration_error"],
            "brier": probability["brier"],
        }
    return found


class _Transitions:
    """All steps of some episodes, to draw from."""

    def __init__(self, episodes: Sequence[Episode], normalize: Normalize) -> None:
        self.observation = torch.cat([normalize(torch.from_numpy(episode.observation)) for episode in episodes])
        self.cost_value = torch.from_numpy(np.concatenate([_cost_value(episode) for episode in episodes]))
        self._length = np.array([len(episode.cost) for episode in episodes])
        self._start = np.cumsum([0, *self._length[:-1]])
        cost = np.concatenate([episode.cost[:, 0] for episode in episodes])
        self._total = np.concatenate([[0.0], cost.cumsum()])

    def draw(
        self, count: int, window: int, most: int, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Steps [N], a number h of steps, of which at most `most` are ahead, and the cost of those.

        Of half h is all that was left, of a quarter W, of the others by chance, as far as the episode went.
        """
        which = generator.integers(0, len(self._length), count)
        length = self._length[which]
        at = (generator.random(count) * length).astype(np.int64)
        left, kind = length - at, generator.random(count)
        some = np.exp(generator.random(count) * np.log(left)).round().astype(np.int64)
        steps = np.where(kind < 0.5, left, np.where(kind < 0.75, np.minimum(window, left), some))
        ahead, row = np.minimum(steps, most), self._start[which] + at
        cost = (self._total[row + ahead] - self._total[row]).astype(np.float32)
        return torch.from_numpy(row), torch.from_numpy(steps), torch.from_numpy(ahead), torch.from_numpy(cost)

    def at(self, row: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the critic is asked with; past the end of an episode no steps are left, and any observation does."""
        row = row.clamp(max=len(self.observation) - 1)
        return self.observation[row], self.cost_value[row], steps


def _cost_value(episode: Episode) -> NDArray[np.float32]:
    assert episode.cost_value is not None  # `calibrate` refuses episodes without
    return episode.cost_value[:, 0].astype(np.float32)


def _loss(quantiles: Tensor, targets: Tensor, scale: Tensor, mean_cost: float) -> Tensor:
    """Pinball loss of quantiles [N, Q] for samples [N, M], in the forecast's units."""
    off = (targets[:, None] - quantiles[:, :, None]) / (scale.sqrt() * mean_cost)[:, None, None]
    return torch.maximum(LEVELS[:, None] * off, (LEVELS[:, None] - 1) * off).mean()
