"""A photograph of a picture: seen at an angle, unevenly lit, a little out of focus, noisy, and stored as JPEG.

In this order, as it happens in front of, in and behind a lens. Light is added and dimmed as linear intensity, not in
the values of a file (IEC 61966-2-1). The picture fills the frame.
"""

import io
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float
from PIL import Image

from context_diffusion.images import ImageLike, load_image

Pixels = Float[np.ndarray, "height width 3"]  # in [0, 1]
Values = Float[np.ndarray, "*shape"]  # likewise
FRAME = 256  # pixels, the side of a photograph: twice that of a scene


@dataclass(frozen=True)
class Camera:
    """Where the frame's corners lie on the picture, and what light, lens, sensor and file do to it.

    The default camera is perfect.

    Args:
        corners: top left, top right, bottom right and bottom left, in units of the picture's sides.
        falloff: the share of light that is missing at the dark end.
        towards: the direction of the dark end, in radians.
        blur: standard deviation of a Gaussian, in pixels of the photograph.
        noise: standard deviation of the sensor's noise where the picture is white, in units of white. It grows with the
            square root of the light, because photons are counted.
        quality: of the JPEG, at most 95.
    """

    corners: tuple[tuple[float, float], ...] = ((0, 0), (1, 0), (1, 1), (0, 1))
    falloff: float = 0.0
    towards: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    quality: int = 95

    @classmethod
    def draw(cls, seed: int) -> "Camera":
        """Hold a camera by hand: each corner up to 8 % inside, 15 to 45 % less light at one end."""
        generator = np.random.default_rng([seed, 20])
        inside = generator.uniform(0, 0.08, (4, 2))
        corners = tuple(
            (float(abs(x - dx)), float(abs(y - dy))) for (x, y), (dx, dy) in zip(cls.corners, inside, strict=True)
        )
        falloff, towards = generator.uniform(0.15, 0.45), generator.uniform(0, 2 * np.pi)
        blur, noise = generator.uniform(0.6, 1.2), generator.uniform(0.01, 0.03)
        return cls(corners, float(falloff), float(towards), float(blur), float(noise), int(generator.integers(60, 86)))

    def __call__(self, picture: ImageLike, seed: int = 0) -> Image.Image:
        """Take a photograph, :data:`FRAME` pixels square; ``seed`` is that of the noise."""
        light = linear(np.asarray(load_image(picture), dtype=np.float64) / 255)
        light = slanted(light, self.corners) * lamp(self.falloff, self.towards)
        if self.blur:
            light = cv2.GaussianBlur(light, (0, 0), self.blur)
        grain = np.random.default_rng([seed, 21]).standard_normal(light.shape)
        values = encoded(np.clip(light + self.noise * np.sqrt(light) * grain, 0, 1))
        file = io.BytesIO()
        Image.fromarray(np.round(values * 255).astype(np.uint8)).save(file, "JPEG", quality=self.quality)
        return Image.open(file).convert("RGB")


def photographed(picture: ImageLike, seed: int) -> Image.Image:
    """Photograph a picture with the camera and the noise of a seed; the same seed gives the same photograph."""
    return Camera.draw(seed)(picture, seed)


def slanted(picture: Pixels, corners: tuple[tuple[float, float], ...]) -> Float[np.ndarray, "rows columns 3"]:
    """View a picture through a pinhole camera: the projective map that takes the frame's corners to its ``corners``.

    Pixel centres are half a pixel inside: (u, v) in units of the sides is at (u width - 1/2, v height - 1/2).
    """
    size = np.array(picture.shape[1::-1], dtype=np.float32)
    ends = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float32) * FRAME - 0.5
    onto = cv2.getPerspectiveTransform(ends, np.array(corners, dtype=np.float32) * size - 0.5)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(picture, onto, (FRAME, FRAME), flags=how, borderMode=cv2.BORDER_REPLICATE)


def lamp(falloff: float, towards: float) -> Float[np.ndarray, "height width 1"]:
    """The share of light that reaches each pixel: 1 at one corner or edge, falling evenly to 1 - ``falloff``."""
    places = (np.arange(FRAME) + 0.5) / FRAME - 0.5
    along = places * np.cos(towards) + places[:, None] * np.sin(towards)
    reach = (abs(np.cos(towards)) + abs(np.sin(towards))) / 2
    return (1 - falloff * (along / reach + 1) / 2)[..., None]


def linear(values: Values) -> Values:
    """Turn the values of an sRGB file into light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: Values) -> Values:
    """Turn light into the values of an sRGB file."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
