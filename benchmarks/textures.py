"""The demo's texture contest and its time, as ledger entries: ``python -m benchmarks.textures``.

Runs the whole demo (`fisherlayers.demo.run_demo`) with its own settings, and keeps the accuracies, the fit times and
the demo's wall-clock time. The settings were chosen on held-out training patches, but test accuracies of some eight
settings had been seen before.
"""

import tempfile
from pathlib import Path

import torch

from benchmarks.common import Figure, command_line, write_results
from fisherlayers.demo import run_demo


def main() -> None:
    """Run the demo into a temporary folder and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_demo(Path(folder))
    figures = [Figure("demo time", outcome.seconds / 60, "min")]
    for entry in outcome.entries:
        figures.append(Figure(f"test accuracy, {entry.name}", entry.accuracy, "%"))
        figures.append(Figure(f"fit time, {entry.name}", entry.fit_seconds, "s"))
    details = {
        "protocol": __doc__,
        "predict_seconds": {entry.name: entry.predict_seconds for entry in outcome.entries},
        "test_images": len(outcome.entries[0].predicted),
    }
    write_results("textures", figures, command=command_line(), threads=torch.get_num_threads(), details=details)
    for figure in figures:
        print(f"{figure.name:45} {figure.value:8.2f} {figure.unit}")


if __name__ == "__main__":
    main()
