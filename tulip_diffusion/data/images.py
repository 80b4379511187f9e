"""Pictures as people see them: upright, on white where they are transparent, and in eight bits of sRGB."""

import functools
import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

BACKGROUND = (255, 255, 255)  # what shows through transparent pixels
FULL_16_BIT = 65535
SAMPLES = {"L;2": 85, "L;4": 17}  # what a grey sample of 2 or 4 bits is multiplied by to fill 8
SPACES = {"1": "GRAY", "L": "GRAY", "LA": "GRAY", "La": "GRAY", "CMYK": "CMYK"}  # of ICC profiles; else RGB
GREY_FORMATS = ("PNG", "PPM")  # their mode "I" holds 16 bits
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "bmp",
        "gif",
        "tif",
        "tiff",
        "avif",
        "jp2",
        "ppm",
        "pgm",
    )
)


def open_image(source: str | Path | bytes | BinaryIO | Image.Image) -> Image.Image:
    """The picture in a file, in its bytes or in a Pillow image, in sRGB as [`as_seen`] makes it.

    Raises:
        ValueError: it cannot be read as a picture, is cut off, or has more pixels than Pillow holds to be safe.
        OSError: there is no such file, or it may not be read.
    """
    if isinstance(source, Image.Image):
        return as_seen(source)
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return as_seen(image)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # decoders fail in many ways on broken data: struct.error, IndexError, SyntaxError …
        raise ValueError(f"it is not a picture that can be read ({error or type(error).__name__})") from error


def as_seen(image: Image.Image) -> Image.Image:
    """`image` in sRGB, its first frame where it has several.

    It is turned as its EXIF orientation says, laid on white where it is transparent, and in the colours that its ICC
    profile means, where it has one. Samples of 16 bits are scaled from 0–65535 (or what the file says they have),
    floats from 0–1, 0–255 or else from their own range.
    """
    scale = SAMPLES.get(raw_mode(image), 1)
    image.load()
    profile = image.info.get("icc_profile")
    image = upright(image)
    if image.mode.startswith(("I", "F")):
        image = eight_bits(image)
    transparent = image.info.get("transparency")
    if image.mode == "L" and isinstance(transparent, int):
        image.info["transparency"] = min(255, transparent * scale)
    if image.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        image.info["transparency"] = tuple(sample >> 8 for sample in transparent)  # as Pillow reads 16-bit pixels
    space = SPACES.get(image.mode, "RGB")
    seen = on_background(image) if image.has_transparency_data else image
    return in_srgb(seen, profile, space)


def raw_mode(image: Image.Image) -> str:
    """How a PNG's samples are stored, known only before it is loaded."""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile and image.format == "PNG" else ""


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF data says."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image  # which would copy it in any case
    except Exception:  # broken EXIF data: viewers show such a picture as it lies
        return image


def eight_bits(image: Image.Image) -> Image.Image:
    """A picture of one channel of integers or floats in mode L, with alpha where one of its samples is transparent."""
    samples = np.asarray(image).astype(np.float64)
    low, high = sample_range(image, samples)
    scaled = (np.nan_to_num(samples, nan=low, posinf=high, neginf=low) - low) / (high - low or 1) * 255
    grey = Image.fromarray(np.clip(scaled, 0, 255).round().astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(samples == transparent, 0, 255).astype(np.uint8)))
    return grey


def sample_range(image: Image.Image, samples: np.ndarray) -> tuple[float, float]:
    """What is black and what is white."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in GREY_FORMATS):
        tags = getattr(image, "tag_v2", {})  # a TIFF of 10 or 12 bits says so
        bits = tags.get(258, 16)
        white = 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
        return (white, 0) if tags.get(262) == 0 else (0, white)  # 262 is 0 where 0 is white
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        raise ValueError("it holds no finite sample")
    low, high = float(finite.min()), float(finite.max())
    for white in (1, 255):
        if low >= 0 and high <= white and (white > 1 or image.mode == "F"):
            return 0, white
    return low, high


def on_background(image: Image.Image) -> Image.Image:
    """A transparent image on `BACKGROUND`, in RGB."""
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")


def in_srgb(image: Image.Image, embedded: bytes | None, space: str) -> Image.Image:
    """`image` in RGB, its colours as the `embedded` ICC profile means them; it then says nothing of that profile.

    A profile that is broken, or for another `space` of colours than the picture was stored in, counts for nothing, as
    for browsers.
    """
    if embedded:
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if profile.profile.xcolor_space.strip() == space and not (space == "RGB" and means_srgb(embedded)):
                return converted(image.convert({"GRAY": "L"}.get(space, space)), profile)
        except (OSError, ImageCms.PyCMSError):
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(maxsize=64)
def means_srgb(embedded: bytes) -> bool:
    """Whether an ICC profile for RGB leaves colours as they are, as sRGB's own does, which most pictures bring along.

    A cube of colours tells, since converting a picture takes far longer than opening it.
    """
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(27, 27, 3)
    seen = np.asarray(converted(Image.fromarray(cube), ImageCms.ImageCmsProfile(io.BytesIO(embedded))))
    return bool(np.abs(seen.astype(int) - cube).max() <= 1)


def converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    """`image` from the colours of `profile` to sRGB."""
    seen = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert seen is not None  # since it is not done in place
    seen.info.pop("icc_profile")  # sRGB's, which would be applied once more
    return seen
