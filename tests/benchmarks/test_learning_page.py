from pathlib import Path

import pytest
from matplotlib.image import imread

from benchmarks.learning import page, results
from benchmarks.learning.figures import draw
from benchmarks.learning.jobs import COMPARED_TASKS, LIMITS, LIMITS_TASK, TASKS, Variant
from benchmarks.learning.results import Result
from tests.benchmarks.learned import CURVE, made_up

VARIANTS: tuple[Variant, ...] = ("cvpo", "paper", "fsrl")
ALL = [
    *(made_up(LIMITS_TASK, cost_limit=limit, seed=seed) for limit in LIMITS for seed in (10, 11)),
    *(
        made_up(task, variant=variant, cost_limit=TASKS[task].cost_limit)
        for task in COMPARED_TASKS
        for variant in VARIANTS
    ),
]


def cells(table: str, first: str) -> list[str]:
    (row,) = (line for line in table.splitlines() if line.startswith(f"| {first} "))
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_page_shows_the_committed_results() -> None:
    text = page.PAGE.read_text()
    said = "Run `python -m benchmarks.learning --figures`, and commit what it writes."
    assert page.filled(text, results.committed()) == text, said


def test_every_table_and_picture_has_its_place_in_the_page() -> None:
    text = page.PAGE.read_text()
    assert [name for name in (*page.BLOCKS, *page.PICTURES) if f"<!-- {name} -->" not in text] == []


def test_a_target_is_met_by_the_means_over_seeds() -> None:
    # Returns 720 and 780, costs 9 and 10, of two episodes each; both come to the target at 3,000 steps.
    met = [made_up(), made_up(seed=11, returns=(760.0, 800.0), costs=(0.0, 20.0))]
    assert cells(page.targets(met), "SafetyBallCircle-v0") == [
        "10",
        "0.1 M",
        "2",
        "750.0 (720.0 to 780.0)",
        "9.5 (9.0 to 10.0)",
        "17.0 (14.0 to 20.0)",
        "50 (50 to 50) %",
        "3k, 3k",
        "720",
        "yes",
    ]


@pytest.mark.parametrize(
    ("returns", "costs", "verdict"),
    [((600.0, 700.0), (0.0, 0.0), "no: return"), ((600.0, 700.0), (10.0, 11.0), "no: return and cost")],
)
def test_a_target_that_is_missed_says_by_what(returns: list[float], costs: list[float], verdict: str) -> None:
    assert cells(page.targets([made_up(returns=returns, costs=costs)]), "SafetyBallCircle-v0")[-1] == verdict


def test_a_task_without_results_is_shown_as_such() -> None:
    assert cells(page.targets([]), "SafetyBallRun-v0")[2:] == ["0", "-", "-", "-", "-", "-", "455", "-"]


def test_the_cost_is_shown_for_each_limit() -> None:
    found = page.limits([made_up(LIMITS_TASK, cost_limit=limit, costs=(limit, limit)) for limit in LIMITS])
    assert [cells(found, f"{limit:g}")[2] for limit in LIMITS] == ["5.0", "25.0", "60.0"]


def test_the_learners_are_shown_beside_each_other() -> None:
    found = page.compared(
        [
            made_up(variant=variant, returns=(100.0,), costs=(cost,))
            for variant, cost in zip(VARIANTS, (1.0, 2.0, 3.0), strict=True)
        ]
    )
    assert cells(found, "SafetyBallCircle-v0, FSRL's CVPO")[1:3] == ["100.0", "3.0"]


@pytest.mark.parametrize(
    ("some", "names"),
    [
        (ALL, ["curves", "cost_at_convergence", "compared", "limits"]),
        ([made_up()], ["curves", "cost_at_convergence"]),
        ([made_up(variant="fsrl")], []),
        ([], []),
    ],
    ids=["all", "one", "nothing of ours", "nothing"],
)
def test_what_there_are_results_for_is_drawn(tmp_path: Path, some: list[Result], names: list[str]) -> None:
    drawn = draw(some, tmp_path)
    assert [picture.stem for picture in drawn] == names
    assert {picture.name for picture in drawn} <= page.PICTURES.keys()
    assert all(imread(picture).std() > 0 for picture in drawn)


def test_curves_of_different_checkpoints_are_drawn(tmp_path: Path) -> None:
    sparse = CURVE.model_copy(update={name: value[1:] for name, value in CURVE.model_dump().items()})
    assert draw([made_up(), made_up(seed=11, curve=sparse)], tmp_path)
