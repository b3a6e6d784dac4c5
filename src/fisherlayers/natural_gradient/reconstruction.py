"""Reconstruct a network so that plain descent on it is natural-gradient descent, and fold it back."""

import fnmatch
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeVar

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from fisherlayers.natural_gradient.attachment import attach, detach
from fisherlayers.natural_gradient.checkpoints import accept_plain_keys, refuse_plain_keys
from fisherlayers.natural_gradient.inputs import row_size
from fisherlayers.natural_gradient.parametrization import FisherWeight, Settings, fisher_of
from fisherlayers.natural_gradient.roots import plain_coordinates
from fisherlayers.natural_gradient.ticking import refresh_layer, unwatch, watch
from fisherlayers.natural_gradient.transport import move

__all__ = ["fold", "reconstruct", "reconstructed_layers", "refresh"]

Model = TypeVar("Model", bound=nn.Module)

_SUPPORTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALIZATIONS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_AUTO_RANK = 31  # 32 columns with the mean: matrix products like them
_AUTO_SIZE = 100


def reconstruct(
    model: Model,
    *,
    mode: Literal["input"] = "input",
    damping: float = 3.0,
    decay: float = 0.95,
    refresh_every: int = 50,
    statistics_every: int = 25,
    rank: int | Literal["auto"] | None = "auto",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> Model:
    """Put a local Fisher layer before every linear layer and convolution of a model, in place.

    Each weight becomes W = W' S and each bias b = d - W μ, where μ is the mean of the layer's input and S the inverse
    square root of its covariance, damped and scaled to keep the input's power (``input_coordinates`` in ``roots.py``).
    The Parameter objects stay (they hold W' and d from now on), and so does the function that the model computes.

    Train as before, with any optimizer from ``torch.optim``, built before or after, at its usual learning rate.
    Gradient descent on (W', d) is gradient descent on [W b] preconditioned by the inverse information of the
    homogeneous input [x; 1] (Liu et al., arXiv 2412.07441; centred by the bias as in Desjardins et al., arXiv
    1507.00210). Information and roots follow the training from outside; at a new root W and b stay, and the optimizer's
    momentum is carried along. Second moments (Adam) are kept as they are. Weight decay acts on W' and d.

    Save with ``state_dict`` (resumes exactly) or ``plain_state_dict``; ``fold`` makes the model plain again.

    Args:
        model: Any model; parametric layers of other kinds are left alone and named in one warning.
        mode: Which Fisher information: ``"input"``, one per layer, from the layer's input.
        damping: Added to the covariance, relative to its mean eigenvalue; more than 0.
        decay: Weight of the past at each observed step, in [0, 1]; 1 is the exact mean over all of them.
        refresh_every: Optimizer steps between new roots, at least 1. The first ones come at steps 0, 1, 2, 4, 8, ...
        statistics_every: Optimizer steps between observed steps, at least 1, with the same start; all batches of an
            observed step count, each by at most 4,096 rows (samples x positions).
        rank: Directions of the input that are treated one by one, the others alike; None for all of them (a dense
            root), ``"auto"`` for 31, or all where the layer has fewer than a hundred inputs.
        include: Patterns of module names, as ``fnmatch`` reads them; only matching layers are reconstructed.
        exclude: Patterns of module names that are left alone.

    Returns:
        The same model.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If an argument is out of its range, a pattern matches no module, nothing is left to reconstruct, or
            the model is reconstructed already.

    Example:
        >>> import torch
        >>> from fisherlayers import reconstruct
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.SGD(reconstruct(model).parameters(), lr=0.1, momentum=0.9)
        >>> loss = torch.nn.functional.cross_entropy(model(torch.randn(32, 4)), torch.arange(32) % 3)
        >>> loss.backward()
        >>> optimizer.step()
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if mode != "input":
        raise ValueError(f"mode must be 'input', got {mode!r}")
    if not 0 < damping < float("inf"):
        raise ValueError(f"damping must be positive and finite (it is relative to the mean eigenvalue), got {damping}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must lie in [0, 1] (1 = exact mean), got {decay}")
    for name, value in (("refresh_every", refresh_every), ("statistics_every", statistics_every)):
        if not (isinstance(value, int) and value >= 1):
            raise ValueError(f"{name} must be a whole number of optimizer steps, at least 1, got {value!r}")
    if not (rank is None or rank == "auto" or (isinstance(rank, int) and rank >= 1)):
        raise ValueError(f"rank must be a whole number of at least 1, None (dense) or 'auto', got {rank!r}")
    layers = _eligible(model, include, exclude)
    for layer in layers:
        size = row_size(layer.weight)
        automatic = _AUTO_RANK if size >= _AUTO_SIZE else None
        chosen = automatic if rank == "auto" else rank
        settings = Settings(damping, decay, refresh_every, statistics_every, chosen)
        attach(layer, settings)
        accept_plain_keys(layer)
        watch(layer)
    return model


def fold(model: Model, optimizer: Optimizer | None = None) -> Model:
    """Make a reconstructed model plain again, in place: same class, keys, outputs and Parameter objects.

    Args:
        model: A model, reconstructed or not.
        optimizer: Its state follows, so that training may go on; without it the state stays in the old coordinates.

    Returns:
        The same model.
    """
    for layer, fisher in list(reconstructed_layers(model)):
        move(layer, fisher, plain_coordinates(fisher.root, fisher.mean), () if optimizer is None else (optimizer,))
        unwatch(layer)
        refuse_plain_keys(layer)
        detach(layer)
    return model


def refresh(model: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Recompute all roots now, from what has been observed; W and b stay.

    Training does this by itself every ``refresh_every`` steps of the optimizer.

    Args:
        model: A reconstructed model; layers that saw no training batch yet are passed over.
        optimizer: Its state follows; without it momentum stays in the old coordinates.

    Raises:
        ValueError: If the model is not reconstructed.
    """
    layers = list(reconstructed_layers(model))
    if not layers:
        raise ValueError("model is not reconstructed: call reconstruct(model) first")
    for layer, fisher in layers:
        if fisher.observed_at >= 0:
            refresh_layer(layer, fisher, () if optimizer is None else (optimizer,))


def reconstructed_layers(model: nn.Module) -> Iterator[tuple[nn.Module, FisherWeight]]:
    """Yield the reconstructed layers of a model.

    Args:
        model: Any model.

    Yields:
        Each layer with its local Fisher layer.
    """
    for module in model.modules():
        fisher = fisher_of(module)
        if fisher is not None:
            yield module, fisher


def _eligible(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> list[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    # The layers to reconstruct; one warning names the parametric layers of other kinds.
    modules = dict(model.named_modules())
    for argument, patterns in (("include", include), ("exclude", exclude)):
        if isinstance(patterns, str):
            raise ValueError(f"{argument} must be a sequence of patterns, got the string {patterns!r}")
        for pattern in patterns:
            if not fnmatch.filter(modules, pattern):
                raise ValueError(f"{argument}: the pattern {pattern!r} matches no module of {sorted(modules)}")
    owners = Counter(id(p) for module in modules.values() for p in module._parameters.values() if p is not None)
    layers, left_alone = [], []
    for name, module in modules.items():
        if fisher_of(module) is not None:
            raise ValueError(f"the model is reconstructed already (layer {name!r}): call fold(model) first")
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
            continue
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude):
            continue
        own = [p for p in module._parameters.values() if p is not None]
        if any(is_lazy(p) for p in own):
            raise ValueError(f"layer {name!r} has no weights yet: run one forward pass before reconstruct(model)")
        if isinstance(module, _SUPPORTED) and not _read_elsewhere(name, modules):
            if parametrize.is_parametrized(module) or any(owners[id(p)] > 1 for p in own):
                left_alone.append(f"{name} ({type(module).__name__}, parametrized or shared)")
            else:
                layers.append(module)
        elif own and not isinstance(module, _NORMALIZATIONS):
            left_alone.append(f"{name} ({type(module).__name__})")
    if not layers:
        raise ValueError("model has no layer to reconstruct: no nn.Linear or nn.Conv1d/2d/3d, or all are left out")
    if left_alone:
        warnings.warn(f"left alone, trained as before: {', '.join(left_alone)}", stacklevel=3)
    return layers


def _read_elsewhere(name: str, modules: dict[str, nn.Module]) -> bool:
    # Its weight is read by its parent, past its own forward: no input would ever be observed.
    parent = modules.get(name.rpartition(".")[0]) if name else None
    return isinstance(parent, nn.MultiheadAttention)
