"""The checker says what is wrong with an environment, and finds nothing in one that is right."""

import re

import pytest

from cvpo.envs import Finding, check_env


def toy(name: str) -> list[Finding]:
    return check_env(f"tests.envs.toys:{name}", max_episode_steps=20, steps=100)


@pytest.mark.parametrize("env_id", ["tests.envs.toys:drift", "SafetySwimmerVelocity-v1", "SafetyPointCircle2-v0"])
def test_nothing_is_found_in_a_sound_environment(env_id: str) -> None:
    assert check_env(env_id) == []


@pytest.mark.parametrize(
    ("name", "severity", "says"),
    [
        ("NoCost", "error", 'At step 3, info has no cost "cost" (it has cost_fuel, costs)'),
        ("NegativeCost", "error", 'info["cost"] is -0.5 at step 3'),
        ("InfiniteCost", "error", 'info["cost"] is inf at step 3'),
        ("WordCost", "error", "info[\"cost\"] is 'much' at step 3"),
        ("NanObservation", "error", "observation[1] is nan at step 3"),
        ("HugeObservation", "error", "observation[1] is -1.0000000272564224e+16 at step 3"),
        ("HugeReward", "error", "The reward is 1e+25 at step 3"),
        ("HugeCost", "error", 'info["cost"] is 1e+25 at step 3'),
        ("InfiniteReward", "error", "The reward is -inf at step 3"),
        ("NoReward", "error", "The reward is None at step 3"),
        ("WrongShape", "error", "The observation has shape (3,) of float64 at step 3"),
        ("NumberForFlag", "error", "terminated is 0.5 at step 3"),
        ("OldStep", "error", "step returns 4 values"),
        ("OldReset", "error", "reset returns ndarray"),
        ("Raises", "error", "raised RuntimeError: the gripper is stuck at step 3 (toys.py, line 154)"),
        ("RaisesAtReset", "error", "raised RuntimeError: no reset at a reset (toys.py, line "),
        ("ForgetsAKey", "error", "The observation has the keys b at a reset; its space has a, b."),
        ("LargeObservation", "warning", "The observation has 3,072 values, which dense networks see as one row"),
        ("Leaves", "error", "raised SystemExit: the viewer was closed at step 3"),
        ("Unseeded", "error", "The same seed (0) does not give the same episode"),
        ("UnboundedActions", "error", "each must be finite"),
        ("DiscreteActions", "error", "actions must be a Box"),
        ("SequenceObservation", "error", "cannot be flattened"),
        ("FailsToStart", "error", "no camera"),
        ("OutsideItsSpace", "warning", "observation[1] is 11.0 at step 3, outside its space (-10.0 to 10.0)"),
        ("CutShort", "warning", "truncated is True at step 7, after 7 of an episode's 20 steps"),
        ("NeverCloses", "warning", "close() raises OSError: the port is gone"),
        ("FreeOfCost", "warning", 'info["cost"] is 0 at each of 100 random steps'),
        ("Unpicklable", "warning", "cannot be pickled; a resumed run starts its episodes anew"),
        ("ForgetsItsState", "warning", "does not go on as the original"),
        ("Unthawable", "warning", "cannot be restored (RuntimeError: made by another version); a resumed run starts"),
        ("Handle", "warning", "cannot be restored (EnvError"),
        ("KeptHandle", "warning", "does not go on as the original; a resumed run starts its episodes anew"),
        ("Forwards", "warning", "cannot be restored (RecursionError"),
    ],
)
def test_what_is_wrong_is_found(name: str, severity: str, says: str) -> None:
    findings = toy(name)
    assert [finding for finding in findings if finding.severity == severity and says in finding.text], findings


@pytest.mark.parametrize(
    "name",
    [
        "NoCost",
        "NanObservation",
        "Raises",
        "Unseeded",
        "OutsideItsSpace",
        "FreeOfCost",
        "Unpicklable",
        "NeverCloses",
        "DiscreteActions",
    ],
)
def test_nothing_else_is_found(name: str) -> None:
    assert len(toy(name)) == 1


def test_parts_of_a_dict_are_checked_as_an_observation_is() -> None:
    assert toy("DictOfDoubles") == []  # whose spaces are of float32: as good as in a Box
    (finding,) = toy("PartOfAnotherShape")
    assert finding.severity == "error"
    assert "The observation['a'] has shape (2,) of float64 at a reset; its space is Box(" in finding.text


def test_closeness_that_leaves_0_to_1_is_a_warning() -> None:
    # Drift begins near 0 and goes both ways.
    (finding,) = toy("NearWalls")
    assert finding.severity == "warning"
    assert re.match(r'metadata\["closeness"\] names observation\[0\], which goes from -\d\S* to \d\S*;', finding.text)


def test_a_missing_time_limit_is_an_error() -> None:
    (finding,) = check_env("tests.envs.toys:Drift", steps=50)
    assert finding.severity == "error"
    assert "has no time limit" in finding.text


def test_several_things_are_found_at_once() -> None:
    texts = " ".join(finding.text for finding in check_env("tests.envs.toys:UnboundedActions", steps=50))
    assert "has no time limit" in texts
    assert "each must be finite" in texts


def test_everything_that_is_wrong_at_any_step_is_found_at_once() -> None:
    costs = ("cost", "cost_heat")
    findings = check_env("tests.envs.toys:AllWrong", cost_names=costs, max_episode_steps=20, steps=100)
    texts = [finding.text for finding in findings]
    assert len(texts) == 6
    for says in (
        "The observation has shape (3,) of float64 at step 3",
        "observation[1] is nan at step 5",
        "The reward is 'much' at step 3",
        "terminated is array([ True, False]) at step 3",
        'info["cost"] is -0.5 at step 3',
        'At step 1, info has no cost "cost_heat"',
    ):
        assert any(says in text for text in texts), (says, texts)


def test_named_costs_are_the_ones_that_are_checked() -> None:
    assert check_env("tests.envs.toys:drift", cost_names=("cost_fuel",), steps=50) == []
    (finding,) = check_env("tests.envs.toys:drift", cost_names=("cost_heat",), steps=50)
    assert 'no cost "cost_heat" (it has cost, cost_fuel)' in finding.text
