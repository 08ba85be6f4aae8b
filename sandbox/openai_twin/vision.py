"""What can be said of an image by looking at its pixels: its format, size, colours, brightness and sharpness.

Every number is a measurement of the decoded image, so the same image always gives the same description, and a test can
check it against an image that it has painted itself.
"""

import io
from collections import Counter
from typing import Final, NamedTuple

from PIL import Image, ImageFilter, ImageStat, UnidentifiedImageError

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF")
PIXELS_MAX: Final = 50_000_000
COLOURS_MAX: Final = 3
COLOUR_SHARE_MIN_PERCENT: Final = 8

# Colours are counted on a thumbnail and sharpness on a copy of bounded size, so that photographs of any size compare.
_COLOUR_SIDE_PIXELS: Final = 64
_SHARPNESS_SIDE_PIXELS: Final = 512
_LAPLACIAN: Final = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=1, offset=128)

_DECODING_ERRORS: Final = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
    OSError,
    SyntaxError,
    ValueError,
)

# The upper end of each hue's range, in degrees.
_HUES: Final = (
    (14, "red"),
    (40, "orange"),
    (68, "yellow"),
    (165, "green"),
    (195, "cyan"),
    (255, "blue"),
    (310, "purple"),
    (345, "pink"),
    (360, "red"),
)


class ImageUnreadable(Exception):
    """The bytes are not an image of a supported format, break off, or have more than PIXELS_MAX pixels."""


class Colour(NamedTuple):
    """A colour by its plain name, and how much of the image has it."""

    name: str
    share_percent: int


class Description(NamedTuple):
    """What was measured. Brightness is the mean luma, 0 to 100; sharpness the variance of the Laplacian of the luma."""

    format: str
    width_pixels: int
    height_pixels: int
    colours: tuple[Colour, ...]
    brightness_percent: int
    sharpness: int

    def sentence(self) -> str:
        """The description as one sentence of English."""
        main, *others = (colour.name for colour in self.colours)
        rest = f", with some {' and '.join(others)}" if others else ""
        look = f"{_article(self.sharpness_word)} {self.sharpness_word}, {self.brightness_word}"
        size = f"{self.width_pixels} x {self.height_pixels} pixels"
        return f"{look} {self.format} image of {size}, mostly {main}{rest}."

    @property
    def brightness_word(self) -> str:
        """Dark, evenly lit or bright."""
        if self.brightness_percent < 33:
            return "dark"
        return "evenly lit" if self.brightness_percent < 67 else "bright"

    @property
    def sharpness_word(self) -> str:
        """Blurred, soft, sharp or very detailed."""
        for limit, word in ((50, "blurred"), (250, "soft"), (1500, "sharp")):
            if self.sharpness < limit:
                return word
        return "very detailed"

    def as_json(self) -> dict[str, object]:
        """The description as a JSON object."""
        return {
            "format": self.format,
            "width_pixels": self.width_pixels,
            "height_pixels": self.height_pixels,
            "colours": [colour._asdict() for colour in self.colours],
            "brightness_percent": self.brightness_percent,
            "sharpness": self.sharpness,
        }


def describe(image_bytes: bytes) -> Description:
    """Measures an image. Takes some 10 ms of CPU for a photograph; raises ImageUnreadable."""
    format_name, image = _decode(image_bytes)
    luma = image.convert("L")
    return Description(
        format=format_name,
        width_pixels=image.width,
        height_pixels=image.height,
        colours=_colours(image),
        brightness_percent=round(ImageStat.Stat(luma).mean[0] / 255 * 100),
        sharpness=_sharpness(luma),
    )


def _decode(image_bytes: bytes) -> tuple[str, Image.Image]:
    """The name of the format, and the image as RGB, transparent parts on white."""
    try:
        with Image.open(io.BytesIO(image_bytes), formats=FORMATS) as image:
            if image.width * image.height > PIXELS_MAX:
                raise ImageUnreadable(f"the image has more than {PIXELS_MAX} pixels")
            image.load()
            seen = image.convert("RGBA")
            ground = Image.new("RGBA", seen.size, "white")
            return str(image.format), Image.alpha_composite(ground, seen).convert("RGB")
    except _DECODING_ERRORS as error:
        raise ImageUnreadable("the bytes are not a whole JPEG, PNG, WEBP or GIF image") from error


def _colours(image: Image.Image) -> tuple[Colour, ...]:
    """The most frequent colours, largest first: at least one, at most COLOURS_MAX."""
    small = image.resize((_COLOUR_SIDE_PIXELS, _COLOUR_SIDE_PIXELS), Image.Resampling.BOX).convert("HSV")
    hsv = small.tobytes()
    counts = Counter(colour_name(*hsv[at : at + 3]) for at in range(0, len(hsv), 3))
    pixels = _COLOUR_SIDE_PIXELS**2
    shares = [Colour(name, round(count / pixels * 100)) for name, count in counts.most_common(COLOURS_MAX)]
    return (shares[0], *(share for share in shares[1:] if share.share_percent >= COLOUR_SHARE_MIN_PERCENT))


def colour_name(hue: int, saturation: int, value: int) -> str:
    """The plain name of a colour given as Pillow gives HSV: three bytes."""
    if value < 46:
        return "black"
    if saturation < 38:
        return "white" if value > 215 else "grey"
    degrees = hue / 255 * 360
    name = next(name for limit, name in _HUES if degrees <= limit)
    if name in ("orange", "red") and value < 165 and saturation < 215:
        return "brown"
    if name == "red" and saturation < 120:
        return "pink"
    return name


def _sharpness(luma: Image.Image) -> int:
    """The variance of the Laplacian, which falls as an image is blurred."""
    small = luma.copy()
    small.thumbnail((_SHARPNESS_SIDE_PIXELS, _SHARPNESS_SIDE_PIXELS))
    return round(ImageStat.Stat(small.filter(_LAPLACIAN)).var[0])


def _article(word: str) -> str:
    return "An" if word[0] in "aeiou" else "A"
