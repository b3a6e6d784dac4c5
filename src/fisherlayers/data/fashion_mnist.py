"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28 pixels (Xiao, Rasul, Vollgraf, 2017; MIT licence)."""

from pathlib import Path
from typing import Final

from fisherlayers.data.idx import IdxSet
from fisherlayers.data.image_sets import TrainTest

FASHION_MNIST: Final = IdxSet(
    name="Fashion-MNIST",
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    folders=("fashion-mnist", "FashionMNIST/raw"),
    system_folders=("/usr/share/datasets/fashion-mnist",),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    ),
    package_hint="on Debian or Ubuntu: apt-get install dataset-fashion-mnist",
    download_command="fisherlayers demo --data fashion-mnist --download, or in Python "
    "fisherlayers.data.FASHION_MNIST.download()",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
)


def load_fashion_mnist(root: str | Path | None = None) -> TrainTest:
    """Return Fashion-MNIST, 60,000 images to train and 10,000 to test, as `IdxSet.load` finds it.

    Args:
        root: the only folder to search; None searches the usual places.

    Returns:
        uint8 images (n, 28, 28) and labels 0..9.
    """
    return FASHION_MNIST.load(root)
