"""An image as it comes in: checked by its content, turned upright, freed of metadata.

    bytes ──► size ──► kind by magic ──► header's pixels ──► full decode ──► upright? one frame? plain mode?
                                                                   ├── yes: cut the metadata out of the container
                                                                   └── no: turn, flatten, encode anew

- Pixels are counted before a single one is decoded, so a small file that unfolds into a huge picture costs nothing.
- A photograph that needs no turning loses no quality: EXIF, XMP, comments, thumbnails and whatever trails the image are
  cut out. JPEG is encoded anew only to turn it or out of CMYK, at quality 95 without chroma subsampling.
- The colour profile (ICC) stays: it says what the colours are and nothing of who took the picture, and without it a
  wide-gamut photograph looks washed out. It goes with CMYK, which it describes.
- Of an animation the first frame stays. GIF always becomes PNG, which holds the same palette without loss.

Everything here is pure and bound by the CPU; callers run it in a thread of a bounded pool.
"""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from services.batcher.errors import ImageTooLarge, ImageUnreadable

# Progressive JPEGs come in about ten scans. Each is a pass over all pixels, so thousands of empty ones stop a server.
JPEG_SCANS_MAX = 64
JPEG_QUALITY = 95
WEBP_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may have at most."""

    size_bytes_max: int = 20 * 1024 * 1024
    pixels_max: int = 50_000_000


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image fit to be stored. `image_id` is the SHA-256 (hex) of the bytes as received; the rest is as stored."""

    image_id: str
    media_type: str
    width_pixels: int
    height_pixels: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Kind:
    """A file format that we read: its decoder, what it is stored as, and how its metadata is cut out."""

    open: Callable[[BytesIO], ImageFile.ImageFile]
    stored_as: str
    modes: frozenset[str]
    strip: Callable[[bytes], bytes | None]


def inspect(data: bytes, limits: Limits | None = None) -> CheckedImage:
    """Checks an image whole and returns it as it is to be stored.

    Raises ImageTooLarge for too many bytes or pixels, and ImageUnreadable for everything else that is wrong with it.
    """
    limits = limits or Limits()
    if len(data) > limits.size_bytes_max:
        raise ImageTooLarge(size_bytes=len(data), limit_bytes=limits.size_bytes_max)
    kind = _kind_of(data)
    try:
        return _checked(data, kind, limits)
    except (ImageUnreadable, ImageTooLarge, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(pixels=_pixels_named_in(error), limit_pixels=limits.pixels_max) from error
    except Exception as error:
        # Pillow's decoders raise whatever a broken file makes them trip over: OSError, SyntaxError, struct.error, ...
        truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
        raise ImageUnreadable("truncated" if truncated else "damaged") from error


def _checked(data: bytes, kind: _Kind, limits: Limits) -> CheckedImage:
    if kind is _JPEG:
        _refuse_endless_scans(data)
    with kind.open(BytesIO(data)) as image:
        pixels = image.width * image.height
        if pixels > limits.pixels_max:
            raise ImageTooLarge(pixels=pixels, limit_pixels=limits.pixels_max)
        image.load()
        turn = _TURNS.get(_orientation(image))
        stripped = kind.strip(data) if turn is None and image.mode in kind.modes else None
        upright = image if turn is None else image.transpose(turn)
        return CheckedImage(
            image_id=hashlib.sha256(data).hexdigest(),
            media_type=f"image/{kind.stored_as.lower()}",
            width_pixels=upright.width,
            height_pixels=upright.height,
            data=stripped or _encoded(upright, kind),
        )


def _kind_of(data: bytes) -> _Kind:
    if data.startswith(b"\xff\xd8\xff"):
        return _JPEG
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _PNG
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _WEBP
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _GIF
    raise ImageUnreadable("not an image")


def _pixels_named_in(error: Image.DecompressionBombError) -> int:
    """Reads the count out of Pillow's own refusal, which for WEBP comes before the image has a size."""
    found = re.search(r"\d+", str(error))
    return int(found.group()) if found else 0


# The EXIF orientation (TIFF 6.0 tag 274) and the turn that undoes it.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    """Returns the orientation, 1 for none. A photograph whose EXIF is broken is still a photograph."""
    try:
        value = image.getexif().get(274, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _encoded(image: Image.Image, kind: _Kind) -> bytes:
    """Encodes pixels anew, with their colour profile and no other info."""
    profile = None if image.mode == "CMYK" else image.info.get("icc_profile")
    plain = _plain(image, kind)
    plain.info = {}
    out = BytesIO()
    if kind.stored_as == "JPEG":
        plain.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0, optimize=True, icc_profile=profile)
    elif kind.stored_as == "WEBP":
        plain.save(out, "WEBP", quality=WEBP_QUALITY, icc_profile=profile)
    else:
        plain.save(out, "PNG", icc_profile=profile)
    return out.getvalue()


def _plain(image: Image.Image, kind: _Kind) -> Image.Image:
    """Brings an image to a mode that its kind is stored in: sixteen bits of grey to the upper eight, CMYK to RGB."""
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "transparency" in image.info and kind.stored_as == "PNG":
        # The transparent colour is an index or a colour in the info; as a channel it outlives the info.
        return image.convert("RGBA")
    return image if image.mode in kind.modes else image.convert("RGB")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (marker, start, end) of each segment, a scan's with its pixels; stops at the end marker or at nonsense."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xD9:
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker == 0xDA:
            following = _AFTER_SCAN.search(data, end)
            end = following.start() if following else len(data)
        yield marker, at, end
        at = end
    if data[at : at + 2] == b"\xff\xd9":
        yield 0xD9, at, at + 2


# Inside a scan 0xFF is followed by 0x00 or by a restart marker, so that any other marker ends it (ITU T.81, B.1.1.5).
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def _refuse_endless_scans(data: bytes) -> None:
    if sum(marker == 0xDA for marker, _, _ in _jpeg_segments(data)) > JPEG_SCANS_MAX:
        raise ImageUnreadable(f"more than {JPEG_SCANS_MAX} scans")


def _strip_jpeg(data: bytes) -> bytes | None:
    """Copies a JPEG without its metadata; None when its segments don't lead to its end marker."""
    segments = list(_jpeg_segments(data))
    if not segments or segments[-1][0] != 0xD9:
        return None
    return data[:2] + b"".join(data[a:b] for marker, a, b in segments if _is_jpeg_picture(marker, data[a + 4 : b]))


def _is_jpeg_picture(marker: int, payload: bytes) -> bool:
    """Whether a segment is needed to show the picture: all but comments and APPn, of which JFIF, ICC and Adobe are."""
    if marker == 0xE0:
        # A longer JFIF segment, or a JFXX one, carries a thumbnail, which may show what was cropped away.
        return payload.startswith(b"JFIF\0") and len(payload) == 14
    if marker == 0xE2:
        return payload.startswith(b"ICC_PROFILE\0")
    if marker == 0xEE:
        return payload.startswith(b"Adobe")
    return not (0xE1 <= marker <= 0xEF or marker == 0xFE)


_PNG_PICTURE = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP sBIT bKGD pHYs".split())


def _strip_png(data: bytes) -> bytes | None:
    """Copies a PNG's picture, of an animation the still one; None for sixteen bits, which are encoded anew as eight.

    Raises ImageUnreadable when a checksum is wrong: the decoder does not look at those of the pixels.
    """
    out, at = [data[:8]], 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind in _PNG_PICTURE:
            if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
                raise ImageUnreadable("damaged")
            out.append(data[at:end])
        at = end
        if kind == b"IEND":
            return None if data[24] == 16 else b"".join(out)
    raise ImageUnreadable("truncated")


_WEBP_PICTURE = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"))
_WEBP_EXIF_AND_XMP = 0x08 | 0x04


def _strip_webp(data: bytes) -> bytes | None:
    """Copies a WEBP without its metadata; None for an animation."""
    out, at, file_end = [], 12, 8 + int.from_bytes(data[4:8], "little")
    while at + 8 <= min(file_end, len(data)):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        chunk = data[at:end]
        if kind in (b"ANIM", b"ANMF"):
            return None
        if kind == b"VP8X":
            chunk = chunk[:8] + bytes([chunk[8] & ~_WEBP_EXIF_AND_XMP]) + chunk[9:]
        if kind in _WEBP_PICTURE:
            out.append(chunk)
        at = end
    body = b"WEBP" + b"".join(out)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _strip_gif(_data: bytes) -> bytes | None:
    """Nothing of a GIF is kept as it is: its one frame becomes a PNG."""
    return None


_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
_JPEG = _Kind(JpegImagePlugin.JpegImageFile, "JPEG", frozenset({"L", "RGB"}), _strip_jpeg)
_PNG = _Kind(PngImagePlugin.PngImageFile, "PNG", _PNG_MODES, _strip_png)
_WEBP = _Kind(WebPImagePlugin.WebPImageFile, "WEBP", frozenset({"RGB", "RGBA"}), _strip_webp)
_GIF = _Kind(GifImagePlugin.GifImageFile, "PNG", _PNG_MODES, _strip_gif)
