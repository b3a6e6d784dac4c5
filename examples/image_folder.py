"""A ResNet-18 on a folder of class folders, such as ImageNet's train folder or a sample of it.

    python examples/image_folder.py IMAGENET/train --validation IMAGENET/val --epochs 90 --batch 256
    python examples/image_folder.py PHOTOS --size 64 --per-class 100 --epochs 5

Without a folder it makes one of coloured shapes. `--plain` trains the same network without reconstruction.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from fisherlayers import fold, reconstruct
from fisherlayers.data import load_folder, read_image
from fisherlayers.race.models import ResidualBlock

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Images(Dataset):
    """Labelled image files as normalised tensors; random crops and mirror images where they are trained on."""

    def __init__(self, paths, labels, size, *, augment):
        self.paths, self.labels, self.size, self.augment = paths, labels, size, augment

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.fromarray(read_image(self.paths[index])).convert("RGB")
        side = min(image.size)
        share = torch.empty(1).uniform_(0.5, 1.0).item() if self.augment else 1.0
        crop = max(1, round(side * share))
        room = [length - crop for length in image.size]
        left, top = (torch.randint(r + 1, (1,)).item() if self.augment else r // 2 for r in room)
        image = image.crop((left, top, left + crop, top + crop)).resize(
            (self.size, self.size), Image.Resampling.BILINEAR
        )
        pixels = torch.tensor(np.asarray(image)).float() / 255
        if self.augment and torch.rand(1) < 0.5:
            pixels = pixels.flip(1)
        return ((pixels - MEAN) / DEVIATION).permute(2, 0, 1), int(self.labels[index])


def resnet18(classes, width=64):
    """Return a ResNet-18 (He et al., 2016); its first stage has `width` channels, 64 in the paper."""
    stem = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks, before = [], width
    for stage in range(4):
        after = width * 2**stage
        blocks += [ResidualBlock(before, after, 2 if stage else 1), ResidualBlock(after, after)]
        before = after
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


def make_shapes(folder):
    """Write a folder of squares and circles, twelve images a class."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32] - 16
    for name, inside in (("circle", x**2 + y**2 < 100), ("square", np.maximum(abs(x), abs(y)) < 9)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            pixels = generator.integers(60, size=(32, 32, 3)) + inside[..., None] * generator.integers(60, 190, size=3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")
    return folder


def chosen(files, per_class):
    """Return the paths and labels of at most `per_class` images a class."""
    indices = [i for label in range(len(files.classes)) for i in np.flatnonzero(files.labels == label)[:per_class]]
    return [files.paths[i] for i in indices], files.labels[indices]


def accuracy(model, loader, device):
    """Return the share of right classes."""
    model.eval()
    with torch.no_grad():
        right = [(model(x.to(device)).argmax(1).cpu() == y).double() for x, y in loader]
    return torch.cat(right).mean().item()


def main():
    """Train, print the accuracy an epoch, fold and save plain weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="class folders to train on")
    parser.add_argument("--validation", type=Path, help="class folders to validate; a tenth of the images if not given")
    parser.add_argument("--size", type=int, default=224, help="side of the crops (default: 224)")
    parser.add_argument("--per-class", type=int, help="use a sample of at most so many images a class")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage (default: 64)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.01, help="of SGD with momentum .9 (default: .01)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--plain", action="store_true", help="do not reconstruct")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.folder is None:
        options.folder, options.size, options.batch, options.width = make_shapes(Path("shapes")), 32, 8, 4

    files = load_folder(options.folder)
    paths, labels = chosen(files, options.per_class)
    if options.validation:
        held = chosen(load_folder(options.validation), options.per_class)
    else:
        order = torch.randperm(len(paths)).tolist()
        split = max(1, len(paths) // 10)
        held = [paths[i] for i in order[:split]], labels[order[:split]]
        paths, labels = [paths[i] for i in order[split:]], labels[order[split:]]
    train = DataLoader(
        Images(paths, labels, options.size, augment=True),
        options.batch,
        shuffle=True,
        num_workers=options.workers,
        drop_last=len(paths) > options.batch,
    )
    validation = DataLoader(Images(*held, options.size, augment=False), options.batch, num_workers=options.workers)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = resnet18(len(files.classes), options.width).to(device)
    if not options.plain:
        model = reconstruct(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=options.epochs * len(train))
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for x, y in train:
            loss = functional.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        score = accuracy(model, validation, device)
        print(f"epoch {epoch}: training loss {np.mean(losses):.3f}, validation accuracy {score:.1%}", flush=True)
    if not options.plain:
        fold(model)
        assert abs(accuracy(model, validation, device) - score) < 0.02  # the same function
    torch.save(model.state_dict(), "resnet18.pt")
    print("plain weights: resnet18.pt")


if __name__ == "__main__":
    main()
