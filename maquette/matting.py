"""Cutting an object out of its picture, offline: by its alpha channel, a border-colour key, or GrabCut.

Two steps for pictures without alpha. First a hard decision which pixels are the object: where the border of the
picture has one smooth colour, everything that this colour reaches from the border is background (`plain_mask`); else
GrabCut decides, seeded by how strongly each region is connected to the border (`maquette.saliency`). Then the pixels
along the outline get a coverage between 0 and 1, and lose the background's share of their colour (`soften`), so that
no halo of the old background reaches the prior.

Arrays here are numpy: pictures float32 [H, W, 3] in [0, 1] sRGB, masks bool or float32 [H, W]. Colour differences are
Euclidean in CIELAB (Delta E 1976: about 2 is just visible, 100 is black to white).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from maquette.errors import RunFailed, UserError

Matting = Literal["auto", "alpha", "plain", "photo", "rembg"]
REMBG = "u2net"
"""Which of rembg's networks is asked (Apache-2.0): the one that newer versions of rembg take by themselves may not be
used commercially.
"""
Pixels = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class CutOut:
    """How an object was separated from its background."""

    method: str
    """One of alpha, plain, photo, rembg; file for a given mask."""
    coverage: float
    """Share of the picture that the object takes."""
    warnings: tuple[str, ...] = ()
    """What looks doubtful, a sentence each."""


def cut_out(pixels: Pixels, method: Matting = "auto", *, name: str = "the image") -> tuple[Pixels, Pixels, CutOut]:
    """Straight colours [H, W, 3], coverage [H, W] and an account of it, for a picture [H, W, 3 or 4].

    "auto" never takes rembg, installed or not: a result must not depend on which other packages there are, and rembg
    fetches its network when it is first used. Raises UserError where no object can be told from a background, or where
    rembg is asked for and missing; RunFailed where it cannot load its network.
    """
    if method not in get_args(Matting):
        raise UserError(f"matting is auto, alpha, plain, photo or rembg, got {method!r}")
    lowest = float(pixels[..., 3].min()) if pixels.shape[-1] == 4 else 1.0
    if method == "alpha" and lowest == 1:
        raise UserError(f"{name} has no transparency to use; choose another way of cutting out, or give a mask")
    # Some programs write 254 for opaque: only what is more transparent than not is a background.
    if method == "alpha" or (method == "auto" and lowest <= 0.5):
        alpha = pixels[..., 3]
        if alpha.max() < 0.5:
            raise UserError(f"{name} is transparent all over; there is no object in it")
        rgb = spread_colour(pixels[..., :3], alpha > 0)
        return rgb, np.ascontiguousarray(alpha), _account("alpha", alpha)
    rgb = np.ascontiguousarray(pixels[..., :3])
    if float(np.ptp(rgb.reshape(-1, 3), axis=0).max()) < 2.5 / 255:
        raise UserError(f"{name} is one uniform colour; there is no object in it")
    if method == "rembg":
        alpha = _rembg(rgb)
        return decontaminate(rgb, alpha), alpha, _account("rembg", alpha, name)
    warnings: list[str] = []
    backdrop = Backdrop.fit(rgb)
    if method == "auto":
        method = "plain" if backdrop.plain else "photo"
    if method == "plain":
        solid = plain_mask(rgb, backdrop)
        alpha = soften(rgb, solid, backdrop.image)
    else:
        from maquette.saliency import photo_mask

        solid, agreement = photo_mask(rgb)
        if agreement < 0.7:
            warnings.append(
                f"the object is hard to tell from this background (attempts agree in {agreement:.0%} of it); "
                "look at the cut-out, and give a mask or another matting if it is wrong"
            )
        alpha = soften(rgb, solid)
    if not solid.any():
        raise UserError(f"no object was found in {name}; give a mask, or a picture with a transparent background")
    account = _account(method, alpha, name, warnings)
    return decontaminate(rgb, alpha), alpha, account


def _account(method: str, alpha: Pixels, name: str = "the image", warnings: list[str] | None = None) -> CutOut:
    """The record of a cut-out, with the warnings that only need its coverage."""
    found = list(warnings or [])
    coverage = float(alpha.mean())
    solid = alpha > 0.5
    if not solid.any():
        raise UserError(f"no object was found in {name}; give a mask, or a picture with a transparent background")
    if coverage > 0.95:
        found.append("the object fills nearly the whole picture; its outline may be the picture's edge")
    elif coverage < 0.01:
        found.append(f"the object takes only {coverage:.1%} of the picture; it will look blurred")
    touched = [
        side
        for side, edge in {"top": solid[0], "bottom": solid[-1], "left": solid[:, 0], "right": solid[:, -1]}.items()
        if edge.mean() > 0.02
    ]
    if touched:
        found.append(f"the object is cut off at the picture's {' and '.join(touched)} edge; its shape there is a guess")
    return CutOut(method, coverage, tuple(found))


def _rembg(rgb: Pixels) -> Pixels:
    """Coverage by the rembg network."""
    try:
        import rembg
    except (ImportError, SystemExit):  # without an engine for its networks, importing it ends the process
        raise UserError(
            "matting rembg needs the rembg package: pip install 'maquette[matting]', or choose another matting"
        ) from None
    session = _rembg_session(rembg)
    mask = rembg.remove((rgb * 255).round().astype(np.uint8), session=session, only_mask=True)
    return (np.asarray(mask, dtype=np.float32) / 255).reshape(rgb.shape[:2])


@cache
def _rembg_session(rembg: Any) -> Any:
    """The loaded network, which its package fetches where it is not on the disk yet."""
    try:
        return rembg.new_session(REMBG)
    except Exception as error:  # whatever its downloader or its engine raises
        raise RunFailed(
            f"rembg cannot load its network {REMBG} ({type(error).__name__}: {error}), which it fetches once, 176 MB; "
            "try again with a network connection, or choose another matting"
        ) from error


# Plain backgrounds


@dataclass(frozen=True)
class Backdrop:
    """A smooth background colour, fitted to the border of a picture: in each channel a quadratic in x and y."""

    image: Pixels
    """The colour at every pixel [H, W, 3]."""
    noise: float
    """Typical deviation of border pixels from it, in Delta E."""
    share: float
    """Share of the border that follows it, in [0, 1]."""

    @property
    def plain(self) -> bool:
        """Whether the border is one smooth colour; the cleaner it is, the more of it an object may hide."""
        return (self.share >= 0.7 and self.noise <= 1.5) or (self.share >= 0.9 and self.noise <= 2.2)

    @staticmethod
    def fit(rgb: Pixels) -> Backdrop:
        """The backdrop that most of the border agrees on."""
        height, width = rgb.shape[:2]
        band = max(2, round(0.02 * min(height, width)))
        ring = np.ones((height, width), bool)
        ring[band:-band, band:-band] = False
        lab = to_lab(rgb)
        y, x = np.nonzero(ring)
        terms = _quadratic(y / height - 0.5, x / width - 0.5)
        values = lab[ring].astype(np.float64)
        # Iterated trimmed least squares, from the commonest colour: a median of the whole ring would be a mixture
        # where an object stands in it.
        centre = _commonest(values)
        fitted = np.broadcast_to(centre, values.shape)
        reach = 12.0
        for _ in range(8):
            residual = np.linalg.norm(values - fitted, axis=-1)
            inside = residual < reach
            if inside.mean() < 0.3:
                return Backdrop(_constant(rgb, lab, centre), math.inf, float(inside.mean()))
            coefficients = np.linalg.lstsq(terms[inside], values[inside], rcond=None)[0]
            fitted = terms @ coefficients
            noise = 1.4826 * float(np.median(np.linalg.norm(values - fitted, axis=-1)[inside]))
            reach = max(3.0, 3.5 * noise)
        share = float((np.linalg.norm(values - fitted, axis=-1) < max(4.0, 4 * noise)).mean())
        rows, columns = np.meshgrid(np.arange(height) / height - 0.5, np.arange(width) / width - 0.5, indexing="ij")
        image = _quadratic(rows.ravel(), columns.ravel()) @ coefficients
        return Backdrop(from_lab(image.reshape(height, width, 3).astype(np.float32)), noise, share)


def _quadratic(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)


def _commonest(values: np.ndarray) -> np.ndarray:
    """Mean of the fullest cell (8 Delta E wide) of the values' histogram and its surroundings."""
    cells, counts = np.unique(np.floor(values / 8), axis=0, return_counts=True)
    middle = (cells[np.argmax(counts)] + 0.5) * 8
    return values[np.linalg.norm(values - middle, axis=-1) < 10].mean(axis=0)


def _constant(rgb: Pixels, lab: Pixels, centre: np.ndarray) -> Pixels:
    return from_lab(np.broadcast_to(centre.astype(np.float32), lab.shape).copy())


def plain_mask(rgb: Pixels, backdrop: Backdrop) -> Mask:
    """The object before a plain backdrop: what the backdrop's colour does not reach from the picture's border.

    Regions enclosed by the object are background too where they show the backdrop's very colour (the gap inside a
    handle). A faint layer a few pixels thin around something strong is what JPEG leaves there, and not part of it.
    """
    import cv2
    from scipy import ndimage

    noise = min(backdrop.noise, 2.5)
    difference = np.linalg.norm(to_lab(rgb) - to_lab(backdrop.image), axis=-1)
    solid = difference >= max(3.0, 4.5 * noise)
    strong = difference >= max(10.0, 9 * noise)
    away = _distance(~strong)
    beside = (away > 2) & (away <= 8)
    # In a clean picture the backdrop is the same beside the object as at the border; JPEG rings there (blocks of 8 px).
    ringing = float(np.median(difference[beside])) if beside.any() else noise
    if ringing > noise + 0.3:
        # A pixel far paler than its surroundings is part of the object only where many such lie together.
        around = cv2.dilate(difference, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17)))
        strong &= difference >= 0.3 * around
        # At least as wide as one of JPEG's blocks, which in a small picture stick out of the object as whole knobs.
        reach = 2 * round(max(4.0, 3.0 * max(solid.shape) / 512)) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
        # The picture goes on beyond its edge as it is there, or an object cut off by the edge would be eaten from it.
        faint = cv2.copyMakeBorder((solid & ~strong).astype(np.uint8), reach, reach, reach, reach, cv2.BORDER_REPLICATE)
        solid = strong | cv2.morphologyEx(faint, cv2.MORPH_OPEN, kernel)[reach:-reach, reach:-reach].astype(bool)
    # Background is what a disc of a few pixels can reach from the border: a highlight must not leak out through a
    # break in a white object's outline. What lies behind the break, or is enclosed, is a gap if it shows the
    # backdrop's colour and ends abruptly; a highlight fades.
    reach = max(1.5, 2.0 * max(solid.shape) / 512)
    room = np.pad(~solid, math.ceil(reach) + 1, constant_values=True)
    room_depth = _distance(room)
    core, _ = ndimage.label(room_depth > reach)
    background = _distance(core != core[0, 0]) <= reach
    inner = slice(math.ceil(reach) + 1, -math.ceil(reach) - 1)
    background, room_depth = background[inner, inner] & ~solid, room_depth[inner, inner]
    pieces, count = ndimage.label(~solid & ~background)
    same_colour = max(1.5, 1.6 * noise, min(3.0, 1.2 * ringing))
    for index, place in enumerate(ndimage.find_objects(pieces), start=1):
        place = tuple(slice(max(0, axis.start - 9), axis.stop + 9) for axis in place)
        piece = pieces[place] == index
        if room_depth[place][piece].max() <= reach:
            background[place] |= piece & (np.median(difference[place][piece]) < same_colour)
            continue
        away = np.where(background[place], 0, _distance(~piece))
        near, far = (difference[place][(away > low) & (away <= high)] for low, high in ((1, 3), (5, 8)))
        abrupt = near.size and np.median(near) > max(10.0, 0.6 * np.median(far) if far.size else 0)
        if abrupt and np.median(difference[place][piece]) < same_colour and piece.sum() > 2e-4 * solid.size:
            background[place] |= piece
    return tidy(~background)


# Both


def tidy(solid: Mask, fill: float = 0.0, reach: float = math.inf) -> Mask:
    """Without specks: the main component, others of at least 5 % of its size, holes up to `fill` of it closed.

    Main is the largest, pieces far from the picture's middle counting less. What touches the picture's border apart
    from it belongs to something else, and so do pieces further from it than `reach` times its size.
    """
    from scipy import ndimage

    labels, count = ndimage.label(solid)
    if count == 0:
        return solid
    height, width = solid.shape
    rows, columns = np.indices(solid.shape)
    distance = ((rows / height - 0.5) ** 2 + (columns / width - 0.5) ** 2)[solid]
    sizes = np.bincount(labels.ravel())[1:]
    central = np.bincount(labels[solid], np.exp(-distance / (2 * 0.25**2)))[1:]
    main = int(np.argmax(central))
    on_border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    keep = (sizes >= 0.05 * sizes[main]) & ~np.isin(1 + np.arange(count), on_border)
    if math.isfinite(reach) and keep.any():
        gaps = ndimage.minimum(_distance(labels != main + 1), labels, 1 + np.arange(count))
        keep &= gaps <= reach * math.sqrt(sizes[main])
    keep[main] = True
    kept = np.isin(labels, 1 + np.flatnonzero(keep))
    holes, _ = ndimage.label(~kept)
    hole_sizes = np.bincount(holes.ravel())
    outside = np.unique(np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]]))
    small = np.flatnonzero(hole_sizes <= max(8, fill * kept.sum()))
    return kept | np.isin(holes, np.setdiff1d(small, [*outside, 0]))


def soften(rgb: Pixels, solid: Mask, backdrop: Pixels | None = None) -> Pixels:
    """Coverage [H, W] for a hard mask: pixels within a thin band of the outline are read as mixtures.

    I = a F + (1 - a) B with F and B the colours of the nearest pixels that are surely object and surely background (or
    the known backdrop), so a = (I - B).(F - B) / |F - B|^2. Where F and B are too alike to tell, the smoothed outline
    decides.
    """
    import cv2
    from scipy import ndimage

    # Two pixels of antialiasing at 512 px; out-of-focus photos have wider outlines, in proportion to their size.
    width = max(1.5, 2.0 * max(solid.shape) / 512)
    depth = _distance(solid) - _distance(~solid)
    inner, outer = depth >= 2 * width, depth <= -width
    smooth = np.clip(0.5 + ndimage.gaussian_filter(solid.astype(np.float32) - 0.5, 0.4 * width), 0, 1)
    if not inner.any():
        return solid.astype(np.float32)
    foreground = cv2.GaussianBlur(spread_colour(rgb, inner), (0, 0), 1.0)
    behind = cv2.GaussianBlur(spread_colour(rgb, outer), (0, 0), 1.0) if backdrop is None else backdrop
    across = foreground - behind
    contrast = (across**2).sum(axis=-1)
    mixed = ((rgb - behind) * across).sum(axis=-1) / np.maximum(contrast, 1e-6)
    # A colour difference below 0.1 (in RGB units) is within texture and noise.
    trust = np.clip((np.sqrt(contrast) - 0.06) / 0.1, 0, 1)
    band = np.clip(trust * np.clip(mixed, 0, 1) + (1 - trust) * smooth, 0, 1)
    return np.where(inner, 1.0, np.where(outer, 0.0, band)).astype(np.float32)


def decontaminate(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Straight colours: partly covered pixels lose the background's share, uncovered ones repeat their neighbour.

    Blurred-fusion estimate: F and B are local means weighted by a and 1 - a, then F moves by what the mixture leaves
    unexplained, F + a (I - a F - (1 - a) B); twice, with a wide and a narrow mean (Forte 2021, arXiv:2006.14970
    section 3).
    """
    import cv2

    def mean(image: Pixels, weight: Pixels, sigma: float) -> Pixels:
        blurred = cv2.GaussianBlur(image * weight, (0, 0), sigma)
        return blurred / np.maximum(cv2.GaussianBlur(weight, (0, 0), sigma)[..., None], 1e-4)

    a = alpha[..., None]
    foreground, background = rgb, rgb
    for sigma in (max(alpha.shape) / 64, max(alpha.shape) / 512 + 1):
        front = mean(foreground, a, sigma)
        background = mean(background, 1 - a, sigma)
        foreground = np.clip(front + a * (rgb - a * front - (1 - a) * background), 0, 1)
    foreground = np.where(a > 0.999, rgb, foreground).astype(np.float32)
    return spread_colour(foreground, alpha > 1 / 255)


def spread_colour(rgb: Pixels, known: Mask) -> Pixels:
    """Colours [H, W, 3] in which every pixel outside `known` repeats the nearest known one."""
    import cv2

    if known.all() or not known.any():
        return np.ascontiguousarray(rgb, dtype=np.float32)
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    table = np.zeros((int(nearest.max()) + 1, 3), np.float32)
    table[nearest[known]] = rgb[known]
    return np.where(known[..., None], rgb, table[nearest]).astype(np.float32)


def _distance(region: Mask) -> Pixels:
    """Distance in pixels of every pixel of `region` to the nearest one outside it, 0 outside."""
    import cv2

    if region.all():
        return np.full(region.shape, np.inf, np.float32)
    return cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)


def to_lab(rgb: Pixels) -> Pixels:
    """CIELAB (D65) of sRGB values."""
    import cv2

    return cv2.cvtColor(np.ascontiguousarray(rgb, dtype=np.float32), cv2.COLOR_RGB2LAB)


def from_lab(lab: Pixels) -> Pixels:
    """sRGB values in [0, 1] of CIELAB (D65)."""
    import cv2

    return np.clip(cv2.cvtColor(np.ascontiguousarray(lab, dtype=np.float32), cv2.COLOR_LAB2RGB), 0, 1)
