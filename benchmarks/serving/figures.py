"""From the waits of all turns to figures and ratios, and to the table of the page."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rounds import Ratio, table
from benchmarks.serving.tools import Throughput
from cvpo.commands.latency import Latency, joined

Turns = Mapping[str, Sequence[Latency]]  # by case, one of each round
Rates = Mapping[str, Sequence[Throughput]]

# Which case over which, and what of it. Those of time are better below 1, those of throughput above.
TIME_RATIOS: dict[str, tuple[str, str, str]] = {
    "stream_p50": ("ours stream", "bare run stream", "p50_us"),
    "stream_p50_cpp": ("ours stream c++", "bare run stream c++", "p50_us"),
    "stream_p99": ("ours stream", "bare run stream", "p99_us"),
    "unary_p50": ("ours unary", "bare run unary", "p50_us"),
    "unary_p99": ("ours unary", "bare run unary", "p99_us"),
    "mlserver_unary_p50": ("ours unary", "mlserver unary", "p50_us"),
    "mlserver_default_unary_p50": ("ours unary", "mlserver-default unary", "p50_us"),
    "mlserver_stream_p50": ("ours stream", "mlserver unary", "p50_us"),
    "mlserver_default_stream_p50": ("ours stream", "mlserver-default unary", "p50_us"),
    "kserve_unary_p50": ("ours unary", "kserve unary", "p50_us"),
    "ray_unary_p50": ("ours unary", "ray unary", "p50_us"),
}
THROUGHPUT_RATIOS: dict[str, tuple[str, str]] = {
    "throughput1": ("ours 1", "bare run 1"),
    "throughput16": ("ours 16", "bare run 16"),
    "throughput64": ("ours 64", "bare run 64"),
    "two_processes_throughput16": ("ours two processes 16", "ours 16"),
    "mlserver_throughput16": ("ours 16", "mlserver 16"),
    "mlserver_default_throughput16": ("ours 16", "mlserver-default 16"),
    "mlserver_default_throughput16_two_processes": ("ours two processes 16", "mlserver-default 16"),
    "kserve_throughput16": ("ours 16", "kserve 16"),
    "ray_throughput16": ("ours 16", "ray 16"),
}

TARGETS = {
    "stream_p50": "at most 1.20",
    "stream_p50_cpp": "at most 1.35",
    "stream_p99": "at most 1.50",
    "unary_p50": "at most 1.20",
    "unary_p99": "at most 1.50",
    "throughput16": "at least 0.85",
    "mlserver_unary_p50": "at most 0.65",
    "mlserver_default_unary_p50": "at most 0.45",
    "mlserver_stream_p50": "at most 0.40",
    "mlserver_default_stream_p50": "at most 0.25",
    "mlserver_throughput16": "at least 1.8",
    "mlserver_default_throughput16": "at least 3",
    "mlserver_default_throughput16_two_processes": "at least 5",
}


def latency_document(turns: Turns, period_seconds: float) -> dict[str, Any]:
    """Figures of each case: over all turns, and the p50 and p99 of each turn."""
    return {
        case: {
            **joined(each).document(period_seconds),
            "p50_us_per_turn": [turn.figures(None)["p50_us"] for turn in each],
            "p99_us_per_turn": [turn.figures(None)["p99_us"] for turn in each],
        }
        for case, each in turns.items()
    }


def throughput_document(rates: Rates) -> dict[str, Any]:
    """Requests a second of each case: the median, and each turn's."""
    return {
        case: {
            "requests_per_second": round(statistics.median(turn.requests_per_second for turn in each), 1),
            "per_turn": [turn.requests_per_second for turn in each],
            "mean_us": round(statistics.median(turn.mean_us for turn in each), 1),
            "max_us": max(turn.max_us for turn in each),
        }
        for case, each in rates.items()
    }


def ratios(closed: Turns, rates: Rates) -> dict[str, Ratio]:
    """Those whose both sides were there, of the turns of the same round."""
    found: dict[str, Ratio] = {}
    for name, (above, below, figure) in TIME_RATIOS.items():
        if above in closed and below in closed:
            sides = [[turn.figures(None)[figure] for turn in closed[case]] for case in (above, below)]
            found[name] = Ratio.of(*sides)
    for name, (above, below) in THROUGHPUT_RATIOS.items():
        if above in rates and below in rates:
            sides = [[turn.requests_per_second for turn in rates[case]] for case in (above, below)]
            found[name] = Ratio.of(*sides)
    return found


def latency_table(document: Mapping[str, Mapping[str, float]]) -> str:
    """Microseconds of each case."""
    columns = ("p50_us", "p99_us", "p99_9_us", "max_us")
    rows = [
        [case, *(f"{each[column]:,.0f}" for column in columns), f"{each['late_share']:.2%}"]
        for case, each in document.items()
    ]
    return table(["µs", "p50", "p99", "p99.9", "max", "over the period"], rows)


def throughput_table(document: Mapping[str, Mapping[str, float]]) -> str:
    """Requests a second of each case."""
    rows = [
        [case, f"{each['requests_per_second']:,.0f}", f"{each['mean_us']:,.0f}", f"{each['max_us']:,.0f}"]
        for case, each in document.items()
    ]
    return table(["clients", "answers a second", "mean, µs", "max, µs"], rows)


def ratio_table(document: Mapping[str, Mapping[str, float]], targets: Mapping[str, str]) -> str:
    """Each ratio with its spread, and what it must be."""
    rows = [
        [name, f"{each['median']:.2f}", f"{each['low']:.2f} to {each['high']:.2f}", targets.get(name, "")]
        for name, each in document.items()
    ]
    return table(["ratio", "median", "over the turns", "must be"], rows)
