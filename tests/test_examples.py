"""The examples run as people run them; each checks its own losses and its folded network."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEEDS = {"lightning_trainer": "lightning", "hugging_face_trainer": "transformers", "accelerate_loop": "accelerate"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    if path.stem in NEEDS and find_spec(NEEDS[path.stem]) is None:
        pytest.skip("needs the [trainers] extra")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain" in done.stdout or "folded" in done.stdout
