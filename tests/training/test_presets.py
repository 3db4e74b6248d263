"""Presets: every task that is promised has one, it can be made, and a preset says no more than it must."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cvpo.envs import bullet_tasks, make_env, safety_tasks
from cvpo.errors import ConfigError
from cvpo.learning.config import TrainConfig, parse_config
from cvpo.training.presets import PRESETS, WITHOUT_PRESET, Preset, preset_of
from tests.command import DRIFT, cvpo, succeed

NAVIGATION = re.compile(r"Safety(Point|Car|Doggo|Racecar|Ant)(Goal|Button|Push|Circle)[012]-v0")
VELOCITY = re.compile(r"Safety\w+Velocity-v1")


def test_every_goal_button_push_circle_velocity_and_bullet_task_has_a_preset() -> None:
    known = safety_tasks.task_ids()
    promised = {task for task in known if NAVIGATION.fullmatch(task) or VELOCITY.fullmatch(task)}
    assert set(PRESETS) == promised | bullet_tasks.TASK_IDS
    assert len(PRESETS) == 5 * 4 * 3 + 6 + 8


@pytest.mark.parametrize(
    ("task", "limit", "steps"),
    [
        ("SafetyBallCircle-v0", 10, 100_000),
        ("SafetyHalfCheetahVelocity-v1", 25, 200_000),
        ("SafetyCarCircle-v0", 10, 300_000),
        ("SafetyPointCircle1-v0", 25, 300_000),
        ("SafetyPointGoal1-v0", 25, 500_000),
        ("SafetyHopperVelocity-v1", 25, 500_000),
        ("SafetyCarRun-v0", 10, 100_000),
        ("SafetyBallRun-v0", 10, 100_000),
    ],
)
def test_limits_and_steps_are_those_of_the_results(task: str, limit: float, steps: int) -> None:
    config = parse_config(PRESETS[task].document(task))
    assert (config.environment.env_id, config.cost_limits, config.schedule.steps) == (task, (limit,), steps)


@pytest.mark.parametrize(
    "task",
    [
        "SafetyRacecarGoal2-v0",
        "SafetyDoggoButton0-v0",
        "SafetyCarPush1-v0",
        "SafetyAntCircle2-v0",
        "SafetyWalker2dVelocity-v1",
        "SafetyDroneCircle-v0",
        "SafetyBallRun-v0",
    ],
)
def test_a_task_of_each_family_can_be_made_and_has_one_limit_per_cost(task: str) -> None:
    assert len(make_env(task).spec.cost_names) == len(PRESETS[task].cost_limits)


def test_a_preset_names_settings_that_exist_and_are_not_the_default() -> None:
    default = parse_config(WITHOUT_PRESET.document("Env-v0"))
    for task, preset in PRESETS.items():
        config = parse_config(preset.document(task))
        for setting in preset.settings:
            assert value(config, setting) != value(default, setting), f"{task}: {setting}"


def value(config: TrainConfig, setting: str) -> object:
    group, name = setting.split(".")
    return getattr(getattr(config, group), name)


def test_settings_of_a_preset_reach_the_config() -> None:
    preset = Preset((5.0,), 1_000_000, {"estep.kl_bound": 0.05, "schedule.checkpoint_every": 7_000})
    config = parse_config(preset.document("Env-v0"))
    assert (config.estep.kl_bound, config.schedule.checkpoint_every) == (0.05, 7_000)


def test_a_run_of_any_length_to_any_limit_begins_with_higher_limits_where_the_preset_says_so() -> None:
    preset = Preset((5.0, float("inf")), 40_000, opening=((0.0, 10.0), (0.25, 10.0), (0.5, 1.0)))
    inf = float("inf")
    assert parse_config(preset.document("Env-v0")).limit.schedule == (
        (0, (50.0, inf)),
        (10_000, (50.0, inf)),
        (20_000, (5.0, inf)),
    )
    shorter = replace(preset, settings={"schedule.steps": 20_000})
    assert parse_config(shorter.document("Env-v0")).limit.schedule[-1].steps == 10_000
    chosen = replace(preset, settings={"limit.schedule": [[1_000, [7, inf]]]})
    assert parse_config(chosen.document("Env-v0")).limit.schedule == ((1_000, (7.0, inf)),)
    with pytest.raises(ConfigError, match=r"schedule\.steps"):
        parse_config(replace(preset, settings={"schedule.steps": "many"}).document("Env-v0"))


@pytest.mark.parametrize(("steps", "every"), [(20_000, 5_000), (200_000, 10_000), (5_000_000, 50_000)])
def test_checkpoints_come_twenty_times_but_not_too_close_or_far(steps: int, every: int) -> None:
    assert parse_config(Preset((25.0,), steps).document("Env-v0")).schedule.checkpoint_every == every


def test_tasks_are_known_by_their_longer_names_too() -> None:
    assert preset_of("bullet_safety_gym:SafetyCarCircle-v0") is PRESETS["SafetyCarCircle-v0"]
    assert preset_of("safety_gymnasium:SafetyPointGoal1-v0") is PRESETS["SafetyPointGoal1-v0"]
    assert preset_of("CartPole-v1") is None


# The command line

HOPPER = "SafetyHopperVelocity-v1"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """The configs of the runs that `cvpo train` begins; they end at once."""
    configs: list[TrainConfig] = []

    def train(config: TrainConfig, *_: object) -> int:
        configs.append(config)
        return config.schedule.steps

    monkeypatch.setattr("cvpo.training.trainer.train", train)
    return configs


@pytest.mark.parametrize(
    ("flags", "taken"),
    [
        ([], "cost limit 25, 500,000 steps"),
        (["--cost-limit", "5"], "500,000 steps"),
        (["--steps", "70000"], "cost limit 25"),
        (["--set", "schedule.steps=70000"], "cost limit 25"),
    ],
)
def test_training_says_what_it_takes_from_the_preset(flags: list[str], taken: str, begun: list[TrainConfig]) -> None:
    said = succeed("train", HOPPER, *flags).err.splitlines()
    assert said[0] == f"preset  {HOPPER}: {taken} (--no-preset leaves it out)"
    assert len(begun) == 1


def test_training_says_that_its_limits_are_higher_at_first(begun: list[TrainConfig]) -> None:
    circle = "SafetyPointCircle1-v0"
    words = "limits 10 times as high at first, up to 50% of the steps (limit.schedule)"
    assert words in succeed("train", circle).err
    assert words not in succeed("train", circle, "--set", "limit.schedule=[]").err
    assert [bool(config.limit.schedule) for config in begun] == [True, False]


@pytest.mark.parametrize(
    "arguments", [[HOPPER, "--no-preset"], [HOPPER, "--steps", "70000", "--cost-limit", "5"], [DRIFT]]
)
def test_where_nothing_is_taken_from_a_preset_nothing_is_said_of_it(
    arguments: list[str], begun: list[TrainConfig]
) -> None:
    assert "preset" not in succeed("train", *arguments).err
    assert len(begun) == 1


def test_a_run_is_of_what_flags_say_then_of_the_preset_then_of_the_defaults(
    begun: list[TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = Preset((10.0,), 100_000, {"estep.kl_bound": 0.05, "critic.n_step": 3})
    monkeypatch.setattr("cvpo.training.presets.PRESETS", {HOPPER: preset})
    said = succeed("train", HOPPER, "--set", "critic.n_step=4").err
    assert f"preset  {HOPPER}: cost limit 10, 100,000 steps, estep.kl_bound=0.05 (" in said
    succeed("train", HOPPER, "--cost-limit", "3", "--steps", "40000", "--set", "estep.kl_bound=0.2", "--seed", "7")
    succeed("train", HOPPER, "--no-preset")
    default = parse_config(WITHOUT_PRESET.document(HOPPER))
    assert [(c.cost_limits, c.schedule.steps, c.estep.kl_bound, c.critic.n_step, c.seed) for c in begun] == [
        ((10.0,), 100_000, 0.05, 4, 0),
        ((3.0,), 40_000, 0.2, 3, 7),
        ((25.0,), 100_000, default.estep.kl_bound, default.critic.n_step, 0),
    ]


def test_a_run_that_goes_on_takes_no_preset(tmp_path: Path) -> None:
    assert "only --steps goes with it" in cvpo("train", "--resume", tmp_path, "--no-preset").usage_error


def test_presets_are_shown() -> None:
    rows = succeed("presets").out.splitlines()
    assert len(rows) == 1 + len(PRESETS)
    assert rows[0].split() == ["task", "cost", "limit", "steps", "settings"]
    (row,) = succeed("presets", "SafetyPointCircle1-v0").out.splitlines()[1:]
    assert row.split()[:3] == ["SafetyPointCircle1-v0", "25", "300,000"]
    assert row.endswith(" limits 10 times as high at first, up to 50% of the steps (limit.schedule)")
    assert succeed("presets", "SafetyHopperVelocity-v1").out.split()[-4:] == [HOPPER, "25", "500,000", "-"]
    assert {row.split()[0] for row in succeed("presets", "Drone").out.splitlines()[1:]} == {
        "SafetyDroneRun-v0",
        "SafetyDroneCircle-v0",
    }


def test_presets_are_shown_to_machines() -> None:
    shown = json.loads(succeed("presets", "SafetyCarRun-v0", "--json").out)
    settings = PRESETS["SafetyCarRun-v0"].settings
    assert settings["critic.discount"] == 0.98
    assert shown == {"SafetyCarRun-v0": {"cost_limits": [10.0], "steps": 100_000, "settings": settings, "opening": []}}
    shown = json.loads(succeed("presets", "SafetyPointCircle1-v0", "--json").out)["SafetyPointCircle1-v0"]
    assert (shown["cost_limits"], shown["steps"], shown["settings"]) == (
        [25.0],
        300_000,
        {"schedule.updates_per_step": 0.4},
    )
    assert shown["opening"] == [list(point) for point in PRESETS["SafetyPointCircle1-v0"].opening]


def test_a_task_without_a_preset_is_answered_with_the_closest() -> None:
    said = cvpo("presets", "SafetyPointGoal7-v0").sentence
    assert said.startswith("cvpo: There is no preset for SafetyPointGoal7-v0. The closest: SafetyPointGoal")
    assert "cost limit 25, 100,000 steps" in said
