"""The page of the races, docs/race.md, made from the result files; with --figures FOLDER also the curves as SVG.

Run: python -m benchmarks.race_page [--check] [--figures FOLDER]
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, read_results

PAGE = ROOT / "docs" / "race.md"
RACES = {
    "race_mnist_mlp": "MNIST, MLP",
    "race_fashion_mlp": "Fashion-MNIST, MLP",
    "race_autoencoder": "MNIST, autoencoder",
    "race_cifar_resnet": "CIFAR-10, ResNet",
    "race_ptb_lstm": "Penn Treebank, LSTM",
    "race_shakespeare_transformer": "tiny-shakespeare, transformer",
}
HEAD = """# The race

Reconstructed optimizers (SGD, AdamW and Muon with `reconstruct` at its defaults) against SGD with momentum, AdamW,
Muon, SOAP, Shampoo, PSGD-Kron and K-FAC, on one CPU core. `python -m benchmarks.race_page` makes this page from the
result files, each of which is made again by its command; `--figures FOLDER` draws the curves. Losses stand beside wins.

**Protocol.** The same initial weights and batches per seed for all. Every method tries the same number of learning
rates, one drawn from each equal part of the logarithmic range around its recommended one, on half of the steps and a
seed of its own; the lowest validation loss decides. Then three other seeds. *Target:* the validation loss with which
tuned AdamW ends its full run. *Time:* CPU seconds of training steps on one thread, preconditioner updates included,
evaluation excluded, methods in turn. The learning rate falls linearly to zero over the run. Every method also runs on a
third of the steps, and is judged on the horizon on which it gets to the target sooner. No run takes more
seconds than AdamW's: methods with dear steps get fewer of them. "never": fewer than half of the seeds arrive.

The budgets are small (seconds to a minute a run): these are races of the first epochs, and who is ahead after long
training is not measured here. An arrival is known to a forty-eighth of a run.
"""


def page() -> str:
    """Return the page's text."""
    records = {name: record for name in RACES if (record := read_results(name)) is not None}
    parts = [HEAD]
    if records:
        parts.append(overview(records))
    parts += [section(name, record) for name, record in records.items()]
    missing = [title for name, title in RACES.items() if name not in records]
    if missing:
        parts.append("## Not run yet\n\n" + ", ".join(missing) + ".\n")
    return "\n".join(parts)


def overview(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the headline figures, one row a race."""
    names = {
        "seconds over AdamW": "seconds over AdamW's",
        "steps over AdamW": "steps over AdamW's",
        "seconds over best peer": "seconds over the best peer's",
        "steps over best peer": "steps over the best peer's, same base",
        "validation margin": "validation margin (points)",
    }
    lines = ["## Best reconstructed method\n", row(["race", *names.values()]), row(["---"] * (len(names) + 1))]
    for name, record in records.items():
        values = values_of(record)
        lines.append(row([RACES[name], *(show(values[figure]) for figure in names)]))
    note = (
        "\nBelow 1 the reconstructed method is ahead. The best of either side is found on the raced runs. The margin "
        "is the final validation metric minus the best peer's, plus the spread of that peer's seeds.\n"
    )
    return "\n".join(lines) + "\n" + note


def section(name: str, record: Mapping[str, Any]) -> str:
    """Return one race: every method's time to the target, who arrived, and the final validation metric."""
    values, details = values_of(record), record["details"]
    plan = details["plan"]
    lines = [
        f"## {details['task']}\n",
        f"`{record['command']}`: {plan['steps']} steps, batches of {details['batch_size']}, "
        f"{plan['trials']} learning rates a method. {details['notes']}".rstrip()
        + "\n",
        row([
            "method",
            "learning rate",
            "steps",
            "steps / AdamW's",
            "seconds / AdamW's",
            "arrived",
            "by training loss: steps",
            "seconds",
            f"final {details['metric']} (%)",
            "final loss",
        ]),
        row(["---"] * 10),
    ]
    order = sorted(details["curves"], key=lambda method: rank(values[f"seconds over AdamW, {method}"]))
    for method in order:
        tried = [(loss, rate) for rate, loss in details["searches"][method] if loss is not None]
        arrived, seeds = values[f"arrived, {method}"], record_unit(record, f"arrived, {method}")
        lines.append(
            row([
                f"**{method}**" if method.endswith("reconstructed") else method,
                f"{min(tried)[1]:.2g}",
                f"{details['steps'][method]:g}",
                show(values[f"steps over AdamW, {method}"]),
                show(values[f"seconds over AdamW, {method}"]),
                f"{arrived} {seeds}",
                show(values[f"steps over AdamW, {method}, training loss"]),
                show(values[f"seconds over AdamW, {method}, training loss"]),
                show(values.get(f"validation metric, {method}")),
                show(values.get(f"validation loss, {method}"), digits=4),
            ])
        )
    silent = sorted(set(details["searches"]) - set(details["curves"]))
    if silent:
        lines.append(f"\nDiverged at every learning rate tried, and so not raced: {', '.join(silent)}.")
    return "\n".join(lines) + "\n"


def values_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return figure name -> value."""
    return {figure["name"]: figure["value"] for figure in record["figures"]}


def record_unit(record: Mapping[str, Any], name: str) -> str:
    """Return the unit of a figure."""
    return next(figure["unit"] for figure in record["figures"] if figure["name"] == name)


def rank(value: float | None) -> float:
    """Return the value, infinite for never."""
    return float("inf") if value is None else value


def show(value: float | None, *, digits: int = 3) -> str:
    """Return a number in a few digits, or never."""
    return "never" if value is None else f"{value:.{digits}g}"


def row(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def draw(folder: Path) -> None:
    """Write one SVG a race: validation loss against steps and seconds, medians over the seeds."""
    from fisherlayers.report import Curve, curves  # needs the extra `report`

    folder.mkdir(parents=True, exist_ok=True)
    for name, title in RACES.items():
        record = read_results(name)
        if record is None:
            continue
        panels: dict[str, list[Curve]] = {f"{title}: by steps": [], "by time": []}
        for method, curve in record["details"]["curves"].items():
            base = method.removesuffix(" reconstructed")
            for panel, x in zip(panels.values(), ("steps", "seconds"), strict=True):
                panel.append(Curve(method, curve[x], curve["validation_loss"], base, dashed=method == base))
        svg = curves(panels, xlabel=["steps", "CPU seconds"], ylabel="validation loss")
        (folder / f"{name}.svg").write_bytes(svg)
        print(folder / f"{name}.svg")


def main(arguments: Sequence[str] | None = None, *, path: Path = PAGE) -> int:
    """Write the page, or compare it with what stands there.

    Args:
        arguments: the command line, without the program's name.
        path: of the page.

    Returns:
        0, or 1 if ``--check`` finds the page out of date.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race_page", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is out of date")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also draw the curves there")
    chosen = parser.parse_args(arguments)
    text = page()
    if chosen.check:
        current = path.exists() and path.read_text(encoding="utf-8") == text
        if not current:
            print(f"{path.name} is out of date: run `python -m benchmarks.race_page`", file=sys.stderr)
        return int(not current)
    path.write_text(text, encoding="utf-8")
    if chosen.figures:
        draw(chosen.figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
