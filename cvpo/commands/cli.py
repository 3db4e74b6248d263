"""The command line: parses, calls, prints. Each command imports what it needs when it runs."""

import difflib
import json
import math
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from cvpo import __version__
from cvpo.commands import bundle_commands
from cvpo.commands.options import (
    LAST_SEED,
    MODES,
    MOST,
    MOST_CANDIDATES,
    AsJson,
    BundleFolder,
    BundleOut,
    CalibrateMode,
    Candidates,
    Confidence,
    CostNames,
    EnvId,
    EpisodeSteps,
    MissRate,
    Mode,
    RunFolder,
    SignKey,
    TlsCa,
    TlsCertificate,
    TlsKey,
    TrustedKey,
)
from cvpo.commands.settings import limits_of, opening_of, settings_of, taken
from cvpo.defaults import CALIBRATION_EPISODES, CANDIDATES, CONFIDENCE, EVALUATION_EPISODES, MISS_RATE
from cvpo.errors import ConfigError, CvpoError

if TYPE_CHECKING:
    from cvpo.bundle import CalibratedMode, Evaluation
    from cvpo.exporting.release import Released
    from serve.client.channel import Tls

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # it takes [default: 25] for markup, cuts long names of options, and draws boxes into logs
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Learn policies that keep an expected cost under a limit (CVPO), export them, and serve them to robots.",
    epilog="A first look at all of it: cvpo demo",
)

app.add_typer(bundle_commands.app)  # without a name: they stand beside the others


def _cost_limit(text: str) -> float:
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0:  # NaN is not, either
        raise typer.BadParameter(f"{text} is not a cost; give a number of at least 0, or inf for no limit.")
    return limit


def _mode(text: str) -> str:
    if text not in MODES:
        raise typer.BadParameter(f"{text} is no way of choosing actions; give {', '.join(MODES)}.")
    return text


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cvpo {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Only the options that stand before a command."""


@app.command(epilog="Example: cvpo train SafetyPointCircle1-v0 --steps 100000 --cost-limit 25 --seed 0")
def train(
    env: Annotated[
        str | None,
        typer.Argument(metavar="ENV", help="Safety-Gymnasium task, registered Gymnasium id, or module:attribute."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Environment steps.  [default: the preset's, or 100000]")
    ] = None,
    cost_limit: Annotated[
        list[float],
        typer.Option(
            parser=_cost_limit,
            metavar="NUMBER",
            help="Cost that one episode of full length may have on average (of shorter ones, as many as make up its "
            "steps); once per cost; inf for none.  "
            "[default: the preset's, or 25]",
        ),
    ] = [],  # noqa: B006  # typer copies it
    cost: CostNames = [],  # noqa: B006
    seed: Annotated[
        int | None, typer.Option(min=0, max=LAST_SEED, help="Seed of everything random.  [default: 0]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder for the run.  [default: runs/ENV-sSEED]")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with this run instead.")] = None,
    max_episode_steps: EpisodeSteps = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"] | None,
        typer.Option(help="What to learn on; auto takes the faster at the run's sizes.  [default: auto]"),
    ] = None,
    setting: Annotated[
        list[str],
        typer.Option("--set", metavar="GROUP.NAME=VALUE", help="Any other setting, such as estep.kl_bound=0.05."),
    ] = [],  # noqa: B006
    no_preset: Annotated[bool, typer.Option("--no-preset", help="Leave out what cvpo presets shows.")] = False,
) -> None:
    """Learn a policy that keeps the cost of an episode under a limit.

    A task that cvpo presets knows begins from its preset; flags and --set win over it.

    Shows a row per checkpoint: return and cost of its deterministic policy in evaluation episodes. The folder has
    config.json, metrics.jsonl, evaluations.jsonl, residuals.csv, tensorboard/, checkpoints/, resume/ and replay/.
    Ctrl-C saves a checkpoint and stops; --resume goes on after that, and after a crash.
    """
    from cvpo.commands.report import TrainingReport, say
    from cvpo.learning.config import parse_config
    from cvpo.training import trainer
    from cvpo.training.checkpoint import read_config
    from cvpo.training.presets import WITHOUT_PRESET, preset_of

    if resume is not None:
        if env or cost_limit or cost or seed is not None or out or device or setting or max_episode_steps or no_preset:
            raise typer.BadParameter("--resume goes on with a run as it was begun; only --steps goes with it.")
        run, config = resume, read_config(resume)
        with _stop_on_interrupt(run) as signals, TrainingReport(config.cost_limits) as report:
            done = trainer.resume(run, report, lambda: bool(signals), steps)
    else:
        if env is None:
            raise typer.BadParameter("Say what to learn in, such as SafetyPointCircle1-v0, or --resume RUN.")
        preset = (None if no_preset else preset_of(env)) or WITHOUT_PRESET
        chosen = replace(
            preset,
            cost_limits=tuple(cost_limit) or preset.cost_limits,
            steps=steps or preset.steps,
            settings={**preset.settings, **settings_of(cost, max_episode_steps, device, setting)},
        )
        config = parse_config({**chosen.document(env), "seed": seed or 0})
        if preset is not WITHOUT_PRESET and (kept := taken(preset, chosen)):
            say(f"preset  {env}: {kept} (--no-preset leaves it out)")
        run = out or Path("runs") / f"{env.split(':')[-1]}-s{config.seed}"
        with _stop_on_interrupt(run) as signals, TrainingReport(config.cost_limits) as report:
            done = trainer.train(config, run, report, lambda: bool(signals))
    if waits := report.waits():
        say(f"waits   {waits}")
    say(f"run     {run}")
    quoted = shlex.quote(str(run))
    if signals:
        then = f"go on with: cvpo train --resume {quoted}" if done else "nothing was saved"
        say(f"stopped at {done:,} steps; {then}")
        raise typer.Exit(128 + signals[0])
    name = re.sub(r"[^\w.-]", "-", run.name, flags=re.ASCII)  # as bundles may be named
    say(f"next    cvpo export {quoted} --out bundles/{name}/1   or   cvpo plot {quoted}")


@app.command(epilog="Example: cvpo presets Hopper")
def presets(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Id of a task, or part of one.")] = "",
    as_json: AsJson = False,
) -> None:
    """Show what known tasks are trained with.

    A cost limit per episode, the environment steps of a run, and the settings that are not the default.
    """
    from cvpo.training.presets import PRESETS, WITHOUT_PRESET

    found = {name: preset for name, preset in PRESETS.items() if task.split(":")[-1] in name}
    if not found:
        close = difflib.get_close_matches(task, PRESETS, cutoff=0.5)
        hint = f" The closest: {', '.join(close)}." if close else ""
        without = f"cost limit {limits_of(WITHOUT_PRESET)}, {WITHOUT_PRESET.steps:,} steps"
        raise ConfigError(f"There is no preset for {task}.{hint} Without one, a run begins from {without}.")
    if as_json:
        typer.echo(json.dumps({name: asdict(preset) for name, preset in found.items()}))
        return
    typer.echo(f"{'task':30} {'cost limit':>10} {'steps':>9}  settings")
    for name, preset in found.items():
        settings = [f"{key}={value}" for key, value in preset.settings.items()]
        settings += [opening_of(preset)] if preset.opening else []
        typer.echo(f"{name:30} {limits_of(preset):>10} {preset.steps:>9,}  {', '.join(settings) or '-'}")


@app.command(epilog="Example: cvpo evaluate runs/circle --episodes 100   or   cvpo evaluate 127.0.0.1:50051")
def evaluate(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="TARGET", help="A run, a bundle, or HOST:PORT of a policy service.")],
    episodes: Annotated[
        int, typer.Option(min=1, max=MOST, help="Number of episodes, the same ones for each mode.")
    ] = 50,
    mode: Annotated[
        list[str],
        typer.Option(
            parser=_mode,
            metavar="MODE",
            help=f"How actions are chosen: {', '.join(MODES)}; repeatable.  [default: deterministic, then sampled]",
        ),
    ] = [],  # noqa: B006
    candidates: Candidates = CANDIDATES,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Seed of the episodes, which are never those of training.")
    ] = 0,
    policy: Annotated[str, typer.Option(help="Name of the policy, where the target has several.")] = "",
    step: Annotated[
        int | None, typer.Option(help="Take the checkpoint of this step, of a run.  [default: the last]")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Simulator processes.")] = 1,
    video: Annotated[
        Path | None, typer.Option(metavar="FILE.mp4", help="Film one more episode, of the first mode.")
    ] = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Return and cost of a policy in fresh episodes.

    Each mode meets the same ones. Means with 95 % intervals, CVaR 0.9 of cost (the mean of the worst tenth of episodes)
    and the share of episodes over the limit. With --json also the return and cost of every episode.
    """
    from cvpo.commands.report import EvaluationReport, say
    from cvpo.commands.target import evaluate_target, open_target

    modes = cast("tuple[Mode, ...]", tuple(dict.fromkeys(mode)) or ("deterministic", "sampled"))
    if "shielded" not in modes:
        _refuse(context, ["candidates"], "is for --mode shielded")
    tls = _tls(tls_ca, tls_certificate, tls_key)
    opened = open_target(target, policy=policy, steps=step, candidates=candidates, seed=seed, tls=tls)
    if video is not None:  # first: whether it can be made is seen at once
        from cvpo.commands.video import film_episode

        film = film_episode(video, opened, modes[0], seed)
        costs = ", ".join(f"{name} {cost:.2f}" for name, cost in zip(opened.cost_names, film.episode_cost, strict=True))
        say(f"video   {video}: one episode, {modes[0]}: return {film.episode_return:.2f}, {costs}")
    with EvaluationReport() as report:
        results = evaluate_target(opened, modes, episodes, seed=seed, workers=workers, progress=report.progress)
    if as_json:
        document = {
            "target": target,
            "environment": opened.env_id,
            "costs": opened.cost_names,
            "cost_limits": [limit if math.isfinite(limit) else None for limit in opened.cost_limits],
            "seed": seed,
            "evaluations": [result.document() for result in results],
        }
        typer.echo(json.dumps(document))
        return
    typer.echo(f"{target}: {opened.env_id}, {episodes} episodes of each mode, means with 95 % intervals")
    for result in results:
        _print_evaluation(result.evaluation, opened.cost_names, opened.cost_limits)


@app.command(epilog="Example: cvpo export runs/circle --out bundles/circle/1 --select")
def export(
    context: typer.Context,
    run: RunFolder,
    out: BundleOut,
    select: Annotated[
        bool,
        typer.Option(
            "--select",
            help="Take the checkpoint with the highest return among those under the limit (of equals the newest), not "
            "the last.",
        ),
    ] = False,
    step: Annotated[int | None, typer.Option(help="Take the checkpoint of this step.")] = None,
    calibrate: Annotated[bool, typer.Option(help="Measure how far predicted costs can be trusted.")] = True,
    calibration_episodes: Annotated[
        int, typer.Option(min=8, max=MOST, help="Number of episodes to calibrate on, in each mode.")
    ] = CALIBRATION_EPISODES,
    calibrate_mode: CalibrateMode = [],  # noqa: B006
    evaluation_episodes: Annotated[
        int, typer.Option(min=1, max=MOST, help="Number of further episodes, to measure return and cost.")
    ] = EVALUATION_EPISODES,
    confidence: Confidence = CONFIDENCE,
    miss_rate: MissRate = MISS_RATE,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(
            help="Store the networks in fewer bits: smaller files, the same speed, slightly different answers."
        ),
    ] = "float32",
    workers: Annotated[int, typer.Option(min=0, help="Simulator processes.")] = 1,
    sign_key: SignKey = None,
) -> None:
    """Write the policy of a run to a bundle, calibrated.

    The bundle has policy and cost critics as ONNX graphs, a manifest with checksums and with what was measured in
    fresh episodes, and a card for people. Nothing is written if the graphs do not compute what the policy in torch
    computes, or what networks in fewer bits compute is too far from it. The same checkpoint, exported again with the
    same options, gives the same bytes; the time of creation is that of the checkpoint, or SOURCE_DATE_EPOCH.
    """
    from cvpo.bundle import read_private_key
    from cvpo.commands.report import EvaluationReport, say
    from cvpo.exporting.measure import Plan
    from cvpo.exporting.release import release

    if select and step is not None:
        raise typer.BadParameter("--select chooses a checkpoint itself; leave out --step.")
    if not calibrate:
        measured = ["calibration_episodes", "calibrate_mode", "confidence", "miss_rate"]
        _refuse(context, measured, "has no use with --no-calibrate")
    _check_claims(context, "--calibration-episodes", calibration_episodes, confidence, miss_rate)
    plan = Plan(
        calibration_episodes if calibrate else 0,
        evaluation_episodes,
        modes=_calibrated_modes(calibrate_mode),
        confidence=confidence,
        miss_rate=miss_rate,
    )
    key = None if sign_key is None else read_private_key(sign_key)
    with EvaluationReport(announced=True) as report:
        done = release(
            run,
            out,
            select=select,
            steps=step,
            plan=plan,
            precision=precision,
            workers=workers,
            key=key,
            say=say,
            progress=report.progress,
        )
    _print_released(done)


@app.command("calibrate", epilog="Example: cvpo calibrate bundles/circle/1 --out bundles/circle/2 --episodes 400")
def calibrate_again(
    context: typer.Context,
    bundle: BundleFolder,
    out: BundleOut,
    env: Annotated[
        str | None,
        typer.Option(
            metavar="ENV",
            help="Where to measure: any environment with the same spaces and costs.  [default: where it was before]",
        ),
    ] = None,
    episodes: Annotated[
        int, typer.Option(min=8, max=MOST, help="Number of episodes to calibrate on, in each mode.")
    ] = CALIBRATION_EPISODES,
    calibrate_mode: CalibrateMode = [],  # noqa: B006
    evaluation_episodes: Annotated[
        int, typer.Option(min=1, max=MOST, help="Number of further episodes, to measure return and cost.")
    ] = EVALUATION_EPISODES,
    confidence: Confidence = CONFIDENCE,
    miss_rate: MissRate = MISS_RATE,
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="Seed of the episodes; another seed gives others.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Simulator processes.")] = 1,
    trusted_key: TrustedKey = [],  # noqa: B006
    sign_key: SignKey = None,
) -> None:
    """Measure the predictions of a bundle again, into a new one.

    To state more (more episodes, a higher confidence), or to measure where you drive: with --env in a simulator of your
    robot, which the policy was not trained in. The bundle is verified, and its own graphs choose the actions. The
    new one has the same networks, so it acts alike; its forecast, bounds, alarm levels, evaluation, card and golden
    request are new. Modes that it is calibrated for are measured again, too. What the episodes are too few to state is
    told, with the number that it takes.
    """
    from cvpo.bundle import read_private_key, read_trusted_keys
    from cvpo.commands.report import EvaluationReport, say
    from cvpo.exporting.measure import Plan
    from cvpo.exporting.recalibrate import recalibrate

    _check_claims(context, "--episodes", episodes, confidence, miss_rate)
    trusted = read_trusted_keys(trusted_key) if trusted_key else None
    key = None if sign_key is None else read_private_key(sign_key)
    plan = Plan(episodes, evaluation_episodes, seed, _calibrated_modes(calibrate_mode), confidence, miss_rate)
    with EvaluationReport(announced=True) as report:
        done = recalibrate(
            bundle,
            out,
            env_id=env,
            plan=plan,
            workers=workers,
            trusted=trusted,
            key=key,
            say=say,
            progress=report.progress,
        )
    _print_released(done)


def _print_released(done: "Released") -> None:
    from cvpo.commands.report import say

    names = tuple(constraint.name for constraint in done.manifest.constraints)
    limits = tuple(constraint.limit_or_inf for constraint in done.manifest.constraints)
    for evaluation in done.manifest.evaluations:
        typer.echo(f"{done.path}: {evaluation.episodes} fresh episodes, means with 95 % intervals")
        _print_evaluation(evaluation, names, limits)
    say(f"bundle  {done.path}   (read {done.path}/MODEL_CARD.md)")
    say(f"next    cvpo serve {shlex.quote(str(done.path))}")


def _calibrated_modes(texts: list[str]) -> "tuple[CalibratedMode, ...]":
    return tuple(map(_calibrated_mode, dict.fromkeys(texts)))


def _calibrated_mode(text: str) -> "CalibratedMode":
    from cvpo.bundle import CalibratedMode

    mode, _, candidates = text.partition(":")
    if text == "sampled":
        return CalibratedMode(mode="sampled")
    if mode == "shielded" and candidates.isdecimal() and 2 <= int(candidates) <= MOST_CANDIDATES:
        return CalibratedMode(mode="shielded", candidates=int(candidates))
    raise typer.BadParameter(
        f"--calibrate-mode {text}: give sampled, or shielded:K with K candidates, 2 to {MOST_CANDIDATES}; the "
        "deterministic mode is always calibrated."
    )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="Example: cvpo serve bundles",
)
def serve(context: typer.Context) -> None:
    """Answer robots over gRPC; the same as python -m serve."""
    from serve.__main__ import main as serve_main

    raise typer.Exit(serve_main(context.args, "cvpo serve"))


@app.command(
    epilog="Example: cvpo query 127.0.0.1:50051   then   cvpo query 127.0.0.1:50051 --observation '[0.1, 0.2]'"
)
def query(
    context: typer.Context,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT or unix:PATH of a policy service.")],
    observation: Annotated[
        str | None,
        typer.Option(help="JSON list of numbers, or - to read it from stdin. Without it: show what is served."),
    ] = None,
    policy: Annotated[str, typer.Option(help="Name of the policy, where the server has several.")] = "",
    steps_left: Annotated[
        int | None,
        typer.Option(min=1, help="Number of coming steps that predictions speak of.  [default: the policy's window]"),
    ] = None,
    cost_allowed: Annotated[
        list[float],
        typer.Option(help="Cost allowed over these steps; once per constraint.  [default: the limit's share]"),
    ] = [],  # noqa: B006
    mode: Annotated[Mode, typer.Option(help="How actions are chosen.")] = "deterministic",
    candidates: Candidates = CANDIDATES,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the random draws; a deterministic policy has none.")
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.001, help="Longest wait for the answer.")] = 2.0,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Ask a policy service for an action, or for what it serves."""
    from cvpo.commands.query import ask, describe

    if mode != "shielded":
        _refuse(context, ["candidates"], "is for --mode shielded")
    if mode == "deterministic":
        _refuse(context, ["seed"], "is for a draw, with --mode sampled or shielded")
    tls = _tls(tls_ca, tls_certificate, tls_key)
    if observation is None:
        asked = ["policy", "steps_left", "cost_allowed", "mode", "candidates", "seed"]
        _refuse(context, asked, "is for an action; give the --observation that it answers")
        text = describe(address, timeout_seconds, as_json, tls)
    else:
        text = ask(
            address,
            _numbers(sys.stdin.read() if observation == "-" else observation),
            policy=policy,
            steps_left=steps_left,
            cost_allowed=cost_allowed or None,
            mode=mode,
            candidates=candidates,
            seed=seed,
            timeout_seconds=timeout_seconds,
            as_json=as_json,
            tls=tls,
        )
    typer.echo(text)


@app.command(epilog="Example: cvpo loadtest 127.0.0.1:50051 --stream --clients 16 --rate 100 --figure waits.png")
def loadtest(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="HOST:PORT or unix:PATH of a policy service.")],
    policy: Annotated[str, typer.Option(help="Name of the policy, where the server has several.")] = "",
    stream: Annotated[
        bool, typer.Option("--stream/--unary", help="One control stream per client, or one call per question.")
    ] = False,
    clients: Annotated[int, typer.Option(min=1, max=1024, help="Robots that ask at the same time.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="HZ",
            help="Questions a second of each client.  [default: the policy's control rate, or 50]",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to ask.")] = 10.0,
    observation: Annotated[
        str | None, typer.Option(help="JSON list of numbers.  [default: zeros, within the bounds]")
    ] = None,
    timeout_seconds: Annotated[float, typer.Option(min=0.001, max=86_400, help="Longest wait for one answer.")] = 1.0,
    figure: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the histogram, too.")] = None,
    tls_ca: TlsCa = None,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    as_json: AsJson = False,
) -> None:
    """Measure how long a policy service makes robots wait.

    Each client has a connection of its own and asks on a fixed schedule. A question that falls due while the answer
    before it is still out is counted from when it was due, so a server that stalls is late for each question that the
    stall delays. Prints percentiles, the share that came later than the policy's control period or not at all, errors
    by code, and a histogram. Run it beside the robot, not beside the server: the client takes processor time, too.
    """
    from cvpo.commands.loadtest import LoadTest, run_load_test

    report = run_load_test(
        LoadTest(
            address,
            policy=policy,
            way="stream" if stream else "unary",
            clients=clients,
            rate_hz=rate,
            seconds=seconds,
            observation=None if observation is None else _numbers(observation),
            timeout_seconds=timeout_seconds,
            tls=_tls(tls_ca, tls_certificate, tls_key),
        )
    )
    typer.echo(json.dumps(report.document()) if as_json else report.text())
    if figure is not None:
        report.draw(figure)


@app.command(epilog="Example: cvpo plot runs/circle runs/circle-2 --out curves.png")
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path | None, typer.Option(help="Picture to write.  [default: curves.png in the first run]")] = None,
) -> None:
    """Draw return and cost of runs, against the limit."""
    from cvpo.commands.plot import plot_runs

    typer.echo(plot_runs(runs, out or runs[0] / "curves.png"))


@app.command("check-env", epilog="Example: cvpo check-env my_robot.envs:ReachEnv --cost cost_collision")
def check_env(
    env: EnvId,
    cost: CostNames = [],  # noqa: B006
    steps: Annotated[int, typer.Option(min=1, max=MOST, help="Random steps to try.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of actions and episodes.")] = 0,
    max_episode_steps: EpisodeSteps = None,
) -> None:
    """Say what is wrong with an environment."""
    from cvpo.envs import check_env as check

    findings = check(env, cost_names=tuple(cost), max_episode_steps=max_episode_steps, steps=steps, seed=seed)
    for finding in findings:
        typer.echo(f"{finding.severity}: {finding.text}")
    errors = sum(finding.severity == "error" for finding in findings)
    if errors:
        raise CvpoError(f"{env} cannot be trained on as it is; mend what is marked as an error above.")
    typer.echo(f"{env} can be trained on." if not findings else f"{env} can be trained on; see the warnings.")


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for run, bundle and pictures.  [default: runs/demo, runs/demo-2, ...]"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Seed of everything random.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Learn, export, serve and drive a policy in five minutes."""
    from cvpo.commands.demo import run_demo

    result = run_demo(out, seed)
    typer.echo(result.as_json() if as_json else result.as_table())


def _check_claims(context: typer.Context, option: str, episodes: int, confidence: float, miss_rate: float) -> None:
    """Refuse to claim what was asked for where so few episodes cannot show it, before minutes are spent on them."""
    from cvpo.calibration.calibrate import least_episodes

    for_confidence, for_miss_rate = least_episodes(confidence, miss_rate)
    for name, claim, needed in (("confidence", confidence, for_confidence), ("miss_rate", miss_rate, for_miss_rate)):
        if episodes < needed:
            why = f"{claim:g} needs {needed} episodes or more to be claimed, not {episodes}; give {option} {needed}"
            _refuse(context, [name], why)


def _refuse(context: typer.Context, names: list[str], why: str) -> None:
    """Refuse options that were given, for they would be ignored or cannot be kept."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(f"--{name.replace('_', '-')} {why}.")


@contextmanager
def _stop_on_interrupt(run: Path) -> Iterator[list[int]]:
    """Note the first Ctrl-C or SIGTERM in the list that it gives, for the run to look at; the second one interrupts."""
    from cvpo.training.checkpoint import steps_of

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if received:
            again = previous[signal.Signals(number)]
            if callable(again):
                again(number, frame)
            raise KeyboardInterrupt
        received.append(number)
        print("\nstopping after this step, and saving (again to stop at once)", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except KeyboardInterrupt:
        saved = max(steps_of(run, "resume"), default=0)
        then = f"go on from {saved:,} steps with: cvpo train --resume {shlex.quote(str(run))}"
        print(f"stopped at once; {then if saved else 'nothing was saved'}", file=sys.stderr)
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _print_evaluation(evaluation: "Evaluation", names: tuple[str, ...], limits: tuple[float, ...]) -> None:
    """A line for the return, and one for each cost; the columns of several evaluations stand below each other."""
    mode, returns = evaluation.mode, evaluation.episode_return
    typer.echo(f"{mode:<13}  {'return':<12} {returns.mean:>9.2f}  [{returns.low:.2f}, {returns.high:.2f}]")
    for name, cost, worst, limit, over in zip(
        names, evaluation.episode_cost, evaluation.cost_cvar90, limits, evaluation.over_limit_share, strict=True
    ):
        verdict = f"{'under' if cost.mean <= limit else 'OVER'} the limit of {limit:g}; {over:.0%} of episodes over it"
        if math.isinf(limit):
            verdict = "no limit"
        spread = f"[{cost.low:.2f}, {cost.high:.2f}]"
        typer.echo(f"{'':<13}  {name:<12} {cost.mean:>9.2f}  {spread:<18} CVaR 0.9 {worst:>8.2f}  {verdict}")


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> "Tls | None":
    """What a client needs for TLS; None where nothing of it is asked for."""
    from serve.client.channel import Tls

    return Tls(ca, certificate, key) if ca or certificate or key else None


def _numbers(text: str) -> list[float]:
    try:
        values = json.loads(text)
        return [float(value) for value in values]
    except (ValueError, TypeError):
        raise ConfigError("--observation is not a JSON list of numbers, such as [0.1, -2, 3.5].") from None
