"""Following the training loop from outside: inputs by a forward pre-hook, steps by a hook of torch's optimizers.

No training loop has to change, and nothing holds on to a model: the local Fisher layer of a parameter is found through
a weak reference, set by ``watch`` and again by each training forward (so copies and loaded models work). A forward pass
only adds to sums; an optimizer's step enters them into the information, then refreshes what is due.
"""

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fisherlayers.natural_gradient.bias import FisherBias, bias_of
from fisherlayers.natural_gradient.dealing import refreshed_together
from fisherlayers.natural_gradient.distributed import check_optimizer, find_processes, passed_by, share_pending
from fisherlayers.natural_gradient.kronecker import KroneckerWeight, follow_gradient
from fisherlayers.natural_gradient.parametrization import FisherWeight, fisher_of
from fisherlayers.natural_gradient.places import place_of
from fisherlayers.natural_gradient.region import limit_steps
from fisherlayers.natural_gradient.registry import Registry
from fisherlayers.natural_gradient.rules.rule import Call, ProductRule, Rule
from fisherlayers.natural_gradient.sharding import is_sharded
from fisherlayers.natural_gradient.transport import move

__all__ = ["refresh_weights", "unwatch", "watch"]

_fishers: Registry[FisherWeight] = Registry()  # by W'
_watched: "weakref.WeakSet[FisherWeight]" = weakref.WeakSet()
_limited: "weakref.WeakSet[FisherWeight]" = weakref.WeakSet()  # with a trust region
_biases: Registry[FisherBias] = Registry()  # by d
# Optimizers that have stepped a weight or bias of ours, in the order in which they began: the same in all processes.
_steppers: "weakref.WeakKeyDictionary[Optimizer, None]" = weakref.WeakKeyDictionary()

_resumed: "weakref.WeakSet[FisherWeight]" = weakref.WeakSet()  # whose optimizers have been looked for

# Steps after which a weight that is trained should have seen an input.
_PATIENCE = 10

_OBSERVATION = "_observation_of_inputs"


class _Observation(NamedTuple):
    """What a layer's calls are observed for."""

    rule: Rule
    names: tuple[str, ...]


def watch(layer: nn.Module, rule: Rule, names: Iterable[str]) -> None:
    """Follow the weights of a layer from now on.

    Args:
        layer: A layer with reconstructed weights.
        rule: Gives the inputs of its weights.
        names: Of these weights, seen from the layer.
    """
    observation = _Observation(rule, tuple(names))
    setattr(layer, _OBSERVATION, observation)
    layer.register_forward_pre_hook(_hook("before_forward"), with_kwargs=True)
    if rule.repeats:
        layer.register_forward_hook(_hook("after_forward"), always_call=True)
    fishers = _observed(layer, observation).values()
    if any(isinstance(fisher, KroneckerWeight) for fisher in fishers):
        layer.register_forward_hook(_hook("follow_output"))
    for fisher in fishers:
        _remember(fisher)


def unwatch(layer: nn.Module) -> None:
    """Stop following a layer; any other module is left as it is.

    Args:
        layer: A layer that ``watch`` was called with, or a copy of one.
    """
    observation: _Observation | None = vars(layer).get(_OBSERVATION)
    if observation is None:
        return
    for fisher in _observed(layer, observation).values():
        _fishers.remove(fisher.weight)
        for bias in _biases_of(fisher):
            _biases.remove(bias.parameter)
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _hook("before_forward"):
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, hook in list(layer._forward_hooks.items()):
        if hook in {_hook("after_forward"), _hook("follow_output")}:
            del layer._forward_hooks[key]
            layer._forward_hooks_always_called.pop(key, None)
    delattr(layer, _OBSERVATION)


def refresh_weights(fishers: Iterable[FisherWeight], optimizers: tuple[Optimizer, ...]) -> None:
    """Recompute roots from the information, and enter the new coordinates.

    Args:
        fishers: Local Fisher layers, with statistics.
        optimizers: Those that hold their parameters; others that have stepped them are known already.
    """
    fishers = list(fishers)
    for optimizer in optimizers:
        _adapt(fishers, optimizer)
    _find_optimizers(fishers)
    every = list(dict.fromkeys((*optimizers, *_steppers)))
    for fisher, new in zip(fishers, refreshed_together(fishers), strict=True):
        if new is not None:
            move(fisher, new, every)
        fisher.refreshed_at, fisher.was_centred = fisher.steps, fisher.centred


def _find_optimizers(fishers: Sequence[FisherWeight]) -> None:
    # After a restart the first step of one of several optimizers may come with a new root, which the momentum of the
    # others has to follow; torch has no list of them.
    resumed = [fisher for fisher in fishers if fisher.steps > 0 and fisher not in _resumed]
    if not resumed:
        return
    _resumed.update(resumed)
    parameters = [p for fisher in resumed for p in (fisher.weight, *(bias.parameter for bias in fisher.biases()))]
    places = {id(p): place for place, p in enumerate(parameters) if p.requires_grad}
    known = {id(p) for optimizer in _steppers for p in _parameters(optimizer)}
    missing = places.keys() - known
    if not missing:
        return
    found = {}
    for optimizer in [each for each in gc.get_objects() if issubclass(type(each), Optimizer)]:
        # A wrapper shows the state of the optimizer in it.
        own = missing.intersection(map(id, _parameters(optimizer))) if _holds_state(optimizer) else ()
        if own:
            found[optimizer] = min(places[parameter] for parameter in own)
    _steppers.update(dict.fromkeys(sorted(found, key=found.__getitem__)))


def _holds_state(optimizer: Optimizer) -> bool:
    return vars(optimizer).keys() >= {"state", "param_groups"}


def _adapt(fishers: Iterable[FisherWeight], optimizer: Optimizer) -> None:
    # Muon and its kin are known by their names; some keep parameters for AdamW in groups of their own.
    orthogonal = any("muon" in kind.__name__.lower() for kind in type(optimizer).__mro__)
    held = {
        id(p): orthogonal and group.get("use_muon", True) for group in optimizer.param_groups for p in group["params"]
    }
    for fisher in fishers:
        if id(fisher.weight) in held:
            fisher.adapt(orthogonal=held[id(fisher.weight)])


def _observed(layer: nn.Module, observation: _Observation) -> dict[str, FisherWeight]:
    found = {name: fisher_of(*place_of(layer, name)) for name in observation.names}
    return {name: fisher for name, fisher in found.items() if fisher is not None}


def _remember(fisher: FisherWeight) -> None:
    weight = fisher.weight
    if _fishers.get(weight) is fisher:
        return
    _follow_optimizers()
    _watched.add(fisher)
    if fisher.region is not None:
        _limited.add(fisher)
    _fishers.put(weight, fisher)
    for bias in _biases_of(fisher):
        _biases.put(bias.parameter, bias)


def _biases_of(fisher: FisherWeight) -> list[FisherBias]:
    found = [bias_of(reader.host, reader.bias) for reader in fisher.readers if reader.bias is not None]
    return [bias for bias in found if bias is not None]


def _before_forward(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    observation: _Observation | None = vars(layer).get(_OBSERVATION)
    if observation is None:
        return
    counts = layer.training and torch.is_grad_enabled() and torch._C._functorch.peek_interpreter_stack() is None
    if not (layer.training or observation.rule.repeats):
        return
    fishers = _observed(layer, observation)
    if layer.training:  # also where nothing is due: other processes may differ, and are to agree
        find_processes(fishers.values())
    if counts:
        _check_captured(fishers.values())
        _observe(layer, observation.rule, Call(args, kwargs, 0), fishers)
    if observation.rule.repeats:
        for fisher in fishers.values():
            fisher.reading.keep(True)


def _after_forward(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    observation: _Observation | None = vars(layer).get(_OBSERVATION)
    for fisher in _observed(layer, observation).values() if observation is not None else ():
        fisher.reading.keep(False)


def _observe(layer: nn.Module, rule: Rule, call: Call, fishers: dict[str, FisherWeight]) -> None:
    # Activation checkpointing runs the layer again during the backward pass. What the forward pass has shown already is
    # passed over then (where it ran without gradients it has shown nothing).
    again = torch._C._current_graph_task_id() >= 0
    due = {}
    for name, fisher in fishers.items():
        _remember(fisher)
        seen = fisher.forward_at == fisher.steps if again else passed_by(fisher)
        if fisher.statistics_due and fisher.weight.requires_grad and not seen:
            due[name] = fisher
            fisher.forward_at = -1 if again else fisher.steps
    if not due:
        return
    max_rows = max(fisher.max_rows for fisher in due.values())
    with torch.no_grad():
        rows = rule.input_rows(layer, call._replace(max_rows=max_rows))
        for name, fisher in due.items():
            if isinstance(rows.get(name), Tensor):
                fisher.observe(rows[name])


def _follow_output(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    if not (layer.training and isinstance(output, Tensor) and output.requires_grad) or output.is_nested:
        return
    observation: _Observation | None = vars(layer).get(_OBSERVATION)
    if observation is None or torch._C._functorch.peek_interpreter_stack() is not None:
        return
    for fisher in _observed(layer, observation).values():
        if isinstance(fisher, KroneckerWeight) and isinstance(observation.rule, ProductRule) and fisher.statistics_due:
            follow_gradient(fisher, layer, observation.rule, output)


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    fishers = _stepped(optimizer)
    if fishers:
        check_optimizer(optimizer)
        _check_captured(fishers)
    if _makes_state(optimizer):
        return
    if fishers or any(_biases.get(parameter) is not None for parameter in _parameters(optimizer)):
        _steppers[optimizer] = None
    _absorb(fishers)
    _warn_unseen(fishers)
    due = [fisher for fisher in fishers if fisher.refresh_due]
    if due:
        refresh_weights(due, (optimizer,))
    for fisher in _limited_by(optimizer, fishers):
        if fisher.region is not None:
            fisher.region.begin(fisher)
    for fisher in fishers:
        fisher.steps += 1


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with_closure = len(args) > 1 or bool(kwargs)
    if not (with_closure or _limited):
        return
    fishers = _stepped(optimizer)
    limit_steps(_limited_by(optimizer, fishers))
    # A closure's forward passes come after the hook above; what they saw must not be lost in a checkpoint taken now.
    if with_closure:
        _absorb(fishers)


def _check_captured(fishers: Iterable[FisherWeight]) -> None:
    if any(fisher.mean.is_cuda for fisher in fishers) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a training step of a reconstructed model is being captured into a CUDA graph, whose replays run past what "
            "is observed and refreshed: train without the capture (torch.compile may stay); in evaluation mode, and "
            "after fold(model), it may be captured"
        )


def _makes_state(optimizer: Optimizer) -> bool:
    # `torch.distributed.checkpoint` has a fresh optimizer make its state by a step of no length, before it is loaded.
    if optimizer.state or any(float(group.get("lr", 1.0)) != 0 for group in optimizer.param_groups):
        return False
    gradients = [parameter.grad for parameter in _parameters(optimizer) if parameter.grad is not None]
    return bool(gradients) and not any(bool(gradient.any()) for gradient in gradients)


def _warn_unseen(fishers: Sequence[FisherWeight]) -> None:
    unseen = [
        fisher
        for fisher in fishers
        if fisher.steps == _PATIENCE and fisher.observed_at < 0 and fisher.weight.grad is not None
    ]
    if unseen:
        layers = ", ".join(dict.fromkeys(type(fisher.readers[0].host).__bases__[0].__name__ for fisher in unseen))
        warnings.warn(
            f"{len(unseen)} of {len(fishers)} reconstructed weights ({layers}) have taken {_PATIENCE} steps, and no "
            "input of theirs was seen: they train as plain ones. Inputs are observed where a layer is called in "
            "training mode with gradients on: call model.train() (normalisation and dropout may stay in evaluation "
            "mode), call layers instead of reading their weights, and train outside of torch.func's transforms",
            stacklevel=4,
        )


def _absorb(fishers: Sequence[FisherWeight]) -> None:
    share_pending(fishers)
    for fisher in fishers:
        fisher.absorb()


def _stepped(optimizer: Optimizer) -> list[FisherWeight]:
    parameters = _parameters(optimizer)
    if any(is_sharded(parameter) and _fishers.get(parameter) is None for parameter in parameters):
        for watched in list(_watched):  # fully_shard has put other parameters in the place of those that were watched
            _remember(watched)
    found = [(parameter, _fishers.get(parameter)) for parameter in parameters]
    return [fisher for parameter, fisher in found if fisher is not None and fisher.weight is parameter]


def _limited_by(optimizer: Optimizer, fishers: Iterable[FisherWeight]) -> list[FisherWeight]:
    # A trust region bounds the steps of a bias that another optimizer holds as well.
    if not _limited:
        return []
    held = dict.fromkeys(fishers)
    for parameter in _parameters(optimizer):
        bias = _biases.get(parameter)
        if bias is not None and bias.parameter is parameter:
            held |= dict.fromkeys(fisher for fisher, _ in bias.beside())
    return [fisher for fisher in held if fisher.region is not None]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


_HOOKS = {
    "before_forward": _before_forward,
    "after_forward": _after_forward,
    "follow_output": _follow_output,
    "before_step": _before_step,
    "after_step": _after_step,
}


@functools.cache
def _hook(name: str) -> Callable[..., None]:
    # What the compiler leaves alone. Made when it is needed: this imports the compiler, which takes seconds.
    hook: Callable[..., None] = torch.compiler.disable(_HOOKS[name])  # type: ignore[no-untyped-call]
    hook.__name__ = hook.__qualname__ = name
    return hook


def __getattr__(name: str) -> Any:
    if name not in _HOOKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _hook(name)  # pickle finds the hooks of a model by their names


@functools.cache
def _follow_optimizers() -> None:
    register_optimizer_step_pre_hook(_hook("before_step"))
    register_optimizer_step_post_hook(_hook("after_step"))
