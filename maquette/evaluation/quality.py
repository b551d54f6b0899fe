"""Scores from embeddings or class probabilities of a frozen network: QIS, Inception Score, CLIP, R-precision.

Nothing here knows which network made the numbers; say so beside every figure, since values of different backbones
never compare. Embeddings are unit vectors, `image [V, N, D]` (views by objects) and `text [M, D]`, object n
belonging to caption n; captions beyond N are distractors. Logits are `[N, K]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Spread:
    """A mean and how far the cases lie apart."""

    mean: float
    std: float
    """Population standard deviation over cases, the plus-minus of ImageDream's tables."""
    count: int

    @classmethod
    def of(cls, values: Float[Tensor, " n"]) -> Spread:
        """Mean and population standard deviation of one value per case."""
        values = values.double()
        if values.ndim != 1 or not len(values):
            raise ValueError(f"a spread expects one value per case, got shape {tuple(values.shape)}")
        return cls(float(values.mean()), float(values.std(correction=0)), len(values))


def quality_score(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """Quality-only inception score of each image, exp(sum_k p_k log(K p_k)), in [1, K].

    ImageDream section 4: the inception score with the class marginal replaced by the uniform one, which leaves the
    network's confidence, K exp(-H(p)). The printed formula has no exponential, but its values could then not pass
    log 1000 = 6.9, and the table holds 20 to 52.
    """
    return log_quality(logits).exp()


def log_quality(logits: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """The log-domain reading of `quality_score`: log K - H(p) for each image."""
    log_p = torch.log_softmax(logits, dim=-1)
    return math.log(logits.shape[-1]) + (log_p.exp() * log_p).sum(-1)


def inception_score(logits: Float[Tensor, "n k"], splits: int = 1) -> Float[Tensor, " splits"]:
    """exp(E_x KL(p(y|x) || p(y))) of `splits` consecutive parts of the images, [splits] values.

    The marginal comes from the same images, so with fewer than some thousands of them the value says little.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits must lie between 1 and the number of images ({len(logits)}), got {splits}")
    scores = []
    for part in torch.log_softmax(logits, dim=-1).tensor_split(splits):
        p = part.exp()
        marginal = p.mean(0, keepdim=True).log()
        scores.append((p * (part - marginal)).sum(-1).mean().exp())
    return torch.stack(scores)


def text_score(image: Float[Tensor, "v n d"], text: Float[Tensor, "m d"]) -> Float[Tensor, "v n"]:
    """100 cos(view, its own caption) of every view, untrimmed and unclamped; mean over views, then over objects."""
    return 100 * torch.einsum("vnd,nd->vn", image, text[: image.shape[1]])


def clip_score(image: Float[Tensor, "v n d"], text: Float[Tensor, "m d"]) -> Float[Tensor, "v n"]:
    """CLIPScore of Hessel et al. 2021, 2.5 max(cos, 0): another unit than `text_score`."""
    return 2.5 * (text_score(image, text) / 100).clamp(min=0)


def image_score(image: Float[Tensor, "v n d"], reference: Float[Tensor, "n d"]) -> Float[Tensor, "v n"]:
    """100 cos(view, the object's prompt image) of every view: ImageDream's CLIP(IM)."""
    return 100 * torch.einsum("vnd,nd->vn", image, reference)


def view_hits(image: Float[Tensor, "v n d"], text: Float[Tensor, "m d"]) -> Bool[Tensor, "v n"]:
    """Whether each view is nearer to its own caption than to every other candidate.

    The mean is R-precision as DreamFusion counts it: per image, averaged over views and objects.
    """
    return _nearest(torch.einsum("vnd,md->vnm", image, text)) == _own(image)


def mean_embedding_hits(image: Float[Tensor, "v n d"], text: Float[Tensor, "m d"]) -> Bool[Tensor, " n"]:
    """As `view_hits`, deciding once per object by the mean of its view embeddings (higher numbers)."""
    mean = torch.nn.functional.normalize(image.mean(0), dim=-1)
    return _nearest(mean @ text.T) == _own(image)


def mean_similarity_hits(image: Float[Tensor, "v n d"], text: Float[Tensor, "m d"]) -> Bool[Tensor, " n"]:
    """As `view_hits`, deciding once per object by the mean of its views' similarities."""
    return _nearest(torch.einsum("vnd,md->vnm", image, text).mean(0)) == _own(image)


def _own(image: Tensor) -> Int[Tensor, " n"]:
    return torch.arange(image.shape[1], device=image.device)


def _nearest(similarity: Float[Tensor, "*b m"]) -> Int[Tensor, "*b"]:
    if similarity.shape[-1] < similarity.shape[-2]:
        raise ValueError(f"{similarity.shape[-2]} objects but only {similarity.shape[-1]} captions; give each its own")
    return similarity.argmax(-1)


def normalise_caption(caption: str) -> str:
    """A candidate caption as Dream Fields' retrieval writes it: lower case, no spaces, dots or commas at the
    ends, one dot."""
    return caption.lower().strip(" .,") + "."


def wilson_interval(successes: float | int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval for a share, 95 % unless told otherwise; (0, 1) without trials.

    Keeps its coverage for few votes and for shares near 0 and 1, where the usual p +- z sqrt(p (1 - p) / n) collapses.
    """
    if trials < 0 or not 0 <= successes <= max(trials, 0):
        raise ValueError(f"expected 0 <= successes <= trials, got {successes} of {trials}")
    if trials == 0:
        return 0.0, 1.0
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Float[Tensor, " n"], seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over cases; with a single case it has no width."""
    values = values.double()
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a bootstrap interval expects one value per case, got shape {tuple(values.shape)}")
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values[draws].mean(1)
    tail = (1 - confidence) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64))
    return float(low), float(high)
