"""What loops do beside training, in several processes against one: ``torchrun ... FOLDER [CASE...]``.

Checkpointing of activations, passes beside the wrapper, folding, refreshing and loading in the middle.
"""

import copy
import gc
import json
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from distributed_program import OPTIONS, difference, leave, paired, same_everywhere

from fisherlayers import AveragedPlainModel, ExactNaturalGradient, fold, plain_state_dict, reconstruct, refresh
from fisherlayers.natural_gradient.parametrization import fisher_weights

ROWS, STEPS = 24, 8


class Network(nn.Module):
    """Two layers, recomputed in the backward pass if so wanted."""

    def __init__(self, reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 7), nn.Linear(7, 3)
        self.reentrant = reentrant

    def forward(self, inputs):
        if self.reentrant is None:
            return self.last(self.first(inputs).tanh())
        inputs = inputs.clone().requires_grad_()  # re-entrant checkpointing needs one that requires a gradient
        hidden = checkpoint(self.first, inputs, use_reentrant=self.reentrant).tanh()
        return checkpoint(self.last, hidden, use_reentrant=self.reentrant)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 5, generator=generator).cumsum(1) + 2, torch.randint(0, 3, (ROWS,), generator=generator)


def part_of(step):
    return [tensor.chunk(dist.get_world_size())[dist.get_rank()] for tensor in batch_of(step)]


def train(model, optimizer, batches, first=0, last=STEPS, between=lambda step: None):
    """Train; ``between`` runs between the backward pass and the step."""
    for step in range(first, last):
        inputs, targets = batches(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), targets).backward()
        between(step)
        optimizer.step()


def trained(between=lambda model, optimizer, step: None, reentrant=None):
    """One process on the whole batches."""
    model = reconstruct(Network(reentrant), **OPTIONS)
    optimizer = sgd(model)
    train(model, optimizer, batch_of, between=lambda step: between(model, optimizer, step))
    return model


def gap(model, expected):
    """Between the plain weights and the roots, which all processes must share."""
    assert same_everywhere(plain_state_dict(model))
    roots = [difference(a.root.state_dict(), b.root.state_dict()) for a, b in paired(model, expected)]
    return max(difference(plain_state_dict(model), plain_state_dict(expected)), *roots)


def recomputed(reentrant):
    """Activation checkpointing of every layer: statistics are shared all the same."""
    model = reconstruct(Network(reentrant), **OPTIONS)
    train(DistributedDataParallel(model), sgd(model), part_of)
    return gap(model, trained())


def passes_beside_the_wrapper(ranks):
    """They do not count, and the processes stay together."""
    model = reconstruct(Network(), **OPTIONS)
    wrapped = DistributedDataParallel(model)
    train(
        wrapped, sgd(model), part_of,
        between=lambda step: wrapped.module(batch_of(99)[0]) if dist.get_rank() in ranks else None,
    )  # fmt: skip
    return gap(model, trained())


def alone_after_the_wrapper():
    """When the wrapper is gone, a process may train by itself."""
    gc.disable()
    model = reconstruct(Network(), **OPTIONS)
    optimizer = sgd(model)
    train(DistributedDataParallel(model), optimizer, part_of)
    gc.enable()
    if dist.get_rank() == 0:
        seen = next(fisher_weights(model)).observed_at
        train(model, optimizer, batch_of, STEPS, 2 * STEPS)
        assert next(fisher_weights(model)).observed_at > seen
    return 0.0


def folded_under_the_wrapper():
    """The gradients of a model that was folded, and reconstructed again, are averaged as before."""
    model = reconstruct(Network(), **OPTIONS)
    wrapped, optimizer = DistributedDataParallel(model), sgd(model)
    expected = reconstruct(Network(), **OPTIONS)
    its_optimizer = sgd(expected)
    for turn, (mine, its) in enumerate([(fold, fold), (lambda m, _: reconstruct(m, **OPTIONS),) * 2, (fold, fold)]):
        train(wrapped, optimizer, part_of, turn * STEPS, (turn + 1) * STEPS)
        train(expected, its_optimizer, batch_of, turn * STEPS, (turn + 1) * STEPS)
        mine(model, optimizer)
        its(expected, its_optimizer)
    assert same_everywhere(model.state_dict())
    return difference(model.state_dict(), expected.state_dict())


def reconstructed_in_the_wrapper(outer):
    """The model inside, or the wrapper as a whole."""
    model = Network()
    wrapped = DistributedDataParallel(model)
    reconstruct(wrapped if outer else model, **OPTIONS)
    train(wrapped, sgd(model), part_of)
    return gap(model, trained())


def refreshed_between(wrap):
    """By hand, with statistics of all processes pending."""
    model = reconstruct(Network(), **OPTIONS)
    wrapped = wrap(model)
    optimizer = sgd(model)
    train(wrapped, optimizer, part_of, between=lambda step: refresh(model, optimizer) if step in {0, 4} else None)
    expected = trained(lambda model, optimizer, step: refresh(model, optimizer) if step in {0, 4} else None)
    return gap(model, expected)


def sharded_after_a_pass():
    """A forward pass leaves whole parameters in a sharded model: they are not taken for those of a plain one."""
    model = reconstruct(Network(), **OPTIONS)
    average = AveragedPlainModel(model)
    fully_shard(model)
    optimizer = sgd(model)
    train(model, optimizer, part_of)
    before = plain_state_dict(model)

    def passed():
        with torch.no_grad():
            return model(batch_of(0)[0])

    passed()
    with pytest.raises(ValueError, match="sharded by fully_shard, which cannot be undone"):
        fold(model)
    passed()
    refresh(model, optimizer)
    passed()
    with pytest.raises(ValueError, match="make its average before fully_shard"):
        AveragedPlainModel(model)
    layer = fully_shard(reconstruct(nn.Linear(5, 3)))
    for each, plain in ((model, before), (layer, nn.Linear(5, 3).state_dict())):
        each(batch_of(0)[0])
        with pytest.raises(RuntimeError, match="load them before it"):
            each.load_state_dict(plain)
    average.update_parameters(model)
    return max(difference(plain_state_dict(model), before), difference(average.module.state_dict(), before))


def sharded_too_early():
    """Reconstruct comes first."""
    model = Network()
    fully_shard(model)
    with torch.no_grad():
        model(batch_of(0)[0])
    with pytest.raises(ValueError, match="call reconstruct first, then fully_shard"):
        reconstruct(model)
    return 0.0


def the_best_is_loaded_and_wrapped_again():
    """By the first process alone: a new wrapper gives its weights to all, and its counters follow."""
    model = reconstruct(Network(), **OPTIONS)
    wrapped, optimizer = DistributedDataParallel(model), sgd(model)
    train(wrapped, optimizer, part_of, 0, 3)
    best = copy.deepcopy(model.state_dict())
    train(wrapped, optimizer, part_of, 3, STEPS)
    if dist.get_rank() == 0:
        model.load_state_dict(best)
    train(DistributedDataParallel(model), sgd(model), part_of)
    expected = reconstruct(Network(), **OPTIONS)
    train(expected, sgd(expected), batch_of, 0, 3)
    train(expected, sgd(expected), batch_of)
    return gap(model, expected)


def divided_steps_are_refused():
    """Each process would step other weights, and wait for the others."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns of what it imports

    model = reconstruct(Network(), **OPTIONS)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="cannot train with ZeroRedundancyOptimizer"):
        train(DistributedDataParallel(model), optimizer, part_of)
    return 0.0


def exact_steps_are_refused():
    """Each process would solve with the information of its own batch."""
    model = Network()
    wrapped = DistributedDataParallel(model)
    optimizer = ExactNaturalGradient(model, lr=1.0, damping=1e-2)
    with pytest.raises(RuntimeError, match="ExactNaturalGradient works in one process"):
        train(wrapped, optimizer, part_of)
    return 0.0


CASES = {
    "alone after the wrapper": alone_after_the_wrapper,  # the first: torch holds on to a process's first wrapper
    "recomputed": lambda: recomputed(False),
    "recomputed, reentrant": lambda: recomputed(True),
    "passes of all beside the wrapper": lambda: passes_beside_the_wrapper({0, 1}),
    "passes of one beside the wrapper": lambda: passes_beside_the_wrapper({0}),
    "folded under the wrapper": folded_under_the_wrapper,
    "reconstructed in the wrapper": lambda: reconstructed_in_the_wrapper(outer=False),
    "reconstructed with the wrapper": lambda: reconstructed_in_the_wrapper(outer=True),
    "refreshed between, ddp": lambda: refreshed_between(DistributedDataParallel),
    "refreshed between, fsdp": lambda: refreshed_between(fully_shard),
    "sharded after a pass": sharded_after_a_pass,
    "sharded too early": sharded_too_early,
    "the best is loaded": the_best_is_loaded_and_wrapped_again,
    "exact steps are refused": exact_steps_are_refused,
    "divided steps": divided_steps_are_refused,
}


def main():
    folder, *names = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    results = {name: CASES[name]() for name in names or CASES}
    if dist.get_rank() == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    dist.barrier()  # the last case ends in an error, where one process may be ahead
    leave()


if __name__ == "__main__":
    main()
