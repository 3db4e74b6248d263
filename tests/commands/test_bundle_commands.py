"""inspect, verify, diff, keygen and sign, as a user types them."""

import json
import re
from pathlib import Path

import pytest

from cvpo.bundle import MODEL_CARD, Interval, Manifest
from cvpo.exporting.card import model_card
from cvpo.exporting.export import export_bundle
from tests.command import cvpo, succeed
from tests.exporting.test_export import trained
from tests.serve import bundles
from tests.small_policies import observations


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return bundles.write(tmp_path / "goal" / "1")


def test_inspect_says_what_a_person_asks_first(bundle: Path) -> None:
    said = succeed("inspect", bundle).out
    for expected in (
        "goal, version 1   ByHand-v0",
        "signed      no",
        "return    5 (4 to 6)",
        "heat 5 (4 to 6), under the limit of 20; CVaR 0.9 9; 10% of episodes over",
        "calibrated  deterministic, shielded of 8; episodes: 50 fit, 30 alarm, 20 test",
        "shifted     a score over 1; nothing is claimed of false alarms; frozen values noticed in a session: 0 of 3",
        "heat within its bound 92.0% (claimed 90%); sessions over budget: 5.0% missed (meant 10%)",
    ):
        assert expected in said, expected
    assert json.loads(succeed("inspect", bundle, "--json").out)["name"] == "goal"


def test_what_is_missed_with_the_limit_for_budget_is_said_by_inspect_and_card(tmp_path: Path) -> None:
    calibration = bundles.calibration()
    update = {"limit_missed_share": Interval(mean=0.125, low=0.022, high=0.471), "too_soon_share": 0.31}
    results = tuple(result.model_copy(update=update) for result in calibration.results)
    document = bundles.manifest(calibration=calibration.model_copy(update={"results": results}))
    said = succeed("inspect", bundles.write(tmp_path / "bundle", document)).out
    assert "sessions over budget: 5.0% missed, with the limit for budget 12.5% (up to 47.1%) (meant 10%)" in said
    assert "| 5.0% | 12.5% (2.2% to 47.1%) | 31.0% |" in model_card(document, {})


def test_what_was_measured_is_told_with_its_interval_by_inspect_card_and_page(tmp_path: Path) -> None:
    calibration = bundles.calibration()
    intervals = {
        "coverage": (0.85, 0.97),
        "window_coverage": (0.88, 0.98),
        "calibration_error": (0.02, 0.06),
        "missed_share": (0.01, 0.12),
        "flagged_share": (0.08, 0.13),
    }
    update = {"window_coverage": 0.94, "rest_coverage": 0.9, "calibration_error": 0.03, "intervals": intervals}
    results = tuple(result.model_copy(update=update) for result in calibration.results)
    document = bundles.manifest(calibration=calibration.model_copy(update={"results": results}))
    path = bundles.write(tmp_path / "bundle", document)
    said = succeed("inspect", path).out
    assert "heat within its bound 92.0% (85.0% to 97.0%) (claimed 90%)" in said
    assert "5.0% (1.0% to 12.0%) missed (meant 10%), 10.0% (8.0% to 13.0%) of the steps of others flagged" in said
    assert "of its probabilities, mean 3.0% (2.0% to 6.0%)" in said
    row = next(line for line in model_card(document, {}).splitlines() if line.startswith("| heat | 0.6"))
    told = ["92.0% (85.0% to 97.0%)", "94.0% (88.0% to 98.0%)", "90.0%", "3.0% (2.0% to 6.0%)", "5.0% (1.0% to 12.0%)"]
    assert [cell.strip() for cell in row.split("|")[3:8]] == told
    succeed("inspect", path, "--html", tmp_path / "page.html")
    assert "95 % intervals." in (tmp_path / "page.html").read_text()


def test_inspect_of_a_cost_without_a_limit_says_so(tmp_path: Path) -> None:
    said = succeed("inspect", bundles.write(tmp_path / "bundle", bundles.manifest(cost_limit=(None, 8.0)))).out
    assert "heat 5 (4 to 6), no limit; CVaR 0.9 9\n" in said
    assert "wear 5 (4 to 6), under the limit of 8; CVaR 0.9 9; 0% of episodes over\n" in said


def test_inspect_of_what_was_not_measured_says_so(tmp_path: Path) -> None:
    document = bundles.manifest(calibration=None).model_copy(update={"evaluations": ()})
    path = bundles.write(tmp_path / "bundle", document)
    said = succeed("inspect", path).out
    assert "calibrated  NO" in said
    assert "evaluated   no" in said
    assert (
        "<h1>goal, version 1</h1>" in Path(succeed("inspect", path, "--html", tmp_path / "p").out.strip()).read_text()
    )


def test_inspect_passes_nothing_of_a_bundle_to_the_terminal_or_a_browser(tmp_path: Path) -> None:
    document = bundles.drawn(bundles.manifest(constraint_names=("$x^$", "\x1b[2J<script>alert(1)</script>")))
    path = bundles.write(tmp_path / "bundle", document)
    said = succeed("inspect", path).out
    assert "\x1b" not in said
    assert "<script>" in said
    page = tmp_path / "page.html"
    assert succeed("inspect", path, "--html", page).out == f"{page}\n"
    assert "<script>" not in page.read_text()
    assert "\x1b" not in page.read_text()


def test_the_page_needs_no_other_file_and_is_the_same_each_time(bundle: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.html", tmp_path / "pages" / "two.html"  # in a folder that is made
    for page in (one, two):
        succeed("inspect", bundle, "--html", page)
    assert one.read_bytes() == two.read_bytes()
    text = one.read_text()
    assert shown(text) == ["Cost of an episode", "On test episodes", "The situations"]
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_a_page_is_not_json(bundle: Path, tmp_path: Path) -> None:
    assert "give one of them" in cvpo("inspect", bundle, "--html", tmp_path / "page.html", "--json").usage_error
    assert not (tmp_path / "page.html").exists()


def test_the_page_draws_all_that_the_manifest_keeps(tmp_path: Path) -> None:
    path = bundles.write(tmp_path / "bundle", bundles.drawn(bundles.manifest()))
    page = Path(succeed("inspect", path, "--html", tmp_path / "page.html").out.strip()).read_text()
    assert shown(page) == ["Learning", "Cost of an episode", "On test episodes", "Flags along", "The situations"]


@pytest.mark.parametrize("place", ["curve", "costs"])
def test_values_too_large_for_a_picture_end_in_a_sentence(place: str, tmp_path: Path) -> None:
    drawn = bundles.drawn(bundles.manifest())
    document = json.loads(drawn.model_dump_json())
    if place == "curve":
        document["provenance"]["learning_curve"][1]["episode_return"] = {"mean": 0, "low": -1e308, "high": 1e308}
    else:
        document["evaluations"][0]["costs"][2][0] = 1.1e308
    page = tmp_path / "page.html"
    path = bundles.write(tmp_path / "bundle", Manifest.model_validate(document))
    assert "goal, version 1" in succeed("inspect", path).out
    assert "e+308, too large for a picture. Read it without --html." in cvpo("inspect", path, "--html", page).sentence
    assert not page.exists()


def test_values_that_can_be_drawn_are(tmp_path: Path) -> None:
    document = json.loads(bundles.drawn(bundles.manifest()).model_dump_json())
    document["provenance"]["learning_curve"][1]["episode_return"] = {"mean": 0, "low": -1e300, "high": 1e300}
    path = bundles.write(tmp_path / "bundle", Manifest.model_validate(document))
    assert "Learning" in shown(Path(succeed("inspect", path, "--html", tmp_path / "p").out.strip()).read_text())


def shown(page: str) -> list[str]:
    """How the captions of the page's pictures begin."""
    captions = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,', page)
    begins = ("Learning", "Cost of an episode", "On test episodes", "Flags along", "The situations")
    return [next(begin for begin in begins if caption.startswith(begin)) for caption in captions]


def test_verify_says_that_a_server_refuses_a_bundle_without_calibration(bundle: Path, tmp_path: Path) -> None:
    other = bundles.write(tmp_path / "other", bundles.manifest(calibration=None))
    told = "calibrated NO: a server refuses it unless it is started with --allow-uncalibrated"
    assert told in succeed("verify", other).out.splitlines()
    assert "calibrated" not in succeed("verify", bundle).out


def test_verify_says_what_a_server_would(bundle: Path, tmp_path: Path) -> None:
    said = succeed("verify", bundle).out.splitlines()
    assert said[0] == f"{bundle}: goal, version 1: verified"
    assert "16 situations answered as at export, within 0.0001" in said[-2]
    assert re.fullmatch(r"latency    \d+ us a call with one observation, .* in float32 on .+", said[-1])
    wrong = bundles.critic_graph(lambda text: text.replace("float {10.0}", "float {11.0}"))
    other = bundles.write(tmp_path / "other", critic=wrong, request=bundles.golden())
    assert f"{other}: critic.onnx does not answer the golden request" in cvpo("verify", other).sentence
    (bundle / MODEL_CARD).write_text("better than it was")
    assert "does not match its SHA-256" in cvpo("verify", bundle).sentence


def test_keys_are_made_sign_and_are_asked_for(bundle: Path, tmp_path: Path) -> None:
    succeed("keygen", tmp_path / "mine")
    succeed("keygen", tmp_path / "other")
    trusting = ("verify", bundle, "--trusted-key")
    assert "is not signed" in cvpo(*trusting, tmp_path / "mine.pub").sentence
    assert (
        succeed("sign", bundle, "--key", tmp_path / "mine.key").out
        == f"{bundle}: signed with {tmp_path / 'mine.key'}\n"
    )
    assert f"with the key of {tmp_path / 'mine.pub'}" in succeed(*trusting, tmp_path).out
    assert "not signed with a trusted key" in cvpo(*trusting, tmp_path / "other.pub").sentence
    assert "by whom is told" in succeed("inspect", bundle).out
    assert "is signed already" in cvpo("sign", bundle, "--key", tmp_path / "mine.key").sentence


def test_what_fails_verification_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    succeed("keygen", tmp_path / "mine")
    (bundle / MODEL_CARD).write_text("better than it was")
    before = sorted(bundle.iterdir())
    assert "does not match its SHA-256" in cvpo("sign", bundle, "--key", tmp_path / "mine.key").sentence
    assert sorted(bundle.iterdir()) == before


def test_diff_names_what_changed_and_measures_how_far(bundle: Path, tmp_path: Path) -> None:
    # Twice the noise's share: candidates but the first are elsewhere; the critic alone judges ten times as much cost.
    spoiled = bundles.policy_graph(
        lambda text: text.replace("ten = Constant <value = float {10.0}>", "ten = Constant <value = float {10.5}>")
    )
    other = bundles.write(tmp_path / "other", bundles.manifest(version=2, cost_limit=(25.0, 8.0)), policy=spoiled)
    said = succeed("diff", bundle, other).out
    assert "version: 1 -> 2" in said
    assert "constraints[0].cost_limit (heat): 20.0 -> 25.0" in said
    document = json.loads(succeed("diff", bundle, other, "--json").out)
    distances = {entry["output"]: entry for entry in document["distances"]}
    assert document["situations"] == 32
    assert distances["action"]["largest"] == 0
    assert distances["cost_value"]["largest"] == pytest.approx(0.05 * distances["cost_value"]["size"], rel=1e-5)
    same = succeed("diff", bundle, bundle).out
    assert same.startswith("The manifests say the same.")


def test_a_change_is_told_in_few_digits_and_with_the_name_of_its_constraint(bundle: Path, tmp_path: Path) -> None:
    document = json.loads(bundles.manifest().model_dump_json())
    document["calibration"]["results"][1]["cost_to_go_mean"] = 88.61327362060547
    document["evaluations"][0]["cost_cvar90"] = [1.0000021234, 2.0]
    one = bundles.write(tmp_path / "one", Manifest.model_validate(document))
    document["calibration"]["results"][1]["cost_to_go_mean"] = 88.71479034423828
    document["evaluations"][0]["cost_cvar90"] = [1.0, 2.0]
    other = bundles.write(tmp_path / "other", Manifest.model_validate(document))
    names = [each.name for each in bundles.manifest().constraints]
    assert len(set(names)) == 2
    told = [line for line in succeed("diff", one, other).out.splitlines() if " -> " in line]
    assert told == [
        f"calibration.results[1].cost_to_go_mean ({names[1]}): 88.613 -> 88.715",
        f"evaluations[0].cost_cvar90[0] ({names[0]}): 1.000002123 -> 1.0",  # of which five would not tell
    ]
    changes = json.loads(succeed("diff", one, other, "--json").out)["changes"]
    assert changes[0] == {
        "where": "calibration.results[1].cost_to_go_mean",
        "before": 88.61327362060547,
        "after": 88.71479034423828,
    }


def test_bundles_that_act_alike_and_shield_otherwise_are_told_apart_from_those_that_act_otherwise(
    bundle: Path, tmp_path: Path
) -> None:
    # Costs predicted a hundredth as high: hardly a flag is raised, so the shield stays with the first candidate.
    calm = bundles.policy_graph(
        lambda text: text.replace(
            "to_go_k = Mul(magnitude, steps_11)",
            "hundredth = Constant <value = float {0.01}> ()"
            "  much = Mul(magnitude, steps_11)  to_go_k = Mul(much, hundredth)",
        )
    )
    other = bundles.write(tmp_path / "other", policy=calm)
    document = json.loads(succeed("diff", bundle, other, "--json").out)
    distances = {entry["output"]: entry["largest"] for entry in document["distances"]}
    assert distances["action"] == 0
    assert distances["cost_to_go"] > 0
    assert 0 < document["chosen_otherwise"] <= 32
    said = succeed("diff", bundle, other).out
    assert f"they choose different ones in {document['chosen_otherwise']} of 32" in said


def test_bundles_that_hold_other_numbers_of_candidates_are_asked_with_as_many_as_both_have(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvpo.exporting.record.CANDIDATES", 2)  # instead of 4
    other = bundles.write(tmp_path / "other")
    succeed("verify", other)
    for pair in ((bundle, other), (other, bundle)):
        document = json.loads(succeed("diff", *pair, "--json").out)
        assert document["situations"] == 32
        assert [entry["largest"] for entry in document["distances"]] == [0.0] * 9
        assert (document["candidates"], document["chosen_otherwise"]) == (2, 0)


def test_a_distance_without_end_is_null_in_json(bundle: Path, tmp_path: Path) -> None:
    # 3e38 times a cost above 1.14 is more than any float32.
    endless = bundles.policy_graph(
        lambda text: text.replace("two = Constant <value = float {2.0}>", "two = Constant <value = float {3e38}>")
    )
    other = bundles.write(tmp_path / "other", policy=endless)
    document = json.loads(succeed("diff", bundle, other, "--json").out, parse_constant=pytest.fail)
    (upper,) = [entry for entry in document["distances"] if entry["output"] == "cost_upper"]
    assert (upper["largest"], upper["mean"]) == (None, None)
    assert upper["size"] < 1_000


def test_another_learning_curve_is_one_change(tmp_path: Path) -> None:
    drawn = bundles.drawn(bundles.manifest())
    document = json.loads(drawn.model_dump_json())
    for point in document["provenance"]["learning_curve"]:
        point["episode_return"]["mean"] = 7.0
    document["evaluations"][0]["costs"] = [[1.0, 2.0]] * 4
    document["calibration"]["results"][0]["example"]["violation_probability"] = [0.5] * 10
    one = bundles.write(tmp_path / "one", drawn)
    other = bundles.write(tmp_path / "other", Manifest.model_validate(document))
    told = [line.split(":")[0] for line in succeed("diff", one, other).out.splitlines() if " -> " in line]
    assert told == ["calibration.results[0].example (heat)", "evaluations[0].costs", "provenance.learning_curve"]
    assert succeed("diff", other, other).out.startswith("The manifests say the same.")


def test_bundles_of_other_sizes_are_compared_by_what_they_say(bundle: Path, tmp_path: Path) -> None:
    other = export_bundle(tmp_path / "other", trained((20.0,)), observations(), calibrated=None)
    said = succeed("diff", bundle, other).out
    assert "name: goal -> small" in said
    assert "They were not asked the same" in said
