"""From an id to an environment, and the sentence for every id that has none."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from cvpo.envs import check_env, make_env, safety_tasks
from cvpo.errors import EnvError
from tests.envs.toys import Drift, NearWalls


def message(env_id: str, **options: int) -> str:
    with pytest.raises(EnvError) as caught:
        make_env(env_id, **options)  # type: ignore[arg-type]  # the horizon is the only option here
    return str(caught.value)


def test_the_spec_says_what_learning_and_serving_need() -> None:
    spec = make_env("tests.envs.toys:drift", cost_names=("cost", "cost_fuel")).spec
    assert spec.env_id == "tests.envs.toys:drift"
    assert (spec.observation_size, spec.action_size) == (2, 2)
    np.testing.assert_array_equal(spec.action_low, [-1.0, -2.0])
    np.testing.assert_array_equal(spec.action_high, [1.0, 2.0])
    assert spec.action_low.dtype == np.float64
    assert spec.cost_names == ("cost", "cost_fuel")
    assert spec.max_episode_steps == 20
    assert spec.control_period_ms == 50.0


@pytest.mark.parametrize(
    ("dt", "period_ms"),
    [(np.float32(0.25), 250.0), (np.array(0.25), 250.0), (np.inf, None), (np.nan, None), (0, None), ("slow", None)],
)
def test_the_control_period_is_any_number_that_can_be_one(
    dt: object, period_ms: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Drift, "dt", property(lambda _: dt, lambda _, value: None), raising=False)
    assert make_env("tests.envs.toys:drift").spec.control_period_ms == period_ms


def test_an_environment_says_where_in_its_observation_closeness_is() -> None:
    assert make_env("tests.envs.toys:drift").spec.closeness == ()
    assert make_env("tests.envs.toys:NearWalls", max_episode_steps=5).spec.closeness == (0, 1)


@pytest.mark.parametrize("named", [np.array([1]), (np.int64(1),), {1}])
def test_indices_of_closeness_are_any_that_python_takes(named: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NearWalls.metadata, "closeness", named)
    found = make_env("tests.envs.toys:NearWalls", max_episode_steps=5).spec.closeness
    assert found == (1,)
    assert type(found[0]) is int  # a checkpoint keeps it as JSON


@pytest.mark.parametrize("named", [[2], [-1], ["x"], [0.0], None, 1, np.array([0, 2])])
def test_closeness_that_is_no_entry_of_the_observation_is_refused(
    named: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NearWalls.metadata, "closeness", named)
    assert message("tests.envs.toys:NearWalls", max_episode_steps=5) == (
        f'metadata["closeness"] of tests.envs.toys:NearWalls is {named!r}; it must be a list of indices, each from 0 '
        f"to 1."
    )
    finding, *_ = check_env("tests.envs.toys:NearWalls", max_episode_steps=5, steps=5)
    assert 'metadata["closeness"]' in finding.text


@pytest.mark.parametrize("render", [False, True])
def test_the_lidars_of_what_costs_in_a_navigation_task_are_closeness(render: bool) -> None:
    task = make_env("SafetyPointGoal1-v0", render=render)
    assert task.spec.closeness == tuple(range(28, 44))  # of hazards: after 12 senses and the goal, before vases
    seen = task.reset(seed=3)[list(task.spec.closeness)]
    assert 0 < seen.max() < 1
    assert len(make_env("SafetyPointGoal2-v0").spec.closeness) == 32  # its vases cost, too
    assert make_env("SafetyPointCircle1-v0").spec.closeness == ()  # its walls are not seen by lidar
    assert make_env("SafetyHalfCheetahVelocity-v1").spec.closeness == ()


def test_the_default_cost_is_the_total() -> None:
    assert make_env("tests.envs.toys:drift").spec.cost_names == ("cost",)


def test_a_registered_id_keeps_its_horizon_unless_another_is_given() -> None:
    import tests.envs.toys  # noqa: F401 - registers ToyDrift-v0

    assert make_env("ToyDrift-v0").spec.max_episode_steps == 30
    longer = make_env("ToyDrift-v0", max_episode_steps=40)
    longer.reset(seed=0)
    ends = [longer.step(np.zeros(2)).truncated for _ in range(40)]
    assert ends == [False] * 39 + [True]


def test_an_id_that_importing_a_module_registers_is_found_through_the_module() -> None:
    code = "from cvpo.envs import make_env; print(make_env('tests.envs.toys:ToyDrift-v0').spec.max_episode_steps)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "30\n"


def test_a_module_in_the_current_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_robot.py").write_text("from tests.envs.toys import drift as make\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert make_env("my_robot:make").spec.max_episode_steps == 20


def test_an_unknown_id_is_answered_with_the_closest_names() -> None:
    text = message("SafetyPointGaol1-v0")
    assert "There is no environment SafetyPointGaol1-v0" in text
    assert "SafetyPointGoal1-v0" in text


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("Pendulum", "Pendulum-v1"),
        ("qqqqqqqq", "Nothing known is similar"),
        ("no_such_module:Env", "there is no module no_such_module"),
        ("tests.no_such_module:Env", "there is no module tests.no_such_module"),
        ("corridor.py:make", "in the folder of corridor.py: corridor:make."),
        ("./envs/corridor.py:make", "in the folder of corridor.py: corridor:make."),
        ("tests.envs.toys:Drfit", "the module has no Drfit"),
        ("tests.envs.toys:number", "the module has a int as number"),
        ("tests.envs.toys:not_an_environment", "makes dict, not a gymnasium.Env"),
        ("tests.envs.toys:FailsToStart", "cannot be made: OSError: no camera at /dev/video0"),
        ("tests.envs.toys:LeavesAtTheStart", "cannot be made: SystemExit"),
        ("tests.envs.toys:Drift", "has no time limit"),
        ("tests.envs.toys:DiscreteActions", "actions must be a Box"),
        ("tests.envs.toys:UnboundedActions", "each must be finite"),
        ("tests.envs.toys:SequenceObservation", "cannot be flattened"),
    ],
)
def test_what_cannot_be_made_is_one_sentence(env_id: str, says: str) -> None:
    text = message(env_id)
    assert says in text
    assert "\n" not in text


def test_a_horizon_below_one_is_refused() -> None:
    assert "max_episode_steps is 0" in message("tests.envs.toys:Drift", max_episode_steps=0)


def test_a_time_limit_of_its_own_can_be_made_shorter_but_not_longer() -> None:
    assert make_env("tests.envs.toys:drift", max_episode_steps=5).spec.max_episode_steps == 5
    with pytest.raises(EnvError, match=r"max_episode_steps is 21, but .*drift ends its episodes by itself after 20\."):
        make_env("tests.envs.toys:drift", max_episode_steps=21)


def test_a_cost_named_twice_is_refused() -> None:
    with pytest.raises(EnvError, match="name one twice"):
        make_env("tests.envs.toys:drift", cost_names=("cost", "cost"))


def test_importing_the_package_loads_neither_safety_gymnasium_nor_torch() -> None:
    code = "import sys, cvpo.envs; print([m for m in ('torch', 'safety_gymnasium') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_unsuitable_gymnasium_is_refused_with_the_version_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "safety_gymnasium", raising=False)
    monkeypatch.setattr(gymnasium, "__version__", "1.2.0")
    with pytest.raises(EnvError, match=r"does not work with gymnasium 1\.2\.0; install gymnasium==0\.29\.1"):
        safety_tasks.load()


@pytest.mark.parametrize("missing", ["safety_gymnasium", "xmltodict"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from cvpo.envs import make_env\n"
        "from cvpo.errors import EnvError\n"
        "try:\n    make_env('SafetyPointGoal1-v0')\n"
        "except EnvError as error:\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert missing in said.replace("Safety-Gymnasium is", "safety_gymnasium is")
    assert "pip install --no-deps safety-gymnasium==1.0.0" in said
