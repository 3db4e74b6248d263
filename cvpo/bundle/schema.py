"""The manifest as JSON Schema, for those who read bundles without this package.

`python -m cvpo.bundle.schema` prints it.
"""

import json

from cvpo.bundle import Manifest


def manifest_schema() -> str:
    """The schema (draft 2020-12) of `manifest.json`, as docs/manifest.schema.json holds it."""
    schema = Manifest.model_json_schema(mode="serialization")
    schema["properties"]["digest"] = {
        "description": "SHA-256 of the rest of this document, as JSON with sorted keys and without spaces",
        "pattern": "^[0-9a-f]{64}$",
        "type": "string",
    }
    schema["required"] = sorted([*schema["properties"]])
    named = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "manifest.json of a cvpo bundle",
    }
    return json.dumps(named | {name: value for name, value in schema.items() if name != "title"}, indent=2) + "\n"


if __name__ == "__main__":
    print(manifest_schema(), end="")
