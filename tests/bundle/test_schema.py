"""The published schema is the manifest's, and says so of a real one."""

import json
from pathlib import Path

import jsonschema
import pytest

from cvpo.bundle import MANIFEST, Manifest
from cvpo.bundle.schema import manifest_schema
from tests.command import ROOT
from tests.serve import bundles


def test_the_published_schema_is_up_to_date() -> None:
    published = (ROOT / "docs" / "manifest.schema.json").read_text()
    assert published == manifest_schema(), "run: python -m cvpo.bundle.schema > docs/manifest.schema.json"


def test_a_manifest_follows_the_schema_and_one_with_a_field_more_or_less_does_not(tmp_path: Path) -> None:
    document = json.loads((bundles.write(tmp_path / "bundle") / MANIFEST).read_text())
    schema = json.loads(manifest_schema())
    jsonschema.validate(document, schema)
    for wrong in (
        document | {"more": 1},
        {k: v for k, v in document.items() if k != "files"},
        document | {"version": 0},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_a_manifest_from_before_its_threshold_was_measured_is_read_and_claims_nothing() -> None:
    document = bundles.manifest().model_dump(mode="json")
    for later in ("shift_false_alarm_rate", "shift_episodes", "frozen_after_steps"):
        del document["observation_statistics"][later]
    read = Manifest.model_validate(document).observation_statistics
    assert read.shift_false_alarm_rate is None
    assert read.frozen_after_steps == ()
