"""Reconstruct a network so that plain descent on it is natural-gradient descent, and fold it back."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Literal, TypeVar

from torch import nn
from torch.optim import Optimizer

from fisherlayers.natural_gradient.attachment import Make, attach, detach
from fisherlayers.natural_gradient.checkpoints import accept_plain_keys, refuse_plain_keys
from fisherlayers.natural_gradient.distributed import share_pending
from fisherlayers.natural_gradient.following import Settings
from fisherlayers.natural_gradient.modes import Mode, Rank, activations_of, maker, trust_of
from fisherlayers.natural_gradient.parametrization import fisher_weights
from fisherlayers.natural_gradient.places import holders, is_host, place_of
from fisherlayers.natural_gradient.roots import plain_coordinates
from fisherlayers.natural_gradient.rules.rule import Weight, rule_of
from fisherlayers.natural_gradient.selection import Choice, Selector, chosen_layers
from fisherlayers.natural_gradient.sharding import is_sharded, lay_out
from fisherlayers.natural_gradient.ticking import refresh_weights, unwatch, watch
from fisherlayers.natural_gradient.transport import move

__all__ = ["fold", "reconstruct", "refresh"]

Model = TypeVar("Model", bound=nn.Module)


def reconstruct(
    model: Model,
    *,
    mode: Mode = "input",
    damping: float | Literal["auto"] = "auto",
    output_damping: float | None = None,
    trust_region: float | Literal["auto"] | None = "auto",
    activations: Mapping[str, str | nn.Module] | None = None,
    compat: bool = False,
    decay: float = 0.95,
    refresh_every: int = 50,
    statistics_every: int = 25,
    rank: Rank = "auto",
    block_size: int | None = None,
    include: Sequence[Selector] = ("*",),
    exclude: Sequence[Selector] = (),
) -> Model:
    """Put a local Fisher layer before the weights of a model, in place.

    Linear layers, convolutions, attention, recurrent layers, and every kind that ``register_rule`` was told of;
    embeddings if ``include`` names their class.

    Each weight becomes W = W' S and each bias b = d - W μ, where μ is the mean of the layer's input and S the inverse
    square root of its covariance, damped and scaled to keep the input's power (``input_coordinates`` in ``roots.py``).
    The Parameter objects stay (they hold W' and d from now on), and so does the function that the model computes.

    Train as before, with any optimizer from ``torch.optim``, built before or after, at its usual learning rate.
    Gradient descent on (W', d) is gradient descent on [W b] preconditioned by the inverse information of the
    homogeneous input [x; 1] (Liu et al., arXiv 2412.07441; centred by the bias as in Desjardins et al., arXiv
    1507.00210). Information and roots follow the training from outside; at a new root W and b stay, and the optimizer's
    momentum is carried along. Second moments (Adam) are kept as they are. Weight decay acts on W, and on the
    layer's mean output.

    Save with ``state_dict`` (resumes exactly) or ``plain_state_dict``; ``fold`` makes the model plain again.

    Args:
        model: Any model; parametric layers of other kinds are left alone and named in one warning.
        mode: Which Fisher information. ``"input"``: one per layer, from the layer's input. ``"kronecker"``: also one
            from the loss's derivatives by the layer's outputs, W = T W' S, for linear layers and convolutions; descent
            is then K-FAC (other kinds of layers as with ``"input"``). ``"unit"``: one per output unit, from the layer's
            input weighted by what the unit's output tells about it (the relative information of Sun and Nielsen, ICML
            2017), for the same kinds of layers, up to 2^28 numbers a layer.
        damping: Added to the covariance of inputs, relative to its mean eigenvalue; more than 0. ``"auto"`` is 3, and
            more for a layer that has more inputs than 1.6 times the rows (samples x positions) of a step: batches that
            small do not tell its small directions from noise (``automatic_damping`` in ``roots.py``). Under Muon, whose
            steps are orthogonal, inputs are centred and not whitened again in mode ``"input"``.
        output_damping: The same for the covariance of the derivatives, in mode ``"kronecker"``; None for 3.
        trust_region: How much a step may change a layer's outputs, relative to its inputs (root mean squares); longer
            steps of any optimizer are shortened. None for no limit; ``"auto"`` is 0.03 in mode ``"kronecker"``.
        activations: In mode ``"unit"``, what follows a layer, by patterns of layer names: ``"relu"``, ``"leaky_relu"``,
            ``"elu"``, ``"sigmoid"``, ``"tanh"``, ``"linear"``, or a module of that kind; the first match counts. A
            layer without one takes the next module of its ``nn.Sequential``; the last of a sequential model is linear.
        compat: In mode ``"unit"``, by the rule of the authors' released code: damping times the trace, a moving average
            from the identity, no scale, first and last layer linear. ``reconstruct(model, **COMPAT)`` sets its numbers.
        decay: Weight of the past at each observed step, in [0, 1]; 1 is the exact mean over all of them.
        refresh_every: Optimizer steps between new roots, at least 1. The first ones come at steps 0, 1, 2, 4, 8, ...
        statistics_every: Optimizer steps between observed steps, at least 1, with the same start; all batches of an
            observed step count, each by at most max(1024, 2 D) of its rows (samples x positions), and 4,096.
        rank: Directions of the input that are treated one by one, the others alike; None for all of them (a dense
            root), ``"auto"`` for 31, or all where the layer has fewer than a hundred inputs.
        block_size: Linear layers and convolutions with more inputs than this get a root in blocks of at most so many
            inputs, each treated as a layer's input of its own, on the input side alone and without a trust region; not
            in mode ``"unit"``. None for one root a layer, whose information takes D² numbers for D inputs.
        include: Patterns of module names, as ``fnmatch`` reads them, or classes of modules; only matching layers are
            reconstructed.
        exclude: The same, for layers that are left alone.

    Returns:
        The same model.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If an argument is out of its range, a pattern or class matches no module, nothing is left to
            reconstruct, or the model is reconstructed already, or laid over processes.

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
    if mode not in {"input", "unit", "kronecker"}:
        raise ValueError(
            f"mode must be 'input', 'unit' or 'kronecker', got {mode!r} "
            "(the exact natural gradient is an optimizer: ExactNaturalGradient)"
        )
    if block_size is not None and mode == "unit":
        raise ValueError("block_size belongs to modes 'input' and 'kronecker', and mode is 'unit': leave it out")
    for name, given in (("activations", activations is not None), ("compat", compat)):
        if given and mode != "unit":
            raise ValueError(f"{name} belongs to mode 'unit', and mode is {mode!r}: leave it out")
    if output_damping is not None and mode != "kronecker":
        raise ValueError(f"output_damping belongs to mode 'kronecker', and mode is {mode!r}: leave it out")
    for name, number, other in (("damping", damping, "auto"), ("output_damping", output_damping, None)):
        if number != other and not (isinstance(number, Real) and 0 < number < float("inf")):
            raise ValueError(
                f"{name} must be positive and finite (it is relative to the mean eigenvalue) or {other!r}, "
                f"got {number!r}"
            )
    if not (isinstance(decay, Real) and 0 <= decay <= 1):
        raise ValueError(f"decay must lie in [0, 1] (1 = exact mean), got {decay!r}")
    if compat and decay == 1:
        raise ValueError("decay must be less than 1 with compat, a moving average from the identity, got 1")
    for name, value in (("refresh_every", refresh_every), ("statistics_every", statistics_every)):
        if not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"{name} must be a whole number of optimizer steps, at least 1, got {value!r}")
    if not (rank is None or rank == "auto" or (isinstance(rank, Integral) and rank >= 1)):
        raise ValueError(f"rank must be a whole number of at least 1, None (dense) or 'auto', got {rank!r}")
    if not (block_size is None or (isinstance(block_size, Integral) and block_size >= 1)):
        raise ValueError(f"block_size must be a whole number of inputs, at least 1, or None, got {block_size!r}")
    settings = Settings(
        None if damping == "auto" else float(damping),
        float(decay),
        int(refresh_every),
        int(statistics_every),
        None,
        trust=trust_of(mode, trust_region),
        block_size=None if block_size is None else int(block_size),
    )
    if output_damping is not None:
        settings = settings._replace(output_damping=float(output_damping))
    lay_out(model)
    choices = chosen_layers(model, include, exclude)
    if any(is_sharded(parameter) for choice in choices for parameter in choice.layer.parameters()):
        raise ValueError(
            "model is laid over processes already (fully_shard, parallelize_module): call reconstruct first, then "
            "fully_shard"
        )
    following = activations_of(model, choices, activations, compat=compat) if mode == "unit" else {}
    shared = {key for key, held in holders(model).items() if len(held) > 1}

    def make(choice: Choice, weight: Weight) -> Make:
        alone = id(getattr(*place_of(choice.layer, weight.name))) not in shared
        activation = following.get(choice.layer) if alone else None
        chosen = mode if alone else "input"
        return maker(chosen, settings, rank, choice.layer, choice.rule, weight, activation, compat=compat)

    for choice, names in attach(model, choices, make):
        watch(choice.layer, choice.rule, names)
    for host in filter(is_host, model.modules()):
        accept_plain_keys(host)
    return model


def fold(model: Model, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> Model:
    """Make a reconstructed model plain again, in place: same class, keys, outputs and Parameter objects.

    Args:
        model: A model, reconstructed or not.
        optimizer: Its state follows, so that training may go on; without it the state stays in the old coordinates.
            Several optimizers where weights and biases have one each.

    Returns:
        The same model.

    Raises:
        ValueError: If ``fully_shard`` has laid the model over processes, or an optimizer holds none of its parameters.
    """
    optimizers = _optimizers_of(model, optimizer)
    if any(is_sharded(fisher.weight) for fisher in fisher_weights(model)):
        raise ValueError(
            "model is sharded by fully_shard, which cannot be undone: load plain_state_dict(model) into a plain model"
        )
    for fisher in list(fisher_weights(model)):
        plain = plain_coordinates(fisher.coordinates)
        move(fisher, plain, optimizers)
    for module in list(model.modules()):
        unwatch(module)
    for host in list(filter(is_host, model.modules())):
        refuse_plain_keys(host)
        detach(host)
        rule = rule_of(host)
        if rule is not None:
            rule.restore(host)
    return model


def refresh(model: nn.Module, optimizer: Optimizer | Iterable[Optimizer] | None = None) -> None:
    """Recompute all roots now, from what has been observed; W and b stay.

    Training does this by itself every ``refresh_every`` steps of the optimizer. Where several processes train the model
    together, all of them must call this.

    Args:
        model: A reconstructed model; layers that saw no training batch yet are passed over.
        optimizer: Its state follows, or that of several; without it momentum stays in the old coordinates.

    Raises:
        ValueError: If the model is not reconstructed, or an optimizer holds none of its parameters.
    """
    optimizers = _optimizers_of(model, optimizer)
    fishers = list(fisher_weights(model))
    if not fishers:
        raise ValueError("model is not reconstructed: call reconstruct(model) first")
    share_pending(fishers)
    for fisher in fishers:
        fisher.absorb()
    seen = [fisher for fisher in fishers if fisher.observed_at >= 0]
    refresh_weights(seen, optimizers)


def _optimizers_of(model: nn.Module, given: Optimizer | Iterable[Optimizer] | None) -> tuple[Optimizer, ...]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    lay_out(model)
    optimizers: tuple[Optimizer, ...] = () if given is None else (given,)  # type: ignore[assignment]
    if isinstance(given, Iterable) and not isinstance(given, str):
        optimizers = tuple(given)
    own = {id(parameter) for parameter in model.parameters()}
    for each in optimizers:
        if not isinstance(each, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, or several of them, got {type(each).__name__}")
        if not any(id(parameter) in own for group in each.param_groups for parameter in group["params"]):
            raise ValueError(
                f"optimizer ({type(each).__name__}) holds none of the model's parameters: give the one that trained it"
            )
    return optimizers
