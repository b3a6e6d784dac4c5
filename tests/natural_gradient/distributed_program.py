"""Trains in several processes and, on the first, in one process on the whole batch: ``torchrun ... FOLDER [CASE...]``.

Every case leaves its largest difference in ``FOLDER/results.json``; the tests read it.
"""

import gc
import json
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from fisherlayers.natural_gradient import fold, plain_state_dict, reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_weights

STEPS, ROWS = 12, 48
OPTIONS = {"statistics_every": 2, "refresh_every": 3, "decay": 0.8}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.003)


def decayed(model):
    """Weights decay, biases do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=0.02)


class Mixed(nn.Module):
    """Layers of several kinds: a grouped convolution, attention, wide and narrow linear layers, one that is idle."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv1d(4, 6, 3, groups=2, padding=1)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.wide = nn.Linear(6 * 5, 10)
        self.unbiased = nn.Linear(10, 7, bias=False)
        self.last = nn.Linear(7, 3)

    def forward(self, inputs):
        hidden = self.convolution(inputs).tanh().transpose(1, 2)
        hidden = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return self.last(self.unbiased(self.wide(hidden.flatten(1)).tanh()).tanh())


class Words(nn.Module):
    """A table of words, reconstructed on request, and one that is the last layer's weight as well."""

    def __init__(self):
        super().__init__()
        self.table, self.other = nn.Embedding(9, 5), nn.Embedding(9, 5)
        self.last = nn.Linear(5, 9)
        self.last.weight = self.other.weight

    def forward(self, words):
        return self.last((self.table(words) + self.other(words)).tanh())


def model_of(rank=None, mode="input"):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a mode leaves alone
        return reconstruct(Mixed(), mode=mode, rank=rank, **OPTIONS)


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(ROWS, 4, 5, generator=generator).cumsum(1) + 2
    return inputs, torch.randint(0, 3, (ROWS,), generator=generator)


def parts_of(batch, even):
    """The batch cut for the processes; if not ``even``, into parts of different sizes."""
    size = dist.get_world_size()
    shares = torch.ones(size) if even else torch.arange(1.0, size + 1)
    sizes = (ROWS * shares / shares.sum()).int().tolist()
    sizes[-1] += ROWS - sum(sizes)
    return list(zip(*(tensor.split(sizes) for tensor in batch), strict=True))


def train_whole(model, optimizer, steps=STEPS):
    for step in range(steps):
        inputs, targets = batch_of(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def train_part(model, optimizer, *, even=True, chunks=1, steps=STEPS, closure=False):
    """Train on this process's part; its loss is weighted so that the processes' mean is the whole batch's loss."""
    for step in range(steps):
        inputs, targets = parts_of(batch_of(step), even)[dist.get_rank()]

        def backward(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            pieces = list(zip(inputs.chunk(chunks), targets.chunk(chunks), strict=True))
            for index, (piece, labels) in enumerate(pieces):
                last = index == len(pieces) - 1
                with nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                    loss = functional.cross_entropy(model(piece), labels, reduction="sum")
                    (loss * dist.get_world_size() / ROWS).backward()
            return loss

        if closure:
            optimizer.step(backward)
        else:
            backward()
            optimizer.step()


def difference(state, expected):
    """The largest difference between two state dictionaries, relative to each tensor's largest entry where below 1."""
    assert state.keys() == expected.keys(), state.keys() ^ expected.keys()
    gaps = []
    for key, value in state.items():
        if value.numel():
            size = expected[key].double().abs().max()
            gap = (value.double() - expected[key].double()).abs().max()
            gaps.append(gap / size.clamp_max(1) if size else gap)
    return float(torch.stack(gaps).max())


@cache
def reference(optimizer_of, rank=None, closure=False, mode="input"):
    """One process on the whole batches."""
    model = model_of(rank, mode)
    optimizer = optimizer_of(model)
    if closure:
        for step in range(STEPS):
            inputs, targets = batch_of(step)

            def backward(inputs=inputs, targets=targets):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), targets)
                loss.backward()
                return loss

            optimizer.step(backward)
    else:
        train_whole(model, optimizer)
    return model


def replicated(optimizer_of, rank=None, mode="input", **how):
    """DDP against one process: the plain weights, and all that is kept in the coordinates of the origin."""
    model = model_of(rank, mode)
    optimizer = optimizer_of(model)
    train_part(DistributedDataParallel(model), optimizer, **how)
    expected = reference(optimizer_of, rank, closure=how.get("closure", False), mode=mode)
    gap = difference(plain_state_dict(model), plain_state_dict(expected))
    roots = [difference(a.root.state_dict(), b.root.state_dict()) for a, b in paired(model, expected)]
    assert all(a.refreshed_at == b.refreshed_at > 0 for a, b in paired(model, expected))
    assert same_everywhere(model.state_dict())
    return max(gap, *roots)


def words():
    """DDP against one process, on uneven parts of batches of words."""

    def make():
        torch.manual_seed(0)
        model = reconstruct(Words(), include=["*", nn.Embedding], **OPTIONS)
        return model, sgd(model)

    (model, optimizer), (alone, its_optimizer) = make(), make()
    wrapped = DistributedDataParallel(model)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        batch = torch.randint(0, 9, (ROWS,), generator=generator), torch.randint(0, 9, (ROWS,), generator=generator)
        part, labels = parts_of(batch, even=False)[dist.get_rank()]
        optimizer.zero_grad()
        loss = functional.cross_entropy(wrapped(part), labels, reduction="sum")
        (loss * dist.get_world_size() / ROWS).backward()
        optimizer.step()
        its_optimizer.zero_grad()
        functional.cross_entropy(alone(batch[0]), batch[1]).backward()
        its_optimizer.step()
    assert same_everywhere(model.state_dict())
    roots = [difference(a.root.state_dict(), b.root.state_dict()) for a, b in paired(model, alone)]
    return max(difference(plain_state_dict(model), plain_state_dict(alone)), *roots)


def paired(model, expected):
    return list(zip(fisher_weights(model), fisher_weights(expected), strict=True))


def same_everywhere(state):
    """Whether all processes hold the same bits."""
    flat = torch.cat([value.double().flatten() for value in state.values()])
    first = flat.clone()
    dist.broadcast(first, src=0)
    equal = torch.tensor(float(torch.equal(first, flat)))
    dist.all_reduce(equal, op=dist.ReduceOp.MIN)
    return bool(equal)


def sharded(optimizer_of, rank=None, **how):
    """FSDP2 against one process."""
    model = model_of(rank)
    for layer in (model.wide, model.attention):
        fully_shard(layer)
    fully_shard(model)
    optimizer = optimizer_of(model)
    train_part(model, optimizer, **how)
    expected = reference(optimizer_of, rank)
    gap = difference(plain_state_dict(model), plain_state_dict(expected))
    with pytest.raises(ValueError, match="sharded by fully_shard"):
        fold(model)
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:  # the full state is a checkpoint of one process, and of a plain network after folding
        alone = model_of(rank)
        alone.load_state_dict(full)
        gap = max(gap, difference(fold(alone).state_dict(), plain_state_dict(expected)))
    return gap


def only_the_first_has_loaded():
    """DDP gives the first process's weights to all; roots and counters follow."""
    model = model_of()
    if dist.get_rank() == 0:
        train_whole(model, sgd(model), 5)
    wrapped = DistributedDataParallel(model)
    train_part(wrapped, sgd(model))
    expected = model_of()
    train_whole(expected, sgd(expected), 5)
    train_whole(expected, sgd(expected))
    assert same_everywhere(model.state_dict())
    return difference(plain_state_dict(model), plain_state_dict(expected))


def a_process_without_rows():
    """A process whose batch is empty, and one whose batch is not finite, take part in everything."""
    gaps = []
    for spoiled in (False, True):
        torch.manual_seed(0)
        model = reconstruct(nn.Linear(4, 2), decay=1.0, statistics_every=1, refresh_every=1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(dist.get_rank()))
        if dist.get_rank() == 0:
            rows = torch.full((8, 4), float("nan")) if spoiled else rows[:0]
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped(rows).sum().backward()
            optimizer.step()
        seen = torch.cat([
            torch.randn(8, 4, generator=torch.Generator().manual_seed(rank)) for rank in range(1, dist.get_world_size())
        ])
        fisher = next(fisher_weights(model))
        moment = fisher.information.value()
        mean = fisher.origin + moment[-1, :-1]
        gaps += [(mean - seen.mean(0)).abs().max(), (fisher.information.count - 2 * len(seen)).abs()]
        assert same_everywhere(fisher.state_dict())
    return float(torch.stack(gaps).max())


def buffers_are_not_broadcast():
    """DDP broadcasts the buffers of other layers before a forward pass, and none of ours."""
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    wrapped = DistributedDataParallel(reconstruct(model))
    wrapped(torch.randn(4, 4))
    wrapped(torch.randn(4, 4))
    names = set(wrapped.named_module_buffers)
    assert names == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}, names
    return 0.0


def join_is_refused():
    """A process that has run out of data takes no step: refused, where it would wait for ever."""
    wrapped = DistributedDataParallel(reconstruct(nn.Linear(4, 3)))
    with pytest.raises(RuntimeError, match=r"cannot train under DistributedDataParallel\.join"), wrapped.join():
        wrapped(torch.randn(4, 4))
    return 0.0


def modes_are_refused():
    """What cannot be shared yet says so."""
    torch.manual_seed(0)
    unit = DistributedDataParallel(reconstruct(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), mode="unit"))
    unit(torch.randn(4, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="mode 'unit' trains in one process only"):
        torch.optim.SGD(unit.parameters()).step()
    kronecker = reconstruct(nn.Sequential(nn.Linear(4, 3)), mode="kronecker")
    fully_shard(kronecker)
    kronecker(torch.randn(4, 4)).sum().backward()
    with pytest.raises(RuntimeError, match="fully_shard needs mode='input'"):
        torch.optim.SGD(kronecker.parameters()).step()
    return 0.0


def roots_are_dealt_out():
    """Every root is computed by one process."""
    from fisherlayers.natural_gradient.parametrization import FisherWeight

    computed, compute = [], FisherWeight.refreshed

    def counted(fisher):
        computed.append(fisher)
        return compute(fisher)

    FisherWeight.refreshed = counted
    try:
        model = model_of()
        train_part(DistributedDataParallel(model), sgd(model), steps=1)
    finally:
        FisherWeight.refreshed = compute
    counts = torch.tensor([float(len(computed)), float(len(computed))])
    dist.all_reduce(counts[:1])
    dist.all_reduce(counts[1:], op=dist.ReduceOp.MIN)
    layers = len(list(fisher_weights(model)))
    assert counts[1] >= 1, "a process had nothing to do"
    return float((counts[0] - layers).abs())


CASES = {
    "ddp sgd": lambda: replicated(sgd),
    "ddp adam": lambda: replicated(adam),
    "ddp low rank": lambda: replicated(sgd, rank=2),
    "ddp uneven": lambda: replicated(sgd, even=False),
    "ddp accumulation": lambda: replicated(sgd, chunks=3),
    "ddp kronecker": lambda: replicated(sgd, mode="kronecker", even=False),
    "ddp closure": lambda: replicated(sgd, closure=True),
    "ddp words": words,
    "fsdp sgd": lambda: sharded(sgd),
    "fsdp adam": lambda: sharded(adam),
    "fsdp decay": lambda: sharded(decayed),
    "fsdp low rank uneven": lambda: sharded(sgd, rank=2, even=False),
    "only the first has loaded": only_the_first_has_loaded,
    "a process without rows": a_process_without_rows,
    "buffers are not broadcast": buffers_are_not_broadcast,
    "join is refused": join_is_refused,
    "modes are refused": modes_are_refused,
    "roots are dealt out": roots_are_dealt_out,
}


def leave():
    """Part from the other processes, at the end of a program.

    Collected now, what FSDP2 keeps in cycles lets go of the group while the interpreter lives. Later a thread of gloo's
    may abort the process ("terminate called without an active exception"), as with plain models on a busy machine.
    """
    dist.destroy_process_group()
    gc.collect()


def main():
    folder, *names = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: CASES[name]() for name in names or CASES}
    if dist.get_rank() == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main()
