"""Slow and obvious definitions for the natural-gradient tests: no roots, no parametrization, no hooks."""

import itertools
import math

import torch
from torch import Tensor, nn


class PreconditionedDescent:
    """SGD on a plain network, each layer's gradient multiplied by the inverse of its damped homogeneous information.

    F = E[x̃ x̃ᵀ] + λ diag(I, 0) with λ relative to the mean eigenvalue of Cov(x); E over an exponential moving average.
    """

    def __init__(
        self,
        layers,
        *,
        lr,
        damping,
        decay,
        refresh_every,
        momentum=0.0,
        nesterov=False,
        weight_decays=(0.0, 0.0),
        only_once=False,
    ):
        self.layers, self.lr, self.damping, self.decay, self.refresh_every = layers, lr, damping, decay, refresh_every
        self.momentum, self.nesterov, self.weight_decays = momentum, nesterov, weight_decays
        self.only_once = only_once  # one inverse, at the first step
        self.moment, self.total, self.inverse, self.velocity, self.mean = {}, {}, {}, {}, {}
        self.steps = 0

    def step(self, inputs):
        """Take one step with the layers' ``grad``; ``inputs`` are the rows (N, D) that each layer saw."""
        for layer, rows in zip(self.layers, inputs, strict=True):
            homogeneous = torch.cat([rows, torch.ones(len(rows), 1)], 1)
            self.moment[layer] = self.decay * self.moment.get(layer, 0) + homogeneous.T @ homogeneous
            self.total[layer] = self.decay * self.total.get(layer, 0) + len(rows)
            if self.steps in ([0] if self.only_once else turns(self.refresh_every, self.steps)):
                self.inverse[layer] = damped_inverse(
                    self.moment[layer] / self.total[layer], self.damping, centred=layer.bias is not None
                )
                self.mean[layer] = self.moment[layer][-1, :-1] / self.total[layer]
            plain = layer.weight.grad.flatten(1)
            biases = torch.zeros(len(plain)) if layer.bias is None else layer.bias.grad
            gradient = torch.cat([plain, biases[:, None]], 1)
            weight = layer.weight.detach().flatten(1)
            offsets = torch.zeros(len(plain)) if layer.bias is None else layer.bias.detach()
            # Decay of W, and of the mean output W μ + b.
            shift = weight @ self.mean[layer]
            of_weight, of_output = self.weight_decays
            value = torch.cat(
                [of_weight * weight, (of_output * (shift + offsets) - of_weight * shift)[:, None]],
                1,
            )
            # Decay has a velocity of its own: what it adds is not preconditioned.
            both = torch.stack([gradient, value])
            velocity = self.momentum * self.velocity[layer] + both if layer in self.velocity else both
            self.velocity[layer] = velocity
            direction = both + self.momentum * velocity if self.nesterov else velocity
            change = self.lr * (direction[0] @ self.inverse[layer] + direction[1])
            with torch.no_grad():
                layer.weight -= change[:, :-1].reshape(layer.weight.shape)
                if layer.bias is not None:
                    layer.bias -= change[:, -1]
        self.steps += 1


def turns(every, until):
    """The steps of the refreshes: 0, 1, 2, 4, 8, ... until they are ``every`` apart."""
    steps = [0, 1]
    while steps[-1] < until:
        steps.append(steps[-1] + min(every, steps[-1]))
    return steps


def damped_inverse(moment, damping, *, centred):
    """Return the preconditioner of [W b]: the inverse of the damped, scaled homogeneous information.

    With K = (C + λ I)^(-1), C = Cov(x), and c² = min(E|x|², 4 tr C) / tr(C K) this is the inverse of
    [[K^(-1) / c² + μ μᵀ, μ], [μᵀ, 1]]: E[x̃ x̃ᵀ] with C damped and scaled. Without a bias, c² K with C = E[x xᵀ].
    """
    size = len(moment) - 1
    power, mean = moment[:-1, :-1], moment[-1, :-1]
    information = power - torch.outer(mean, mean) if centred else power
    damped = information + damping * information.trace() / size * torch.eye(size)
    scale = min(power.trace(), 4 * information.trace()) / (information @ torch.linalg.inv(damped)).trace()
    if not centred:
        return torch.block_diag(scale * torch.linalg.inv(damped), torch.zeros(1, 1))
    homogeneous = moment.clone()
    homogeneous[:-1, :-1] = damped / scale + torch.outer(mean, mean)
    return torch.linalg.inv(homogeneous)


def unfolded(layer: nn.Module, images: Tensor) -> Tensor:
    """Return every patch that a convolution reads, group by group, by loops: (groups, batch x positions, D)."""
    dimensions = len(layer.kernel_size)
    padding = [0] * dimensions if layer.padding == "valid" else layer.padding
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in totals]
    else:
        sides = [(p, p) for p in padding]
    flat = [side for pair in reversed(sides) for side in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = torch.nn.functional.pad(images, flat, mode=mode) if any(flat) else images
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    counts = [(padded.shape[2 + axis] - spans[axis]) // layer.stride[axis] + 1 for axis in range(dimensions)]
    channels = images.shape[1] // layer.groups
    groups = []
    for group in range(layer.groups):
        rows = []
        for image in padded:
            for position in itertools.product(*map(range, counts)):
                row = []
                for channel in range(group * channels, (group + 1) * channels):
                    for offset in itertools.product(*map(range, layer.kernel_size)):
                        index = [
                            p * s + o * d
                            for p, s, o, d in zip(position, layer.stride, offset, layer.dilation, strict=True)
                        ]
                        row.append(image[(channel, *index)])
                rows.append(torch.stack(row))
        groups.append(torch.stack(rows))
    return torch.stack(groups)


def fisher_by_labels(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return E[s sᵀ] over the model's own labels, s = d log p(y | x) / d parameters, one sample and label at a time."""
    parameters = list(model.parameters())
    total = 0
    for sample in inputs:
        log_probabilities = model(sample[None]).log_softmax(1)[0]
        for log_probability in log_probabilities:
            pieces = torch.autograd.grad(log_probability, parameters, retain_graph=True)
            score = torch.cat([piece.flatten() for piece in pieces])
            total = total + math.exp(log_probability.item()) * torch.outer(score, score)
    return total / len(inputs)
