"""Weight decay acts on W and b, not on W' and d.

Decay that shrinks W' and d by the same factor shrinks W = W' S and b = d - W' · shift by it. But where W' decays and d
does not, as in the usual parameter groups, b would drift by η λ W μ a step; and decay of d alone would not shrink b.
So before a step d is moved against it. With the factors 1 - p of W' and 1 - q of d,

    (1 - q)(d + y) - (1 - p) W' · shift = (1 - q) b      for      y = (q - p) / (1 - q) · W' · shift,

which falls into the share of whoever decays W' and that of whoever decays d, as they may be different optimizers.
SGD adds decay to the gradient, so that it goes through the momentum: there the same is added to the gradient of d.
(If d is in another optimizer than W', SGD is taken as if it had no momentum.)
Other optimizers that add it to the gradient (Adam as L2, RMSprop) are left alone: it has no plain image there.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fisherlayers.natural_gradient.bias import FisherBias
from fisherlayers.natural_gradient.layout import Layout
from fisherlayers.natural_gradient.sharding import writable

__all__ = ["decay_plain"]

# Those of torch that add decay to the gradient; SGD has a way of its own, or holds only one of W' and d.
_L2 = (torch.optim.ASGD, torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adamax, torch.optim.RMSprop)
# By these keys of a parameter group an optimizer says whether its decay is decoupled; without one it is.
_DECOUPLED = ("decoupled_weight_decay", "weight_decouple", "decouple")


Group = Mapping[str, Any]


@torch.no_grad()
def decay_plain(optimizer: Optimizer, biases: Iterable[FisherBias]) -> None:
    """Move d, or its gradient, so that the decay of the step to come is one of W and b.

    Args:
        optimizer: About to take a step.
        biases: Parametrizations of biases, each once; the optimizer holds d, a weight beside it, or both.
    """
    if not any(group.get("weight_decay") for group in optimizer.param_groups):
        return
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for bias in biases:
        d = bias.parameter
        mine = _acting(groups, d)
        for fisher, part in bias.beside():
            theirs = _acting(groups, fisher.weight)
            if mine is theirs:
                continue  # both shrink by the same factor
            if isinstance(optimizer, torch.optim.SGD) and mine is not None and theirs is not None and mine["lr"] > 0:
                share = theirs["lr"] * theirs["weight_decay"] / mine["lr"] - mine["weight_decay"]
                target, share = d.grad, -share if mine["maximize"] else share
            else:
                p, q = _factor(optimizer, theirs), _factor(optimizer, mine)
                target, share = d, 0.0 if p is None or q is None or q >= 1 else (q - p) / (1 - q)
            if target is not None and share != 0:
                by_rows = part is None and fisher.layout == Layout()
                with writable([fisher.weight, target], by_rows=by_rows) as (weight, opened):
                    view = opened if part is None else opened[part]
                    view.add_((share * fisher.offset(weight)).to(view.dtype))


def _acting(groups: Mapping[int, Group], parameter: Tensor) -> Group | None:
    # An optimizer passes over what has no gradient.
    return None if parameter.grad is None else groups.get(id(parameter))


def _factor(optimizer: Optimizer, group: Group | None) -> float | None:
    # By how much the parameter shrinks, relative to itself; None if the decay goes into the gradient.
    if group is None or not group.get("weight_decay"):
        return 0.0
    decoupled = next((group[key] for key in _DECOUPLED if key in group), not isinstance(optimizer, _L2))
    return float(group["lr"] * group["weight_decay"]) if decoupled else None
