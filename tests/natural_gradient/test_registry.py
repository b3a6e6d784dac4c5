"""Modules by the identity of a tensor."""

import gc

import torch
from torch import nn

from fisherlayers.natural_gradient.registry import Registry


def test_a_tensor_gives_its_own_module_and_no_other():
    registry, modules = Registry(), [nn.Identity(), nn.Identity()]
    tensors = [torch.zeros(2), torch.zeros(2)]  # equal, not the same
    for tensor, module in zip(tensors, modules, strict=True):
        registry.put(tensor, module)
    assert [registry.get(tensor) for tensor in tensors] == modules
    registry.put(tensors[0], modules[1])
    assert registry.get(tensors[0]) is modules[1]
    registry.remove(tensors[0])
    registry.remove(tensors[0])
    assert registry.get(tensors[0]) is None
    assert registry.get(tensors[1]) is modules[1]


def test_nothing_is_kept_alive():
    registry, tensor, module = Registry(), torch.zeros(2), nn.Identity()
    registry.put(tensor, module)
    other = torch.zeros(2)
    registry.put(other, module)
    del other
    gc.collect()
    assert len(registry._entries) == 1
    del module
    gc.collect()
    assert registry.get(tensor) is None


def test_a_number_that_is_in_use_again_names_no_stranger():
    registry, module = Registry(), nn.Identity()
    tensor, stranger = torch.zeros(2), torch.ones(2)
    registry.put(tensor, module)
    registry._entries[id(stranger)] = registry._entries[id(tensor)]  # as if it had got a dead tensor's number
    assert registry.get(stranger) is None
    assert registry.get(tensor) is module
