"""Finding the object in a photo without a network: what the picture's border does not continue into, then GrabCut.

The saliency is robust background detection (Zhu, Liang, Wei and Sun, CVPR 2014): the picture is cut into superpixels;
a region is background as far as much of its boundary, for its area, is the picture's own border (Eq. 1-7); the rest is
weighed by its contrast to that background and smoothed (Eq. 8-9). Objects that touch the border survive this, which a
plain border seed forbids. GrabCut (Rother, Kolmogorov and Blake, 2004) then finds the outline.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from maquette.matting import Mask, Pixels, tidy, to_lab

WORKING_SIDE = 360
NUM_SUPERPIXELS = 250
CENTRE_SIGMA = 0.3


def photo_mask(rgb: Pixels) -> tuple[Mask, float]:
    """The object of a photo, and how well differently seeded attempts agree on it (mean intersection over union).

    No seed is right for every photo: the saliency as it is, with the border barred, drawn to the middle, or only a
    guess that the object is in the middle. The attempt wins whose inside looks least like its surroundings, that keeps
    off the border, and that the others confirm. (Chosen on 36 composites of known masks: mean IoU 0.90, against 0.87
    for the first alone.)
    """
    import cv2

    height, width = rgb.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = (max(16, round(width * scale)), max(16, round(height * scale)))
    small: Pixels = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    saliency = background_saliency(small)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in saliency.shape), indexing="ij")
    radius = x**2 + y**2
    central = saliency * np.exp(-radius / (2 * 0.45**2))
    attempts = [
        _grab(small, _seeds(saliency, caution=0.0, barred=False)),
        _grab(small, _seeds(saliency, caution=0.25, barred=True)),
        _grab(small, _seeds(central / central.max(), caution=0.25, barred=True)),
        _grab(small, np.where(radius < 0.85**2, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)),
    ]
    overlaps = [[_overlap(one, other) for other in attempts] for one in attempts]
    agreements = [(sum(row) - 1) / (len(attempts) - 1) for row in overlaps]
    merits = [_merit(small, attempt) + agreement for attempt, agreement in zip(attempts, agreements, strict=True)]
    best = int(np.argmax(merits))
    solid = attempts[best]
    return (solid if size == (width, height) else _enlarge(rgb, solid)), agreements[best]


def _overlap(one: Mask, other: Mask) -> float:
    union = float((one | other).sum())
    return float((one & other).sum()) / union if union else 1.0


def _merit(rgb: Pixels, solid: Mask) -> float:
    """Twice the chi-squared distance (0 to 1) of colours inside and around the object, less 8 x its share of border."""
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    if not 0.005 < solid.mean() < 0.95:
        return -np.inf
    away = distance_transform_edt(~solid)
    around = (away > 2) & (away < 0.12 * max(solid.shape))
    if not around.any():
        return -np.inf
    cells = np.floor(to_lab(rgb) / np.array([10.0, 8.0, 8.0])).astype(np.int64)
    cells -= cells.reshape(-1, 3).min(axis=0)
    shape = tuple(cells.reshape(-1, 3).max(axis=0) + 1)

    def histogram(region: Mask) -> np.ndarray:
        counts = np.bincount(np.ravel_multi_index(tuple(cells[region].T), shape), minlength=int(np.prod(shape)))
        smooth = gaussian_filter(counts.reshape(shape).astype(np.float64), 0.7, mode="constant")
        return smooth / smooth.sum()

    inside, outside = histogram(solid), histogram(around)
    chi_squared = 0.5 * float(((inside - outside) ** 2 / (inside + outside + 1e-12)).sum())
    edge = np.concatenate([solid[0], solid[-1], solid[:, 0], solid[:, -1]])
    return 2 * chi_squared - 8 * float(edge.mean())


def background_saliency(rgb: Pixels) -> Pixels:
    """How little each pixel belongs to the background, in [0, 1]."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra
    from skimage.segmentation import slic

    lab = to_lab(rgb)
    labels = slic(rgb, n_segments=NUM_SUPERPIXELS, compactness=15, sigma=1, start_label=0, channel_axis=-1)
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    count = int(labels.max()) + 1
    sizes = np.bincount(labels.ravel(), minlength=count)
    colour = np.stack([np.bincount(labels.ravel(), lab[..., c].ravel(), count) for c in range(3)], -1) / sizes[:, None]
    rows, columns = np.indices(labels.shape)
    place = (
        np.stack([np.bincount(labels.ravel(), axis.ravel(), count) for axis in (rows, columns)], -1) / sizes[:, None]
    )
    place = place / max(labels.shape)
    edge = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    on_edge = np.zeros(count, bool)
    on_edge[edge] = True

    pairs = np.concatenate(
        [
            np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], -1),
            np.stack([labels[:-1].ravel(), labels[1:].ravel()], -1),
        ]
    )
    pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=-1), axis=0)
    apart = np.linalg.norm(colour[:, None] - colour[None], axis=-1)
    # All border regions are neighbours of each other, so a background that the object divides stays one. Small steps
    # are free (Eq. 4's remedy): along a smooth gradient they would add up to a wall.
    links = np.concatenate([pairs, _all_pairs(edge)])
    steps = apart[links[:, 0], links[:, 1]]
    free = float(np.median(np.where(np.eye(count, dtype=bool), np.inf, apart).min(axis=-1)))
    steps = np.maximum(steps - free, 0) + 1e-9
    graph = csr_matrix((steps, (links[:, 0], links[:, 1])), shape=(count, count))
    geodesic = dijkstra(graph, directed=False)

    span = np.exp(-(geodesic**2) / (2 * 10.0**2))  # Eq. 3, sigma_clr = 10
    connection = (span * on_edge).sum(-1) / np.sqrt(span.sum(-1))  # Eq. 1, 5, 6
    background = 1 - np.exp(-(connection**2) / 2)  # Eq. 7, sigma_bndCon = 1
    nearness = np.exp(-((place[:, None] - place[None]) ** 2).sum(-1) / (2 * 0.25**2))
    contrast = (apart * nearness * background).sum(-1)  # Eq. 8
    # Whoever brings a picture of an object has put it near the middle; the paper, made for any photo, has no such term.
    middle = 0.5 * np.array(labels.shape) / max(labels.shape)
    contrast = contrast * np.exp(-((place - middle) ** 2).sum(-1) / (2 * CENTRE_SIGMA**2))
    contrast = (contrast - contrast.min()) / max(float(np.ptp(contrast)), 1e-9)

    smooth = np.exp(-(apart[pairs[:, 0], pairs[:, 1]] ** 2) / (2 * 10.0**2)) + 0.1
    system = np.diag(background + contrast)
    for (i, j), weight in zip(pairs, smooth, strict=True):
        system[i, i] += weight
        system[j, j] += weight
        system[i, j] -= weight
        system[j, i] -= weight
    saliency = np.linalg.solve(system, contrast)  # Eq. 9
    saliency = (saliency - saliency.min()) / max(float(np.ptp(saliency)), 1e-9)
    return saliency[labels].astype(np.float32)


def _all_pairs(nodes: np.ndarray) -> np.ndarray:
    first, second = np.triu_indices(len(nodes), 1)
    return np.stack([nodes[first], nodes[second]], -1)


def _seeds(saliency: Pixels, *, caution: float, barred: bool) -> NDArray[np.uint8]:
    """GrabCut's first guess from a saliency map; `caution` in [0, 1) makes it tighter, `barred` forbids the border."""
    import cv2
    from skimage.filters import threshold_otsu

    middle = float(threshold_otsu(saliency))
    seeds = np.full(saliency.shape, cv2.GC_PR_BGD, np.uint8)
    seeds[saliency > middle + 0.5 * caution * (1 - middle)] = cv2.GC_PR_FGD
    seeds[saliency > middle + 0.75 * (1 - middle)] = cv2.GC_FGD
    band = max(2, round(0.025 * min(saliency.shape)))
    border = np.ones(saliency.shape, bool)
    border[band:-band, band:-band] = False
    seeds[border if barred else border & (saliency < 0.5 * middle)] = cv2.GC_BGD
    return seeds


def _grab(rgb: Pixels, seeds: NDArray[np.uint8]) -> Mask:
    """GrabCut from seeds, tidied; empty where they are all of one kind."""
    import cv2

    front = (seeds == cv2.GC_FGD) | (seeds == cv2.GC_PR_FGD)
    if front.all() or not front.any():
        return np.zeros(seeds.shape, bool)
    pixels = (rgb * 255).round().astype(np.uint8)
    cv2.setRNGSeed(0)  # GrabCut starts its colour models with a k-means of random centres
    labels, _, _ = cv2.grabCut(
        pixels, seeds.copy(), (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), 6, cv2.GC_INIT_WITH_MASK
    )
    solid = ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return tidy(cv2.morphologyEx(solid, cv2.MORPH_OPEN, kernel).astype(bool), fill=0.02, reach=0.1)


def _enlarge(rgb: Pixels, solid: Mask) -> Mask:
    """The mask at the picture's own size, its outline led to the picture's edges by a guided filter (He 2010)."""
    import cv2

    height, width = rgb.shape[:2]
    small_height, small_width = solid.shape
    small = cv2.resize(rgb, (small_width, small_height), interpolation=cv2.INTER_AREA)
    guess = solid.astype(np.float32)

    def mean(values: Pixels) -> Pixels:
        return cv2.blur(values, (5, 5))

    # The filter's coefficients are smooth, so they are found at the small size and applied at the large one.
    guide_mean, guess_mean = mean(small), mean(guess)
    joint = mean(small * guess[..., None]) - guide_mean * guess_mean[..., None]
    spread = mean((small[..., :, None] * small[..., None, :]).reshape(*solid.shape, 9)).reshape(*solid.shape, 3, 3)
    spread = spread - guide_mean[..., :, None] * guide_mean[..., None, :] + 1e-4 * np.eye(3, dtype=np.float32)
    slope: Pixels = np.linalg.solve(spread, joint[..., None])[..., 0].astype(np.float32)
    offset = guess_mean - (slope * guide_mean).sum(-1)
    slope, offset = (cv2.resize(mean(c), (width, height)) for c in (slope, offset))
    return tidy(((slope * rgb).sum(-1) + offset) > 0.5)
