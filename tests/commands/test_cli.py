"""Whatever a user gets wrong: one sentence that says what, where and what to do; no traceback, nothing half-written."""

import contextlib
import resource
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvpo.bundle import read_bundle
from cvpo.training.checkpoint import checkpoint_steps
from tests.command import DRIFT, cvpo, run_process, small, succeed, train

SHORT = ("--calibration-episodes", "8", "--evaluation-episodes", "2", "--workers", "0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "drift"
    train(run, "--cost-limit", "18")
    return run


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    path = run.parent / "bundles" / "drift" / "1"
    succeed("export", run, "--out", path, *SHORT)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Iterator[Path]:
    """Where a run or bundle would go; nothing may be left there, under any name."""
    yield tmp_path / "out" / "new"
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "out"])


@contextlib.contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond that many bytes; writing more fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def alter(path: Path, how: str) -> None:
    """Change one byte in the middle of a file, or cut its last one off."""
    data = bytearray(path.read_bytes())
    if how == "altered":
        data[len(data) // 2] ^= 1
    else:
        data.pop()
    path.write_bytes(data)


@pytest.fixture
def copied(tmp_path: Path, run: Path, bundle: Path) -> Path:
    """A folder with copies of `run` and `bundle`, to be damaged."""
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(bundle, tmp_path / "bundle")
    return tmp_path


# Environments


def test_an_unknown_task_is_answered_with_the_closest_names(new: Path) -> None:
    said = cvpo("train", "SafetyPointCircl2-v0", "--out", new).sentence
    assert said.startswith("cvpo: There is no environment SafetyPointCircl2-v0. The closest: SafetyPointCircle2-v0, ")


def test_an_unknown_module_or_attribute_is_named(new: Path) -> None:
    assert "there is no module nowhere" in cvpo("train", "nowhere:make", "--out", new).sentence
    assert "has no drfit" in cvpo("train", "tests.envs.toys:drfit", "--out", new).sentence


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ("Pendulum-v1", 'info has no cost "cost" (nor any other key cost*)'),
        ("tests.envs.toys:NoCost", 'info has no cost "cost" (it has cost_fuel, costs)'),
    ],
)
def test_an_environment_without_a_cost_is_refused(env: str, reason: str, tmp_path: Path) -> None:
    said = cvpo("train", env, "--max-episode-steps", "20", "--out", tmp_path / "run", *small())
    assert said.code == 1
    assert said.err.endswith(f"{reason}; put it in at every step, or name another cost.\n")
    assert "no checkpoint" in cvpo("evaluate", tmp_path / "run").sentence  # what is left passes for nothing


def test_an_environment_without_a_time_limit_is_refused(new: Path) -> None:
    assert "has no time limit" in cvpo("train", "tests.envs.toys:Drift", "--out", new).sentence


def test_check_env_lists_what_is_wrong_and_fails(new: Path) -> None:
    outcome = cvpo("check-env", "tests.envs.toys:NoCost", "--max-episode-steps", "20", "--steps", "50")
    assert outcome.out.startswith("error: At step 3, info has no cost")
    assert "cannot be trained on as it is" in outcome.sentence
    right = succeed("check-env", DRIFT, "--steps", "50")
    assert right.out.splitlines()[-1].startswith(f"{DRIFT} can be trained on")


# Limits and settings


@pytest.mark.parametrize("limit", ["-5", "abc", "nan", "-inf", ""])
def test_a_limit_is_a_number_of_at_least_zero(limit: str, new: Path) -> None:
    said = cvpo("train", DRIFT, "--cost-limit", limit, "--out", new).usage_error
    assert said == (
        f"Error: Invalid value for '--cost-limit': {limit} is not a cost; "
        "give a number of at least 0, or inf for no limit."
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--cost-limit", "1", "--cost-limit", "2"], f"cost_limits has 2 entries but {DRIFT} reports 1 (cost)"),
        (["--cost", "cost", "--cost", "cost_fuel", "--cost-limit", "2"], "1 cost limits for 2 costs"),
        (["--cost", "cost", "--cost", "cost_fuel"], "1 cost limits for 2 costs"),
    ],
)
def test_the_number_of_limits_is_that_of_the_costs(arguments: list[str], reason: str, new: Path) -> None:
    said = cvpo("train", DRIFT, "--out", new, *arguments, *small()).sentence
    assert reason in said
    assert "ive one" in said


def test_a_cost_that_the_environment_does_not_report_is_named(tmp_path: Path) -> None:
    said = cvpo("train", DRIFT, "--cost", "cost_oil", "--out", tmp_path / "run", *small()).sentence
    assert 'info has no cost "cost_oil" (it has cost, cost_fuel)' in said


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("estep.kl_bond=0.1", "there is no setting estep.kl_bond. The closest: estep.kl_bound"),
        ("nonsense.kl_bound=0.1", "there is no setting nonsense.kl_bound."),
        ("seed.x=1", "there is no setting seed.x."),
        ("environment.env_id=tests.envs.toys:drift", "what is learned in is the argument ENV"),
        ("zzz.zzz=1", "The config.json of any run names them all."),
        ("estep.kl_bound", "write it as GROUP.NAME=VALUE, such as estep.kl_bound=0.05."),
        ("estep.kl_bound=", "write it as GROUP.NAME=VALUE"),
        ("=1", "there is no setting ."),
        ("estep.kl_bound=-1", "estep.kl_bound: Input should be greater than 0 (got -1)."),
        ("estep.kl_bound=big", "estep.kl_bound: Input should be a valid number"),
        ("estep.constraint=nonsense", "estep.constraint: Input should be 'measured' or 'critic' (got 'nonsense')."),
        ("network.hidden=[1]", "network.hidden: Input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, reason: str, new: Path) -> None:
    assert reason in cvpo("train", DRIFT, "--out", new, "--set", setting).sentence


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("network.hidden=100000000000", "network.hidden: Input should be less than 2147483648"),
        ("network.hidden=1000000", "Give a smaller network.hidden, network.reward_heads or network.cost_heads."),
        ("estep.samples=100000000000", "estep.samples: Input should be less than 2147483648"),
        ("replay.batch_size=1000000000", "replay.batch_size is 1000000000, over replay.capacity 1000000;"),
        ("limit.window_episodes=1e300", "limit.window_episodes: Input should be less than or equal to 1000000000"),
        ("schedule.updates_per_step=1e308", "schedule.updates_per_step: Input should be less than or equal to 1000000"),
        ("environment.num_envs=2000000", "environment.num_envs: Input should be less than or equal to 100000"),
        ("compute.threads=100000", "compute.threads: Input should be less than or equal to 1024"),
        ("schedule.steps=1000000000000000000000000000000", "schedule.steps: Input should be less than 2147483648"),
    ],
)
def test_an_absurd_size_is_answered_with_its_setting(setting: str, reason: str, new: Path) -> None:
    assert reason in cvpo("train", DRIFT, "--out", new, *small(), "--set", setting).sentence


def test_an_update_that_finds_no_memory_names_the_settings_of_its_size(tmp_path: Path) -> None:
    said = cvpo("train", DRIFT, "--out", tmp_path, *small(estep__samples="2000000000")).err.splitlines()[-1]
    assert said.startswith("cvpo: There is no memory for an update: ")
    assert "Give a smaller replay.batch_size, estep.samples, network.hidden, " in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "run", "--seed", "9223372036854775808"),
        ("evaluate", "run", "--episodes", "1000000000000"),
        ("evaluate", "run", "--candidates", "10000000000"),
        ("calibrate", "bundle", "--out", "x", "--seed", "100000000000000000000"),
        ("export", "run", "--out", "x", "--calibrate-mode", "shielded:100000000000"),
    ],
)
def test_an_absurd_number_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert arguments[-2] in cvpo(*arguments).usage_error


@pytest.mark.parametrize("arguments", [("--steps", "0"), ("--steps", "many"), ("--seed", "-1"), ("--nonsense",)])
def test_a_wrong_option_is_a_usage_error(arguments: tuple[str, ...], new: Path) -> None:
    said = cvpo("train", DRIFT, "--out", new, *arguments).usage_error
    assert arguments[0] in said


def test_a_command_without_what_it_needs_says_what() -> None:
    assert "or --resume RUN" in cvpo("train").usage_error
    assert "TARGET" in cvpo("evaluate").usage_error
    assert "--out" in cvpo("export", "run").usage_error
    assert "leave out --step" in cvpo("export", "run", "--out", "x", "--select", "--step", "5").usage_error
    assert "REPOSITORY" in cvpo("serve").usage_error
    assert "Did you mean 'train'?" in cvpo("trian").usage_error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["export", "run", "--out", "x", "--no-calibrate", "--calibration-episodes", "9"], "with --no-calibrate"),
        (
            ["export", "run", "--out", "x", "--calibrate-mode", "shielded:1"],
            "give sampled, or shielded:K with K candidates",
        ),
        (["export", "run", "--out", "x", "--no-calibrate", "--calibrate-mode", "sampled"], "with --no-calibrate"),
        (["export", "run", "--out", "x", "--no-calibrate", "--confidence", "0.8"], "--confidence has no use with --no"),
        (["export", "run", "--out", "x", "--no-calibrate", "--miss-rate", "0.1"], "--miss-rate has no use with --no-"),
        (["query", "127.0.0.1:1", "--policy", "goal"], "--policy is for an action; give the --observation that"),
        (["query", "127.0.0.1:1", "--cost-allowed", "3"], "--cost-allowed is for an action;"),
        (["query", "127.0.0.1:1", "--observation", "[1]", "--candidates", "4"], "--candidates is for --mode shielded."),
        (["evaluate", "run", "--candidates", "4"], "--candidates is for --mode shielded."),
        (["query", "127.0.0.1:1", "--observation", "[1]", "--seed", "4"], "--seed is for a draw, with --mode sampled"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments: list[str], reason: str) -> None:
    assert reason in cvpo(*arguments).usage_error


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--confidence", "1"), "--confidence"),
        (("--miss-rate", "0"), "--miss-rate"),
        (
            ("--confidence", "0.99"),
            "--confidence 0.99 needs 198 episodes or more to be claimed, not 100; give --calibration-episodes 198.",
        ),
        (
            ("--miss-rate", "0.01", "--calibration-episodes", "200"),
            "--miss-rate 0.01 needs 374 episodes or more to be claimed, not 200; give --calibration-episodes 374.",
        ),
    ],
)
def test_what_cannot_be_claimed_is_not_exported(arguments: tuple[str, ...], reason: str) -> None:
    assert reason in cvpo("export", "run", "--out", "x", *arguments).usage_error


def test_a_bundle_states_the_confidence_and_miss_rate_that_were_asked_for(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "drift" / "1"
    claims = ("--confidence", "0.75", "--miss-rate", "0.25", "--calibration-episodes", "14")
    succeed("export", run, "--out", path, *claims, "--evaluation-episodes", "2", "--workers", "0")
    read = read_bundle(path)
    calibration = read.manifest.calibration
    assert calibration is not None
    assert (calibration.confidence, calibration.miss_rate) == (0.75, 0.25)
    assert not any("No bound" in sentence for sentence in calibration.not_claimed)
    assert "`cost_upper` with probability 0.75 or more" in read.model_card
    assert "at most 25% of the sessions over budget pass without a flag" in read.model_card
    said = succeed("inspect", path).out
    assert "(claimed 75%)" in said
    assert "(meant 25%)" in said


def test_a_policy_is_exported_in_fewer_bits_and_calibrated_again_as_it_is(run: Path, tmp_path: Path) -> None:
    one, same, again = (tmp_path / place / "drift" / "1" for place in ("one", "same", "again"))
    for path in (one, same):
        succeed("export", run, "--out", path, "--precision", "int8", "--no-calibrate", *SHORT[2:])
        assert {file.name: file.read_bytes() for file in path.iterdir()} == {
            file.name: file.read_bytes() for file in one.iterdir()
        }
    succeed("calibrate", one, "--out", again, "--episodes", "12", "--evaluation-episodes", "2", "--workers", "0")
    stored = read_bundle(one).manifest.stored_weights
    assert stored is not None
    assert read_bundle(again).manifest.stored_weights == stored
    assert "with weights in int8 on " in succeed("verify", again).out
    assert "--precision" in cvpo("export", run, "--out", tmp_path / "x", "--precision", "int4").usage_error


# Folders


def test_a_folder_in_use_is_not_trained_into(run: Path) -> None:
    said = cvpo("train", DRIFT, "--out", run, *small()).sentence
    assert said == f"cvpo: {run} is not empty. Choose another --out, or go on with it: cvpo train --resume {run}"


def test_after_a_failure_at_the_first_step_the_corrected_command_just_works(tmp_path: Path) -> None:
    begin = ("--max-episode-steps", "20", "--steps", "600", "--out", str(tmp_path), *small())
    assert "the gripper is stuck" in cvpo("train", "tests.envs.toys:Raises", *begin).err
    two_costs = ("--cost", "cost", "--cost", "cost_fuel", "--cost-limit", "5", "--cost-limit", "9")
    said = succeed("train", "tests.envs.toys:Drift", *begin, *two_costs).err
    assert f"{tmp_path} has a run that saved nothing; this one begins in its place" in said
    assert "cost_residual/cost_fuel" in (tmp_path / "residuals.csv").read_text().splitlines()[0]


def test_a_bundle_is_never_replaced(run: Path, bundle: Path) -> None:
    before = read_bundle(bundle)
    said = cvpo("export", run, "--out", bundle, *SHORT).sentence
    assert said == f"cvpo: {bundle} already exists, and bundles are immutable. Choose another --out."
    assert read_bundle(bundle) == before


@pytest.mark.parametrize("place", ["/proc/new", "{file}/new"])
def test_a_folder_that_cannot_be_written_is_named(place: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = place.format(file=tmp_path / "file")
    assert f"Cannot write {out}" in cvpo("train", DRIFT, "--out", out, *small()).sentence
    said = cvpo("export", run, "--out", out, *SHORT)
    assert f"Cannot write {out}" in said.err.splitlines()[-1]
    assert "Cannot write the picture" in cvpo("plot", run, "--out", f"{out}.png").sentence


def test_export_does_not_measure_a_policy_for_a_folder_that_cannot_be_written(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = cvpo("export", run, "--out", tmp_path / "file" / "new").sentence  # nothing before it: no rollouts were made
    assert "no folder that you may write to" in said


def test_a_full_disk_stops_training_and_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with disk_with_room_for(8_000):  # enough for the config, too little for a policy
        said = cvpo("train", DRIFT, "--steps", "600", "--out", run, *small())
    assert said.code == 1
    assert "Cannot write" in said.err.splitlines()[-1]
    assert "Free space" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert not any(path for path in run.rglob(".*")), "a temporary folder was left"
    assert "has no checkpoint yet" in cvpo("evaluate", run).sentence
    assert succeed("train", "--resume", run).code == 0  # when there is room again


def test_a_full_disk_keeps_the_checkpoints_before_it(copied: Path) -> None:
    run = copied / "run"
    state = next(run.glob("resume/*/state.pt"))
    with disk_with_room_for(state.stat().st_size - 1):  # the next state is larger
        said = cvpo("train", "--resume", run, "--steps", "1200")
    assert said.code == 1
    assert "Cannot write" in said.err.splitlines()[-1]
    assert state.exists()
    assert succeed("train", "--resume", run, "--steps", "1200").code == 0  # when there is room again
    assert checkpoint_steps(run)[-1] == 1200


def test_a_full_disk_leaves_no_half_bundle_and_no_half_picture(run: Path, new: Path) -> None:
    with disk_with_room_for(5_000):
        exported = cvpo("export", run, "--out", new, *SHORT)
        plotted = cvpo("plot", run, "--out", new.with_suffix(".png"))
    assert exported.code == 1
    assert exported.err.splitlines()[-1].startswith("cvpo: Cannot write ")
    assert "Traceback" not in exported.err
    assert "Cannot write the picture" in plotted.sentence


@pytest.mark.parametrize("command", [["train", "--resume"], ["evaluate"], ["plot"], ["export", "--out", "x"]])
def test_a_folder_that_is_no_run_is_named(command: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert str(folder) in cvpo(*command, folder).sentence


def test_resume_goes_on_as_the_run_was_begun(run: Path) -> None:
    for option in (["--cost-limit", "3"], ["--seed", "0"], ["--out", "x"], ["--set", "estep.kl_bound=1"]):
        assert "only --steps goes with it" in cvpo("train", "--resume", run, *option).usage_error
    assert "complete at 600 steps" in cvpo("train", "--resume", run).sentence


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(run: Path) -> None:
    for command in (("evaluate", run), ("export", run, "--out", "x")):
        said = cvpo(*command, "--step", "7").sentence
        assert f"no checkpoint at 7 steps (there are: {', '.join(map(str, checkpoint_steps(run)))})" in said


# Damage


@pytest.mark.parametrize("how", ["altered", "cut short"])
@pytest.mark.parametrize("name", ["policy.pt", "sha256.json"])
def test_a_damaged_checkpoint_is_neither_evaluated_nor_exported(name: str, how: str, copied: Path) -> None:
    run = copied / "run"
    steps = checkpoint_steps(run)
    commands = (("evaluate", run), ("export", run, "--out", copied / "new"))
    alter(run / "checkpoints" / "0000000600" / name, how)
    for command in commands:
        said = cvpo(*command).sentence
        assert f"{run}/checkpoints/0000000600 was cut short or altered" in said
        assert said.endswith(f"the last that is whole with --step {steps[-2]}.")
    for other in steps[:-1]:
        alter(run / "checkpoints" / f"{other:010d}" / name, how)
    for command in commands:
        assert cvpo(*command).sentence.endswith("No other is whole.")
    assert not (copied / "new").exists()


@pytest.mark.parametrize("how", ["altered", "cut short"])
@pytest.mark.parametrize("name", ["state.pt", "environments.bin", "sha256.json"])
def test_training_goes_on_from_the_point_before_a_damaged_one(name: str, how: str, copied: Path) -> None:
    alter(copied / "run" / "resume" / "0000000600" / name, how)
    said = succeed("train", "--resume", copied / "run", "--steps", "700").err
    assert "resume/0000000600 was cut short or altered" in said
    assert "going on from 400 steps" in said
    shutil.rmtree(copied / "run" / "resume" / "0000000600")
    for path in (copied / "run" / "resume").rglob(name):
        alter(path, how)
    said = cvpo("train", "--resume", copied / "run", "--steps", "800").sentence
    assert "no resume point before it is intact" in said


@pytest.mark.parametrize("how", ["altered", "cut short"])
@pytest.mark.parametrize("name", ["policy.onnx", "critic.onnx", "manifest.json", "MODEL_CARD.md"])
def test_a_damaged_bundle_is_not_evaluated(name: str, how: str, copied: Path) -> None:
    alter(copied / "bundle" / name, how)
    outcome = cvpo("evaluate", copied / "bundle")
    assert outcome.code == 1
    said = outcome.err.splitlines()[-1]
    assert said.startswith(f"cvpo: Nothing to serve: {copied / 'bundle'} is refused. ")
    assert name in said
    assert said.endswith(("Export again.", "stays unserved.", "Export the bundle again."))
    assert "Traceback" not in outcome.err


def test_a_damaged_bundle_is_refused_as_a_server_refuses_it(copied: Path) -> None:
    succeed("verify", copied / "bundle")
    alter(copied / "bundle" / "policy.onnx", "altered")
    assert "policy.onnx does not match its SHA-256" in cvpo("verify", copied / "bundle").sentence
    served = run_process("serve", copied / "bundle", "--address", "127.0.0.1:0")
    assert served.code == 1
    assert served.out == ""
    assert "policy.onnx does not match its SHA-256" in served.err.splitlines()[-1]


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_a_line_cut_short_by_a_crash_is_passed_over(name: str, copied: Path) -> None:
    run = copied / "run"
    with (run / name).open("a") as file:
        file.write('{"steps": 7')
    succeed("plot", run)
    succeed("export", run, "--select", "--out", copied / "new", "--no-calibrate", *SHORT[2:])
    succeed("train", "--resume", run, "--steps", "700")


@pytest.mark.parametrize("name", ["metrics.jsonl", "evaluations.jsonl"])
def test_altered_records_are_noticed(name: str, copied: Path) -> None:
    run = copied / "run"
    with (run / name).open("a") as file:
        file.write("nonsense\n")
    for command in (("plot", run), ("train", "--resume", run, "--steps", "700")):
        assert f"{run / name} was altered: a line of it is no record." in cvpo(*command).sentence


def test_a_changed_config_is_noticed(copied: Path) -> None:
    config = copied / "run" / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"kl_bound": 0.1', '"kl_bound": 0.2'))
    assert "was changed since the run began" in cvpo("train", "--resume", copied / "run", "--steps", "700").sentence
    config.write_text(text[:100])
    said = cvpo("train", "--resume", copied / "run", "--steps", "700").sentence
    assert f"{config} cannot be read" in said
    assert "Put it back as it was" in said
    succeed("evaluate", copied / "run", "--episodes", "1", "--workers", "0")


# Services


def test_a_port_in_use_is_named(bundle: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        outcome = run_process("serve", bundle, "--address", address)
    assert outcome.code == 1
    assert outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert last == f"Cannot listen on {address}: Address already in use. Choose another --address."
    assert "Traceback" not in outcome.err


def test_nothing_to_serve_is_said() -> None:
    assert (
        run_process("serve", "/nowhere").sentence == "/nowhere is not a folder. Name a bundle or a folder of bundles."
    )


@pytest.mark.parametrize("command", [["query"], ["query", "--observation", "[1, 2]"], ["evaluate"]])
def test_a_server_that_is_not_there_is_named(command: list[str]) -> None:
    with socket.socket() as unanswered:  # bound, but nobody listens
        unanswered.bind(("127.0.0.1", 0))
        address = "127.0.0.1:{1}".format(*unanswered.getsockname())
        said = cvpo(*command, address).sentence
    assert said.startswith(f"cvpo: No server answers at {address}; start one with `cvpo serve BUNDLES`")


def test_a_target_that_is_nothing_is_said() -> None:
    said = cvpo("evaluate", "nonsense").sentence
    assert said == "cvpo: nonsense is neither a run nor a bundle, nor HOST:PORT of a policy service."


@pytest.mark.parametrize("text", ["[1,", "5", '{"a": 1}', '["a"]', "[[1]]", "null", ""])
def test_an_observation_is_a_list_of_numbers(text: str) -> None:
    said = cvpo("query", "127.0.0.1:1", "--observation", text).sentence
    assert said == "cvpo: --observation is not a JSON list of numbers, such as [0.1, -2, 3.5]."
