"""Lightning with automatic optimization: only the model is reconstructed, nothing else changes."""

import lightning
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from fisherlayers import fold, reconstruct
from fisherlayers.data import load_digits


class Digits(lightning.LightningModule):
    """A classifier of 8 x 8 images as people write it, but for one call of ``reconstruct``."""

    def __init__(self):
        super().__init__()
        self.network = reconstruct(nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)))
        self.losses = []

    def training_step(self, batch, _index):
        images, labels = batch
        loss = functional.cross_entropy(self.network(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)]


def trainer(epochs):
    """Return a quiet trainer that checkpoints into the current folder."""
    return lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=5.0,
        default_root_dir=".",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main():
    """Train for three epochs, and for three more from Lightning's checkpoint."""
    lightning.seed_everything(0)
    digits = load_digits()
    images, labels = torch.from_numpy(digits.train_images), torch.from_numpy(digits.train_labels)
    loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)

    first = Digits()
    half_way = trainer(3)
    half_way.fit(first, loader)
    half_way.save_checkpoint("half-way.ckpt")
    second = Digits()
    trainer(6).fit(second, loader, ckpt_path="half-way.ckpt")

    losses = [sum(part) / len(part) for part in (first.losses[:10], first.losses[-10:], second.losses[-10:])]
    print("loss at the start, before and after the checkpoint:", *(f"{loss:.4f}" for loss in losses))
    assert losses[2] < losses[1] < 0.5 * losses[0]

    second.eval()
    test = torch.from_numpy(digits.test_images)
    before = second.network(test)
    fold(second)
    assert torch.allclose(second.network(test), before, atol=1e-4)
    accuracy = (second.network(test).argmax(1).numpy() == digits.test_labels).mean()
    print(f"folded network, test accuracy: {accuracy:.1%}")


if __name__ == "__main__":
    main()
