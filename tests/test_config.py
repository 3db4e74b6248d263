"""Settings: what is refused and in which words, and that a config survives the way to a file and back."""

import json
import math
from typing import Any

import pytest

from cvpo.config import TrainConfig, parse_config
from cvpo.errors import ConfigError


def document(**changes: Any) -> dict[str, Any]:
    return {"environment": {"env_id": "Env-v0"}, "cost_limits": [25], "schedule": {"steps": 1000}} | changes


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
    settings = {"steps": 1000} if group == "schedule" else {}
    with pytest.raises(ConfigError, match=rf"^{group}\.{setting}: "):
        parse_config(document(**{group: settings | {setting: value}}))


def test_the_warm_up_gives_every_environment_its_first_n_step_return() -> None:
    # Updates begin when it ends, and need something to draw: 5 environments x 5 steps.
    with pytest.raises(ConfigError, match="warmup_steps is 24"):
        parse_config(document(schedule={"steps": 1000, "warmup_steps": 24}))
    parse_config(document(schedule={"steps": 1000, "warmup_steps": 25}))


def test_a_config_cannot_be_changed() -> None:
    config = parse_config(document())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1
