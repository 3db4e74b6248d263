"""The model card: the manifest for people, with what the figures mean and what they do not."""

from collections.abc import Mapping, Sequence

from cvpo.bundle import (
    Calibration,
    CalibrationResult,
    Constraint,
    Evaluation,
    Interval,
    Manifest,
    ModeResult,
    ObservationStatistics,
    Provenance,
    StoredWeights,
)

_HEADER = (
    "| constraint | alarm level | cost within bound | in windows | of all that is left | calibration error "
    "| sessions over budget missed | of those with the limit for budget | over budget too soon to announce "
    "| steps before it, median | steps flagged within budget | predicted / realized cost of an episode |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def model_card(manifest: Manifest, graph_bytes: Mapping[str, int]) -> str:
    """The card in Markdown.

    Args:
        manifest: all that is in it, but for
        graph_bytes: the sizes of the graphs, by file name.
    """
    source = manifest.provenance
    period = f"{manifest.control_period_ms:g} ms" if manifest.control_period_ms else "not stated by the environment"
    sections = [
        f"# {manifest.name}, version {manifest.version}",
        f"A control policy for `{source.environment}`, learned by constrained variational policy optimization (CVPO) "
        "to earn reward while the expected cost of an episode stays under a limit.",
        "**It is no safety-rated function (ISO 13849, IEC 61508). Keep an independent stop that works without it.**",
        "## What it takes and gives",
        "\n".join(
            [
                f"- observation: {manifest.observation.size} values; action: {manifest.action.size} values in "
                f"environment units, from {_list(manifest.action.low)} to {_list(manifest.action.high)}",
                f"- control period: {period}; an episode has {manifest.horizon_steps} steps",
                f"- safe action: {_list(manifest.safe_action)}, as near to zero as the bounds admit; whether that is "
                "safe on your robot is yours to say",
                f"- fingerprint: `{manifest.fingerprint}`",
            ]
        ),
        "## Where it comes from",
        f"Chosen: {source.selection.rstrip('.')}. Trained for {source.steps:,} steps with seed {source.seed}; exported "
        f"{source.created} with {', '.join(f'{name} {version}' for name, version in sorted(source.packages.items()))}. "
        "The full configuration is in `manifest.json`.",
        *_measured_again(source),
        "## What it takes to run",
        _stored(manifest.stored_weights),
        f"{' and '.join(f'`{name}` has {size:,} bytes' for name, size in graph_bytes.items())}. How long a call takes "
        "depends on the machine: `cvpo verify` of this folder measures it there.",
        "## How good it is",
        *_evaluations(manifest),
        "## How far its predictions can be trusted",
        *_predictions(manifest.calibration, manifest.constraints),
        "## When an observation is outside of what was seen",
        _shift(manifest.observation_statistics),
        "## What a predicted cost means, and what not",
        f"Every prediction speaks of one event: the undiscounted cost of the next `steps_left` steps exceeds "
        f"`cost_allowed`. A request that names neither is judged over {manifest.window_steps} steps and the limit's "
        "share of them. `cost_value` is the discounted mean that training constrains, and nothing is decided by it. "
        "`cost_to_go` is a mean: single episodes cost more.",
        "The figures hold for episodes like those they were measured on: the same simulator, the same starts, the same "
        "way of choosing actions, and this policy going on afterwards. They say nothing of another robot, of actions "
        "from elsewhere, or of situations outside what training saw, which `shift_score` measures and "
        "`calibration_status` reports. No flag is no promise that nothing happens.",
    ]
    return "\n\n".join(sections) + "\n"


def _stored(weights: StoredWeights | None) -> str:
    if weights is None:
        return "Its networks are stored in float32, as they learned."
    return (
        f"Its networks are stored in {weights.precision} and computed with in float32. Compared with the networks as "
        f"they learned, an action differs by up to {weights.action_difference:.2%} of its range, and a value by up to "
        f"{weights.value_difference:.2%} of the largest, on real observations; {weights.most_difference:.0%} is "
        "allowed. All figures below are of the networks as they are stored."
    )


def _measured_again(source: Provenance) -> list[str]:
    parts = []
    if source.calibrated_from:
        parts.append(
            "Its networks are those of an earlier bundle, measured again: the SHA-256 of that one's `manifest.json` is "
            f"`{source.calibrated_from}`."
        )
    if source.measured_in:
        parts.append(f"**All figures below were measured in `{source.measured_in}`**, which it was not trained in.")
    return [" ".join(parts)] if parts else []


def _evaluations(manifest: Manifest) -> list[str]:
    if not manifest.evaluations:
        return ["It was not evaluated."]
    rows = [_evaluation(evaluation, manifest.constraints) for evaluation in manifest.evaluations]
    return [
        "On episodes that nothing was chosen or fitted on, means with 95 % intervals. CVaR 0.9 is the mean of the "
        "worst tenth of the episodes.",
        "\n".join(["| mode | episodes | return | cost of an episode |", "|---|---|---|---|", *rows]),
    ]


def _evaluation(evaluation: Evaluation, constraints: tuple[Constraint, ...]) -> str:
    costs = "; ".join(
        f"{constraint.name} {cost} {_against(cost, constraint)}, CVaR 0.9 {worst:.4g}, {over:.0%} of episodes over"
        if constraint.cost_limit is not None
        else f"{constraint.name} {cost}, no limit, CVaR 0.9 {worst:.4g}"
        for constraint, cost, worst, over in zip(
            constraints, evaluation.episode_cost, evaluation.cost_cvar90, evaluation.over_limit_share, strict=True
        )
    )
    return f"| {evaluation.mode} | {evaluation.episodes} | {evaluation.episode_return} | {costs} |"


def _against(cost: Interval, constraint: Constraint) -> str:
    assert constraint.cost_limit is not None  # asked of limited ones only
    verdict = "under" if cost.mean <= constraint.cost_limit else "**over**"
    return f"{verdict} the limit of {constraint.cost_limit:g}"


def _predictions(calibration: Calibration | None, constraints: tuple[Constraint, ...]) -> list[str]:
    if calibration is None:
        return [
            "Nothing was measured. `cost_to_go` assumes that cost is spread evenly over an episode; there is no bound, "
            "the violation probability is 1 wherever anything is limited, and every answer is flagged."
        ]
    modes = ", ".join(map(str, calibration.modes))
    episodes = ", ".join(
        f"{count} to {'set alarm levels' if use == 'alarm' else use}" for use, count in calibration.episodes.items()
    )
    rows = [_result(result, level) for result, level in zip(calibration.results, calibration.alarm_levels, strict=True)]
    return [
        f"{calibration.method} Measured on {sum(calibration.episodes.values())} {calibration.modes[0]} episodes "
        f"({episodes})." + (f" It holds in these modes: {modes}." if calibration.other_modes else ""),
        f"Claimed{', except where the episodes were too few (below)' if calibration.not_claimed else ''}: for a fresh "
        "episode and a random one of its steps, the cost of the next steps is at most "
        f"`cost_upper` with probability {calibration.confidence:g} or more, where those steps are a window of "
        f"{constraints[0].window_steps} or all that are left. Alarm levels are meant to let at most "
        f"{calibration.miss_rate:.0%} of the sessions over budget pass without a flag {calibration.lead_steps} steps "
        "before, or earlier, of all sessions that are not over it sooner than that, with budgets from a quarter of the "
        "limit to twice the limit. Low budgets are hardly missed and high ones more often: what is missed of sessions "
        "with the limit for budget stands beside it.",
        *(f"**Not claimed.** {sentence}" for sentence in calibration.not_claimed),
        "On test episodes, with 95 % intervals in brackets, by resampling the episodes (that of the calibration error "
        "lies high, for chance adds to it):",
        "\n".join([*_HEADER, *rows]),
        *(_other_mode(other, calibration.alarm_levels) for other in calibration.other_modes),
    ]


def _other_mode(other: ModeResult, levels: tuple[float, ...]) -> str:
    rows = [_result(result, level) for result, level in zip(other.results, levels, strict=True)]
    budget = ", each with the limit for its budget" if other.mode.mode == "shielded" else ""
    return "\n".join([f"On {other.episodes['test']} test episodes, {other.mode}{budget}:\n", *_HEADER, *rows])


def _shift(statistics: ObservationStatistics) -> str:
    score = f"SHIFTED is reported where `shift_score` is over {statistics.shift_threshold:.3g}; "
    if statistics.shift_false_alarm_rate is None:
        return f"{score}nothing is claimed of how often that happens without a reason."
    return (
        f"{score}of a fresh episode of the policy, as it was calibrated, at most "
        f"{statistics.shift_false_alarm_rate:.3g} of the steps are over it, in expectation. The threshold was set on "
        f"{statistics.shift_episodes} episodes; with more of them the claim is tighter. {_frozen(statistics)}A single "
        "observation does not show that it is late."
    )


def _frozen(statistics: ObservationStatistics) -> str:
    counted = [steps for steps in statistics.frozen_after_steps if steps is not None]
    if not counted:
        return ""
    return (
        f"In a session it is also reported where one of {len(counted)} values is frozen: exactly the same for more "
        f"than {_range(counted)} steps, longer than in any of these episodes. "
    )


def _range(steps: Sequence[int]) -> str:
    return f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"


def share_of(result: CalibrationResult, name: str) -> str:
    """A share that a result has by this name, with its interval."""
    share, interval = getattr(result, name), result.intervals.get(name)
    if share is None:
        return "there were none"
    return f"{share:.1%}" if interval is None else f"{share:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _result(result: CalibrationResult, level: float) -> str:
    alone = result.limit_missed_share
    cells = [
        result.constraint,
        f"{level:.3g}",
        share_of(result, "coverage"),
        share_of(result, "window_coverage"),
        share_of(result, "rest_coverage"),
        share_of(result, "calibration_error"),
        share_of(result, "missed_share"),
        "there were none" if alone is None else f"{alone.mean:.1%} ({alone.low:.1%} to {alone.high:.1%})",
        share_of(result, "too_soon_share"),
        _steps(result.lead_steps_median),
        share_of(result, "flagged_share"),
        f"{result.cost_to_go_mean:.3g} / {result.episode_cost_mean:.3g}",
    ]
    return f"| {' | '.join(cells)} |"


def _steps(value: float | None) -> str:
    return "no flag" if value is None else f"{value:.0f}"


def _list(values: tuple[float | None, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values if value is not None) + "]"
