"""Scores of rows on disk take the memory of a few blocks, not that of all rows."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import numpy as np
import torch
from fisherlayers.fisher_vectors.rows import StoredRows, row_places
from fisherlayers.fisher_vectors.svm import svm_scores
from fisherlayers.fisher_vectors.svm_spaces import RowSpace

def status(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

torch.set_num_threads(1)
shape = (4000, 16_384)
with open(sys.argv[1], "wb") as file:
    for _ in range(shape[0] // 100):
        file.write(np.ones((100, shape[1]), dtype=np.float16))
rows = StoredRows(sys.argv[1], shape, "float16")
assert len(row_places(rows)) > 10
vector = torch.full((shape[1] + 1, 20), 2.0**-10, dtype=torch.float64)
before = status("VmRSS")
scores = RowSpace(rows).scores(vector)
assert torch.equal(scores, torch.full_like(scores, 16 + 2.0**-10)), scores
again = svm_scores(rows, vector[:-1].T, vector[-1])
assert torch.allclose(again, scores)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the memory that Linux reports")
def test_scores_of_rows_on_disk_take_a_few_blocks(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "rows.bin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    in_float32 = 4 * 4000 * 16_384
    # Two passes over 262 MB; a block is 16 MiB, and is read in half precision before.
    assert int(done.stdout) < in_float32 / 2
