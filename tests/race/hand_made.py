"""Runs with curves written by hand."""

from fisherlayers.race import Point, Run


def run(losses, *, every=10, second=0.5, seed=0, base="SGD", reconstructed=False, diverged=False):
    points = tuple(Point(every * i, second * i, loss, loss + 1, 50.0) for i, loss in enumerate(losses))
    name = f"{base} reconstructed" if reconstructed else base
    return Run(name, base, reconstructed, seed, 0.1, diverged, points)
