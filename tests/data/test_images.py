"""Every picture against values that are worked out by hand or read by other software's rules."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tulip_diffusion.data import BadRow, CaptionData, as_seen, open_image
from tulip_diffusion.evaluation.datasets import RetrievalSet

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(source) -> list:
    seen = open_image(source)
    assert seen.mode == "RGB"
    return np.asarray(seen).tolist()


def two(mode: str, left, right) -> Image.Image:
    """One pixel beside another."""
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def png(bits: int, colour: int, row: bytes, transparent: bytes = b"") -> bytes:
    """A PNG of 2 × 1 pixels, chunk by chunk, in kinds that Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, colour, 0, 0, 0))
    middle = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def near(value: list, expected: list, by: int = 1) -> bool:
    return np.abs(np.asarray(value, dtype=int) - np.asarray(expected)).max() <= by


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0)), (2, (0, -1))]
)
def test_pictures_are_turned_as_their_camera_held_them(format, orientation, corner):
    stored = Image.new("RGB", (48, 32), BLUE)
    stored.paste(RED, (0, 0, 16, 16))  # stored at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    seen = np.asarray(open_image(saved(stored, format, exif=exif, **options)))
    assert seen.shape[:2] == ((48, 32) if orientation in (6, 8) else (32, 48))
    assert near(seen[corner].tolist(), RED, 5)


def test_a_picture_with_broken_exif_data_is_shown_as_it_lies():
    data = saved(Image.new("RGB", (3, 2), RED), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert open_image(data).size == (3, 2)


@pytest.mark.parametrize(
    ("image", "format", "options"),
    [
        (two("RGBA", (*RED, 255), (0, 0, 0, 0)), "PNG", {}),
        (two("RGBA", (*RED, 255), (0, 0, 0, 0)), "WEBP", {"lossless": True, "exact": True}),
        (two("RGBA", (*RED, 255), (0, 0, 0, 0)), "TIFF", {}),
        (two("RGB", RED, BLUE), "PNG", {"transparency": BLUE}),
        (
            two("RGB", RED, BLUE).quantize(2),
            "GIF",
            {"transparency": two("RGB", RED, BLUE).quantize(2).getpixel((1, 0))},
        ),
        (
            two("RGB", RED, BLUE).quantize(2),
            "PNG",
            {"transparency": two("RGB", RED, BLUE).quantize(2).getpixel((1, 0))},
        ),
    ],
)
def test_transparent_pixels_show_white(image, format, options):
    assert pixels(saved(image, format, **options)) == [[[*RED], [*WHITE]]]


def test_half_transparent_pixels_are_mixed_with_white():
    assert near(pixels(saved(two("RGBA", (0, 0, 0, 128), (255, 0, 0, 64)), "PNG")), [[[127] * 3, [255, 191, 191]]])
    assert near(pixels(saved(two("LA", (0, 128), (100, 0)), "PNG")), [[[127] * 3, [255] * 3]])
    half = two("P", 0, 1)
    half.putpalette([0, 0, 0, 255, 0, 0])
    assert near(pixels(saved(half, "PNG", transparency=bytes([128, 64]))), [[[127] * 3, [255, 191, 191]]])
    assert near(np.asarray(as_seen(two("La", (0, 128), (0, 0)))).tolist(), [[[127] * 3, [255] * 3]])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(1, 0, b"\x40", struct.pack(">H", 0)), [[255] * 3, [255] * 3]),  # 0 is transparent, 1 is white
        (png(2, 0, b"\x10", struct.pack(">H", 0)), [[255] * 3, [85] * 3]),
        (png(2, 0, b"\x10", struct.pack(">H", 1)), [[0] * 3, [255] * 3]),
        (png(4, 0, b"\x2a", struct.pack(">H", 2)), [[255] * 3, [170] * 3]),
        (png(8, 0, b"\x07\x08", struct.pack(">H", 7)), [[255] * 3, [8] * 3]),
        (png(16, 0, struct.pack(">2H", 1000, 40000), struct.pack(">H", 1000)), [[255] * 3, [156] * 3]),
        (png(16, 2, struct.pack(">6H", 30000, 9, 0, 65535, 0, 9), struct.pack(">3H", 30000, 9, 0)), [WHITE, RED]),
    ],
)
def test_the_transparent_sample_of_a_png_is_found_at_any_depth(data, expected):
    assert near(pixels(data), [expected])


DEEP = np.array([[0, 13107, 65535]])  # 13107 / 65535 = 51 / 255


@pytest.mark.parametrize(
    "data",
    [
        saved(Image.fromarray(DEEP.astype("<u2")), "PNG"),
        saved(Image.fromarray(DEEP.astype("<u2")), "TIFF"),
        saved(Image.fromarray(DEEP.astype("<u2")).convert("I"), "PPM"),
        b"P5 3 1 65535\n" + DEEP.astype(">u2").tobytes(),
    ],
)
def test_grey_of_16_bits_keeps_its_shades(data):
    assert near(pixels(data), [[[0] * 3, [51] * 3, [255] * 3]])


def test_big_endian_and_coloured_samples_of_16_bits_keep_their_shades():
    big = Image.frombytes("I;16B", (3, 1), DEEP.astype(">u2").tobytes())
    assert near(np.asarray(as_seen(big)).tolist(), [[[0] * 3, [51] * 3, [255] * 3]])
    assert near(pixels(png(16, 2, struct.pack(">6H", 0, 13107, 65535, 65535, 0, 0))), [[[0, 51, 255], RED]])
    assert near(pixels(png(16, 6, struct.pack(">8H", 0, 13107, 65535, 65535, 9, 9, 9, 0))), [[[0, 51, 255], WHITE]])


@pytest.mark.parametrize("white", [1.0, 255.0])
def test_float_tiffs_are_scaled_by_what_their_samples_say(white):
    shades = np.array([[0, 0.2, 0.6]], dtype=np.float32) * white
    assert near(pixels(saved(Image.fromarray(shades), "TIFF")), [[[0] * 3, [51] * 3, [153] * 3]])


@pytest.mark.parametrize("low", [0.0, -500.0, 1000.0])
def test_other_floats_are_scaled_from_their_own_range(low):
    shades = low + 2000 * np.array([[0, 0.2, 1]], dtype=np.float32)
    assert near(pixels(saved(Image.fromarray(shades), "TIFF")), [[[0] * 3, [51] * 3, [255] * 3]])


def test_floats_that_are_no_numbers_do_not_spoil_the_others():
    shades = np.array([[0, np.nan, np.inf, 0.2, -np.inf]], dtype=np.float32)
    assert near(pixels(saved(Image.fromarray(shades), "TIFF"))[0][0::3], [[0] * 3, [51] * 3])
    with pytest.raises(ValueError, match="no finite sample"):
        open_image(saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


def test_integers_of_32_bits_are_scaled_from_their_own_range():
    deep = np.array([[0, 200_000, 1_000_000]], dtype=np.int32)
    assert near(pixels(saved(Image.fromarray(deep), "TIFF")), [[[0] * 3, [51] * 3, [255] * 3]])


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_not_seen_as_its_negative(format):
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert near(pixels(saved(ink, format))[8][8], RED, 3)
    bare = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    assert near(pixels(saved(bare, format))[8][8], WHITE, 3)


def test_lab_black_and_white_and_ycbcr_are_seen_in_their_colours():
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    red = ImageCms.profileToProfile(Image.new("RGB", (4, 4), RED), srgb, lab, outputMode="LAB")
    assert near(pixels(saved(red, "TIFF"))[0][0], RED, 6)
    assert pixels(saved(two("1", 0, 1), "PNG")) == [[[0] * 3, [255] * 3]]
    assert pixels(saved(two("1", 0, 1), "TIFF", compression="group4")) == [[[0] * 3, [255] * 3]]
    assert near(pixels(saved(Image.new("RGB", (8, 8), RED).convert("YCbCr"), "JPEG"))[4][4], RED, 3)


def swapped() -> bytes:
    """An ICC profile whose red is sRGB's blue, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"_").replace(b"bXYZ", b"rXYZ").replace(b"_", b"bXYZ")


def linear_grey() -> bytes:
    """The smallest ICC profile of a grey whose samples are light itself: a white point and a straight curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    table = struct.pack(">I", 2) + b"wtpt" + struct.pack(">2I", 156, 20) + b"kTRC" + struct.pack(">2I", 176, 12)
    header = struct.pack(">I4xI4s4s4s12x4s", 188, 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"acsp").ljust(68, b"\0")
    return (header + white[8:]).ljust(128, b"\0") + table + white + curve


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_colours_are_those_that_the_embedded_profile_means(format):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(format, {})
    image = Image.new("RGB", (8, 8), (200, 40, 90))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(swapped()))
    expected = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    seen = open_image(saved(image, format, icc_profile=swapped(), **options))
    assert near(np.asarray(seen).tolist(), np.asarray(expected).tolist(), 2)
    assert near(pixels(seen)[4][4], (90, 40, 200), 2)  # and seen again it is the same
    assert np.array_equal(as_seen(seen), seen)


def test_srgbs_own_profile_changes_nothing():
    colours = Image.effect_noise((64, 64), 90).convert("RGB")
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixels(saved(colours, "PNG", icc_profile=own)) == np.asarray(colours).tolist()


def test_profiles_go_with_transparent_indexed_and_grey_pictures():
    clear = two("RGBA", (*RED, 255), (0, 0, 0, 0))
    assert near(pixels(saved(clear, "PNG", icc_profile=swapped()))[0], [BLUE, WHITE])
    assert near(pixels(saved(two("RGB", RED, BLUE).quantize(2), "PNG", icc_profile=swapped()))[0], [BLUE, RED])
    for grey in (two("L", 0, 55), two("LA", (0, 255), (55, 255)), two("I;16", 0, 55 * 257)):
        assert near(pixels(saved(grey, "PNG", icc_profile=linear_grey()))[0], [[0] * 3, [128] * 3])


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("RGB", b"broken"), ("RGB", linear_grey()), ("L", swapped()), ("CMYK", swapped())],
    ids=["broken", "a grey one", "of RGB, in a grey picture", "of RGB, for print"],
)
def test_a_profile_that_does_not_fit_counts_for_nothing(mode, profile):
    image = Image.new("RGB", (8, 8), RED).convert(mode)
    assert pixels(saved(image, "TIFF", icc_profile=profile)) == pixels(saved(image, "TIFF"))


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_what_counts(format):
    first, second = Image.new("RGB", (2, 2), RED), Image.new("RGB", (2, 2), BLUE)
    options = {"lossless": True} if format == "WEBP" else {}
    data = saved(first, format, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert pixels(data) == [[[*RED]] * 2] * 2


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def bomb() -> bytes:
    """A small file that says it holds 900 million pixels."""
    data = bytearray(png(8, 0, b"\0\0"))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


BROKEN = {
    "a cut JPEG": saved(noise(), "JPEG")[:1500],
    "a cut PNG": saved(noise(), "PNG")[:2000],
    "a cut GIF": saved(noise(), "GIF")[:900],
    "a cut WebP": saved(noise(), "WEBP")[:200],
    "a page of HTML": b"<html>not found</html>",
    "nothing": b"",
    "a bomb": bomb(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_a_bad_row_in_training_and_an_error_in_evaluation(kind, tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(BROKEN[kind])
    with pytest.raises(BadRow, match="row 0: "):
        CaptionData(["a"], [str(file)]).image(0)
    with pytest.raises(ValueError, match=r"broken\.png"):
        RetrievalSet("mine", [file], ["a"], [0]).picture(0)


def test_training_and_evaluation_see_the_same_picture(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.png"
    file.write_bytes(saved(two("RGBA", (*RED, 255), (0, 0, 0, 0)), "PNG", exif=exif))
    seen = [CaptionData(["a"], [str(file)]).image(0), RetrievalSet("mine", [file], ["a"], [0]).picture(0)]
    assert [np.asarray(picture).tolist() for picture in seen] == [[[[*RED]], [[*WHITE]]]] * 2
