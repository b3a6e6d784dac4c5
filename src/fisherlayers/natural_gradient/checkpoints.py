"""Plain checkpoints in and out of a reconstructed model."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fisherlayers.natural_gradient.coordinates import value_from_plain
from fisherlayers.natural_gradient.layout import lying_as
from fisherlayers.natural_gradient.parametrization import fisher_of
from fisherlayers.natural_gradient.places import is_host, order_of
from fisherlayers.natural_gradient.readers import Bias, original
from fisherlayers.natural_gradient.sharding import gathered, is_sharded, lay_out, whole
from fisherlayers.precision import full_precision

__all__ = ["accept_plain_keys", "key_of", "plain_state_dict", "refuse_plain_keys"]


@torch.no_grad()
def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return what ``fold(model).state_dict()`` would: the plain network's keys and values, detached copies.

    Args:
        model: A model, reconstructed or not; it is left as it is. If ``fully_shard`` has laid it over processes, all of
            them must call this, and all get the whole tensors.

    Returns:
        Keys and tensors that load into the plain model.

    Raises:
        TypeError: If ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    # A module may be registered under several names, and has keys under each of them.
    named = model.named_modules(remove_duplicate=False)
    hosts = {key_of(f"{name}.") if name else "": module for name, module in named if is_host(module)}
    inner = {f"{prefix}parametrizations.": prefix for prefix in hosts}
    state: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        owner = next((start for start in inner if key.startswith(start)), None)
        if owner is None:
            state[key] = whole(value).detach().clone() if isinstance(value, Tensor) else value
            continue
        name = key.removeprefix(owner).partition(".")[0]
        outer = inner[owner] + name
        if outer not in state:
            host = hosts[inner[owner]]
            with gathered(host.get_submodule("parametrizations")):
                plain, parameter = getattr(host, name).detach(), original(host, name)
                state[outer] = plain.clone() if parameter is None else lying_as(plain, parameter.detach())
    for prefix, host in hosts.items():
        state = _in_order(state, prefix, [prefix + name for name in order_of(host)])
    return state


def _in_order(state: dict[str, Tensor], prefix: str, names: list[str]) -> dict[str, Tensor]:
    # A module's own parameters come first among the keys that start with its prefix.
    keys = list(state)
    first = next(index for index, key in enumerate(keys) if key.startswith(prefix))
    own = [name for name in names if name in state]
    others = [key for key in keys[first:] if key not in own]
    return {key: state[key] for key in [*keys[:first], *own, *others]}


def key_of(name: str) -> str:
    """Return the name that a state dictionary has for a parameter, a buffer or a module.

    Args:
        name: As ``named_parameters`` or ``named_buffers`` gives it, or that of a module and a dot.

    Returns:
        The name without the wrappers of activation checkpointing, which hide themselves from the keys.
    """
    return name.replace("_checkpoint_wrapped_module.", "")


def accept_plain_keys(host: nn.Module) -> None:
    """Let ``load_state_dict`` of a module with reconstructed weights take the plain module's keys as well.

    They become W' and d in the coordinates in use; information, root and counters stay. Keys of coordinates of another
    kind are refused, also with ``strict=False``.

    Args:
        host: A module with reconstructed weights.
    """
    host.register_load_state_dict_pre_hook(_translate)  # type: ignore[no-untyped-call]


def refuse_plain_keys(host: nn.Module) -> None:
    """Undo ``accept_plain_keys``.

    Args:
        host: A module, or a copy of one, that it was called with.
    """
    hooks: dict[int, Callable[..., None]] = host._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):
        if getattr(hook, "hook", hook) is _translate:
            del hooks[key]


@torch.no_grad()
def _translate(
    host: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    _metadata: object,
    _strict: bool,
    missing_keys: list[str],
    _unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    if not is_host(host):
        return
    lay_out(host)
    names = [name for name in order_of(host) if original(host, name) is not None]
    plain = {name: state_dict.pop(prefix + name) for name in names if prefix + name in state_dict}
    if not plain:
        _refuse_other_coordinates(host, state_dict, prefix, error_msgs)
        return
    if any(map(is_sharded, host.parameters())):
        raise RuntimeError(
            f"{', '.join(prefix + name for name in plain)}: keys of the plain model, which do not load into a "
            "reconstructed one after fully_shard: load them before it"
        )
    missing_keys += [prefix + name for name in names if name not in plain]
    for name, given in list(plain.items()):
        here = getattr(host, name)
        shape, plain[name] = here.shape, given.to(here.device)
        if given.shape != shape:
            error_msgs.append(
                f"size mismatch for {prefix}{name}: {tuple(given.shape)} in the checkpoint, "
                f"{tuple(shape)} in the model."
            )
            del plain[name]
    own = f"{prefix}parametrizations."
    moved = _from_plain(host, {name: plain.get(name, getattr(host, name)) for name in names})
    inner = {key: value for key, value in host.state_dict(prefix=prefix).items() if key.startswith(own)}
    inner |= {f"{own}{name}.original": value for name, value in moved.items()}
    for key, value in inner.items():
        state_dict.setdefault(key, value)


def _refuse_other_coordinates(host: nn.Module, state_dict: dict[str, Any], prefix: str, error_msgs: list[str]) -> None:
    # W' means nothing without its root, nor a root without its W': with strict=False torch would take one of them.
    for name in list(host.get_submodule("parametrizations")._modules):
        if fisher_of(host, name) is None:
            continue
        own = f"{prefix}parametrizations.{name}."
        mine = {key: value for key, value in host.state_dict(prefix=prefix).items() if key.startswith(own)}
        given = [key for key in state_dict if key.startswith(own)]
        found, expected = _coordinates(given, own), _coordinates(mine, own)
        if not found or found == expected:
            continue
        error_msgs.append(
            f"{prefix}{name}: the checkpoint has {', '.join(sorted(found))}, the model "
            f"{', '.join(sorted(expected))}: it was saved with another mode, rank or block_size, or is not whole. "
            "Reconstruct with the settings of the model that was saved, or load its plain_state_dict."
        )
        for key in given:
            del state_dict[key]
        state_dict |= mine


def _coordinates(keys: Iterable[str], own: str) -> set[str]:
    """Return those of a weight's keys without which its function is another one."""
    names = (key.removeprefix(own).removeprefix("0.") for key in keys)
    return {name for name in names if name.partition(".")[0] in {"original", "root", "output", "mean", "shift"}}


def _from_plain(host: nn.Module, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return W' and d of W and b, in the coordinates in use."""
    moved = dict(plain)
    for name, weight in plain.items():
        fisher = fisher_of(host, name)
        if fisher is None:
            continue
        with full_precision(fisher.mean):
            rows, shift = value_from_plain(
                fisher.layout.rows(weight).to(fisher.mean), torch.zeros_like(fisher.mean[..., :1]), fisher.coordinates
            )
        moved[name] = fisher.layout.tensor(rows, weight.shape).to(weight.dtype)
        for reader in fisher.readers:
            if reader.host is host and reader.bias in moved and shift is not None:
                bias = moved[reader.bias].clone()
                view = Bias(bias, reader.part).view_of(bias)
                view.copy_(fisher.unmixed_bias(view) + shift.flatten())
                moved[reader.bias] = bias
    return moved
