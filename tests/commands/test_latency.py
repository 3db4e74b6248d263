"""Percentiles, shares and histograms of waits worked out by hand."""

import numpy as np
import pytest

from cvpo.commands.latency import Latency, bins, histogram, joined, milliseconds, percentile

THOUSAND = np.arange(1, 1001) / 1e3  # 1 ms, 2 ms, ... 1 s


@pytest.mark.parametrize(("share", "milliseconds"), [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)])
def test_a_percentile_is_a_wait_that_occurred(share: float, milliseconds: float) -> None:
    shuffled = np.random.default_rng(0).permutation(THOUSAND)
    assert percentile(shuffled, share) == milliseconds / 1e3


def test_of_two_waits_the_median_is_the_shorter_and_the_tail_the_longer() -> None:
    assert percentile(np.array([0.001, 0.1]), 0.5) == 0.001
    assert percentile(np.array([0.001, 0.1]), 0.99) == 0.1


def test_what_was_not_answered_is_late() -> None:
    # Of 4 answers one took longer than 20 ms, and 6 never came: 7 of 10.
    latency = Latency(np.array([0.001, 0.02, 0.003, 0.021]), unanswered=6)
    assert latency.late(0.02) == 0.7
    assert latency.document(0.02)["late_share"] == 0.7


def test_figures_are_microseconds_and_leave_the_share_out_where_there_is_no_period() -> None:
    figures = Latency(THOUSAND).figures(None)
    assert figures == {"p50_us": 5e5, "p90_us": 9e5, "p99_us": 9.9e5, "p99_9_us": 9.99e5, "max_us": 1e6}


def test_turns_join_into_one() -> None:
    both = joined([Latency(np.array([0.1]), 1), Latency(np.array([0.2, 0.3]), 2)])
    assert both.waits.tolist() == [0.1, 0.2, 0.3]
    assert both.unanswered == 3


@pytest.mark.parametrize("waits", [THOUSAND, np.array([0.00031]), np.array([0.002, 0.002]), np.array([1e-4, 3.7])])
def test_a_histogram_counts_every_wait_once(waits: np.ndarray) -> None:
    counts, edges = bins(waits)
    assert counts.sum() == len(waits)
    assert (np.diff(edges) > 0).all()


def test_a_single_slow_answer_is_seen_beside_a_thousand_fast_ones() -> None:
    lines = histogram(np.array([0.0002] * 1000 + [0.5])).splitlines()
    assert lines[-1].split() == ["up", "to", "500", "ms", "#", "1"]
    assert lines[0].endswith("1,000")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.000231, "0.231 ms"), (0.00231, "2.31 ms"), (0.0125, "12.5 ms"), (1.23, "1,230 ms")]
)
def test_times_are_told_with_three_digits(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text
