"""The settings of a run, as people give them and as they are told of them."""

import difflib
import json
from typing import TYPE_CHECKING

from cvpo.errors import ConfigError

if TYPE_CHECKING:
    from cvpo.training.presets import Preset


def settings_of(
    costs: list[str], max_episode_steps: int | None, device: str | None, texts: list[str]
) -> dict[str, object]:
    """What flags and --set give, by GROUP.NAME; --set wins over a flag."""
    flags = {
        "environment.cost_names": costs,
        "environment.max_episode_steps": max_episode_steps,
        "compute.device": device,
    }
    return {name: value for name, value in flags.items() if value} | dict(_setting(text) for text in texts)


def taken(preset: "Preset", chosen: "Preset") -> str:
    """What of a preset was not changed, in words."""
    parts = []
    if chosen.cost_limits == preset.cost_limits:
        parts.append(f"cost limit {limits_of(preset)}")
    if chosen.steps == preset.steps and "schedule.steps" not in chosen.settings:
        parts.append(f"{preset.steps:,} steps")
    parts += [f"{name}={value}" for name, value in preset.settings.items() if chosen.settings[name] == value]
    if preset.opening and "limit.schedule" not in chosen.settings:
        parts.append(opening_of(preset))
    return ", ".join(parts)


def opening_of(preset: "Preset") -> str:
    """How far above its limits a run begins, in words."""
    (_, factor), (share, _) = preset.opening[0], preset.opening[-1]
    return f"limits {factor:g} times as high at first, up to {share:.0%} of the steps (limit.schedule)"


def limits_of(preset: "Preset") -> str:
    """Its cost limits, in words."""
    return ", ".join(f"{limit:g}" for limit in preset.cost_limits)


def _setting(text: str) -> tuple[str, object]:
    """GROUP.NAME and value of a --set; ConfigError names the closest where there is no such setting."""
    from pydantic import BaseModel

    from cvpo.learning.config import TrainConfig

    key, equals, value = text.partition("=")
    if not (equals and value):
        raise ConfigError(f"--set {text}: write it as GROUP.NAME=VALUE, such as estep.kl_bound=0.05.")
    known = [
        f"{group}.{name}"
        for group, field in TrainConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for name in field.annotation.model_fields
    ]
    if key == "environment.env_id":
        raise ConfigError(f"--set {text}: what is learned in is the argument ENV, by which the preset is chosen, too.")
    if key not in known:
        close = difflib.get_close_matches(key, known, cutoff=0.5)
        hint = f"The closest: {', '.join(close)}" if close else "The config.json of any run names them all"
        raise ConfigError(f"--set {text}: there is no setting {key}. {hint}.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
