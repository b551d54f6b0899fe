"""What metrics ask of a frozen network that turns pictures, and perhaps texts, into unit vectors.

`nano-judge` (`judge.py`) and published models (`published.py`) answer to the same two protocols, so every score runs
with either. Names enter the names of figures: values of different encoders never compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class ImageEncoder(Protocol):
    """Pictures to unit vectors."""

    @property
    def name(self) -> str:
        """Model id that goes beside every number."""
        ...

    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Unit vectors of pictures in [0, 1] of any size, already on their background. Not differentiable."""
        ...


@runtime_checkable
class ImageTextEncoder(ImageEncoder, Protocol):
    """Pictures and texts to unit vectors of one space."""

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit vectors of captions."""
        ...


@runtime_checkable
class ImageClassifier(Protocol):
    """Pictures to class logits."""

    @property
    def name(self) -> str:
        """Model id, with the number of classes."""
        ...

    def logits(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Of pictures in [0, 1] of any size."""
        ...
