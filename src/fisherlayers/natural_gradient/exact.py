"""The exact natural gradient of a small network: the full Fisher information over all parameters.

A baseline and a reference for tests. With the derivatives J_n (outputs x P) of the outputs by all P parameters and the
information Λ_n of the output distribution,

    F = 1/N Σ_n J_nᵀ Λ_n J_n,     Λ = diag(p) - p pᵀ (softmax)  or  I (Gaussian of unit variance),

which is E[s sᵀ] for the score s of a label drawn from the model (Amari 1998; Martens 2020, section 5).

Two forms give the same step. ``"dense"`` holds F: memory P², time P³, some thousand parameters. ``"samples"`` holds the
Gram matrix of the batch's N K scores (K outputs): memory (N K)², time (N K)³ for any P, for example 76,000 parameters
and a batch of 50. It is exact for the information of that batch.
"""

import weakref
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from fisherlayers.natural_gradient.derivatives import jacobians_of, outputs_of
from fisherlayers.natural_gradient.scores import (
    Output,
    Scores,
    check_output,
    damped_solve,
    mixing_of,
    ridge_of,
    scores_of,
)
from fisherlayers.natural_gradient.trust_region import clip_factor

__all__ = ["ExactNaturalGradient", "exact_information"]

Form = Literal["auto", "dense", "samples"]

_OWN = ("_model", "_output", "_form", "_information", "_gram", "_follow")
_LARGEST = 20_000  # unknowns of a dense solve: 3.2 GB in float64


def exact_information(model: nn.Module, inputs: Tensor, *, output: Output = "softmax") -> Tensor:
    """Return the Fisher information of all trained parameters, averaged over a batch.

    Args:
        model: Maps a batch to (N, outputs); rows must not influence each other (no batch normalisation), nor chance
            (no dropout), and all its parameters are read from its modules. Anything else is a ValueError.
        inputs: (N, ...).
        output: ``"softmax"`` for logits of a categorical distribution, ``"gaussian"`` for means of unit variance.

    Returns:
        (P, P), float64, in the order of ``model.parameters()``.
    """
    check_output(output)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        mixing = mixing_of(outputs_of(model, inputs), output)
    by_name = jacobians_of(model, trained, inputs)
    jacobians = [by_name[name].flatten(2) for name in trained]
    size = sum(jacobian.shape[2] for jacobian in jacobians)
    information = torch.zeros(size, size, dtype=torch.float64, device=mixing.device)
    piece = max(1, size // mixing.shape[1])  # samples whose scores take no more memory than F
    for start in range(0, len(inputs), piece):
        some = slice(start, start + piece)
        scores = (mixing[some] @ torch.cat([jacobian[some] for jacobian in jacobians], 2).double()).flatten(0, 1)
        information.addmm_(scores.mT, scores)
    return information / len(inputs)


class ExactNaturalGradient(Optimizer):
    """Descent along (F + λ I)^(-1) times the gradient, with the full F of a network on the batch.

    Use it as any optimizer: the batches that the model sees in training mode since the last step are the samples of F.
    To take F from other samples, call ``observe(inputs)``; from then on only ``observe`` counts, and F stays until the
    next call. Where the outputs are so certain that no information is left (the mean eigenvalue of F is less than the
    smallest normal number of the gradient's precision), the gradient counts as zero, and the parameters stay.

    F and its solve are float64 for parameters of any precision; the derivatives that make up F have the model's.

    Args:
        model: The network, called with one tensor (N, ...) and returning (N, outputs); parameters that do not require a
            gradient are left alone. Batch normalisation and dropout in training mode are refused.
        lr: Learning rate, more than 0.
        damping: λ relative to the mean eigenvalue tr F / P, more than 0. A batch leaves most of a large network's
            directions without information, so that this mean is small: there, damping wants to be larger than 1.
        output: Distribution that the model's outputs parametrize, ``"softmax"`` or ``"gaussian"``.
        form: ``"dense"`` (a solve of P unknowns), ``"samples"`` (of N times outputs unknowns), or ``"auto"`` for the
            smaller. Both are exact.
        kl_clip: Longest step in nats: a step δ with ½ δᵀ (F + λ I) δ above it is shortened to it (KL clipping, Ba,
            Grosse and Martens 2017); a batch for which that is not finite adds nothing. More than 0; None for no limit.
            On small batches of which the model has become certain, F and with it λ are so small that steps need one.
        momentum: Of the directions, as SGD has it of gradients, in [0, 1); ``kl_clip`` then limits what one batch adds.
        weight_decay: Decoupled: each step also shrinks parameters that have a gradient by ``lr`` times this share.

    Raises:
        TypeError: If ``model`` is no module, or a number is none.
        ValueError: If an argument is out of its range.

    Example:
        >>> import torch
        >>> from fisherlayers import ExactNaturalGradient
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = ExactNaturalGradient(model, lr=0.5, damping=0.1)
        >>> loss = torch.nn.functional.cross_entropy(model(torch.randn(32, 4)), torch.arange(32) % 3)
        >>> loss.backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1.0,
        damping: float = 1e-3,
        output: Output = "softmax",
        form: Form = "auto",
        kl_clip: float | None = None,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("damping", damping), ("momentum", momentum), ("weight_decay", weight_decay)):
            if not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not 0 < lr < float("inf"):
            raise ValueError(f"lr must be positive and finite, got {lr}")
        if not 0 < damping < float("inf"):
            raise ValueError(
                f"damping must be positive and finite (it is relative to the mean eigenvalue), got {damping}"
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        check_output(output)
        if form not in {"auto", "dense", "samples"}:
            raise ValueError(f"form must be 'auto', 'dense' or 'samples', got {form!r}")
        if kl_clip is not None and not kl_clip > 0:
            raise ValueError(f"kl_clip must be positive, in nats, or None for no limit, got {kl_clip}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not 0 <= weight_decay < float("inf"):
            raise ValueError(f"weight_decay must be a number of at least 0, got {weight_decay}")
        trained = [p for p in model.parameters() if p.requires_grad]
        step = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(trained, {**step, "damping": damping, "kl_clip": kl_clip})
        self._model = model
        self._output: Output = output
        self._form: Form = form
        self._information: Tensor | Scores | None = None
        self._gram: Tensor | None = None
        self._seen: list[Tensor] = []
        self._follow = True
        self._handle = self._followed()

    def _followed(self) -> RemovableHandle:
        return self._model.register_forward_pre_hook(_Follower(self), with_kwargs=True)

    @override
    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles need beside torch's own: they belong to the copy of the model."""
        return super().__getstate__() | {name: vars(self)[name] for name in _OWN}

    @override
    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take such a state; `load_state_dict` gives torch's own part alone."""
        super().__setstate__(state)
        if "_model" in state:
            self._seen = []
            self._handle = self._followed()
            if not self._follow:
                self._handle.remove()

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group that there is.

        Args:
            param_group: All trained parameters of the model.

        Raises:
            ValueError: If there is a group already.
        """
        if self.param_groups:
            raise ValueError("ExactNaturalGradient has one group, all trained parameters of its model: make a new one")
        super().add_param_group(param_group)

    def observe(self, inputs: Tensor) -> None:
        """Take the information at a batch and the current parameters.

        Args:
            inputs: (N, ...), as the model takes them.
        """
        self._follow = False
        self._handle.remove()
        self._seen.clear()
        self._take(inputs)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one natural-gradient step.

        Args:
            closure: Computes gradients and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: If no training batch was seen and ``observe`` was never called, or other parameters require a
                gradient than when the optimizer was made.
        """
        trained = [id(parameter) for parameter in self._model.parameters() if parameter.requires_grad]
        if trained != [id(parameter) for parameter in self.param_groups[0]["params"]]:
            raise RuntimeError(
                "other parameters of the model require a gradient than when this optimizer was made: make a new one"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._seen:
            self._take(torch.cat(self._seen))
            self._seen.clear()
        if self._information is None:
            raise RuntimeError(
                "there is no Fisher information yet: call the model in training mode, or call observe(inputs) before "
                "step()"
            )
        (group,) = self.param_groups
        parameters = group["params"]
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        directions = self._solve(gradient, group["damping"])
        length = group["lr"]
        # States that were saved before there were these do not have them.
        limit, momentum, decay = group.get("kl_clip"), group.get("momentum", 0.0), group.get("weight_decay", 0.0)
        if limit is not None:
            slope = sum(float((g.double() * d).sum()) for g, d in zip(gradient, directions, strict=True))
            factor = clip_factor(length**2 * slope / 2, limit)
            # Where the divergence is not finite, the factor is 0 and the directions need not be finite.
            directions = [d * factor if factor else torch.zeros_like(d) for d in directions]
        for parameter, direction in zip(parameters, directions, strict=True):
            step = direction.to(parameter.dtype)
            if momentum:
                state = self.state[parameter]
                before = state.get("momentum_buffer")
                step = state["momentum_buffer"] = step if before is None else before.mul_(momentum).add_(step)
            if parameter.grad is not None:
                parameter.mul_(1 - length * decay)
            parameter.sub_(step, alpha=length)
        return loss

    @torch.enable_grad()
    def _take(self, inputs: Tensor) -> None:
        size = sum(p.numel() for p in self.param_groups[0]["params"])
        self._follow, before = False, self._follow
        try:
            form = self._form
            if form == "auto" and size <= _LARGEST:
                with torch.no_grad():
                    form = "samples" if outputs_of(self._model, inputs).numel() < size else "dense"
            if form == "dense":
                if size > _LARGEST:
                    raise ValueError(
                        f"form 'dense' needs a {size} x {size} matrix for the model's parameters (at most {_LARGEST}): "
                        "use form='samples'"
                    )
                self._information = exact_information(self._model, inputs, output=self._output)
            else:
                scores = scores_of(self._model, inputs, output=self._output)
                unknowns = scores.samples * scores.outputs
                if unknowns > _LARGEST:
                    raise ValueError(
                        f"form 'samples' needs a {unknowns} x {unknowns} matrix for {scores.samples} samples and "
                        f"{scores.outputs} outputs (at most {_LARGEST}): use smaller batches"
                    )
                self._information, self._gram = scores, scores.gram()
        finally:
            self._follow = before

    def _solve(self, gradient: list[Tensor], damping: float) -> list[Tensor]:
        if isinstance(self._information, Scores):
            return self._information.solve(gradient, damping=damping, gram=self._gram)
        assert self._information is not None
        flat = torch.cat([tensor.flatten() for tensor in gradient]).double()
        ridge = ridge_of(float(self._information.diagonal().mean()), damping, gradient)
        if not 0 < ridge < float("inf"):
            return [tensor * ridge for tensor in gradient]
        direction = damped_solve(self._information, flat, ridge)
        pieces = torch.split(direction, [tensor.numel() for tensor in gradient])
        return [piece.view_as(tensor) for piece, tensor in zip(pieces, gradient, strict=True)]


class _Follower:
    """A forward pre-hook that hands batches to an optimizer; a copy of it, on a copied model, hands them to none."""

    def __init__(self, optimizer: ExactNaturalGradient | None = None) -> None:
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is not None and optimizer._follow and model.training and torch.is_grad_enabled():
            wrapper = DistributedDataParallel._active_ddp_module
            if wrapper is not None and wrapper.process_group.size() > 1:
                raise RuntimeError(
                    "ExactNaturalGradient works in one process: each would solve by the information of its own batch: "
                    "take reconstruct(model) in several"
                )
            given = [*args, *kwargs.values()]
            if len(given) != 1 or not isinstance(given[0], Tensor):
                raise TypeError(
                    f"a model of ExactNaturalGradient is called with one tensor, got {len(given)} arguments"
                )
            optimizer._seen.append(given[0].detach().clone())  # its memory may be used for the next batch

    @override
    def __reduce__(self) -> tuple[type["_Follower"], tuple[()]]:
        return _Follower, ()
