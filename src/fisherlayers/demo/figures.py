"""The demo's figures: accuracies, test images with predictions, and the evidence in them."""

from fisherlayers.data import TrainTest
from fisherlayers.demo.contest import Entry, choose_shown
from fisherlayers.fisher_vectors import DeepFisherNetwork
from fisherlayers.report import Picture, bars, evidence_grid, image_grid


def accuracy_picture(entries: list[Entry]) -> Picture:
    """Draw the test accuracies, the first contender's bar standing out.

    Args:
        entries: the network's first.

    Returns:
        Bars.
    """
    svg = bars(
        {entry.name: round(entry.accuracy, 1) for entry in entries},
        xlabel="test accuracy (%)",
        highlight=[entries[0].name],
        limits=(0, 100),
    )
    return Picture(svg, alt="Test accuracy of " + ", ".join(f"{entry.name} {entry.accuracy:.1f}" for entry in entries))


def prediction_picture(entry: Entry, data: TrainTest, *, shown: int = 24) -> Picture:
    """Draw test images with the predicted class above each.

    Args:
        entry: whose predictions.
        data: the images and the class names.
        shown: how many images.

    Returns:
        A grid: right answers first, then mistakes.
    """
    chosen = choose_shown(entry.predicted, data.test_labels, shown=shown)
    svg = image_grid(
        [data.test_images[index] for index in chosen],
        [data.classes[entry.predicted[index]] for index in chosen],
        [data.classes[data.test_labels[index]] for index in chosen],
    )
    return Picture(
        svg,
        alt=f"{len(chosen)} test images with the class that the {entry.name} gives each",
        caption="Test images with the predicted class; mistakes last, in red, with the right class in brackets.",
    )


def evidence_picture(network: DeepFisherNetwork, entry: Entry, data: TrainTest, *, shown: int = 8) -> Picture:
    """Draw where in test images the evidence for the predicted class lies.

    Args:
        network: fitted.
        entry: its predictions.
        data: the images and the class names.
        shown: how many images.

    Returns:
        Images beside their evidence: right answers first, then mistakes.
    """
    chosen = choose_shown(entry.predicted, data.test_labels, shown=shown)
    images = [data.test_images[index] for index in chosen]
    names = [data.classes[entry.predicted[index]] for index in chosen]
    svg = evidence_grid(images, network.evidence(images, entry.predicted[chosen]), names)
    return Picture(
        svg,
        alt=f"{len(chosen)} test images, and which parts of each speak for the class that it is given",
        caption="Where the score of the predicted class comes from: red speaks for it, blue against it. The values of "
        "all pixels and the classifier's intercept add up to the score.",
    )
