"""Labelled rows around a centre for each class."""

import torch


def blobs(classes=4, each=12, features=30, seed=0):
    """Return float64 rows, (classes * each, features), and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(each)
    centres = torch.randn(classes, features, generator=generator, dtype=torch.float64)
    return centres[labels] + torch.randn(len(labels), features, generator=generator, dtype=torch.float64), labels
