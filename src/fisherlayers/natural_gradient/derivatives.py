"""The derivatives of a batch's outputs by a model's parameters, sample by sample.

A linear layer that reads one row a sample has the derivatives g ⊗ x̃, with g those by the layer's output. This is the
whole of a parameter's derivative only if the model uses the parameter nowhere else. All its uses lie on paths of
autograd's graph from the model's output to the parameter, so that ``linear_layers`` looks for paths beside the layer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.func import functional_call, jacrev, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["LinearLayer", "jacobians_of", "linear_layers", "outputs_of"]


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer whose parameters act on the model's outputs by this one call alone.

    Attributes:
        inputs: (N, D), what it read.
        derivatives: (N, K, out), of the model's K outputs by what it returned.
        weight: (out, D), None if it is frozen or used elsewhere too.
        bias: (out,), None for the same reasons, or if there is none.
    """

    inputs: Tensor
    derivatives: Tensor
    weight: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class _Call:
    inputs: Tensor  # detached
    result: Tensor
    parameters: tuple[Tensor | None, Tensor | None]  # weight and bias
    before: tuple[Node, ...]  # what its inputs came from, and weights that are no parameters


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return a model's outputs for a batch, if they are each sample's own and no matter of chance.

    Args:
        model: Maps a batch to (N, K).
        inputs: (N, ...).

    Returns:
        (N, K).

    Raises:
        ValueError: If the batch is empty, the model returns anything but (N, K), has batch normalisation or dropout in
            training mode, or draws random numbers of torch.
    """
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {tuple(inputs.shape)}")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"model has batch normalisation (layer {name!r}), by which samples influence each other, so that "
                "the information of a sample is not defined: freeze it by eval(), or take reconstruct(model)"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ValueError(f"model has dropout (layer {name!r}): {_CHANCE}")
    before = _random_states(model)
    results: Tensor = model(inputs.clone())  # it may write to them
    if not all(map(torch.equal, before, _random_states(model))):
        raise ValueError(f"model draws random numbers, as dropout in attention does or by a function: {_CHANCE}")
    if results.ndim != 2 or results.shape[0] != inputs.shape[0]:
        raise ValueError(f"model must return (N, outputs) for {inputs.shape[0]} inputs, got {tuple(results.shape)}")
    return results


_CHANCE = (
    "the information would be that of other random numbers than the loss had; turn it off (eval(), or p = 0), or take "
    "the information without it: model.eval(), optimizer.observe(inputs), model.train()"
)


def _random_states(model: nn.Module) -> list[Tensor]:
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


@torch.enable_grad()
def linear_layers(model: nn.Module, inputs: Tensor) -> tuple[Tensor, list[LinearLayer]]:
    """Return a batch's outputs, and the linear layers through which alone some parameters act on them.

    Args:
        model: Maps a batch to (N, K); rows must not influence each other.
        inputs: (N, ...).

    Returns:
        The outputs as ``outputs_of`` gives them, and the layers that read one vector a sample, once. A parameter that
        is in none of them is frozen, or acts in other ways too: with a second layer that shares it, or by a function.
    """
    calls: dict[nn.Module, list[_Call]] = {}

    def record(layer: nn.Linear, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: Tensor) -> Tensor:
        read = args[0] if args else kwargs["input"]
        parameters = layer.weight, layer.bias
        sources = [read, *(tensor for tensor in parameters if tensor is not None and not tensor.is_leaf)]
        before = tuple(get_gradient_edge(tensor).node for tensor in sources if tensor.requires_grad)
        calls.setdefault(layer, []).append(_Call(read.detach(), result, parameters, before))
        return result.clone()  # an activation in place would rewrite the history of the result, of a view of it too

    handles = [
        layer.register_forward_hook(record, prepend=True, with_kwargs=True)
        for layer in model.modules()
        if type(layer) is nn.Linear and "forward" not in vars(layer)
    ]
    try:
        results = outputs_of(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    single = [
        call
        for (call, *others) in calls.values()
        if not others and call.result.requires_grad and call.inputs.ndim == 2 and len(call.inputs) == len(inputs)
    ]
    if not single or not results.requires_grad:
        return results.detach(), []
    single = _aligned(results, single)
    edges = get_gradient_edge(results).node, *(node for call in single for node in call.before)
    elsewhere = _reached(edges, {get_gradient_edge(call.result).node for call in single})
    held = Counter(id(parameter) for call in single for parameter in call.parameters)

    def own(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or not parameter.requires_grad or held[id(parameter)] > 1:
            return None
        return None if get_gradient_edge(parameter).node in elsewhere else parameter

    owned = [(call, own(call.parameters[0]), own(call.parameters[1])) for call in single]
    owned = [(call, weight, bias) for call, weight, bias in owned if weight is not None or bias is not None]
    if not owned:
        return results.detach(), []
    derivatives = _derivatives(results, [call.result for call, _, _ in owned])
    layers = [
        LinearLayer(call.inputs, derivative, weight, bias)
        for (call, weight, bias), derivative in zip(owned, derivatives, strict=True)
    ]
    return results.detach(), layers


def _aligned(results: Tensor, calls: list[_Call]) -> list[_Call]:
    # The calls whose rows are the samples: a table of as many rows, for one, acts on all samples with all of them.
    half = len(results) // 2
    mixture = results[:half] @ torch.arange(1, results.shape[1] + 1, dtype=results.dtype, device=results.device)
    grads = torch.autograd.grad(mixture.sum(), [call.result for call in calls], retain_graph=True, allow_unused=True)
    return [
        call
        for call, grad in zip(calls, grads, strict=True)
        if grad is None or not grad[half:].nan_to_num(0.0, 0.0, 0.0).any()
    ]


def _reached(starts: Iterable[Node], ends: set[Node]) -> set[Node]:
    # All nodes of autograd's graph that the starts lead to, the ends included, but nothing through them.
    reached: set[Node] = set()
    waiting = list(starts)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            if node not in ends:
                waiting.extend(following for following, _ in node.next_functions if following is not None)
    return reached


def _derivatives(results: Tensor, outputs: list[Tensor]) -> list[Tensor]:
    # Per layer (N, K, out): rows are independent, so one backward pass of a column's sum serves all samples.
    columns = []
    for index in range(results.shape[1]):
        last = index + 1 == results.shape[1]
        grads = torch.autograd.grad(results[:, index].sum(), outputs, retain_graph=not last, allow_unused=True)
        columns.append([torch.zeros_like(o) if g is None else g for g, o in zip(grads, outputs, strict=True)])
    return [torch.stack(layer, 1) for layer in zip(*columns, strict=True)]


def jacobians_of(model: nn.Module, parameters: Mapping[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
    """Return the derivatives of a batch's outputs, sample by sample.

    Args:
        model: Maps a batch to (N, K); rows must not influence each other.
        parameters: By their names in ``model.named_parameters()``; the others are constants.
        inputs: (N, ...).

    Returns:
        Name -> (N, K, *shape of the parameter).

    Raises:
        ValueError: If the model uses one of these parameters without reading it from a module.
    """
    # A parameter may be held by several modules; a module that is registered twice must not be told twice: torch would
    # put back the second of two parameters, which is what it was given for the first.
    held = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in held.items()}
    places = {
        f"{prefix}.{own}" if prefix else own: names[id(parameter)]
        for prefix, module in model.named_modules()
        for own, parameter in module._parameters.items()
        if parameter is not None and names[id(parameter)] in parameters
    }

    def results(values: Mapping[str, Tensor], sample: Tensor) -> Tensor:
        given = {place: values[name] for place, name in places.items()}
        result: Tensor = functional_call(model, given, (sample.unsqueeze(0).clone(),), tie_weights=False).squeeze(0)
        return result

    with torch.enable_grad():
        others = results({name: value.detach() for name, value in parameters.items()}, inputs[0])
    reached = _reached([get_gradient_edge(others).node] if others.requires_grad else [], set())
    for name in parameters:
        if held[name].requires_grad and get_gradient_edge(held[name]).node in reached:
            raise ValueError(
                f"model uses parameter {name!r} without reading it from a module, so that its derivatives cannot be "
                "taken sample by sample: read it as an attribute of the module that holds it"
            )
    jacobians: dict[str, Tensor] = vmap(jacrev(results), in_dims=(None, 0))(dict(parameters), inputs)
    return jacobians
