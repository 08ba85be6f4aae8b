"""Images are checked by content, turned upright, freed of metadata, and nothing broken gets past."""

import hashlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageOps, ImageStat

from services.batcher import image
from services.batcher.errors import ImageTooLarge, ImageUnreadable

SAMPLES = Path(__file__).parents[2] / "sandbox" / "samples"
PHOTOGRAPHS = sorted(path for path in SAMPLES.iterdir() if path.suffix in {".jpg", ".png", ".webp"})
SMALL = image.Limits(size_bytes_max=1_000_000, pixels_max=100_000)


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """A gradient that looks different from each of its eight turns."""
    bands = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.new("L", (256, 256), 60)]
    shown = Image.merge("RGB", bands).resize(size)
    shown.paste((255, 0, 0), (0, 0, size[0] // 3, size[1] // 3))
    if mode in {"LA", "RGBA"}:
        shown.putalpha(Image.linear_gradient("L").resize(size))
    return shown.convert(mode)


def encoded(shown: Image.Image, kind: str, **options: Any) -> bytes:
    """The image's bytes in a format."""
    out = BytesIO()
    shown.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    """The bytes' image, decoded."""
    shown = Image.open(BytesIO(data))
    shown.load()
    return shown


def differs_by(one: Image.Image, other: Image.Image) -> float:
    """How far a channel of a pixel is off, of 255, on the average."""
    return max(ImageStat.Stat(ImageChops.difference(one.convert("RGB"), other.convert("RGB"))).mean)


def photograph_exif(orientation: int) -> Image.Exif:
    """What a phone writes: orientation, maker and where it was."""
    exif = Image.Exif()
    exif[274] = orientation
    exif[271] = "Phonemaker"
    exif[0x8825] = {1: "N", 2: (48.0, 51.0, 29.0), 3: "E", 4: (2.0, 17.0, 40.0)}
    return exif


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """A chunk of a PNG with a right checksum."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


EACH_KIND = {
    "jpeg": encoded(picture(), "JPEG"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "png": encoded(picture(), "PNG"),
    "webp": encoded(picture(), "WEBP"),
    "lossless": encoded(picture(), "WEBP", lossless=True),
    "gif": encoded(picture("P"), "GIF"),
}


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_a_photograph_is_taken_as_it_is(path: Path) -> None:
    """A real upright photograph keeps every pixel, has the id of its bytes, and its size and type are told."""
    data = path.read_bytes()
    checked = image.inspect(data)
    shown = decoded(data)
    assert checked.image_id == hashlib.sha256(data).hexdigest()
    assert checked.media_type == f"image/{shown.format}".lower()
    assert (checked.width_pixels, checked.height_pixels) == shown.size
    assert decoded(checked.data).tobytes() == shown.tobytes()
    assert image.inspect(checked.data).data == checked.data


@pytest.mark.parametrize("name", EACH_KIND)
def test_each_format_is_read_and_stored_without_a_second_change(name: str) -> None:
    """What comes out is an image of a stored kind, and inspecting it again changes nothing."""
    checked = image.inspect(EACH_KIND[name])
    assert checked.media_type in {"image/jpeg", "image/png", "image/webp"}
    assert image.inspect(checked.data).data == checked.data


@pytest.mark.parametrize("data", [b"", b"a text, named .jpg", b"<svg/>", b"%PDF-1.7", b"BM" + bytes(60), b"II*\0"])
def test_what_is_no_image_of_ours_is_unreadable(data: bytes) -> None:
    """Text named .jpg, and formats that we do not take, are refused by their content."""
    with pytest.raises(ImageUnreadable) as caught:
        image.inspect(data)
    assert caught.value.metadata["problem"] == "not an image"


@pytest.mark.parametrize("name", EACH_KIND)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
def test_a_truncated_image_is_unreadable(name: str, part: float) -> None:
    """A file that breaks off is refused, whatever its format."""
    data = EACH_KIND[name]
    with pytest.raises(ImageUnreadable):
        image.inspect(data[: int(len(data) * part)])


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_a_truncated_photograph_is_unreadable(path: Path) -> None:
    """Half of a real photograph is refused."""
    data = path.read_bytes()
    with pytest.raises(ImageUnreadable) as caught:
        image.inspect(data[: len(data) // 2])
    assert caught.value.metadata["problem"] in {"truncated", "damaged"}


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """A PNG whose header tells of billions of pixels is refused by that number, though it has no pixel at all."""
    header = struct.pack(">IIBBBBB", 60_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
    with pytest.raises(ImageTooLarge) as caught:
        image.inspect(bomb)
    assert caught.value.metadata == {"pixels": "3000000000", "limit_pixels": "50000000"}


@pytest.mark.parametrize("name", EACH_KIND)
def test_too_many_pixels_are_refused_in_each_format(name: str) -> None:
    """The limit of pixels holds for each format, and the refusal names both numbers."""
    with pytest.raises(ImageTooLarge) as caught:
        image.inspect(EACH_KIND[name], image.Limits(pixels_max=24 * 16 - 1))
    assert caught.value.metadata == {"pixels": "384", "limit_pixels": "383"}
    assert image.inspect(EACH_KIND[name], image.Limits(pixels_max=24 * 16)).width_pixels == 24


def test_a_huge_webp_is_refused_by_its_header() -> None:
    """A WEBP canvas too large even to allocate is refused with its number of pixels."""
    sides = (65_535).to_bytes(3, "little") + (49_999).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sides
    with pytest.raises(ImageTooLarge) as caught:
        image.inspect(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert caught.value.metadata["pixels"] == str(65_536 * 50_000)


def test_a_gif_frame_larger_than_its_screen_counts() -> None:
    """A GIF that announces a small screen and draws a huge frame is refused by the frame."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 8_000, 8_000, 0) + b"\x02\x02\x4c\x01\x00;"
    with pytest.raises(ImageTooLarge) as caught:
        image.inspect(screen + frame)
    assert caught.value.metadata["pixels"] == "64000000"


def test_21_mib_are_too_large() -> None:
    """Bytes over the limit are refused unread, and the refusal names both numbers."""
    with pytest.raises(ImageTooLarge) as caught:
        image.inspect(bytes(21 * 1024 * 1024))
    assert caught.value.metadata == {"size_bytes": "22020096", "limit_bytes": "20971520"}


def test_a_jpeg_of_endless_scans_is_unreadable() -> None:
    """A JPEG that repeats one scan many times would cost a pass over all pixels each time, and is refused at once."""
    data = EACH_KIND["progressive"]
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageUnreadable) as caught:
        image.inspect(data[:-2] + scan * 100 + data[-2:])
    assert "scans" in caught.value.metadata["problem"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_upright(kind: str, orientation: int) -> None:
    """Each EXIF orientation is undone in the pixels, and nothing is left to be turned a second time."""
    data = encoded(picture(size=(48, 32)), kind, exif=photograph_exif(orientation))
    checked = image.inspect(data)
    expected = ImageOps.exif_transpose(decoded(data))
    stored = decoded(checked.data)
    assert (checked.width_pixels, checked.height_pixels) == expected.size == stored.size
    assert differs_by(stored, expected) <= (0 if kind == "PNG" or orientation == 1 else 5)
    assert 274 not in stored.getexif()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_where_a_photograph_was_taken_is_forgotten(kind: str, orientation: int) -> None:
    """No trace of EXIF is in what is stored: neither the place nor the maker."""
    data = encoded(picture(), kind, exif=photograph_exif(orientation))
    assert b"Phonemaker" in data
    stored = image.inspect(data).data
    assert b"Phonemaker" not in stored
    assert not dict(decoded(stored).getexif())


def test_other_metadata_of_a_jpeg_is_cut_out() -> None:
    """Comments, XMP, an embedded thumbnail and what trails the end marker go; no pixel changes."""
    plain = EACH_KIND["jpeg"]
    thumbnail = b"JFXX\0\x10secret"
    segments = b"".join(
        b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(payload)) + payload
        for marker, payload in [(0xE1, b"http://ns.adobe.com/xap/1.0/\0secret"), (0xFE, b"secret"), (0xE0, thumbnail)]
    )
    checked = image.inspect(plain[:2] + segments + plain[2:] + b"secret video")
    assert checked.data == plain


def test_other_metadata_of_a_png_is_cut_out() -> None:
    """Text, time and whatever trails a PNG go; no pixel changes."""
    plain = EACH_KIND["png"]
    secrets = png_chunk(b"tEXt", b"Author\0secret") + png_chunk(b"tIME", bytes(7))
    checked = image.inspect(plain[:33] + secrets + plain[33:] + b"secret zip")
    assert checked.data == plain


def test_a_damaged_png_is_unreadable() -> None:
    """A wrong checksum of the pixels is found."""
    data = EACH_KIND["png"]
    at = data.index(b"IDAT") + 4 + 6
    with pytest.raises(ImageUnreadable):
        image.inspect(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(ImageUnreadable):
        image.inspect(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_stays(kind: str) -> None:
    """An animated image is stored as its first frame, alone."""
    first, second = picture(size=(96, 64)), Image.new("RGB", (96, 64), "blue")
    lossless = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=[second], duration=100, **lossless)
    stored = decoded(image.inspect(data).data)
    assert getattr(stored, "n_frames", 1) == 1
    assert differs_by(stored, decoded(data)) <= (5 if kind == "WEBP" else 0)


@pytest.mark.parametrize(
    ("mode", "kind", "stored_mode"),
    [
        ("CMYK", "JPEG", "RGB"),
        ("L", "JPEG", "L"),
        ("1", "PNG", "1"),
        ("L", "PNG", "L"),
        ("LA", "PNG", "LA"),
        ("P", "PNG", "P"),
        ("RGBA", "PNG", "RGBA"),
        ("RGBA", "WEBP", "RGBA"),
        ("P", "GIF", "P"),
    ],
)
def test_each_mode_is_taken(mode: str, kind: str, stored_mode: str) -> None:
    """Greyscale, palette, alpha and CMYK images are taken and look the same."""
    data = encoded(picture(mode), kind)
    stored = decoded(image.inspect(data).data)
    assert stored.mode == stored_mode
    assert differs_by(stored, decoded(data)) <= 2


def test_sixteen_bits_become_eight() -> None:
    """Of sixteen bits of grey the upper eight stay, instead of everything above 255 turning white."""
    deep = Image.new("I;16", (4, 1))
    for x, value in enumerate((0, 255, 0x8000, 0xFFFF)):
        deep.putpixel((x, 0), value)
    stored = decoded(image.inspect(encoded(deep, "PNG")).data)
    assert (stored.mode, list(stored.tobytes())) == ("L", [0, 0, 0x80, 0xFF])


def test_transparency_of_a_palette_stays() -> None:
    """A transparent colour of a GIF is transparent in the PNG that is stored."""
    shown = Image.new("P", (2, 1))
    shown.putpalette([0, 0, 0, 255, 0, 0])
    shown.putpixel((1, 0), 1)
    stored = decoded(image.inspect(encoded(shown, "GIF", transparency=0)).data).convert("RGBA")
    assert stored.getchannel("A").tobytes() == b"\x00\xff"
    assert stored.getpixel((1, 0)) == (255, 0, 0, 255)


@pytest.mark.parametrize("orientation", [1, 3])
def test_the_colour_profile_stays(orientation: int) -> None:
    """An ICC profile is part of how the picture looks, whether or not it is encoded anew."""
    profile = b"profile" * 30
    data = encoded(picture(), "JPEG", icc_profile=profile, exif=photograph_exif(orientation))
    assert decoded(image.inspect(data).data).info["icc_profile"] == profile


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_broken_exif_does_not_cost_the_photograph() -> None:
    """A photograph whose EXIF can't be read counts as upright, and loses the EXIF."""
    plain = EACH_KIND["jpeg"]
    payload = b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"
    broken = plain[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(payload)) + payload + plain[2:]
    assert image.inspect(broken).data == plain


fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MAGICS = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x40\0\0\0WEBPVP8 ", b"GIF89a"]


def only_our_errors(data: bytes) -> None:
    """Inspects, and lets nothing pass but a stored image or one of the two refusals."""
    try:
        checked = image.inspect(data, SMALL)
    except (ImageUnreadable, ImageTooLarge):
        return
    assert decoded(checked.data).size == (checked.width_pixels, checked.height_pixels)


@fuzzed
@given(st.sampled_from(MAGICS), st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(magic: bytes, noise: bytes) -> None:
    """Whatever comes, it is an image or one of our two refusals."""
    only_our_errors(magic + noise)


@fuzzed
@given(st.sampled_from(sorted(EACH_KIND)), st.data())
def test_random_damage_raises_nothing_else(name: str, data: st.DataObject) -> None:
    """An image cut anywhere with bytes flipped anywhere is an image or one of our two refusals."""
    damaged = bytearray(EACH_KIND[name])
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=6)):
        damaged[at] = value
    only_our_errors(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
