"""The exported classifier against the estimator: whole images in, scores out, in onnxruntime.

Classifiers of every preset and of other settings (`fitted_kinds.py`) are exported to ONNX; the figure is the largest
absolute difference of any score of any image between onnxruntime and `decision_function`. Images go through the
exported model in batches of several sizes; one of them is flat, whose gradients are exactly zero.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from benchmarks.common import Figure, command_line, write_results
from benchmarks.fitted_kinds import KINDS, Fitted, fitted_kinds

BATCHES = (1, 5)


def scores_of_export(fitted: Fitted) -> NDArray[np.float32]:
    """Return what onnxruntime makes of the images, in the shape of `decision_function`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        channels = 1 if fitted.kind.grey else 3
        fitted.model.export_onnx(path, (fitted.kind.size, fitted.kind.size), channels=channels)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        images = fitted.images[:, None] if fitted.kind.grey else np.moveaxis(fitted.images, -1, 1)
        found, start = [], 0
        while start < len(images):
            part = images[start : start + BATCHES[len(found) % len(BATCHES)]]
            found.append(session.run(None, {"images": part})[0])
            start += len(part)
    scores = np.concatenate(found)
    return scores


def main() -> None:
    """Measure, print and write benchmarks/results/export_onnx.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", choices=[*KINDS], default=[*KINDS], metavar="KIND", help=f"of {[*KINDS]}")
    parser.add_argument("--images", type=int, default=6, help="unseen images for each classifier")
    parser.add_argument("--per-class", type=int, default=2, help="training images of each of the 23 textures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for fitted in fitted_kinds(arguments.kinds, per_class=arguments.per_class, unseen=arguments.images):
        expected = fitted.model.decision_function(list(fitted.images))
        difference = np.abs(scores_of_export(fitted) - expected)
        rows[fitted.name] = {
            "largest difference": float(difference.max()),
            "largest score": float(np.abs(expected).max()),
            "features": fitted.model.network_.num_features,
        }
        print(f"{fitted.name:50} {rows[fitted.name]}", flush=True)
    worst = max(row["largest difference"] for row in rows.values())
    details = {
        "classifiers": rows,
        "images for each": arguments.images,
        "batches": list(BATCHES),
        "onnxruntime": onnxruntime.__version__,
    }
    figure = Figure("largest difference", worst, "abs")
    print(write_results("export_onnx", [figure], command=command_line(), threads=1, details=details))


if __name__ == "__main__":
    main()
