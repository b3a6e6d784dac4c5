"""A small Deep Fisher Network for digits, fitted in seconds, then fine-tuned end to end by reconstructed Adam."""

import torch
from torch.nn import functional

from fisherlayers import DeepFisherNetwork, fold, reconstruct
from fisherlayers.data import load_digits

EPOCHS, BATCH = 3, 32
SMALL = {"components": 2, "dimensions": 4, "bin_sizes": (3,), "step": 4, "patch_side": 0, "iterations": 5}


def main():
    """Fit, fine-tune, and go on with the estimator."""
    torch.manual_seed(0)
    digits = load_digits(test_fraction=0.7)
    network = DeepFisherNetwork(random_state=0, **SMALL).fit(digits.train_images, digits.train_labels)
    fitted = network.score(digits.test_images, digits.test_labels)

    module = reconstruct(network.to_module(), include=["*reduction", "classifier"])
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    steps = EPOCHS * -(-len(images) // BATCH)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = []
    for epoch in range(EPOCHS):
        total = 0.0
        for index in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(module.temperature * module(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item() * len(index)
        losses.append(total / len(images))
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    assert losses[-1] < losses[0]

    network.update_from(fold(module))
    tuned = network.score(digits.test_images, digits.test_labels)
    print(f"fitted {fitted:.1%}, fine-tuned and folded {tuned:.1%} on test images")


if __name__ == "__main__":
    main()
