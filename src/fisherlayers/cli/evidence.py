"""``fisherlayers evidence``: pictures of where in an image a class's score comes from."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fisherlayers.cli.errors import Debug, Images, UserError, guarded

if TYPE_CHECKING:
    from fisherlayers.data.images import Pixels

HELP: Final = """Show where in images the evidence for a class lies.

Writes one PNG an image: grey, with red where it speaks for the class and blue where it speaks against it. The values
of all pixels, for and against, and the constant of the class add up to its score, as the table shows.
photo.jpg gives photo-evidence.png; the picture of a former call is replaced. Needs the extra "report".

\b
Examples:
  fisherlayers evidence flowers-model photo.jpg -o evidence
  fisherlayers evidence flowers-model *.jpg -o evidence --label tulip
"""


@guarded
def evidence(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that fit wrote.")],
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the pictures; made if need be.")],
    label: Annotated[str | None, typer.Option(help="The class; by default the predicted one of each image.")] = None,
    debug: Debug = False,
) -> None:
    """Write the pictures and print a table of the scores.

    Raises:
        UserError: the class is unknown, the output is no folder, or images are unreadable.
        KeyboardInterrupt: says how many pictures there are.
    """
    from fisherlayers.cli.output import check_writable, show_table

    if output.exists() and not output.is_dir():
        raise UserError(f"--output must be a folder; {output} is a file")
    check_writable(output)
    from fisherlayers.cli.image_inputs import read_images
    from fisherlayers.files import write_file
    from fisherlayers.fisher_vectors import DeepFisherNetwork
    from fisherlayers.report import evidence_overlay, png_bytes

    network = DeepFisherNetwork.load(model)
    # Of two classes there is one constant, the second's.
    constants = network.intercept_.tolist()
    constants = [-constants[0], *constants] if len(constants) == 1 else constants
    constant_of = dict(zip(network.classes_.tolist(), constants, strict=True))
    network.network_.check_mean_pooling("an evidence map")
    known = {str(name): name for name in network.classes_.tolist()}
    if label is not None and label not in known:
        raise UserError(f"--label must be a class of the model, got {label!r}; its classes are {', '.join(known)}")
    reading = read_images(images)
    rows: list[list[str]] = []
    taken: set[Path] = set()
    output.mkdir(parents=True, exist_ok=True)
    try:
        for position, image in zip(reading.kept, reading.images, strict=True):
            name = network.predict([image])[0] if label is None else known[label]
            (found,) = network.evidence([image], name)
            place = _free(output / f"{images[position].stem}-evidence.png", taken)
            taken.add(place)
            write_file(place, png_bytes(evidence_overlay(_pixels(image), found)))
            parts = (float(found[found > 0].sum()), float(found[found < 0].sum()), constant_of[name])
            values = [f"{value:+.3f}" for value in (*parts, sum(parts))]
            rows.append([str(images[position]), str(name), *values, str(place)])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{len(rows)} of {len(images)} pictures are in {output}") from None
    if rows:
        show_table(["image", "class", "for", "against", "constant", "score", "picture"], rows)
    if reading.problems:
        raise UserError("\n  ".join([f"unreadable images: {len(reading.problems)}", *reading.problems]))


def _free(path: Path, taken: set[Path]) -> Path:
    # Images of one name from several folders.
    number, candidate = 1, path
    while candidate in taken:
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def _pixels(image: "Pixels | Path") -> "Pixels":
    from fisherlayers.data import read_image

    return read_image(image) if isinstance(image, Path) else image
