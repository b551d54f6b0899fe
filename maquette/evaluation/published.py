"""Published networks that measure: CLIP and DINO from a local folder, behind the protocols of `encoders.py`.

Weights are never downloaded and only safetensors are read, which cannot execute code. Folders are in Hugging Face's
layout (`config.json`, `model.safetensors`, for CLIP also the tokenizer's files), as `huggingface-cli download` leaves
them. Pictures are prepared by our own code, so that no image library's defaults enter a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from maquette.diffusion.clip_pixels import clip_pixels, resize_levels, to_levels
from maquette.errors import UserError
from maquette.run.fingerprints import fingerprint

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BATCH = 32


class ClipEncoder:
    """A CLIP model (`openai/clip-vit-base-patch32`, `laion/CLIP-ViT-...`): pictures and captions to unit vectors."""

    def __init__(self, folder: str | Path, device: str = "cpu", name: str | None = None) -> None:
        """`name` goes into the names of figures; by default that of the folder. Raises UserError for a wrong folder."""
        transformers = _transformers()
        self.device = device
        self.name = name or Path(folder).resolve().name
        self._model = _load(transformers.CLIPModel, Path(folder)).to(device)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        self._size = int(self._model.config.vision_config.image_size)
        self._folder = Path(folder)

    def fingerprint(self) -> str:
        """That of the model's files, for stages that ask this encoder."""
        return fingerprint((self.name, self._folder))

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Short side to the tower's size (bicubic), centre crop, CLIP's normalisation."""
        pixels = torch.stack([clip_pixels(image, self._size) for image in images.float().cpu()])
        parts = [_vector(self._model.get_image_features(part.to(self.device))) for part in pixels.split(_BATCH)]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Captions beyond 77 tokens are refused, not cut: a silently truncated prompt measures another prompt."""
        length = int(self._model.config.text_config.max_position_embeddings)
        tokens = self._tokenizer(list(texts), padding=True, return_tensors="pt")
        if tokens["input_ids"].shape[1] > length:
            longest = max(texts, key=len)
            raise UserError(f"CLIP reads at most {length} tokens; shorten the caption {longest[:60]!r}...")
        vectors = _vector(
            self._model.get_text_features(**{name: value.to(self.device) for name, value in tokens.items()})
        )
        return F.normalize(vectors.float(), dim=-1).cpu()


class DinoEncoder:
    """A DINO or DINOv2 model (`facebook/dino-vits16`, `facebook/dinov2-base`): the class token as a unit vector."""

    def __init__(self, folder: str | Path, device: str = "cpu", name: str | None = None) -> None:
        """`name` goes into the names of figures; by default that of the folder. Raises UserError for a wrong folder."""
        self.device = device
        self.name = name or Path(folder).resolve().name
        self._model = _load(_transformers().AutoModel, Path(folder)).to(device)

    @torch.no_grad()
    def embed_images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Short side to 256 (bicubic), centre crop of 224, ImageNet's normalisation: DreamBooth's DINO score."""
        pixels = torch.stack([_imagenet_pixels(image) for image in images.float().cpu()])
        parts = [
            self._model(pixel_values=part.to(self.device)).last_hidden_state[:, 0] for part in pixels.split(_BATCH)
        ]
        return F.normalize(torch.cat(parts).float(), dim=-1).cpu()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "published encoders need transformers; install it with pip install 'maquette[published]'"
        ) from error
    return transformers


def _load(kind: Any, folder: Path) -> Any:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder} has no {name}; expected a model's folder in Hugging Face's layout, as safetensors"
            )
    try:
        model, report = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be read as a {kind.__name__}: {str(error).splitlines()[0]}") from None
    # Newly made, random weights would give figures that look like figures. The pooler of a ViT is none of ours.
    missing = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if missing:
        raise UserError(f"{folder} is of another model: it lacks {len(missing)} tensors such as {missing[0]!r}")
    return model.eval()


def _vector(output: Any) -> Tensor:
    """transformers 5 wraps what versions before it returned as a tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _imagenet_pixels(image: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 224 224"]:
    height, width = image.shape[-2:]
    short = min(height, width)
    levels = resize_levels(to_levels(image), 256 * height // short, 256 * width // short, bicubic=True)
    top, left = ((side - 224) // 2 for side in levels.shape[-2:])
    pixels = levels[:, top : top + 224, left : left + 224].float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
