"""What `reconstruct` adds to a layer's memory, beside what docs/natural_gradient.md states.

Measured: the bytes of all tensors in the reconstructed layer's state after some steps, less the plain layer's; the
optimizer's own state does not change. Also the sum over each race's network, over the network's parameters.
Run: python -m benchmarks.reconstruction_memory
"""

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.common import Figure, command_line, write_results
from fisherlayers import reconstruct
from fisherlayers.race.models import (
    RecurrentLanguageModel,
    Transformer,
    autoencoder,
    multilayer_perceptron,
    residual_network,
)

RANK, LEAST = 31, 100
BYTES = 4
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "Linear 784 to 512": (lambda: nn.Linear(784, 512), (64, 784), [784]),
    "Linear 80 to 80": (lambda: nn.Linear(80, 80), (64, 80), [80]),
    "Conv2d 16 to 32, 3 x 3": (lambda: nn.Conv2d(16, 32, 3), (4, 16, 12, 12), [144]),
    "Conv1d 8 to 16, 5": (lambda: nn.Conv1d(8, 16, 5), (4, 8, 40), [40]),
    "LSTM 200 to 150": (lambda: nn.LSTM(200, 150, batch_first=True), (4, 9, 200), [200, 150]),
    "MultiheadAttention 96": (lambda: nn.MultiheadAttention(96, 4, batch_first=True), (4, 9, 96), [96, 96]),
}
"""Name -> the layer, its input's shape, and the number of inputs D of each of its weights."""
NETWORKS = {
    "MLP": lambda: multilayer_perceptron([784, 512, 512, 512, 10]),
    "small MLP": lambda: multilayer_perceptron([784, 80, 80, 80, 10]),
    "autoencoder": lambda: autoencoder([784, 1000, 500, 250, 30]),
    "CNN": lambda: residual_network([16, 32, 64], 10),
    "LSTM": lambda: RecurrentLanguageModel(10_000, 200),
    "transformer": lambda: Transformer(65, 64, 96, 4, 2),
}


def stated(sizes: list[int]) -> int:
    """Return the bytes that the documentation states: (D + 1)² + 3 D and the root, summed over the weights."""
    roots = [size * RANK + RANK + 1 if size >= LEAST else size**2 for size in sizes]
    return BYTES * sum((size + 1) ** 2 + 3 * size + root for size, root in zip(sizes, roots, strict=True))


def measured(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the bytes that reconstruction added to a layer after three steps."""
    before = state_bytes(layer)
    reconstruct(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(shape)
        outputs = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
        (outputs[0] if isinstance(outputs, tuple) else outputs).square().mean().backward()
        optimizer.step()
    return state_bytes(layer) - before


def state_bytes(model: nn.Module) -> int:
    """Return the bytes of all tensors in a model's state."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


def main() -> None:
    """Measure and write benchmarks/results/reconstruction_memory.json."""
    torch.manual_seed(0)
    figures, shares = [], {}
    for name, (make, shape, sizes) in LAYERS.items():
        shares[name] = measured(make(), shape) / stated(sizes)
        figures.append(Figure(f"measured over stated, {name}", shares[name], "x"))
    figures.append(Figure("measured over stated, highest", max(shares.values()), "x"))
    for name, network in NETWORKS.items():
        plain = network()
        weights, before = sum(p.numel() * BYTES for p in plain.parameters()), state_bytes(plain)
        added = state_bytes(reconstruct(plain)) - before
        figures.append(Figure(f"added memory over parameters, {name}", added / weights, "x"))
    write_results("reconstruction_memory", figures, command=command_line(), threads=1)
    for figure in figures:
        print(f"{figure.name:50} {figure.value:.3f} {figure.unit}")


if __name__ == "__main__":
    main()
