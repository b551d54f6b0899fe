"""Objects are cut out of plain backgrounds and photos, outlines lose the old background, doubts are voiced."""

from __future__ import annotations

import io
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from maquette.errors import RunFailed, UserError
from maquette.images import ImagePrompt, read_image, read_prompt
from maquette.matting import (
    Backdrop,
    cut_out,
    decontaminate,
    from_lab,
    plain_mask,
    soften,
    spread_colour,
    tidy,
    to_lab,
)
from maquette.saliency import background_saliency, photo_mask

SIZE = 200


def disc(centre=(100, 105), radius: float = 50, size: int = SIZE) -> np.ndarray:
    """Antialiased coverage of a disc."""
    y, x = np.indices((size, size)) + 0.5
    return np.clip(radius - np.hypot(y - centre[0], x - centre[1]) + 0.5, 0, 1).astype(np.float32)


def over(alpha: np.ndarray, colour, background: np.ndarray) -> np.ndarray:
    return (alpha[..., None] * np.float32(colour) + (1 - alpha[..., None]) * background).astype(np.float32)


def flat(colour, size: int = SIZE) -> np.ndarray:
    return np.broadcast_to(np.float32(colour), (size, size, 3)).copy()


def through_jpeg(pixels: np.ndarray, quality: int = 90) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer), dtype=np.float32) / 255


def iou(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one > 0.5, other > 0.5
    return float((one & other).sum() / (one | other).sum())


def clutter(seed: int = 0, size: int = SIZE) -> np.ndarray:
    """A soft, colourful, non-uniform background: blurred noise in greens and browns."""
    import cv2

    noise = np.random.default_rng(seed).random((size, size, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 6)
    soft = (soft - soft.min()) / np.ptp(soft)
    return (np.float32([0.25, 0.35, 0.15]) + 0.4 * soft * np.float32([0.7, 1.0, 0.5])).astype(np.float32)


# Plain backgrounds


@pytest.mark.parametrize("background", [(1, 1, 1), (0.5, 0.5, 0.5), (0, 0, 0), (0.65, 0.8, 0.9)])
@pytest.mark.parametrize("colour", [(0.8, 0.2, 0.1), (0.75, 0.75, 0.72)])
def test_flat_backgrounds_are_keyed_exactly(background, colour):
    alpha = disc()
    rgb, found, account = cut_out(over(alpha, colour, flat(background)))
    assert account.method == "plain" and not account.warnings
    assert np.abs(found - alpha).max() < 0.06
    assert np.abs(rgb - np.float32(colour)).max() < 0.04, "the outline still shows the old background"


def test_a_vignette_with_noise_is_still_plain():
    y, x = np.indices((SIZE, SIZE)) / SIZE - 0.5
    backdrop = np.float32([0.95, 0.93, 0.9]) * (1 - 0.5 * (y**2 + x**2))[..., None]
    noise = np.random.default_rng(0).normal(0, 0.008, (SIZE, SIZE, 3))
    pixels = through_jpeg(over(disc(), (0.3, 0.4, 0.7), backdrop.astype(np.float32)) + noise)
    fitted = Backdrop.fit(pixels)
    assert fitted.plain and np.abs(fitted.image - backdrop).mean() < 0.01
    _, found, account = cut_out(pixels)
    assert account.method == "plain" and iou(found, disc()) > 0.97


def test_an_object_at_the_edge_does_not_spoil_the_backdrop():
    alpha = disc(centre=(190, 100), radius=60)
    _, found, account = cut_out(over(alpha, (0.7, 0.2, 0.2), flat((0.9, 0.9, 0.9))))
    assert account.method == "plain" and iou(found, alpha) > 0.98
    assert len(account.warnings) == 1 and "bottom edge" in account.warnings[0]


def test_gaps_show_through_and_highlights_do_not():
    ring = disc(radius=70) - disc(radius=35)
    pixels = over(ring, (0.2, 0.3, 0.6), flat((1, 1, 1)))
    assert iou(cut_out(pixels)[1], ring) > 0.97
    # A white highlight that fades into the surface has the backdrop's colour too, but is no gap.
    y, x = np.indices((SIZE, SIZE)) + 0.5
    glow = np.exp(-(np.hypot(y - 100, x - 105) ** 2) / (2 * 14**2))[..., None]
    lit = np.clip(np.float32([0.5, 0.6, 0.8]) + 1.2 * glow, 0, 1)
    shiny = (disc()[..., None] * lit + (1 - disc()[..., None])).astype(np.float32)
    assert (shiny[95:105, 100:110] == 1).all()
    assert iou(cut_out(shiny)[1], disc()) > 0.99


def test_a_highlight_does_not_leak_through_a_thin_break():
    y, x = np.indices((SIZE, SIZE)) + 0.5
    body = disc()
    pale = np.clip(np.hypot(y - 100, x - 105) / 50, 0, 1) ** 2 * 0.45
    pixels = over(body, (1, 1, 1), flat((1, 1, 1))) - (body * pale)[..., None]
    pixels[50:90, 104:106] = 1.0  # the break, from the outline to the highlight
    assert iou(cut_out(pixels.astype(np.float32))[1], body) > 0.95


def test_jpeg_halos_are_not_part_of_the_object():
    pixels = through_jpeg(over(disc(), (0.85, 0.7, 0.1), flat((0.5, 0.55, 0.6))), quality=75)
    _, found, _ = cut_out(pixels)
    assert iou(found, disc()) > 0.95
    assert float(found[disc(radius=58) == 0].mean()) < 0.002


@pytest.mark.parametrize("size", [96, 192, 384])
def test_blocks_of_a_small_jpeg_do_not_stick_out_of_the_object(size):
    """They did, by 8 px on each side, and the crop kept a margin for them."""
    alpha = disc(centre=(size / 2, size / 2), radius=0.36 * size, size=size)
    _, found, _ = cut_out(through_jpeg(over(alpha, (0.78, 0.24, 0.12), flat((0.94, 0.94, 0.94), size)), quality=75))
    rows, columns = np.nonzero(found > 0.5)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 <= 0.72 * size + 2 and iou(found, alpha) > 0.97


@pytest.mark.parametrize("name", ["hamburger", "teddy", "phonograph", "turtle_toy", "chair"])
@pytest.mark.parametrize("background", [1.0, 0.5])
def test_known_masks_are_recovered_from_plain_backgrounds(images_data, name, background):
    image = read_image(images_data / f"{name}.png")
    prompt = ImagePrompt(image[:3], image[3:]).resized(256)
    pixels = prompt.composite(torch.full((3,), background)).permute(1, 2, 0).numpy()
    rgb, found, account = cut_out(through_jpeg(pixels))
    assert account.method == "plain"
    assert iou(found, prompt.mask[0].numpy()) > 0.95
    # On another background the cut-out looks like the true one, in the mean.
    magenta = torch.tensor([1.0, 0.0, 1.0])
    shown = found[..., None] * rgb + (1 - found[..., None]) * magenta.numpy()
    assert np.abs(shown - prompt.composite(magenta).permute(1, 2, 0).numpy()).mean() < 0.03


def test_plain_renders_without_alpha_are_cut_out(images_data):
    prompt = read_prompt(images_data / "teapot.png")
    assert prompt.cutout.method == "plain" and 0.2 < prompt.cutout.coverage < 0.3


# Photos


def test_cluttered_backgrounds_go_to_grabcut():
    pixels = over(disc(), (0.85, 0.15, 0.1), clutter())
    assert not Backdrop.fit(pixels).plain
    _, found, account = cut_out(pixels)
    assert account.method == "photo" and not account.warnings
    assert iou(found, disc()) > 0.95


def test_saliency_is_high_inside_and_low_outside():
    saliency = background_saliency(over(disc(), (0.85, 0.15, 0.1), clutter(1)))
    inside, outside = saliency[disc(radius=40) > 0.5], saliency[disc(radius=60) < 0.5]
    assert inside.min() > outside.max() and saliency.min() >= 0 and saliency.max() <= 1


def test_photos_are_cut_out_the_same_way_every_time():
    pixels = over(disc(), (0.3, 0.2, 0.6), clutter(2))
    (one, agreement), (other, again) = photo_mask(pixels), photo_mask(pixels)
    assert np.array_equal(one, other) and agreement == again


def test_large_photos_follow_edges_at_their_own_size():
    alpha = disc(centre=(400, 420), radius=200, size=800)
    mask, _ = photo_mask(over(alpha, (0.85, 0.15, 0.1), clutter(3, 800)))
    assert mask.shape == (800, 800) and iou(mask.astype(np.float32), alpha) > 0.97


def test_doubtful_photos_are_said_to_be():
    _, _, account = cut_out(clutter(4))
    assert account.method == "photo" and any("hard to tell" in warning for warning in account.warnings)


def test_a_corgi_on_a_pavement(images_data):
    """Looked at once: the mask then covered 31 % of the picture, ears, paws and nothing of the ground."""
    prompt = read_prompt(images_data / "corgi.png")
    assert prompt.cutout.method == "photo" and prompt.cutout.coverage == pytest.approx(0.31, abs=0.03)
    assert not prompt.cutout.warnings


# Their parts


def test_tidy_keeps_the_middle_and_drops_what_comes_in_from_the_side():
    solid = np.zeros((100, 100), bool)
    solid[30:70, 30:70] = True
    solid[45:48, 45:48] = False  # a hole
    solid[20:26, 40:60] = True  # a separate part
    solid[5, 5] = True  # a speck
    solid[20:80, 90:] = True  # the neighbour
    kept = tidy(solid)
    assert kept[23, 50] and not kept[5, 5] and not kept[50, 95] and not kept[46, 46]
    assert tidy(solid, fill=0.02)[46, 46]
    assert not tidy(solid, reach=0.05)[23, 50] and tidy(solid, reach=0.2)[23, 50]
    assert not tidy(np.zeros((9, 9), bool)).any()


def test_soften_finds_the_coverage_of_mixed_pixels():
    alpha = disc(radius=50.3)
    pixels = over(alpha, (0.1, 0.2, 0.7), flat((0.9, 0.8, 0.2)))
    for backdrop in (None, flat((0.9, 0.8, 0.2))):
        found = soften(pixels, alpha > 0.3, backdrop)
        assert np.abs(found - alpha).max() < 0.05


def test_soften_without_contrast_keeps_the_outline():
    alpha = disc()
    found = soften(flat((0.5, 0.5, 0.5)), alpha > 0.5)
    assert iou(found, alpha) > 0.98 and (found[disc(radius=44) > 0.5] == 1).all()


def test_decontaminate_gives_back_the_object_colour():
    alpha = disc()
    cleaned = decontaminate(over(alpha, (0.8, 0.3, 0.1), flat((0.1, 0.9, 0.2))), alpha)
    assert np.abs(cleaned - np.float32([0.8, 0.3, 0.1])).max() < 0.05


def test_spread_colour_takes_the_nearest():
    rgb, known = np.zeros((5, 9, 3), np.float32), np.zeros((5, 9), bool)
    rgb[2, 1], rgb[2, 7] = (1, 0, 0), (0, 1, 0)
    known[2, [1, 7]] = True
    spread = spread_colour(rgb, known)
    assert (spread[:, :4] == (1, 0, 0)).all() and (spread[:, 5:] == (0, 1, 0)).all()
    assert np.array_equal(spread_colour(rgb, np.zeros_like(known)), rgb)


def test_lab_is_cielab():
    """Values from the definition (D65): white, mid grey, the sRGB primaries."""
    colours = np.float32([[1, 1, 1], [0.5, 0.5, 0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1]])[None]
    expected = np.float32(
        [[100, 0, 0], [53.39, 0, 0], [53.24, 80.09, 67.2], [87.73, -86.18, 83.18], [32.3, 79.19, -107.86]]
    )
    assert np.abs(to_lab(colours)[0] - expected).max() < 0.3
    assert np.abs(from_lab(to_lab(colours)) - colours).max() < 2e-3


# Choosing


def test_a_fully_covering_object_is_doubted():
    solid = np.ones((SIZE, SIZE, 4), np.float32)
    solid[0, 0, 3] = 0
    assert any("nearly the whole picture" in warning for warning in cut_out(solid)[2].warnings)


def test_a_tiny_object_is_doubted():
    assert any(
        "will look blurred" in warning
        for warning in cut_out(over(disc(radius=6), (1, 0, 0), flat((1, 1, 1))))[2].warnings
    )


def test_nearly_opaque_alpha_is_opaque():
    alpha = np.full((SIZE, SIZE, 1), 254 / 255, np.float32)
    pixels = over(disc(), (0.8, 0.2, 0.1), flat((1, 1, 1)))
    _, found, account = cut_out(np.concatenate([pixels, alpha], axis=-1))
    assert account.method == "plain" and iou(found, disc()) > 0.98


def test_plain_can_be_insisted_on_but_must_find_something():
    noise = np.full((SIZE, SIZE, 3), 0.5) + np.random.default_rng(0).normal(0, 0.006, (SIZE, SIZE, 3))
    with pytest.raises(UserError, match="no object was found in the image"):
        cut_out(noise.astype(np.float32), "plain")


def rembg_package(new_session):
    """The part of the rembg package that is used."""
    package = ModuleType("rembg")
    package.new_session = new_session
    package.remove = lambda image, session, only_mask: session(image, only_mask)
    return package


def test_rembg_is_used_when_asked_for(monkeypatch):
    asked, loaded = [], []

    def network(image, only_mask):
        asked.append((image.dtype, only_mask))
        return (disc() * 255).astype(np.uint8)

    monkeypatch.setitem(sys.modules, "rembg", rembg_package(lambda name: loaded.append(name) or network))
    pixels = over(disc(), (0.85, 0.15, 0.1), clutter())
    for _ in range(2):
        _, found, account = cut_out(pixels, "rembg")
        assert account.method == "rembg" and iou(found, disc()) > 0.99
    assert asked == [(np.uint8, True)] * 2
    assert loaded == ["u2net"], "once, and the network whose licence lets everybody use it"
    assert cut_out(pixels)[2].method == "photo", "installed is not asked for"


def test_rembg_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rembg", None)
    with pytest.raises(UserError, match=r"pip install 'maquette\[matting\]'"):
        cut_out(over(disc(), (0.85, 0.15, 0.1), clutter()), "rembg")


def test_rembg_without_an_engine_ends_nothing(tmp_path, monkeypatch):
    """Importing rembg without onnxruntime calls sys.exit."""
    (tmp_path / "rembg.py").write_text("import sys\nsys.exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rembg", raising=False)
    with pytest.raises(UserError, match=r"maquette\[matting\]"):
        cut_out(over(disc(), (0.85, 0.15, 0.1), clutter()), "rembg")


def test_rembg_that_cannot_fetch_its_network_says_so(monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "rembg", rembg_package(offline))
    with pytest.raises(RunFailed, match=r"u2net \(ConnectionError: no route to host\), which it fetches once, 176 MB"):
        cut_out(over(disc(), (0.85, 0.15, 0.1), clutter()), "rembg")


def test_plain_mask_is_what_cut_out_uses():
    pixels = over(disc(), (0.8, 0.2, 0.1), flat((1, 1, 1)))
    assert iou(plain_mask(pixels, Backdrop.fit(pixels)).astype(np.float32), disc()) > 0.97
