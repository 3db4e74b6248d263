"""The generated code is what the protos say."""

import subprocess
import sys
from pathlib import Path

GENERATE = Path(__file__).resolve().parents[2] / "protos" / "generate.py"


def test_the_generated_code_is_up_to_date() -> None:
    run = subprocess.run([sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
