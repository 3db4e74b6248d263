"""Settings: what is refused and in which words, and that a config survives the way to a file and back."""

import json
import math
from typing import Any

import pytest

from cvpo.errors import ConfigError
from cvpo.learning.config import TrainConfig, parse_config

SCHEDULE = {"steps": 1000, "warmup_steps": 100}


def document(**changes: Any) -> dict[str, Any]:
    return {"environment": {"env_id": "Env-v0"}, "cost_limits": [25], "schedule": SCHEDULE} | changes


@pytest.mark.parametrize("limits", [[25], [0], [math.inf], [25, math.inf]])
def test_a_config_survives_json(limits: list[float]) -> None:
    config = parse_config(document(cost_limits=limits))
    assert config.cost_limits == tuple(limits)
    text = config.model_dump_json()
    assert parse_config(json.loads(text)) == config
    assert TrainConfig.model_validate_json(text) == config


@pytest.mark.parametrize("limit", [-1, math.nan, -math.inf, "much", None])
def test_a_limit_is_a_number_and_not_negative(limit: Any) -> None:
    with pytest.raises(ConfigError, match=r"^cost_limits\.0: .*\(got "):
        parse_config(document(cost_limits=[limit]))


def test_there_is_at_least_one_limit() -> None:
    with pytest.raises(ConfigError, match=r"^cost_limits: "):
        parse_config(document(cost_limits=[]))


def test_there_is_one_limit_per_named_cost() -> None:
    environment = {"env_id": "Env-v0", "cost_names": ["cost_a", "cost_b"]}
    with pytest.raises(ConfigError, match="1 cost limits for 2 costs"):
        parse_config(document(environment=environment))
    assert parse_config(document(environment=environment, cost_limits=[1, 2])).cost_limits == (1, 2)


@pytest.mark.parametrize(
    ("group", "setting", "value"),
    [
        ("critic", "discount", 1.0),
        ("critic", "n_step", 0),
        ("critic", "learning_rate", math.nan),
        ("estep", "kl_bound", 0),
        ("estep", "samples", 7),
        ("estep", "samples", 2),
        ("estep", "constraint", "none"),
        ("mstep", "kl_mean_bound", -1),
        ("limit", "max_share", 1.5),
        ("limit", "integral_low", math.nan),
        ("replay", "batch_size", 0),
        ("schedule", "steps", "many"),
        ("network", "depth", 3),
    ],
)
def test_a_bad_setting_is_named(group: str, setting: str, value: Any) -> None:
    settings = SCHEDULE if group == "schedule" else {}
    with pytest.raises(ConfigError, match=rf"^{group}\.{setting}: "):
        parse_config(document(**{group: settings | {setting: value}}))


def test_the_bounds_of_the_integral_part_are_in_order() -> None:
    with pytest.raises(ConfigError, match=r"limit\.integral_low is 5\.0, over limit\.integral_high 0\.8"):
        parse_config(document(limit={"integral_low": 5}))


def test_the_warm_up_gives_every_environment_its_first_n_step_return() -> None:
    # Updates begin when it ends, and need something to draw: 5 environments x 5 steps.
    with pytest.raises(ConfigError, match="warmup_steps is 24"):
        parse_config(document(schedule={"steps": 1000, "warmup_steps": 24}))
    parse_config(document(schedule={"steps": 1000, "warmup_steps": 25}))


@pytest.mark.parametrize(("steps", "num_envs", "warmup"), [(4_000, 5, 5_000), (5_000, 5, 5_000), (5_001, 3, 5_001)])
def test_a_run_that_ends_with_its_warm_up_is_refused(steps: int, num_envs: int, warmup: int) -> None:
    # With 3 environments the warm-up ends at 5,001: the first multiple of 3 from 5,000 on.
    environment = {"env_id": "Env-v0", "num_envs": num_envs}
    with pytest.raises(
        ConfigError,
        match=rf"^schedule\.steps is {steps}, but nothing is learned in the first {warmup}, .*"
        r"\(schedule\.warmup_steps is 5000\); give more steps, or a shorter warm-up\.$",
    ):
        parse_config(document(environment=environment, schedule={"steps": steps}))
    parse_config(document(environment=environment, schedule={"steps": warmup + 1}))


def test_every_cost_has_a_discount_the_rewards_unless_it_is_given() -> None:
    critic: dict[str, Any] = {"discount": 0.9}
    assert parse_config(document(cost_limits=[1, 2], critic=critic)).cost_discounts == (0.9, 0.9)
    critic["cost_discounts"] = [0.99, 0.5]
    assert parse_config(document(cost_limits=[1, 2], critic=critic)).cost_discounts == (0.99, 0.5)
    with pytest.raises(ConfigError, match=r"1 cost limits for 2 critic\.cost_discounts"):
        parse_config(document(critic=critic))


# Limits on the way to cost_limits


@pytest.mark.parametrize(
    ("limits", "schedule"),
    [
        ([25], []),
        ([25], [[0, [60]], [500, [25]]]),
        ([25], [[100, [60]], [200, [0]], [999, [80.5]]]),
        ([25, 3], [[0, [60, 3]], [500, [25, 9]]]),
        ([25, math.inf], [[0, [60, math.inf]], [500, [25, "inf"]]]),
    ],
)
def test_a_schedule_of_limits_survives_json(limits: list[float], schedule: list[Any]) -> None:
    config = parse_config(document(cost_limits=limits, limit={"schedule": schedule}))
    assert [point.steps for point in config.limit.schedule] == [steps for steps, _ in schedule]
    assert [list(point.cost_limits) for point in config.limit.schedule] == [
        [float(limit) for limit in limits] for _, limits in schedule
    ]
    assert parse_config(json.loads(config.model_dump_json())) == config
    assert parse_config(config.model_dump()) == config


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        ([[500, [60, 3]], [0, [25, 3]]], "goes from 500 steps to 0; each point comes after the one before it."),
        ([[0, [60, 3]], [0, [25, 3]]], "goes from 0 steps to 0;"),
        ([[0, [60]]], "has 1 limits at 0 steps, but there are 2 cost limits; give one limit per cost."),
        ([[0, [math.inf, 3]]], r"is \[inf, 3.0\] at 0 steps and the cost limits are \[25.0, 3.0\], but no line leads"),
        ([[0, [60, 3]], [1000, [25, 3]]], "ends at 1000 steps, but the run at 1000: cost_limits would never hold"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(schedule: list[Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"^limit\.schedule {reason}"):
        parse_config(document(cost_limits=[25, 3], limit={"schedule": schedule}))


@pytest.mark.parametrize(
    ("schedule", "where"),
    [
        ([[0, [-1]]], "0.1.0: "),
        ([[0, [math.nan]]], "0.1.0: "),
        ([[-5, [60]]], "0.0: "),
        ([[0.5, [60]]], "0.0: "),
        ([[0, 60]], "0.1: "),
        ([[0]], "0.1: "),
        ("never", ": "),
    ],
)
def test_a_bad_point_of_a_schedule_is_named(schedule: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=rf"^limit\.schedule\.?{where}"):
        parse_config(document(limit={"schedule": schedule}))


def test_what_is_no_list_is_asked_for_as_one() -> None:
    with pytest.raises(ConfigError, match=r"^limit\.schedule\.0\.1: Input should be a list, \[\.\.\.\] \(got 60\)"):
        parse_config(document(limit={"schedule": [[0, 60]]}))


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(document())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
