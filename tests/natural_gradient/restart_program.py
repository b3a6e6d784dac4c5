"""A process is killed in the middle; started again, all go on from the checkpoint: ``torchrun ... FOLDER``."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parent))
from distributed_program import batch_of, difference, leave, model_of, parts_of, sgd

from fisherlayers.natural_gradient import plain_state_dict

STEPS, KILLED_AT = 12, 7
KINDS = ("ddp", "fsdp")


def start(kind):
    model = model_of(rank=2)
    if kind == "ddp":
        return DistributedDataParallel(model), model, sgd(model)
    fully_shard(model.wide)
    fully_shard(model)
    return model, model, sgd(model)


def save(kind, model, optimizer, folder):
    if kind == "fsdp":
        dcp.save(dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)), checkpoint_id=folder)
    elif dist.get_rank() == 0:
        torch.save([model.state_dict(), optimizer.state_dict()], folder.with_suffix(".pt"))


def load(kind, model, optimizer, folder):
    if kind == "fsdp":
        state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
        dcp.load(state, checkpoint_id=folder)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    else:
        model_state, optimizer_state = torch.load(folder.with_suffix(".pt"), weights_only=True)
        model.load_state_dict(model_state)
        optimizer.load_state_dict(optimizer_state)


def train(folder, first, *, saving):
    """Train one model of each kind side by side; return their plain weights."""
    runs = {kind: start(kind) for kind in KINDS}
    if first:
        for kind, (_, model, optimizer) in runs.items():
            load(kind, model, optimizer, folder / f"{kind}-{first}")
    for step in range(first, STEPS):
        if saving and step in {3, 6}:
            for kind, (_, model, optimizer) in runs.items():
                save(kind, model, optimizer, folder / f"{kind}-{step}")
            dist.barrier()
            if dist.get_rank() == 0:
                (folder / "last").write_text(str(step))
        if not first and saving and step == KILLED_AT and dist.get_rank() == 1:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        inputs, targets = parts_of(batch_of(step), True)[dist.get_rank()]
        for wrapped, _, optimizer in runs.values():
            optimizer.zero_grad()
            functional.cross_entropy(wrapped(inputs), targets).backward()
            optimizer.step()
    return {kind: plain_state_dict(model) for kind, (_, model, _) in runs.items()}


def main():
    folder = Path(sys.argv[1])
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    last = folder / "last"
    first = int(last.read_text()) if last.exists() else 0
    states = train(folder, first, saving=True)
    expected = train(folder, 0, saving=False)
    gaps = {kind: difference(states[kind], expected[kind]) for kind in KINDS}
    if dist.get_rank() == 0:
        (folder / "results.json").write_text(json.dumps({"from": first, "gaps": gaps}))
    leave()


if __name__ == "__main__":
    main()
