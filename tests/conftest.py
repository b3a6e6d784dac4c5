"""Fixed seeds and one thread: the suite runs on several processes."""

import pytest
import torch

# Scripts that wrote the fixtures; they need VLFeat's binding.
collect_ignore_glob = ["fisher_vectors/make_*.py"]

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
