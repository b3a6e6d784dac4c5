"""A plain training loop: scheduler, clipping, a checkpoint in the middle, and plain weights at the end."""

import torch
from torch import nn
from torch.nn import functional

from fisherlayers import fold, reconstruct
from fisherlayers.data import load_digits

EPOCHS, BATCH = 6, 64


def build():
    """Return the reconstructed network with its optimizer and scheduler."""
    torch.manual_seed(0)
    model = reconstruct(nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    return model, optimizer, scheduler


def main():
    """Train for six epochs, three of them after a restart."""
    digits = load_digits()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    model, optimizer, scheduler = build()
    losses = []
    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
            torch.save({name: part.state_dict() for name, part in parts.items()}, "checkpoint.pt")
            model, optimizer, scheduler = build()  # as a new process would
            checkpoint = torch.load("checkpoint.pt", weights_only=True)
            for name, part in {"model": model, "optimizer": optimizer, "scheduler": scheduler}.items():
                part.load_state_dict(checkpoint[name])
        total = 0.0
        for index in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(model(images[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item() * len(index)
        scheduler.step()
        losses.append(total / len(images))
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    assert losses[-1] < 0.1 * losses[0]

    model.eval()
    test = torch.from_numpy(digits.test_images)
    before = model(test)
    torch.save(fold(model).state_dict(), "plain.pt")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    plain.load_state_dict(torch.load("plain.pt", weights_only=True))
    assert torch.allclose(plain(test), before, atol=1e-4)
    accuracy = (plain(test).argmax(1).numpy() == digits.test_labels).mean()
    print(f"plain network, test accuracy: {accuracy:.1%}")


if __name__ == "__main__":
    main()
