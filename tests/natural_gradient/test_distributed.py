"""Several processes train as one: DDP and FSDP2 under torchrun, with gloo on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fisherlayers.natural_gradient.dealing import deal
from natural_gradient.several_processes import REPLICATED, SHARDED, torchrun

HERE = Path(__file__).parent
EXACT = {
    2: [*REPLICATED, *SHARDED, "only the first has loaded", "a process without rows"],
    4: ["ddp sgd", "ddp adam", "ddp uneven", "fsdp sgd", "fsdp adam"],
}
CLAIMS = ["buffers are not broadcast", "join is refused", "modes are refused", "roots are dealt out"]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_train_as_one_on_the_whole_batch(processes, tmp_path):
    torchrun(processes, HERE / "distributed_program.py", tmp_path, *EXACT[processes], *CLAIMS)
    results = json.loads((tmp_path / "results.json").read_text())
    gaps = {case: results.pop(case) for case in EXACT[processes]}
    assert max(gaps.values()) < 1e-10, gaps
    assert results == dict.fromkeys(CLAIMS, 0.0)


def test_what_loops_do_beside_training(tmp_path):
    torchrun(2, HERE / "beside_program.py", tmp_path)
    gaps = json.loads((tmp_path / "results.json").read_text())
    assert len(gaps) == 15
    assert max(gaps.values()) < 1e-10, gaps


ONE_WRAPPER = """
import gc, weakref, torch, torch.distributed as dist
from torch import nn
from fisherlayers import reconstruct
dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
gc.disable()
wrapped = reconstruct(nn.parallel.DistributedDataParallel(nn.Linear(3, 2)))
wrapped(torch.randn(4, 3)).sum().backward()
gone = weakref.ref(wrapped)
del wrapped
assert gone() is None
"""


def test_the_first_wrapper_of_a_process_goes_with_its_last_user():
    # Otherwise a process that trains alone afterwards would wait for the others, until chance collects the wrapper.
    subprocess.run([sys.executable, "-c", ONE_WRAPPER], check=True)


def test_a_killed_process_and_a_restart_from_the_checkpoint(tmp_path):
    killed = torchrun(2, HERE / "restart_program.py", tmp_path, check=False)
    assert killed.returncode != 0
    # The other process may be the one that torchrun blames: it can notice and abort first.
    assert (tmp_path / "killed").exists(), killed.stderr[-6000:]
    torchrun(2, HERE / "restart_program.py", tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == {"from": 6, "gaps": {"ddp": 0.0, "fsdp": 0.0}}


@given(st.lists(st.floats(0.0, 1e9), max_size=30), st.integers(1, 8))
def test_tasks_are_dealt_out_evenly(costs, processes):
    owners = deal(costs, processes)
    loads = [sum(cost for cost, owner in zip(costs, owners, strict=True) if owner == p) for p in range(processes)]
    # Graham's bound: the last task of the fullest process went to the one that then had least.
    assert max(loads) <= sum(costs) / processes + max(costs, default=0.0) + 1e-6 * sum(costs)


def test_dealing_by_hand():
    assert deal([1.0, 5.0, 3.0, 3.0], 2) == [0, 0, 1, 1]
    assert deal([], 3) == []
