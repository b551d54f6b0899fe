"""nano-judge: a small contrastive encoder of pictures and captions that is used to measure, never to train or to guide.

Numbers from an encoder that took part in making a result flatter it. So the judge shares nothing with the encoders of
the nano priors: a convolutional residual network on 64 px where they are transformers on patches, its own words, its
own seed and its own renders and augmentation. It is trained like CLIP (arXiv:2103.00020) by `judge_training.py`.

Like `maquette.training`, this file and that one import nothing but torch, numpy, pillow and safetensors, so that
training runs on a bare GPU machine; shapes stand in the docstrings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import UserError
from maquette.priors.cards import load_parts, parse_config, read_card, read_tensors

SHIPPED = Path(__file__).parent / "nano_judge"
"""The package of weights that comes with maquette."""
UNKNOWN = 0
"""Index of every word that the judge has not been taught; index of a padding place, too, with no weight there."""
_WORD = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class JudgeConfig:
    """Shape of the two towers."""

    image_size: int = 64
    """Side in pixels to which every picture is brought."""
    widths: tuple[int, ...] = (48, 96, 160)
    """Channels of the stages, each at half the size of the one before; the first at a quarter of `image_size`."""
    blocks: int = 2
    """Residual blocks per stage."""
    word_width: int = 96
    """Length of a word's vector, and of each direction of the recurrent text tower."""
    embedding_dim: int = 128
    """Length of the common unit vectors."""
    words: tuple[str, ...] = field(default=(), repr=False)
    """Known words; word i has index i + 1."""

    def __post_init__(self) -> None:
        smallest = 2 ** (len(self.widths) + 1)
        if self.image_size % smallest:
            raise ValueError(f"image_size must be divisible by {smallest}, got {self.image_size}")
        if any(width % 8 for width in self.widths):
            raise ValueError(f"widths must be multiples of 8 (groups of the norm), got {self.widths}")


class Block(nn.Module):
    """Two 3x3 convolutions with group norm and SiLU, and a shortcut; halves the size where `stride` is 2."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.norm_in, self.norm = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels)
        self.convolution_in = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.convolution = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False) if channels_in != channels else nn.Identity()
        self.stride = stride
        nn.init.zeros_(self.convolution.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution_in(F.silu(self.norm_in(x)))
        h = self.convolution(F.silu(self.norm(h)))
        x = F.avg_pool2d(x, 2) if self.stride == 2 else x
        return self.shortcut(x) + h


class ImageTower(nn.Module):
    """Pictures [n, 3, s, s] in [0, 1] to unit vectors [n, d]."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        first = config.widths[0]
        # Overlapping windows at a quarter of the size: most of the cost of a small picture is in its first layers.
        self.stem = nn.Conv2d(3, first, 7, 4, 3)
        layers: list[nn.Module] = []
        width = first
        for stage, channels in enumerate(config.widths):
            for index in range(config.blocks):
                layers.append(Block(width, channels, 2 if stage > 0 and index == 0 else 1))
                width = channels
        self.layers = nn.Sequential(*layers)
        self.norm = nn.GroupNorm(8, width)
        # Mean and maximum: what covers the picture, and what occurs anywhere in it.
        self.projection = nn.Linear(2 * width, config.embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        h = F.silu(self.norm(self.layers(self.stem(2 * images - 1))))
        pooled = torch.cat([h.mean((-2, -1)), h.amax((-2, -1))], dim=-1)
        return F.normalize(self.projection(pooled), dim=-1)


class TextTower(nn.Module):
    """Word indices [n, l] to unit vectors [n, d]: a bidirectional GRU, averaged over the words."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(len(config.words) + 1, config.word_width)
        self.recurrent = nn.GRU(config.word_width, config.word_width, batch_first=True, bidirectional=True)
        self.projection = nn.Linear(2 * config.word_width, config.embedding_dim)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(self, indices: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(indices), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)
        mean = states.sum(1) / lengths.to(states)[:, None]
        return F.normalize(self.projection(mean), dim=-1)


class NanoJudge(nn.Module):
    """Both towers with the temperature of their similarity; an `ImageTextEncoder`."""

    name = "nano-judge"

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.image, self.text = ImageTower(config), TextTower(config)
        self.log_scale = nn.Parameter(torch.tensor(2.6592600369327779))  # 1 / 0.07, where CLIP's training starts
        self._index = {word: position + 1 for position, word in enumerate(config.words)}

    @classmethod
    def load(cls, path: str | Path = SHIPPED, device: str | torch.device = "cpu") -> NanoJudge:
        """The judge of a weights package (a folder with card.json), verified, in evaluation mode.

        Raises UserError naming the file that is missing, damaged or of another model.
        """
        card = read_card(Path(path))
        if card.kind != "judge":
            raise UserError(
                f"{card.path} is the card of {card.name!r}, a {card.kind}; the judge needs one of kind judge"
            )
        judge = cls(parse_config(JudgeConfig, card.config, str(card.path)))
        load_parts({"judge": judge}, {name: t.float() for name, t in read_tensors(card).items()}, card.path)
        return judge.to(device).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.log_scale.device

    def indices(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Word indices [n, l] (padded behind) and lengths [n]; a text without words is one unknown word."""
        rows = [[self._index.get(word, UNKNOWN) for word in split_words(text)] or [UNKNOWN] for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        padded = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = torch.tensor(row)
        return padded, lengths

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [n, d], float32 on the CPU, of pictures [n, 3, h, w] in [0, 1] of any size, in batches of 64."""
        if images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"the judge looks at pictures [n, 3, h, w] with n >= 1, got {tuple(images.shape)}")
        parts = [self.image(self.prepare(part.to(self.device, torch.float32))) for part in images.split(64)]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, d], float32 on the CPU, of captions; words outside the judge's vocabulary say nothing."""
        if not texts:
            raise ValueError("the judge reads at least one caption, got none")
        indices, lengths = self.indices(texts)
        return self.text(indices.to(self.device), lengths).cpu()

    def prepare(self, images: Tensor) -> Tensor:
        """Pictures at the judge's size: antialiased where they shrink, and a square of the whole, never a crop."""
        size = (self.config.image_size,) * 2
        if images.shape[-2:] == size:
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of a caption."""
    return _WORD.findall(text.lower())


def config_entry(config: JudgeConfig) -> dict[str, Any]:
    """The configuration as it stands in a card."""
    return {**asdict(config), "widths": list(config.widths), "words": list(config.words)}
