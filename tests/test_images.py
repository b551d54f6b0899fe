"""Image values, image files in every flavour, prompts framed without fringes, and bad input in one sentence each."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from maquette.cameras import orbit
from maquette.errors import UserError
from maquette.imagefiles import decode
from maquette.images import ImagePrompt, Prompt, Views, read_image, read_prompt, save_image, sheet

WHITE = torch.ones(3)


def disc(height: int = 120, width: int = 160, centre=(50, 90), radius: float = 30) -> torch.Tensor:
    """Antialiased coverage [H, W] of a disc."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return (radius - ((y - centre[0]) ** 2 + (x - centre[1]) ** 2).sqrt() + 0.5).clamp(0, 1)


def save_array(path: Path, array: np.ndarray, **options) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def rgba_file(path: Path, colour=(200, 40, 30), hidden=(0, 255, 0)) -> Path:
    """A disc of one colour whose transparent part hides another."""
    alpha = (disc() * 255).round().to(torch.uint8).numpy()
    pixels = np.where(alpha[..., None] > 0, np.uint8(colour), np.uint8(hidden))
    return save_array(path, np.concatenate([pixels, alpha[..., None]], axis=-1).astype(np.uint8))


# Values


def test_composite_mixes_by_coverage():
    prompt = ImagePrompt(torch.full((3, 1, 3), 0.2), torch.tensor([[[0.0, 0.5, 1.0]]]))
    expected = torch.tensor([[1.0, 0.6, 0.2], [0.0, 0.1, 0.2], [0.5, 0.35, 0.2]])
    torch.testing.assert_close(prompt.composite(torch.tensor([1.0, 0.0, 0.5]))[:, 0], expected)


def test_resizing_commutes_with_compositing(generator):
    """Both are linear in the premultiplied colours, so no background can bleed into the outline."""
    prompt = ImagePrompt(torch.rand(3, 64, 64, generator=generator), disc(64, 64, (30, 34), 20)[None])
    background = torch.tensor([0.1, 0.9, 0.4])
    resize = {"mode": "bilinear", "align_corners": False, "antialias": True}
    expected = torch.nn.functional.interpolate(prompt.composite(background)[None], (24, 20), **resize)[0]
    small = prompt.resized(24, 20)
    torch.testing.assert_close(small.composite(background), expected, atol=3e-3, rtol=0)
    assert (small.height, small.width) == (24, 20)
    assert prompt.resized(64) is prompt


def test_uncovered_pixels_repeat_the_nearest_colour():
    image = torch.zeros(3, 8, 8)
    image[0, :, :4] = 1.0
    image[1, :, 4:] = 1.0
    mask = torch.zeros(1, 8, 8)
    mask[..., :4] = 1.0
    enlarged = ImagePrompt(image, mask).resized(16)
    assert torch.equal(enlarged.image[:, :, 12:], torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 16, 4))


def test_shapes_are_checked():
    with pytest.raises((ValueError, TypeError), match="mask"):
        ImagePrompt(torch.zeros(3, 4, 4), torch.zeros(1, 4, 5))
    with pytest.raises((ValueError, TypeError), match="4 cameras|views need"):
        Views(torch.zeros(4, 3, 8, 8), None, orbit(4))
    with pytest.raises((ValueError, TypeError), match="masks"):
        Views(torch.zeros(4, 3, 64, 64), torch.zeros(3, 1, 64, 64), orbit(4))


def test_sheet_lays_out_rows():
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 3) / 10
    laid = sheet(images, 2, gap=1, background=1.0)
    assert laid.shape == (3, 8, 7)
    torch.testing.assert_close(laid[0, 0], torch.tensor([0.0, 0.0, 0.0, 1.0, 0.1, 0.1, 0.1]))
    torch.testing.assert_close(laid[0, 7], torch.tensor([0.4, 0.4, 0.4, 1.0, 1.0, 1.0, 1.0]))
    assert sheet(images).shape == (3, 2, 15)
    with pytest.raises(ValueError, match="at least one"):
        sheet(images, 0)


@pytest.mark.parametrize("masked", [True, False])
def test_views_survive_a_folder(tmp_path, generator, masked):
    images = (torch.rand(3, 3, 10, 12, generator=generator) * 255).round() / 255
    masks = (torch.rand(3, 1, 10, 12, generator=generator) * 255).round() / 255 if masked else None
    views = Views(images, masks, orbit(3, elevation=20, height=10, width=12))
    views.save(tmp_path / "one")
    views.save(tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["000.png", "001.png", "002.png", "transforms.json"]
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    loaded = Views.load(tmp_path / "one")
    assert torch.equal(loaded.images, images) and torch.equal(loaded.cameras.c2w, views.cameras.c2w)
    assert (loaded.masks is None) if masks is None else torch.equal(loaded.masks, masks)
    assert len(loaded[1:]) == 2 and len(loaded[[2]]) == 1
    torch.testing.assert_close(loaded.composite(WHITE), views.composite(WHITE))


def test_views_of_other_sizes_are_refused(tmp_path):
    Views(torch.zeros(2, 3, 8, 8), None, orbit(2, height=8, width=8)).save(tmp_path)
    save_image(tmp_path / "001.png", torch.zeros(3, 8, 9))
    with pytest.raises(UserError, match="8x8 px"):
        Views.load(tmp_path)
    (tmp_path / "001.png").unlink()
    with pytest.raises(UserError, match="no image"):
        Views.load(tmp_path)


# Files


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_round_trip_is_exact_and_repeatable(tmp_path, generator, channels):
    image = (torch.rand(channels, 7, 9, generator=generator) * 255).round() / 255
    save_image(tmp_path / "a.png", image)
    save_image(tmp_path / "b.png", image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    read = read_image(tmp_path / "a.png")
    assert torch.equal(read, image.expand(3, -1, -1) if channels == 1 else image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_values_outside_are_clamped_and_nan_refused(tmp_path):
    save_image(tmp_path / "a.png", torch.tensor([-1.0, 0.5, 2.0]).reshape(1, 1, 3))
    torch.testing.assert_close(read_image(tmp_path / "a.png")[0, 0], torch.tensor([0.0, 128 / 255, 1.0]))
    with pytest.raises(ValueError, match="NaN"):
        save_image(tmp_path / "b.png", torch.full((3, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="png"):
        save_image(tmp_path / "b.jpg", torch.zeros(3, 2, 2))
    with pytest.raises((ValueError, TypeError)):
        save_image(tmp_path / "b.png", torch.zeros(2, 2, 2))
    assert not (tmp_path / "b.png").exists()


@pytest.mark.parametrize("suffix, tolerance", [("png", 0), ("bmp", 0), ("tiff", 0), ("webp", 6), ("jpg", 6)])
def test_formats(tmp_path, suffix, tolerance):
    gradient = np.broadcast_to(np.arange(40, 200, 4, dtype=np.uint8)[:, None, None], (40, 40, 3)).copy()
    image = read_image(save_array(tmp_path / f"a.{suffix}", gradient))
    assert image.shape == (3, 40, 40) and image.dtype == torch.float32
    assert (image * 255 - torch.from_numpy(gradient).permute(2, 0, 1)).abs().max() <= tolerance + 1e-3


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_grey(tmp_path, suffix):
    values = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    image = read_image(save_array(tmp_path / f"a.{suffix}", values))
    torch.testing.assert_close(image[1], torch.from_numpy(values.astype(np.float32) / 65535))
    assert torch.equal(image[0], image[2])


def write_png(path: Path, colour_type: int, values: np.ndarray) -> Path:
    """A 16-bit PNG written by hand, since Pillow does not write colour ones."""
    rows = values.astype(">u2").reshape(len(values), -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("colour_type, channels, expected", [(2, 3, 3), (6, 4, 4), (4, 2, 4)])
def test_16_bit_colour(tmp_path, colour_type, channels, expected):
    values = np.random.default_rng(0).integers(0, 65536, (12, 10, channels))
    image = read_image(write_png(tmp_path / "a.png", colour_type, values))
    assert image.shape == (expected, 12, 10)
    spread = values if channels > 2 else values[..., [0, 0, 0, 1]]
    torch.testing.assert_close(
        image, torch.from_numpy(spread / 65535).float().permute(2, 0, 1), atol=1.01 / 255, rtol=0
    )


def test_palettes_greys_and_transparency(tmp_path):
    alpha = Image.fromarray((disc(40, 40, (20, 20), 12) * 255).byte().numpy())
    colour = Image.new("RGB", (40, 40), (10, 120, 240))
    colour.convert("P").save(tmp_path / "palette.png")
    keyed = Image.new("P", (40, 40), 0)
    keyed.putpalette([0, 0, 0, 10, 120, 240])
    keyed.paste(1, (10, 10, 30, 30))
    keyed.save(tmp_path / "keyed.png", transparency=0)
    keyed.save(tmp_path / "several.png", transparency=bytes([0, 128]))
    Image.new("L", (40, 40), 77).save(tmp_path / "grey.png")
    Image.new("1", (40, 40), 1).save(tmp_path / "bit.png")
    Image.merge("LA", (Image.new("L", (40, 40), 77), alpha)).save(tmp_path / "la.png")
    colour.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    colour.save(tmp_path / "rgbkey.png", transparency=(10, 120, 240))

    blue = torch.tensor([10, 120, 240]) / 255
    torch.testing.assert_close(read_image(tmp_path / "palette.png")[:, 0, 0], blue, atol=0.1, rtol=0)
    read = read_image(tmp_path / "keyed.png")
    assert read.shape[0] == 4 and read[3].mean() == 0.25 and torch.allclose(read[:3, 20, 20], blue)
    assert read_image(tmp_path / "several.png")[3, 20, 20] == 128 / 255
    assert torch.equal(read_image(tmp_path / "grey.png"), torch.full((3, 40, 40), 77 / 255))
    assert read_image(tmp_path / "bit.png").min() == 1
    read = read_image(tmp_path / "la.png")
    assert read.shape[0] == 4 and torch.equal(read[3], torch.from_numpy(np.array(alpha)) / 255)
    torch.testing.assert_close(read_image(tmp_path / "cmyk.jpg")[:, 20, 20], blue, atol=0.02, rtol=0)
    assert read_image(tmp_path / "rgbkey.png")[3].max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_whatever_the_camera_was(tmp_path, orientation):
    upright = Image.new("RGB", (40, 24), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 10, 6))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition whose inverse the tag asks for
    stored = upright if orientation == 1 else upright.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(np.array(upright)).permute(2, 0, 1) / 255)


def test_colour_profiles_are_applied(tmp_path):
    """A profile with gamma 1 says that 0.5 is bright; sRGB shows that as 188."""
    lab = ImageCms.createProfile("LAB")
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.full((20, 20, 3), 128, np.uint8)
    plain = read_image(save_array(tmp_path / "srgb.png", pixels, icc_profile=srgb))
    assert torch.equal(plain, torch.full((3, 20, 20), 128 / 255))
    wrong = ImageCms.ImageCmsProfile(lab).tobytes()
    assert torch.equal(read_image(save_array(tmp_path / "wrong.png", pixels, icc_profile=wrong)), plain)
    assert torch.equal(read_image(save_array(tmp_path / "broken.png", pixels, icc_profile=b"no profile")), plain)
    linear = bytearray(srgb)
    # The three tone curves of Pillow's sRGB profile are one "para" block; type 0 with gamma 1.0 makes them straight.
    at = linear.index(b"para")
    linear[at + 8 : at + 16] = struct.pack(">HHi", 0, 0, 65536)
    bright = read_image(save_array(tmp_path / "linear.png", pixels, icc_profile=bytes(linear)))
    torch.testing.assert_close(bright, torch.full((3, 20, 20), 188 / 255), atol=1.1 / 255, rtol=0)


def test_animations_give_their_first_frame(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    for name in ("a.webp", "a.gif"):
        assert torch.equal(read_image(tmp_path / name)[:3, 5, 5], torch.tensor([1.0, 0.0, 0.0]))


def test_large_pictures_are_reduced_by_coverage(tmp_path):
    alpha = np.zeros((800, 600), np.uint8)
    alpha[:, :301] = 255
    pixels = np.where(alpha[..., None] > 0, np.uint8([200, 0, 0]), np.uint8([0, 255, 0]))
    save_array(tmp_path / "a.png", np.concatenate([pixels, alpha[..., None]], axis=-1))
    small = decode(tmp_path / "a.png", 100)
    assert small.shape == (200, 150, 4)
    covered = small[small[..., 3] > 0]
    assert np.abs(covered[:, :3] - np.float32([200 / 255, 0, 0])).max() < 2.5 / 255


# Prompts


def test_alpha_is_used_centred_and_scaled(tmp_path):
    prompt = read_prompt(rgba_file(tmp_path / "a.png"), caption="a disc", negative="blurry", size=100)
    assert (prompt.caption, prompt.negative, prompt.camera) == ("a disc", "blurry", None)
    mask = prompt.image.mask[0]
    rows, columns = mask.sum(dim=1), mask.sum(dim=0)
    centres = torch.arange(100) + 0.5
    assert float((rows * centres).sum() / rows.sum()) == pytest.approx(50, abs=0.6)
    assert float((columns * centres).sum() / columns.sum()) == pytest.approx(50, abs=0.6)
    # A disc 80 px across: its area says so more exactly than its outline.
    assert float(mask.sum()) == pytest.approx(np.pi * 40**2, rel=0.03)
    assert prompt.cutout.method == "alpha" and not prompt.cutout.warnings
    assert prompt.cutout.coverage == pytest.approx(float(disc().mean()), abs=1e-3)


def test_no_fringe_of_hidden_colours(tmp_path):
    prompt = read_prompt(rgba_file(tmp_path / "a.png"), size=70)
    expected = torch.tensor([200, 40, 30]) / 255
    assert (prompt.image.image - expected[:, None, None]).abs().max() < 2 / 255


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.25])
def test_margin_is_free_on_the_longer_side(tmp_path, margin):
    alpha = np.zeros((90, 200), np.uint8)
    alpha[20:50, 30:180] = 255
    save_array(tmp_path / "a.png", np.dstack([np.full((90, 200, 3), 90, np.uint8), alpha]))
    mask = read_prompt(tmp_path / "a.png", size=200, margin=margin).image.mask[0] > 0.5
    columns, rows = torch.nonzero(mask.any(dim=0))[:, 0], torch.nonzero(mask.any(dim=1))[:, 0]
    assert abs(int(columns[0]) - 200 * margin) <= 1 and abs(int(columns[-1]) + 1 - 200 * (1 - margin)) <= 1
    assert int(rows[0]) + int(rows[-1]) + 1 == pytest.approx(200, abs=1)


def test_the_own_framing_can_be_kept(tmp_path):
    prompt = read_prompt(rgba_file(tmp_path / "a.png"), size=160, crop=False)
    expected = torch.zeros(160, 160)
    expected[20:140] = disc()
    torch.testing.assert_close(prompt.image.mask[0], expected, atol=0.01, rtol=0)


def test_square_prompts_at_their_own_size_are_untouched(tmp_path, generator):
    pixels = torch.randint(0, 256, (4, 64, 64), generator=generator) / 255
    pixels[3, 0, 0] = 0
    save_image(tmp_path / "a.png", pixels)
    prompt = read_prompt(tmp_path / "a.png", size=64, crop=False).image
    torch.testing.assert_close(prompt.mask, torch.where(pixels[3:] > 1 / 512, pixels[3:], 0.0))
    covered = prompt.mask > 0
    torch.testing.assert_close((prompt.image * covered), pixels[:3] * covered, atol=1e-4, rtol=0)


def test_opaque_alpha_is_not_a_mask(tmp_path):
    coverage = disc()[..., None].numpy()
    pixels = coverage * np.array([200, 40, 30]) + (1 - coverage) * np.array([230, 230, 225])
    alpha = np.full((120, 160, 1), 255)
    path = save_array(tmp_path / "a.png", np.concatenate([pixels, alpha], axis=-1).round().astype(np.uint8))
    prompt = read_prompt(path, size=100)
    assert prompt.cutout.method == "plain"
    assert prompt.cutout.coverage == pytest.approx(float(disc().mean()), rel=0.02)
    with pytest.raises(UserError, match="no transparency"):
        read_prompt(path, matting="alpha")


def test_mask_files_override(tmp_path):
    path = rgba_file(tmp_path / "a.png")
    box = np.zeros((60, 80), np.uint8)
    box[20:40, 20:60] = 255
    save_array(tmp_path / "mask.png", box)
    prompt = read_prompt(path, mask=tmp_path / "mask.png", size=80)
    assert prompt.cutout.method == "file" and prompt.cutout.coverage == pytest.approx(1 / 6, rel=0.02)
    rows = torch.nonzero((prompt.image.mask[0] > 0.5).any(dim=1))[:, 0]
    assert len(rows) == pytest.approx(32, abs=1)
    alpha_mask = np.dstack([np.zeros((60, 80, 3), np.uint8), box])
    same = read_prompt(path, mask=save_array(tmp_path / "alpha_mask.png", alpha_mask), size=80)
    torch.testing.assert_close(same.image.mask, prompt.image.mask)


@pytest.mark.parametrize(
    "mask, words",
    [
        (np.full((120, 160), 255, np.uint8), "covers the whole picture"),
        (np.zeros((120, 160), np.uint8), "is empty"),
        (np.full((160, 120), 255, np.uint8), "120x160 px, another aspect than its picture's 160x120"),
    ],
)
def test_useless_masks_are_refused(tmp_path, mask, words):
    save_array(tmp_path / "mask.png", mask)
    with pytest.raises(UserError, match=words):
        read_prompt(rgba_file(tmp_path / "a.png"), mask=tmp_path / "mask.png")


# Bad input: each one sentence that names the file


def bad_inputs(folder: Path) -> dict[str, tuple[Path, str]]:
    def place(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    whole = rgba_file(folder / "whole.png").read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    jpeg = save_array(folder / "whole.jpg", noise).read_bytes()
    uniform = Image.new("RGB", (64, 64), (120, 130, 140))
    uniform.save(folder / "uniform.jpg")
    uniform.save(folder / "uniform.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(folder / "clear.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 20)).save(folder / "faint.png")
    Image.new("RGB", (1, 1)).save(folder / "one.png")
    Image.new("RGB", (300, 5)).save(folder / "strip.png")
    Image.new("RGB", (5000, 20)).save(folder / "long.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
    return {
        "missing": (folder / "nowhere.png", "no image at"),
        "folder": (folder, "is a folder"),
        "empty": (place("empty.png", b""), "not an image"),
        "text": (place("text.png", b"I am no picture"), "not an image"),
        "eps": (place("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not an image"),
        "truncated png": (place("cut.png", whole[: len(whole) // 2]), "damaged"),
        "truncated jpeg": (place("cut.jpg", jpeg[: len(jpeg) // 2]), "damaged"),
        "header only": (place("header.png", whole[:40]), "damaged|not an image"),
        "clear": (folder / "clear.png", "transparent all over"),
        "faint": (folder / "faint.png", "transparent all over"),
        "uniform": (folder / "uniform.png", "one uniform colour"),
        "uniform jpeg": (folder / "uniform.jpg", "one uniform colour"),
        "1x1": (folder / "one.png", "1x1 px; a prompt needs at least"),
        "strip": (folder / "strip.png", "300x5 px; a prompt needs at least"),
        "long strip": (folder / "long.png", "5000x20 px; a prompt needs .* at most 32 times"),
        "address": (Path("https://example.org/a.png"), "nothing is downloaded"),
        "pipe": (folder / "pipe.png", "is a pipe|no image at"),
        "long name": (folder / ("a" * 120 + "/" + "b" * 300 + ".png"), "cannot be looked at|no image at"),
    }


@pytest.mark.parametrize(
    "case",
    ["missing", "folder", "empty", "text", "eps", "truncated png", "truncated jpeg", "header only", "clear", "faint",
     "uniform", "uniform jpeg", "1x1", "strip", "long strip", "address", "pipe", "long name"],
)  # fmt: skip
def test_bad_input_is_one_sentence(tmp_path, case):
    path, words = bad_inputs(tmp_path)[case]
    with pytest.raises(UserError, match=words) as caught:
        read_prompt(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) - len(str(path)) < 250


def test_unreadable_files_are_named(tmp_path, monkeypatch):
    path = rgba_file(tmp_path / "a.png")

    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match="may not be read"):
        read_prompt(path)


def huge_png(path: Path, width: int, height: int) -> Path:
    """A valid PNG header of that size, and next to no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))))
    return path


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000, 10), (9_000, 9_000), (12_000, 8_000)])
def test_huge_pictures_are_refused_from_the_header(tmp_path, size):
    path = huge_png(tmp_path / "huge.png", *size)
    with pytest.raises(UserError, match="megapixels"):
        read_prompt(path)


def test_impossible_options_are_named(tmp_path):
    path = rgba_file(tmp_path / "a.png")
    with pytest.raises(UserError, match="size"):
        read_prompt(path, size=4)
    with pytest.raises(UserError, match="margin"):
        read_prompt(path, margin=0.5)
    with pytest.raises((UserError, TypeError), match="magic"):
        read_prompt(path, matting="magic")


def test_prompts_without_a_picture():
    assert Prompt(None, "a red chair").image is None


def test_all_shipped_prompts_read(images_data):
    for path in sorted(images_data.glob("*.png")):
        if read_image(path).shape[0] == 4:
            prompt = read_prompt(path, size=64)
            assert prompt.cutout.method == "alpha"
            box = torch.nonzero(prompt.image.mask[0] > 0.5)
            sides = box.max(dim=0).values - box.min(dim=0).values + 1
            assert int(sides.max()) == pytest.approx(51.2, abs=1.5), path.name
