"""Other people's optimizers as contenders, each with the settings that its authors recommend.

SOAP, Shampoo and PSGD-Kron come from pytorch_optimizer, K-FAC from SINGD: ``pip install 'fisherlayers[bench]'``. They
are imported when a contender is built.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

LARGEST_FACTOR = 2048
"""Sides of a matrix above which SOAP and Shampoo keep no factor: a root of a 10,000-word vocabulary takes minutes."""


def adamw(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """Return AdamW with torch's defaults: betas .9 and .999, weight decay .01."""
    return [AdamW(model.parameters(), lr=learning_rate)]


def soap(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """Return SOAP (Vyas et al., arXiv 2409.11321): betas .95, a new basis every ten steps, no weight decay."""
    make = _peer("pytorch_optimizer", "SOAP")
    options = {"precondition_frequency": 10, "max_precondition_dim": LARGEST_FACTOR, "weight_decay": 0.0}
    return [make(model.parameters(), lr=learning_rate, **options)]


def shampoo(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """Return Shampoo (Anil et al., arXiv 2002.09018) grafted onto SGD, from step 5 on new roots every 10 steps."""
    make = _peer("pytorch_optimizer", "ScalableShampoo")
    options = {
        "start_preconditioning_step": 5,
        "preconditioning_compute_steps": 10,
        "no_preconditioning_for_layers_with_dim_gt": LARGEST_FACTOR,
    }
    return [make(model.parameters(), lr=learning_rate, **options)]


def kron(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """Return PSGD-Kron (Li, arXiv 2402.04553) with its own schedule of preconditioner updates."""
    make = _peer("pytorch_optimizer", "Kron")
    return [make(model.parameters(), lr=learning_rate, max_size_triangular=LARGEST_FACTOR)]


def kfac(model: nn.Module, learning_rate: float) -> list[Optimizer]:
    """Return K-FAC (SINGD, arXiv 2312.05705, dense factors every ten steps); AdamW for what it leaves alone.

    It reaches Linear and Conv2d layers. Layers with a side above `LARGEST_FACTOR` keep diagonal factors there.

    Args:
        model: to be trained.
        learning_rate: of K-FAC; the rest takes a hundredth of it, AdamW's usual one where K-FAC has .1.

    Returns:
        One or two optimizers.
    """
    make = _peer("singd.optim.optimizer", "SINGD")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    held = [parameter for layer in layers for parameter in layer.parameters()]
    known = {id(parameter) for parameter in held}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    tokens = any(isinstance(module, nn.Embedding) for module in model.modules())
    average = "batch+sequence" if tokens else "batch"
    wide = any(max(layer.weight.shape) > LARGEST_FACTOR for layer in layers)
    structures = ("diagonal", "diagonal") if wide else ("dense", "dense")
    options = {"loss_average": average, "structures": structures, "warn_unsupported": False}
    optimizers = [make(model, params=held, lr=learning_rate, **options)]
    return optimizers + ([AdamW(rest, lr=learning_rate / 100, weight_decay=0.0)] if rest else [])


def _peer(module: str, name: str) -> Callable[..., Optimizer]:
    try:
        found: Any = getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f"{name} needs the package {module.partition('.')[0]} ({error}): "
            "python -m pip install 'fisherlayers[bench]'"
        ) from error
    return found
