"""What the twin says of an image is true of its pixels."""

import io
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from sandbox.openai_twin.vision import ImageUnreadable, colour_name, describe

SAMPLES = Path(__file__).parents[2] / "sandbox" / "samples"


def encoded(image: Image.Image, format_name: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, format_name)
    return content.getvalue()


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 20, 20), "red"),
        ((240, 140, 20), "orange"),
        ((240, 230, 40), "yellow"),
        ((30, 160, 40), "green"),
        ((30, 60, 200), "blue"),
        ((130, 30, 200), "purple"),
        ((250, 120, 200), "pink"),
        ((110, 70, 40), "brown"),
        ((10, 10, 12), "black"),
        ((128, 128, 128), "grey"),
        ((250, 250, 250), "white"),
    ],
)
def test_a_plain_colour_has_its_plain_name(rgb: tuple[int, int, int], name: str) -> None:
    """An image painted in one colour is all of that colour."""
    seen = describe(encoded(Image.new("RGB", (40, 30), rgb)))

    assert [(name, 100)] == [tuple(colour) for colour in seen.colours]


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF"])
def test_format_and_size_are_those_of_the_file(format_name: str) -> None:
    """The format is found by content, and width and height are not swapped."""
    seen = describe(encoded(Image.new("RGB", (37, 21), "blue"), format_name))

    assert (format_name, 37, 21) == (seen.format, seen.width_pixels, seen.height_pixels)


def test_colours_come_with_their_share_largest_first() -> None:
    """Three quarters of blue and one of white are told as such."""
    image = Image.new("RGB", (64, 64), "blue")
    ImageDraw.Draw(image).rectangle((0, 0, 63, 15), fill="white")

    seen = describe(encoded(image))

    assert [tuple(colour) for colour in seen.colours] == [("blue", 75), ("white", 25)]
    assert "mostly blue, with some white" in seen.sentence()


def test_transparent_pixels_are_white() -> None:
    """What lies under full transparency is not seen."""
    seen = describe(encoded(Image.new("RGBA", (20, 20), (255, 0, 0, 0))))

    assert seen.colours[0].name == "white"


def test_brightness_runs_from_black_to_white() -> None:
    """Black is 0, white is 100."""
    assert [describe(encoded(Image.new("L", (9, 9), luma))).brightness_percent for luma in (0, 255)] == [0, 100]


def test_blurring_an_image_lowers_its_sharpness() -> None:
    """A photograph is sharper than the same photograph blurred."""
    with Image.open(SAMPLES / "cameraman.jpg") as photograph:
        blurred = photograph.filter(ImageFilter.GaussianBlur(4))

    assert describe(encoded(blurred)).sharpness < describe((SAMPLES / "cameraman.jpg").read_bytes()).sharpness / 10


@pytest.mark.parametrize("name", ["astronaut.jpg", "cameraman.jpg", "cat.webp", "coffee.png", "galaxies.jpg"])
def test_a_photograph_cut_short_is_unreadable(name: str) -> None:
    """Half a file is no image, whatever its header says."""
    content = (SAMPLES / name).read_bytes()

    with pytest.raises(ImageUnreadable):
        describe(content[: len(content) // 2])


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_an_image_is_unreadable(content: bytes) -> None:
    """Other bytes are refused with one error, whatever they are."""
    with pytest.raises(ImageUnreadable):
        describe(content)


def test_every_hue_has_a_name() -> None:
    """No colour falls between the names."""
    assert all(colour_name(hue, 255, 255) for hue in range(256))
