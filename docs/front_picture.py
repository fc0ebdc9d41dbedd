"""Draw the picture of the front page: ``python docs/front_picture.py``.

It shows the first layer of two trained networks of the demo, a tile per unit: 64 weights as an image of 8 by 8, as they
lie on the pixels of a digit. A weight is one pixel of the picture, and the page draws it as large as it likes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from lightning_symmetry.demo.digits import GALLERY, DigitsNet, load, started, train

FOLDER = Path(__file__).parent / "images"
STARTS = {"healthy": "PyTorch default", "constant": "constant 0.02"}
# Weights of -1, 0 and 1, in units of three standard deviations of the layer.
THEMES = {
    "light": ((28, 109, 208), (247, 245, 240), (209, 73, 91)),
    "dark": ((111, 180, 247), (29, 32, 39), (240, 124, 138)),
}
SIDE = 8  # of the images, and of the square of units


def tiles(weights: npt.NDArray[np.float64], colours: tuple[tuple[int, int, int], ...]) -> Image.Image:
    """A square of tiles, one per row of the weights ``(64, 64)``, with a transparent pixel between them."""
    scaled = np.clip(weights / (3 * np.sqrt(np.mean(weights**2))), -1, 1)
    palette = np.array(colours, dtype=np.float64)
    ends = np.where(scaled[..., None] < 0, palette[0], palette[2])
    colour = palette[1] + np.abs(scaled)[..., None] * (ends - palette[1])
    pixels = np.zeros((SIDE * (SIDE + 1) - 1,) * 2 + (4,), dtype=np.uint8)
    for unit, tile in enumerate(colour.reshape(-1, SIDE, SIDE, 3)):
        top, left = (SIDE + 1) * (unit // SIDE), (SIDE + 1) * (unit % SIDE)
        pixels[top : top + SIDE, left : left + SIDE, :3] = tile.round()
        pixels[top : top + SIDE, left : left + SIDE, 3] = 255
    return Image.fromarray(pixels)


def trained(start: str) -> DigitsNet:
    """A network of the demo after its training; prints how good it is, for the words beside the picture."""
    digits, net = load(), started(GALLERY[start])
    monitor = train(net, digits)
    assert monitor.report is not None
    width = monitor.report.layers["fc1"].effective_width
    print(f"{start}: {width} distinct units, test accuracy {digits.accuracy(net):.1%}")
    return net


if __name__ == "__main__":
    for name, start in STARTS.items():
        weights = trained(start).fc1.weight.detach().numpy().astype(np.float64)
        for theme, colours in THEMES.items():
            tiles(weights, colours).save(FOLDER / f"units-{name}-{theme}.png", optimize=True)
