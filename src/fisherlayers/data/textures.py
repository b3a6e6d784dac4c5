"""Textures of real photographs: patches of the pictures that scikit-image's and scikit-learn's wheels carry.

Every class is a photograph, or a region of one with a single texture. The region is cut into parallel bands, a guard
gap apart, which belong to train and test in turn: both sides see the whole region, and no pixel is in both.
"""

from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fisherlayers.data.images import Pixels, read_image, to_grey


class Rectangle(NamedTuple):
    """Pixels [left, right) x [top, bottom) of a photograph."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: "Rectangle") -> bool:
        """Return whether the two share a pixel."""
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


class Texture(NamedTuple):
    """A class: its photograph's file and the region; None is the whole photograph."""

    file: str
    region: Rectangle | None = None


class TexturePatches(NamedTuple):
    """Patches with their places.

    Attributes:
        train_images: uint8 (n, size, size) grey, or (n, size, size, 3) RGB.
        train_labels: (n,), positions in `classes`.
        test_images: as `train_images`.
        test_labels: as `train_labels`.
        classes: the names of the textures.
        train_rectangles: where each patch lies in the photograph of its class.
        test_rectangles: as `train_rectangles`.
    """

    train_images: Pixels
    train_labels: NDArray[np.int64]
    test_images: Pixels
    test_labels: NDArray[np.int64]
    classes: list[str]
    train_rectangles: list[Rectangle]
    test_rectangles: list[Rectangle]


TEXTURES: Final = {
    "brick": Texture("brick.png"),
    "cat fur": Texture("chelsea.png", Rectangle(0, 0, 360, 300)),
    "coins": Texture("coins.png"),
    "concrete floor": Texture("motorcycle_left.png", Rectangle(0, 400, 741, 500)),
    "dahlia petals": Texture("flower.jpg", Rectangle(190, 95, 430, 345)),
    "engine": Texture("motorcycle_left.png", Rectangle(120, 210, 480, 400)),
    "galaxies": Texture("hubble_deep_field.jpg"),
    "grass": Texture("grass.png"),
    "gravel": Texture("gravel.png"),
    "handwriting": Texture("text.png"),
    "lattice tower": Texture("rocket.jpg", Rectangle(0, 0, 110, 427)),
    "lawn": Texture("camera.png", Rectangle(160, 310, 512, 512)),
    "moon": Texture("moon.png"),
    "pagoda": Texture("china.jpg", Rectangle(90, 60, 350, 340)),
    "print": Texture("page.png"),
    "retina": Texture("retina.jpg", Rectangle(250, 250, 1150, 1150)),
    "shelves": Texture("motorcycle_left.png", Rectangle(500, 0, 741, 290)),
    "space suit": Texture("astronaut.png", Rectangle(80, 280, 300, 512)),
    "tissue, glands": Texture("ihc.png", Rectangle(0, 0, 270, 235)),
    "tissue, stroma": Texture("ihc.png", Rectangle(400, 300, 512, 512)),
    "trees": Texture("china.jpg", Rectangle(380, 285, 640, 427)),
    "wooden bench": Texture("motorcycle_left.png", Rectangle(40, 95, 290, 205)),
    "wooden table": Texture("coffee.png", Rectangle(470, 0, 600, 400)),
}

GUARD: Final = 8
"""Pixels between a train and a test band: JPEG's blocks, and a little of the correlation of neighbours."""

MIN_CONTRAST: Final = 4.0
"""Grey levels: patches with a lower standard deviation show no texture and are left out, on both sides alike."""


def load_texture_patches(
    *, patch_size: int = 64, per_class: int = 30, grey: bool = True, seed: int = 0
) -> TexturePatches:
    """Cut train and test patches of every texture from the photographs, at their own scale.

    Half of the photographs are grey. In grey, which is the default, the texture has to tell them apart; with RGB,
    colour alone identifies several classes.

    Args:
        patch_size: side of the square patches in pixels, 16 to 72.
        per_class: train patches, and test patches, a class; small photographs yield overlapping patches within a side.
        grey: convert to grey; otherwise grey photographs become RGB with equal channels.
        seed: of the choice among the possible places.

    Returns:
        The patches, class by class.

    Raises:
        ValueError: `patch_size` or `per_class` is out of range, or a texture has fewer than `per_class` places.
    """
    if not 16 <= patch_size <= 72:
        raise ValueError(f"patch_size must lie in 16..72, the narrowest texture's width; got {patch_size}")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1; got {per_class}")
    sides: tuple[list[Pixels], list[Pixels]] = ([], [])
    rectangles: tuple[list[Rectangle], list[Rectangle]] = ([], [])
    generator = np.random.default_rng(seed)
    for name, texture in TEXTURES.items():
        photograph = read_image(_photograph(texture.file))
        luma = to_grey(photograph)
        region = texture.region or Rectangle(0, 0, luma.shape[1], luma.shape[0])
        pixels = luma if grey else photograph if photograph.ndim == 3 else np.stack([photograph] * 3, axis=-1)
        bands = alternating_bands(region, patch_size)
        for side in (0, 1):
            places = [place for band in bands[side::2] for place in _grid(band, patch_size)]
            places = [place for place in places if _crop(luma, place).std() >= MIN_CONTRAST]
            if len(places) < per_class:
                raise ValueError(
                    f"per_class must be at most {len(places)} with patch_size={patch_size}: "
                    f"the texture {name!r} has no more places; got {per_class}"
                )
            chosen = spread_out(places, per_class, generator)
            rectangles[side].extend(chosen)
            sides[side].extend(_crop(pixels, place) for place in chosen)
    labels = np.repeat(np.arange(len(TEXTURES)), per_class)
    return TexturePatches(np.stack(sides[0]), labels, np.stack(sides[1]), labels.copy(), [*TEXTURES], *rectangles)


def alternating_bands(region: Rectangle, patch_size: int) -> list[Rectangle]:
    """Cut a region across its longer axis into bands of about one and a half patches, `GUARD` pixels apart.

    Args:
        region: at least two patches and a guard gap long.
        patch_size: in pixels.

    Returns:
        An even number of bands, or three; they belong to train and test in turn.
    """
    left, top, right, bottom = region
    horizontal = right - left >= bottom - top
    length = right - left if horizontal else bottom - top
    number = max(2, (length + GUARD) // (3 * patch_size // 2 + GUARD))
    number -= number % 2 if number > 3 else 0
    edges = [round(index * (length + GUARD) / number) for index in range(number + 1)]
    spans = [(start, end - GUARD) for start, end in pairwise(edges)]
    if horizontal:
        return [Rectangle(left + start, top, left + end, bottom) for start, end in spans]
    return [Rectangle(left, top + start, right, top + end) for start, end in spans]


def spread_out(places: list[Rectangle], number: int, generator: np.random.Generator) -> list[Rectangle]:
    """Choose places far from each other: start anywhere, then always take the one farthest from those taken.

    Args:
        places: the candidates.
        number: how many to take, at most ``len(places)``.
        generator: draws the first place, and the order in which ties are met.

    Returns:
        The chosen places.
    """
    shuffled = [places[index] for index in generator.permutation(len(places))]
    corners = np.array([(place.left, place.top) for place in shuffled], dtype=np.float64)
    chosen = [0]
    distances = np.full(len(shuffled), np.inf)
    while len(chosen) < number:
        distances = np.minimum(distances, np.linalg.norm(corners - corners[chosen[-1]], axis=1))
        distances[chosen] = -1.0
        chosen.append(int(distances.argmax()))
    return [shuffled[index] for index in chosen]


def _grid(band: Rectangle, patch_size: int) -> list[Rectangle]:
    step = max(1, patch_size // 8)
    return [
        Rectangle(left, top, left + patch_size, top + patch_size)
        for top in range(band.top, band.bottom - patch_size + 1, step)
        for left in range(band.left, band.right - patch_size + 1, step)
    ]


def _crop(pixels: Pixels, place: Rectangle) -> Pixels:
    return pixels[place.top : place.bottom, place.left : place.right]


def _photograph(file: str) -> Path:
    """Return the path of a photograph inside an installed wheel; nothing is downloaded.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    package, folder = ("sklearn", "datasets/images") if file in {"china.jpg", "flower.jpg"} else ("skimage", "data")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the texture photographs are part of scikit-image: pip install 'fisherlayers[demo]'", name=package
        )
    return Path(spec.origin).parent / folder / file
