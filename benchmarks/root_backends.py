"""Inverse square roots by every back-end: how long they take, and how far S F S is from the identity.

F is the covariance of inputs whose variances fall like 1/i, as those of layers do. Two dampings: 1e-3 of the mean
eigenvalue (hard) and 3 (the default of `reconstruct`, by which the low-rank root is judged). All on one thread, in
alternating order; times are CPU seconds. Run: python -m benchmarks.root_backends
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Figure, command_line, interleaved, ratio, write_results
from fisherlayers.inverse_root import inverse_square_root, low_rank_inverse_square_root, root_residual
from fisherlayers.root import BlockRoot, LowRankRoot

SIZES = (64, 128, 256, 512, 1024, 2048)
HARD, USUAL = 1e-3, 3.0
RANK = 31
BLOCK = 128
METHODS = ("eigh", "denman-beavers", "newton-schulz")


def covariance(size: int) -> Tensor:
    """Return a random covariance with eigenvalues 1/i, float32."""
    generator = torch.Generator().manual_seed(size)
    rotation = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]
    matrix = (rotation / torch.arange(1, size + 1)) @ rotation.T
    return ((matrix + matrix.T) / 2).float()


def damped(matrix: Tensor, damping: float) -> Tensor:
    """Return F + damping * mean eigenvalue * I in float64."""
    values = matrix.double()
    return values + damping * values.trace() / len(values) * torch.eye(len(values), dtype=torch.float64)


def single_precision(matrix: Tensor, damping: float) -> Tensor:
    """Return the root by a float32 eigendecomposition, without any check."""
    values, vectors = torch.linalg.eigh(damped(matrix, damping).float())
    return (vectors * values.clamp_min(torch.finfo(torch.float32).tiny).rsqrt()) @ vectors.T


def contenders(matrix: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return every back-end as a function that makes the root; ``low rank`` starts from its last basis, as in use."""
    basis = low_rank_inverse_square_root(matrix, rank=RANK, damping=USUAL).basis
    blocks = [matrix[start : start + BLOCK, start : start + BLOCK] for start in range(0, len(matrix), BLOCK)]

    def exact(method: Any) -> Callable[[], Tensor]:
        return lambda: inverse_square_root(matrix, damping=HARD, method=method)

    def low_rank() -> Tensor:
        return LowRankRoot(low_rank_inverse_square_root(matrix, rank=RANK, damping=USUAL, basis=basis)).dense()

    def block_diagonal() -> Tensor:
        return BlockRoot(inverse_square_root(torch.stack(blocks), damping=USUAL), len(matrix)).dense()

    found = {method: exact(method) for method in METHODS}
    found["eigh, float32"] = lambda: single_precision(matrix, HARD)
    found["low rank"] = low_rank
    if len(matrix) >= 2 * BLOCK:
        found["blocks"] = block_diagonal
    return found


def condition(matrix: Tensor, root: Tensor) -> float:
    """Return the condition number of S (F + λ I) S for the usual damping."""
    whitened = root.double() @ damped(matrix, USUAL) @ root.double()
    values = torch.linalg.eigvalsh((whitened + whitened.T) / 2)
    return float(values[-1] / values[0])


def main() -> None:
    """Measure and write benchmarks/results/root_backends.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each back-end (default: 5)")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help=f"largest size (default: {SIZES[-1]})")
    arguments = parser.parse_args()
    figures, details = [], {}
    for size in (size for size in SIZES if size <= arguments.largest):
        matrix = covariance(size)
        functions = contenders(matrix)
        rounds = arguments.rounds if size <= 1024 else max(1, arguments.rounds // 2)
        timings = interleaved(functions, rounds=rounds, warmup=1 if size <= 512 else 0, threads=1)
        for name, function in functions.items():
            root = function()
            exact = name in METHODS or name == "eigh, float32"
            quality = (
                {"residual": float(root_residual(damped(matrix, HARD), root.double()))}
                if exact
                else {"condition after whitening": condition(matrix, root)}
            )
            seconds = timings[name].summary(clock="cpu")
            details[f"{name}, {size}"] = {"milliseconds, CPU": 1e3 * seconds, **quality}
            print(f"{size:5} {name:16} {1e3 * seconds:10.2f} ms  {quality}", flush=True)
            if name != "eigh":
                value, spread = ratio(timings, name, "eigh")
                figures.append(Figure(f"time over eigh's, {name}, {size}", value, "x", spread))
        details[f"before whitening, {size}"] = {
            "condition": condition(matrix, torch.eye(size, dtype=torch.float64)),
        }
    settings = {
        "damping of the exact methods": HARD,
        "damping of low rank and blocks": USUAL,
        "rank": RANK,
        "block": BLOCK,
        "eigenvalues": "1/i",
        "clock": "CPU seconds",
    }
    write_results(
        "root_backends", figures, command=command_line(), threads=1, details={"settings": settings, "sizes": details}
    )


if __name__ == "__main__":
    main()
