"""Accelerate: gradient accumulation, clipping, saved and loaded state."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fisherlayers import fold, reconstruct
from fisherlayers.data import load_digits


def prepared(accelerator, images, labels):
    """Return network, optimizer and loader in Accelerate's hands."""
    torch.manual_seed(0)
    model = reconstruct(nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    loader = DataLoader(TensorDataset(images, labels), batch_size=32, shuffle=True)
    return accelerator.prepare(model, optimizer, loader)


def main():
    """Train for six epochs, three of them after loading the saved state."""
    digits = load_digits()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer, loader = prepared(accelerator, images, labels)
    means = []
    for epoch in range(6):
        if epoch == 3:
            accelerator.save_state("half-way")
            accelerator.free_memory()
            model, optimizer, loader = prepared(accelerator, images, labels)
            accelerator.load_state("half-way")
        losses = []
        for batch, target in loader:
            with accelerator.accumulate(model):
                loss = functional.cross_entropy(model(batch), target)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
        means.append(sum(losses) / len(losses))
        accelerator.print(f"epoch {epoch}: loss {means[-1]:.4f}")
    assert means[5] < means[2] < 0.5 * means[0]

    plain = accelerator.unwrap_model(model).eval()
    test = torch.from_numpy(digits.test_images)
    before = plain(test)
    assert torch.allclose(fold(plain)(test), before, atol=1e-4)
    accuracy = (plain(test).argmax(1).numpy() == digits.test_labels).mean()
    accelerator.print(f"folded network, test accuracy: {accuracy:.1%}")


if __name__ == "__main__":
    main()
