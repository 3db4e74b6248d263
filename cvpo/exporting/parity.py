"""Do graphs compute what they were made to? Held against torch on real observations, in every mode."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cvpo.bundle import CRITIC_GRAPH, POLICY_GRAPH, Manifest
from cvpo.errors import ExportError
from cvpo.exporting.runtime import RUNTIME, open_graph
from cvpo.exporting.served import Answering, CriticOutput, Judgement, NetworkValues, PolicyOutput

TOLERANCE = 1e-4
"""Of the output's scale. Four layers sum up to a thousand products each; that many float32 roundings of 6e-8, all the
same way, make 6e-5. Seen on trained and random networks: up to 5e-6."""

SHIELDED_CANDIDATES = 8
FAR = 3.0  # times an observation: what is real is inside of what was seen, where the shift score is 0 throughout
EXTRA_ALARM_LEVEL = 0.5  # judged beside the served one, so that both branches of the choice are walked


@dataclass(frozen=True)
class _Case:
    """Inputs of both graphs, but for noise and action."""

    observation: Tensor
    steps_left: Tensor
    cost_allowed: Tensor
    alarm_level: Tensor


def check_parity(
    answering: Answering,
    policy_graph: bytes,
    critic_graph: bytes,
    observations: NDArray[np.float32],
    manifest: Manifest,
) -> None:
    """Run both graphs beside torch: deterministic, sampled and shielded, one situation and many, limits from 0 to +inf.

    What is continuous must agree within TOLERANCE. What is discrete must be the same, unless torch itself would decide
    otherwise after a change of its inputs within TOLERANCE. The map of costs is compared at the cost values of the
    graph, for it may be steep.

    Raises:
        ExportError: they differ; names the graph, the mode, the output and the difference.
    """
    generator = torch.Generator().manual_seed(0)
    policy, critic = _Session(POLICY_GRAPH, policy_graph), _Session(CRITIC_GRAPH, critic_graph)
    low, high = answering.action_low, answering.action_high
    with torch.no_grad():
        for case in _cases(torch.from_numpy(observations), manifest, generator):
            shape = (len(case.observation), SHIELDED_CANDIDATES, len(low))
            noise = torch.randn(shape, generator=generator)
            noise[:, 0] = 0
            for mode, chosen_noise in {
                "deterministic": noise[:, :1],
                "sampled": noise[:, 1:2],
                "shielded": noise,
            }.items():
                _check_policy(answering, policy, mode, case, chosen_noise)
            share = torch.rand(shape[0], shape[2], generator=generator) * 1.2 - 0.1  # some are outside of the bounds
            _check_critic(answering, critic, case, low + share * (high - low))
            _check_shift(answering, policy, critic, replace(case, observation=FAR * case.observation), noise[:, :1])


def _cases(observation: Tensor, manifest: Manifest, generator: torch.Generator) -> Iterator[_Case]:
    N, C, T = len(observation), len(manifest.constraints), manifest.horizon_steps
    steps_left = torch.randint(1, T + 1, (N,), generator=generator)
    steps_left[::4], steps_left[1::4], steps_left[2::4] = manifest.window_steps, T, 1
    limit = torch.tensor([1.0 if c.cost_limit is None else c.cost_limit for c in manifest.constraints])
    share = limit * steps_left[:, None] / T
    random = 2 * limit * torch.rand(N, C, generator=generator)
    for number, cost_allowed in enumerate((share, random, torch.zeros_like(share), torch.full_like(share, torch.inf))):
        for alarm_level in (manifest.alarm_levels, (EXTRA_ALARM_LEVEL,) * C):
            case = _Case(observation, steps_left, cost_allowed, torch.tensor(alarm_level))
            yield case
            one = slice(number % N, number % N + 1)
            yield _Case(observation[one], steps_left[one], cost_allowed[one], case.alarm_level)


class _Session:
    """One graph, run on tensors."""

    def __init__(self, name: str, graph: bytes) -> None:
        self.name, self._session = name, open_graph(graph)

    def run(self, case: _Case, names: tuple[str, ...], **extra: Tensor) -> list[Tensor]:
        inputs = {name: value.numpy() for name, value in (vars(case) | extra).items()}
        return [torch.from_numpy(np.asarray(value)) for value in self._session.run(names, inputs)]


def _check_policy(answering: Answering, policy: _Session, mode: str, case: _Case, noise: Tensor) -> None:
    where = f"{policy.name}, {mode}"
    found = PolicyOutput(*policy.run(case, PolicyOutput._fields, noise=noise))
    values = answering.policy_values(case.observation, noise)
    judged = answering.judge(values, case.steps_left, case.cost_allowed, case.alarm_level)
    _check_choice(where, answering, case, values, found)
    rows = torch.arange(len(noise))
    action = answering.environment_action(values.action[rows, found.chosen])
    _close(where, "action", found.action, action, (answering.action_high - answering.action_low) / 2)
    expected = Judgement(*(value[rows, ..., found.chosen] for value in judged))
    _check_predictions(where, answering, case, values, CriticOutput(*found[3:]), expected)


def _check_critic(answering: Answering, critic: _Session, case: _Case, action: Tensor) -> None:
    found = CriticOutput(*critic.run(case, CriticOutput._fields, action=action))
    values = answering.critic_values(case.observation, action)
    judged = answering.judge(values, case.steps_left, case.cost_allowed, case.alarm_level)
    _check_predictions(critic.name, answering, case, values, found, Judgement(*(value[..., 0] for value in judged)))


def _check_shift(answering: Answering, policy: _Session, critic: _Session, case: _Case, noise: Tensor) -> None:
    expected = answering.policy_values(case.observation, noise).shift_score
    action = answering.action_low.expand(len(noise), -1)
    for graph, extra in ((policy, {"noise": noise}), (critic, {"action": action})):
        (found,) = graph.run(case, ("shift_score",), **extra)
        _close(graph.name, "shift_score", found, expected, expected.amax().clamp(min=1))


def _check_choice(where: str, answering: Answering, case: _Case, values: NetworkValues, found: PolicyOutput) -> None:
    """The chosen candidate is the one by torch's values, or cannot be told from it within TOLERANCE."""
    forecast = answering.forecasts(values.normalized, values.cost_value, case.steps_left)
    slack = TOLERANCE * forecast.amax()
    surely, maybe = (  # flagged, [N, C, K]
        answering.cost_map.choosing_probability(
            forecast + sign * slack, case.steps_left, _moved(case.cost_allowed, -sign)
        )
        > case.alarm_level[:, None]
        for sign in (-1, 1)
    )
    wrong = torch.where(found.feasible, surely.any(1).all(1), ~maybe.any(1).all(1))
    _equal(where, "feasible", int(wrong.sum()), len(wrong))

    at_least, at_most = surely.sum(1), maybe.sum(1)  # flags, [N, K]
    relative = values.cost_value / answering.typical_cost_value
    lowest, highest = ((relative * flagged[..., :1]).amax(1) for flagged in (surely, maybe))  # [N, K]
    surely_eligible = at_most <= at_least.amin(1, keepdim=True)
    to_beat = highest.masked_fill(~surely_eligible, torch.inf).amin(1) + TOLERANCE * relative.amax()
    rows = torch.arange(len(wrong))
    wrong = (at_least[rows, found.chosen] > at_most.amin(1)) | (lowest[rows, found.chosen] > to_beat)
    wrong = torch.where(at_most[:, 0] == 0, found.chosen != 0, wrong)
    _equal(where, "chosen", int(wrong.sum()), len(wrong))


def _check_predictions(
    where: str, answering: Answering, case: _Case, values: NetworkValues, found: CriticOutput, expected: Judgement
) -> None:
    reward_scale = max(answering.reward_scale, float(expected.reward_value.abs().amax()))
    _close(where, "reward_value", found.reward_value, expected.reward_value, torch.tensor(reward_scale))
    _close(where, "cost_value", found.cost_value, expected.cost_value, expected.cost_value.amax())
    forecast = answering.forecasts(values.normalized, found.cost_value.unsqueeze(-1), case.steps_left)
    mapped = answering.cost_map(forecast, case.steps_left, case.cost_allowed)
    for name in ("cost_to_go", "cost_upper"):
        value = getattr(mapped, name).squeeze(-1)
        finite = value[value.isfinite()]
        scale = finite.abs().amax() if len(finite) else torch.tensor(0.0)
        _close(where, name, getattr(found, name), value, scale)
    probability = found.violation_probability
    least, most = (
        answering.cost_map(forecast, case.steps_left, _moved(case.cost_allowed, sign)).violation_probability.squeeze(-1)
        for sign in (1, -1)
    )
    _close(where, "violation_probability", probability, probability.clamp(least, most), torch.tensor(0.0))
    wrong = found.violation != (probability > case.alarm_level)
    _equal(where, "violation", int(wrong.sum()), wrong.numel())
    _close(where, "shift_score", found.shift_score, values.shift_score, values.shift_score.amax().clamp(min=1))


def _moved(cost_allowed: Tensor, sign: int) -> Tensor:
    """What is allowed, more or less by a tie's width; +inf stays."""
    return cost_allowed * (1 + sign * TOLERANCE)


def _close(where: str, name: str, found: Tensor, expected: Tensor, scale: Tensor) -> None:
    difference = (found - expected).abs().masked_fill(found == expected, 0.0)  # both may be infinite
    wrong = ~(difference <= TOLERANCE * scale)  # NaN is wrong
    if wrong.any():
        size, bound = difference[wrong].amax(), (TOLERANCE * scale).amin()
        raise _refusal(where, name, f"by up to {float(size):.3g}, more than the {float(bound):.1g} of float32 rounding")


def _equal(where: str, name: str, wrong: int, count: int) -> None:
    if wrong:
        raise _refusal(where, name, f"in {wrong} of {count} values")


def _refusal(where: str, name: str, difference: str) -> ExportError:
    return ExportError(
        f"{where}: {name} differs between {RUNTIME} and torch {difference}. No bundle was written; "
        "export again, and report it if it stays."
    )
