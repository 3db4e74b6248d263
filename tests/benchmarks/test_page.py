import json
from pathlib import Path

import pytest

from benchmarks import page

WHERE = {
    "date": "2026-01-02",
    "cvpo": {"commit": "abc1234"},
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gib": 23.5},
}
RATIO = {"median": 3.0, "low": 2.5, "high": 3.25}
LEARNER = {
    "ratios": {"float32": RATIO, "bfloat16": RATIO, "default": RATIO},
    "milliseconds_per_update": {
        "float32": [4.0, 4.16],
        "fsrl": [12.0, 12.0],
        "bfloat16": [3.0, 3.0],
        "default": [5.0, 5.5],
    },
    "core_share": {"float32": [1.0, 0.97], "fsrl": [0.99, 1.0], "bfloat16": [1.0, 1.0], "default": [1.0, 1.0]},
    "gpu": None,
}


def test_the_page_shows_the_committed_results() -> None:
    text = page.PAGE.read_text()
    assert page.filled(text) == text, "Run `python -m benchmarks.page`, and commit what it writes."


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    (tmp_path / "learner.json").write_text(json.dumps(LEARNER | WHERE))
    filled = page.filled("Before.\n<!-- learner.json -->\n| an old table |\n<!-- end -->\nAfter.\n")
    assert filled.splitlines() == [
        "Before.",
        "<!-- learner.json -->",
        "| learner                             | ms an update | updates a second, over FSRL |",
        "| ----------------------------------- | -----------: | --------------------------: |",
        "| cvpo                                |   4.0 to 4.2 |         3.00 (2.50 to 3.25) |",
        "| FSRL 0.1.0                          |         12.0 |                           1 |",
        "| cvpo, compute.precision=bfloat16    |          3.0 |         3.00 (2.50 to 3.25) |",
        "| cvpo, its default of 2 cost critics |   5.0 to 5.5 |         3.00 (2.50 to 3.25) |",
        "",
        "In the busiest round a contestant had 97% of its core.",
        "",
        "No CUDA device was there, so nothing is said of one.",
        "",
        "Measured 2026-01-02 at commit abc1234 on A CPU, 2 cores, 24 GiB.",
        "<!-- end -->",
        "After.",
    ]
    assert page.filled(filled) == filled


def test_a_gpu_is_compared_with_the_cpu_at_each_size() -> None:
    updates = [
        {"device": device, "width": 512, "batch": 1024, "milliseconds": milliseconds}
        for device, milliseconds in (("cpu", 90.0), ("cuda", 6.0))
    ]
    text = page.learner(LEARNER | {"gpu": {"name": "A GPU", "updates": updates}})
    row = next(line for line in text.splitlines() if line.startswith("| 512, 1024"))
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["512, 1024", "90.0", "6.0", "15.00"]


def test_the_profile_sums_up_and_compares_with_the_peak() -> None:
    # 0.3 GFLOP at 100 GFLOP/s take 3 ms; the parts are 4 and 1 of 5 ms.
    lines = page.learner_profile(
        {
            "milliseconds": {"critics": 4.0, "rest": 1.0},
            "gflop": {"critics": 0.3},
            "peak_gflops": {"float32": 100.0, "bfloat16": 220.0},
        }
    ).splitlines()
    assert [line.split("|")[1:-1] for line in lines[2:5]] == [
        [" critics ", " 4.00 ", "   80% ", "                             3.00 "],
        [" rest    ", " 1.00 ", "   20% ", "                                - "],
        [" all     ", " 5.00 ", "  100% ", "                             3.00 "],
    ]


def test_a_sweep_is_a_table_per_size() -> None:
    text = page.learner_sweep({"milliseconds_per_update": {"samples": {"4": 2.0, "8": 3.0}, "costs": {"1": 2.5}}})
    assert text.splitlines()[0] == "| actions a state |   4 |   8 |"
    assert text.splitlines()[2] == "| ms an update    | 2.0 | 3.0 |"
    assert "| constraints  |   1 |" in text


def test_a_checkpoint_is_shown_beside_what_it_is_compared_with() -> None:
    size = {
        "checkpoint_every": 50_000,
        "seconds": {"append": [0.1, 0.126], "whole": [1.0, 1.0], "learner": [300.0, 300.0]},
        "bytes": {"append": [27_000_000, 25_000_000], "whole": [500_000_000, 500_000_000]},
        "share_of_learner_time": {"median": 0.00036, "low": 0.0, "high": 0.0},
        "whole_over_append_seconds": RATIO,
        "whole_over_append_bytes": RATIO,
    }
    row = page.checkpoints({"sizes": {"1000000": size}}).splitlines()[-1]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "1,000,000",
        "50,000",
        "0.10 to 0.13",
        "27.0",
        "0.04%",
        "3.00 (2.50 to 3.25)",
        "3.0",
    ]


def test_what_was_not_measured_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    assert page.filled("<!-- learner.json -->\nold\n<!-- end -->\n") == (
        "<!-- learner.json -->\nNot measured yet.\n<!-- end -->\n"
    )


def test_serving_shows_ratios_beside_their_targets_and_names_what_is_missing() -> None:
    wait = {"p50_us": 100.0, "p99_us": 200.0, "p99_9_us": 300.0, "max_us": 4000.0, "late_share": 0.0}
    text = page.serving(
        {
            "spread": {"stream_p50": {"median": 1.1, "low": 1.0, "high": 1.2}},
            "closed": {"ours stream": wait},
            "paced": {"ours stream 16": wait},
            "throughput": {"ours 16": {"requests_per_second": 2500.0, "mean_us": 6400.0, "max_us": 9000.0}},
            "missing": {"ray": "The environment of ray cannot be made\nand so on"},
            "versions": {"grpcio": "1.85.3"},
            "rounds": 5,
            "seconds": 500,
        }
    )
    assert "| stream_p50 |   1.10 |   1.00 to 1.20 | at most 1.20 |" in text
    assert "| ours stream | 100 | 200 |   300 | 4,000 |           0.00% |" in text
    assert "2,500" in text
    assert "Missing: ray. The environment of ray cannot be made\n" in text
