"""A bundle in words, for a terminal."""

import re
from collections.abc import Sequence

from cvpo.bundle import (
    Bundle,
    Calibration,
    Constraint,
    Evaluation,
    ObservationStatistics,
    Provenance,
    StoredWeights,
)
from cvpo.exporting.card import share_of
from cvpo.exporting.difference import Change, Difference

_MOST_CHANGES = 60
_WIDTH = 60
_OF_CONSTRAINT = re.compile(
    r"\b(?:constraints|results|alarm_levels|episode_cost|cost_cvar90|over_limit_share)\[(\d+)\]"
)


def plain(text: object) -> str:
    """Text of a bundle, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in str(text))


def describe(bundle: Bundle) -> str:
    """All that a person wants to know before serving it."""
    manifest, source = bundle.manifest, bundle.manifest.provenance
    period = f"{manifest.control_period_ms:g} ms" if manifest.control_period_ms else "not stated"
    lines = [
        f"{plain(manifest.name)}, version {manifest.version}   {plain(source.environment)}",
        _row("signed", _signed(bundle)),
        _row("trained", f"{source.steps:,} steps, seed {source.seed}; {plain(source.selection)}"),
        _row("created", f"{plain(source.created)} with cvpo {plain(source.packages.get('cvpo', '?'))}"),
        *_measured_again(source),
        _row("takes", f"{manifest.observation.size} values observed; {len(manifest.constraints)} constraints"),
        _row("gives", f"{manifest.action.size} values of action, each {period}; fingerprint {manifest.fingerprint}"),
        _row("episode", f"{manifest.horizon_steps} steps; a window is {manifest.window_steps}"),
        "",
        *_evaluations(manifest.evaluations, manifest.constraints),
        "",
        *_calibration(manifest.calibration, manifest.constraints),
        _row("shifted", _shift(manifest.observation_statistics)),
        "",
        _row("weights", _stored(manifest.stored_weights)),
        _row("files", ", ".join(f"{name} {entry.bytes:,} B" for name, entry in manifest.files.items())),
    ]
    return "\n".join(lines)


def _row(name: str, text: str) -> str:
    return f"{name:<11} {text}"


def _measured_again(source: Provenance) -> list[str]:
    lines = []
    if source.calibrated_from:
        lines.append(_row("again", f"calibrated; the manifest before has SHA-256 {plain(source.calibrated_from)}"))
    if source.measured_in:
        lines.append(_row("measured in", f"{plain(source.measured_in)}, which it was not trained in"))
    return lines


def _signed(bundle: Bundle) -> str:
    if bundle.signer is not None:
        return f"with the key of {bundle.signer}"
    return "yes; by whom is told by `cvpo verify --trusted-key`" if bundle.signed else "no"


def _evaluations(evaluations: tuple[Evaluation, ...], constraints: tuple[Constraint, ...]) -> list[str]:
    if not evaluations:
        return [_row("evaluated", "no")]
    lines = []
    for evaluation in evaluations:
        lines.append(_row("evaluated", f"{evaluation.mode}, {evaluation.episodes} episodes, means with 95 % intervals"))
        lines.append(_row("  return", str(evaluation.episode_return)))
        for constraint, cost, worst, over in zip(
            constraints, evaluation.episode_cost, evaluation.cost_cvar90, evaluation.over_limit_share, strict=True
        ):
            against, share = "no limit", ""
            if constraint.cost_limit is not None:
                verdict = "under" if cost.mean <= constraint.cost_limit else "OVER"
                against, share = f"{verdict} the limit of {constraint.cost_limit:g}", f"; {over:.0%} of episodes over"
            lines.append(_row("  cost", f"{plain(constraint.name)} {cost}, {against}; CVaR 0.9 {worst:.4g}{share}"))
    return lines


def _calibration(calibration: Calibration | None, constraints: tuple[Constraint, ...]) -> list[str]:
    if calibration is None:
        return [_row("calibrated", "NO: nothing backs its predicted costs, and every answer is flagged")]
    modes = ", ".join(map(str, calibration.modes))
    episodes = ", ".join(f"{count} {plain(use)}" for use, count in calibration.episodes.items())
    lines = [_row("calibrated", f"{modes}; episodes: {episodes}")]
    for result, level in zip(calibration.results, calibration.alarm_levels, strict=True):
        alone = result.limit_missed_share
        missed = "none to miss" if result.missed_share is None else f"{share_of(result, 'missed_share')} missed"
        missed += "" if alone is None else f", with the limit for budget {alone.mean:.1%} (up to {alone.high:.1%})"
        within = "was not observed" if result.coverage is None else share_of(result, "coverage")
        flagged = (
            "none stayed within it,"
            if result.flagged_share is None
            else f"{share_of(result, 'flagged_share')} of the steps of others flagged,"
        )
        lines.append(
            _row(
                "  cost",
                f"{plain(result.constraint)} within its bound {within} (claimed {calibration.confidence:.0%}); "
                f"sessions over budget: {missed} (meant {calibration.miss_rate:.0%}), {flagged} at level {level:.3g}",
            )
        )
        if result.calibration_error is not None:
            lines.append(_row("  error", f"of its probabilities, mean {share_of(result, 'calibration_error')}"))
    return lines + [_row("  not", plain(sentence)) for sentence in calibration.not_claimed]


def _stored(weights: StoredWeights | None) -> str:
    if weights is None:
        return "float32, as they learned"
    return (
        f"{weights.precision}; from float32 actions differ by up to {weights.action_difference:.2%} of their range and "
        f"values by {weights.value_difference:.2%} of the largest ({weights.most_difference:.0%} allowed)"
    )


def _shift(statistics: ObservationStatistics) -> str:
    rate = statistics.shift_false_alarm_rate
    claimed = (
        "nothing is claimed of false alarms"
        if rate is None
        else f"false alarms claimed in at most {rate:.2%} of steps, by {statistics.shift_episodes} episodes"
    )
    noticed = sum(steps is not None for steps in statistics.frozen_after_steps)
    frozen = f"frozen values noticed in a session: {noticed} of {len(statistics.mean)}"
    return f"a score over {statistics.shift_threshold:.3g}; {claimed}; {frozen}"


def describe_difference(difference: Difference) -> str:
    """What changed, in words."""
    lines = [_change(change, difference.constraints) for change in difference.changes[:_MOST_CHANGES]]
    lines = lines or ["The manifests say the same."]
    if more := len(difference.changes) - _MOST_CHANGES:
        lines += [f"... and {more} more changes (--json has them all)"] if more > 0 else []
    if difference.why_not_asked:
        return "\n".join([*lines, "", f"They were not asked the same, for {difference.why_not_asked}."])
    lines += ["", f"In the {difference.situations} situations that they hold, acting deterministically:"]
    lines.append(f"{'output':<22} {'largest':>10} {'mean':>10} {'of at most':>10}   values that differ")
    lines += [
        f"{d.output:<22} {d.largest:>10.4g} {d.mean:>10.4g} {d.size:>10.4g}   {d.differing} of {d.values}"
        for d in difference.distances
    ]
    lines.append(
        f"As a shield of {difference.candidates} candidates, of the same noise, they choose different ones in "
        f"{difference.chosen_otherwise} of {difference.situations}."
    )
    return "\n".join(lines)


def _change(change: Change, constraints: Sequence[str]) -> str:
    found = _OF_CONSTRAINT.search(change.where)
    index = len(constraints) if found is None else int(found[1])
    of = f" ({constraints[index]})" if index < len(constraints) else ""
    before, after = _in_few_digits(change.before, change.after)
    return f"{plain(change.where + of)}: {_short(before)} -> {_short(after)}"


def _in_few_digits(before: object, after: object) -> tuple[object, object]:
    """Two numbers in as few digits as tell them apart."""
    if isinstance(before, float) and isinstance(after, float):
        for digits in (5, 10):
            short = float(f"{before:.{digits}g}"), float(f"{after:.{digits}g}")
            if short[0] != short[1]:
                return short
    return before, after


def _short(value: object) -> str:
    text = plain(value)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."
