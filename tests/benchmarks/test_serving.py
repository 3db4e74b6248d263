"""The arithmetic of the serving benchmark: h2load's report, ratios within a round, tables."""

import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.serving.figures import (
    TARGETS,
    latency_document,
    latency_table,
    ratio_table,
    ratios,
    throughput_document,
)
from benchmarks.serving.tools import Throughput
from cvpo.commands.latency import Latency

REPORT = """\
finished in 1.01s, 2894.00 req/s, 1.10MB/s
requests: 2894 total, 2910 started, 2894 done, 2890 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 2894 2xx, 0 3xx, 0 4xx, 0 5xx
traffic: 1.10MB (1153434) total, 100.00KB (102400) headers (space savings 90.00%), 564.45KB (578000) data
                     min         max         mean         sd        +/- sd
time for request:     1.91ms     19.32ms      5.50ms      1.01ms    80.00%
"""


def waits(*microseconds: float) -> Latency:
    return Latency(np.array(microseconds) * 1e-6)


def rate(requests_per_second: float) -> Throughput:
    return Throughput(requests_per_second, 5500.0, 19320.0, 200.0)


def test_h2loads_report_is_read() -> None:
    assert Throughput.parse(REPORT) == Throughput(2894.0, 5500.0, 19320.0, 200.0)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("0 failed", "3 failed", "3 of 2894"),
        ("2890 succeeded", "0 succeeded", "0 of 2894"),
        ("req/s", "nothing", "said something else"),
    ],
)
def test_a_turn_with_failed_requests_is_no_turn(old: str, new: str, said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        Throughput.parse(REPORT.replace(old, new))


def test_a_turn_with_answers_that_are_errors_is_no_turn() -> None:
    turn = rate(100)  # 200 bytes an answer
    turn.check(answer_bytes=205)
    with pytest.raises(BenchmarkError, match="200 bytes an answer, not 400"):
        turn.check(answer_bytes=400)


def test_a_ratio_is_the_median_over_rounds_of_the_ratios_within_them() -> None:
    # Within the rounds 1.2, 1.1 and 3.0; the ratio of the medians would be 120/100 as well, that of the means 1.88.
    closed = {
        "ours stream": [waits(120), waits(1100), waits(90)],
        "bare run stream": [waits(100), waits(1000), waits(30)],
    }
    found = ratios(closed, {"ours 16": [rate(90), rate(50)], "bare run 16": [rate(100), rate(40)]})
    assert found["stream_p50"].per_round == pytest.approx((1.2, 1.1, 3.0))
    assert found["stream_p50"].median == pytest.approx(1.2)
    assert found["throughput16"].per_round == pytest.approx((0.9, 1.25))
    assert set(found) == {"stream_p50", "stream_p99", "throughput16"}  # the other sides were not there


def test_every_target_is_of_a_ratio_that_can_be_had() -> None:
    from benchmarks.serving.figures import THROUGHPUT_RATIOS, TIME_RATIOS

    assert TARGETS.keys() <= TIME_RATIOS.keys() | THROUGHPUT_RATIOS.keys()


def test_the_figures_of_a_case_are_those_of_all_turns_together() -> None:
    document = latency_document({"ours stream": [waits(100, 300), waits(200, 30_000)]}, period_seconds=0.02)
    case = document["ours stream"]
    assert case["p50_us"] == 200.0
    assert case["max_us"] == 30_000.0
    assert case["late_share"] == 0.25
    assert case["p50_us_per_turn"] == [100.0, 200.0]
    assert "30,000 |          25.00% |" in latency_table(document)


def test_throughput_is_told_by_the_median_turn() -> None:
    document = throughput_document({"ours 16": [rate(100), rate(300), rate(200)]})
    assert document["ours 16"]["requests_per_second"] == 200.0
    assert document["ours 16"]["per_turn"] == [100, 300, 200]


def test_a_ratio_stands_beside_what_it_must_be() -> None:
    text = ratio_table({"stream_p50": {"median": 1.1, "low": 1.0, "high": 1.3}}, TARGETS)
    assert [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")] == [
        "stream_p50",
        "1.10",
        "1.00 to 1.30",
        "at most 1.20",
    ]
