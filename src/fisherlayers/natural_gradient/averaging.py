"""Averages of a reconstructed model over its training: EMA and SWA of W, not of W'."""

import copy
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from fisherlayers.natural_gradient.checkpoints import key_of, plain_state_dict
from fisherlayers.natural_gradient.reconstruction import fold
from fisherlayers.natural_gradient.sharding import is_sharded, lay_out

__all__ = ["AveragedPlainModel"]


class AveragedPlainModel(AveragedModel):
    """``torch.optim.swa_utils.AveragedModel`` of a reconstructed model: a plain network with the averages of W and b.

    W' and d belong to the coordinates of the moment, which move with every new root: the mean of two of them is no
    mean of two networks. So plain weights are averaged, at the price of one product with the root a layer and update.
    Plain models are averaged as ever.

    Args:
        model: Reconstructed or not; it is copied.
        *args: As for ``AveragedModel``: device, ``avg_fn``, ``multi_avg_fn``, ``use_buffers``.
        **kwargs: The same by name.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If ``fully_shard`` has laid the model over processes: make its average before.

    Example:
        >>> import torch
        >>> from fisherlayers import AveragedPlainModel, reconstruct
        >>> model = reconstruct(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)))
        >>> average = AveragedPlainModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
        >>> average.update_parameters(model)  # after each step of the optimizer
        >>> sorted(average.module.state_dict())
        ['0.bias', '0.weight', '2.bias', '2.weight']
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        if isinstance(model, nn.Module):
            lay_out(model)
            if any(map(is_sharded, model.parameters())):
                raise ValueError(
                    "model is sharded by fully_shard, which cannot be copied: make its average before fully_shard "
                    "(update_parameters takes the sharded model, in every process)"
                )
        latest = fold(copy.deepcopy(model))
        super().__init__(latest, *args, **kwargs)
        self._latest = (latest,)  # in a tuple: not a submodule, whose parameters would be the average's

    @override
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model as it is now into the average.

        Args:
            model: The one that is trained.
        """
        (latest,) = self._latest
        latest.load_state_dict(plain_state_dict(model))
        buffers = {key_of(name): buffer for name, buffer in model.named_buffers()}
        for name, buffer in latest.named_buffers():  # also those that a state dictionary leaves out
            buffer.copy_(buffers[key_of(name)])
        super().update_parameters(latest)
