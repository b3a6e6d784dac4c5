"""What reconstruction costs each kind of layer: the time of a step in plain steps, and the memory in plain weights.

Each layer alone, forward, backward and an SGD step with default settings, after the first refreshes. Plain and
reconstructed take turns. Run: python -m benchmarks.layer_kinds
"""

import argparse
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.common import Figure, command_line, interleaved, ratio, write_results
from fisherlayers import reconstruct
from fisherlayers.natural_gradient.parametrization import fisher_weights

KINDS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear, 512 to 512, 512 rows": (lambda: nn.Linear(512, 512), (512, 512)),
    "Conv2d, 64 to 64, 3 x 3, 32 images of 16 x 16": (lambda: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 16, 16)),
    "ConvTranspose2d, 64 to 32, 4 x 4, stride 2, 32 images of 8 x 8": (
        lambda: nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
        (32, 64, 8, 8),
    ),
    "TransformerEncoderLayer, 128 wide, 32 x 64 tokens": (
        lambda: nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True),
        (32, 64, 128),
    ),
    "LSTM, 200 units, 35 x 20 tokens": (lambda: nn.LSTM(200, 200), (35, 20, 200)),
    "GRU, 200 units, 35 x 20 tokens": (lambda: nn.GRU(200, 200), (35, 20, 200)),
    "Embedding, 10,000 x 200, 700 tokens": (lambda: nn.Embedding(10_000, 200), (700,)),
}


def trainer(make: Callable[[], nn.Module], shape: tuple[int, ...], steps: int, *, plain: bool) -> Callable[[], None]:
    """Return a function that takes ``steps`` training steps of a layer of its own."""
    torch.manual_seed(0)
    layer = make()
    inputs: Tensor = torch.randint(0, 10_000, shape) if isinstance(layer, nn.Embedding) else torch.randn(shape)
    if not plain:
        reconstruct(layer, include=["*", type(layer)])
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            outputs = layer(inputs)
            (outputs if isinstance(outputs, Tensor) else outputs[0]).square().mean().backward()
            optimizer.step()

    return run


def extra_memory(make: Callable[[], nn.Module]) -> float:
    """Return the bytes of the local Fisher layers over those of the plain parameters."""
    layer = make()
    own = sum(parameter.nbytes for parameter in layer.parameters())
    reconstruct(layer, include=["*", type(layer)])
    return sum(buffer.nbytes for fisher in fisher_weights(layer) for buffer in fisher.buffers()) / own


def main() -> None:
    """Measure and write benchmarks/results/layer_kinds.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed blocks of each contender (default: 7)")
    parser.add_argument("--steps", type=int, default=50, help="steps of a block, the refresh period (default: 50)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="left alone")

    figures, details = [], {}
    for name, (make, shape) in KINDS.items():
        contenders = {
            kind: trainer(make, shape, arguments.steps, plain=kind == "plain") for kind in ("plain", "reconstructed")
        }
        timings = interleaved(contenders, rounds=arguments.rounds, warmup=3, threads=1)
        value, spread = ratio(timings, "reconstructed", "plain", clock="cpu")
        memory = extra_memory(make)
        plain = 1e3 * timings["plain"].summary(clock="cpu") / arguments.steps
        details[name] = {"milliseconds a plain step, CPU": plain, "memory over plain parameters": memory}
        figures.append(Figure(f"step ratio, {name}", value, "x", spread))
        print(f"{name:65} {value:.3f} x plain steps, memory {memory:.2f} x parameters", flush=True)
    settings = {"steps a block": arguments.steps, "rounds": arguments.rounds, "clock": "CPU seconds"}
    write_results(
        "layer_kinds", figures, command=command_line(), threads=1, details={"settings": settings, "kinds": details}
    )


if __name__ == "__main__":
    main()
