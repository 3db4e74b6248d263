"""The fuzzer of bundles: for seconds here; what ten minutes of it found is committed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bundle_fuzz
from cvpo.bundle import TrustedKeys
from cvpo.errors import BundleError
from tests.command import ROOT
from tests.serve import bundles


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrustedKeys]:
    root = tmp_path_factory.mktemp("fuzz")
    bundle = bundles.write(root / "bundle")
    return bundle, bundle_fuzz.sign(bundle, root)


@pytest.mark.parametrize("kind", bundle_fuzz.DAMAGES)
def test_damaged_bundles_are_refused_with_a_reason_and_nothing_else_is_opened(
    signed: tuple[Path, TrustedKeys], kind: str
) -> None:
    first = list(bundle_fuzz.DAMAGES).index(kind)
    bundle, trusted = signed
    outcomes = [
        bundle_fuzz.try_once(bundle, trusted, 1, number) for number in range(first, 240, len(bundle_fuzz.DAMAGES))
    ]
    assert {outcome[0] for outcome in outcomes} == {kind}
    assert [failed for _, _, failed in outcomes if failed] == []
    assert sum(refused for _, refused, _ in outcomes) > len(outcomes) / 2


def test_the_fuzzer_notices_a_bundle_that_should_not_have_been_served(
    signed: tuple[Path, TrustedKeys], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bundle_fuzz.DAMAGES, "bytes", (lambda path, chance: None, False))
    assert bundle_fuzz.try_once(*signed, 1, 0) == ("bytes", False, "served")


def test_the_fuzzer_notices_a_file_outside_of_the_bundle(
    signed: tuple[Path, TrustedKeys], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "secret").touch()

    def read(path: Path, trusted: TrustedKeys | None) -> None:
        (tmp_path / "secret").read_bytes()
        raise BundleError("refused")

    monkeypatch.setattr(bundle_fuzz, "read_bundle", read)
    assert bundle_fuzz.try_once(*signed, 1, 0)[2] == f"opened ['{tmp_path / 'secret'}']"


def test_what_was_committed_ran_for_ten_minutes_without_a_failure() -> None:
    result = json.loads(bundle_fuzz.RESULTS.read_text())
    assert result["seconds"] >= 600
    assert result["failures"] == []
    assert result["tries"].keys() == bundle_fuzz.DAMAGES.keys()
    for kind in ("bytes", "folder"):
        assert result["refused"][kind] == result["tries"][kind]


@pytest.mark.parametrize(
    ("out", "said"),
    [("out.json", "error: {root} is not a bundle"), ("nowhere/out.json", "error: --out {root}/nowhere/out.json: ")],
)
def test_what_cannot_work_is_said_in_one_sentence_at_once(tmp_path: Path, out: str, said: str) -> None:
    command = [sys.executable, "-m", "benchmarks.bundle_fuzz", str(tmp_path), "--out", str(tmp_path / out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    assert done.stderr.startswith(said.format(root=tmp_path))
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / out).exists()
