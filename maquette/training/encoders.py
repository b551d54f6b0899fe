"""Contrastive training of the nano text and image encoders (the recipe of CLIP, arXiv:2103.00020, in miniature).

Every batch holds distinct objects. An image and its own caption should be the closest pair of the batch, and so
should two views of one object; objects of one family (colour variants of a model) are not counted as negatives of
each other.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.priors.nano.encoders import ImageEncoderConfig, NanoImageEncoder, NanoTextEncoder, TextEncoderConfig
from maquette.priors.nano.vocabulary import tokenize
from maquette.training.data import PackedObjects, composite, random_background, to_tensor, view_words
from maquette.training.weights import autocast, save_weights


@dataclass(frozen=True)
class EncoderTraining:
    """Recipe of the encoders."""

    text: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    image: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    steps: int = 1000
    batch: int = 160
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    view_weight: float = 0.5
    """Weight of the view-to-view term against the caption-to-view term."""
    seed: int = 0


class Encoders(nn.Module):
    """Both towers and the learned temperature."""

    def __init__(self, text: TextEncoderConfig, image: ImageEncoderConfig) -> None:
        super().__init__()
        self.text = NanoTextEncoder(text)
        self.image = NanoImageEncoder(image)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))


def train_encoders(
    data: PackedObjects,
    out: Path,
    config: EncoderTraining,
    device: str = "cpu",
    log: Callable[[dict[str, Any]], None] = print,
) -> Encoders:
    """Train both towers and write `out` (safetensors with the config in its metadata)."""
    torch.manual_seed(config.seed)
    model = Encoders(config.text, config.image).to(device)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    families = np.array([meta["family"] for meta in data.meta])
    started = time.monotonic()
    for step in range(config.steps):
        rate = min(1.0, (step + 1) / config.warmup) * (
            0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        )
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate
        images, texts, rows = _batch(data, config, step)
        allowed = torch.from_numpy(
            (families[rows][:, None] != families[rows][None]) | np.eye(len(rows), dtype=bool)
        ).to(device)
        with autocast(device):
            _, one = model.image(images[:, 0].to(device))
            _, two = model.image(images[:, 1].to(device))
            words = model.text.embed(tokenize(texts).to(device))
        scale = model.log_scale.clamp(max=math.log(100.0)).exp()
        one, two, words = one.float(), two.float(), words.float()
        captions = 0.5 * (contrast(one, words, scale, allowed) + contrast(two, words, scale, allowed))
        loss = captions + config.view_weight * contrast(one, two, scale, allowed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0 or step == config.steps - 1:
            top1 = float(((one @ words.T).argmax(1).cpu() == torch.arange(len(rows))).float().mean())
            log(
                {
                    "stage": "encoders",
                    "step": step,
                    "loss": float(loss.detach()),
                    "batch_top1": top1,
                    "seconds": time.monotonic() - started,
                }
            )
    save_weights(out, model, {"encoders": json.dumps(asdict(config))})
    return model


def contrast(a: Tensor, b: Tensor, scale: Tensor, allowed: Tensor) -> Tensor:
    """Symmetric InfoNCE of unit vectors [B, E]; pairs that `allowed` [B, B] excludes are no negatives."""
    logits = (scale * a @ b.T).masked_fill(~allowed, -1e4)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def _batch(data: PackedObjects, config: EncoderTraining, step: int) -> tuple[Tensor, list[str], np.ndarray]:
    rng = np.random.default_rng((config.seed, 1, step))
    rows = rng.permutation(len(data))[: config.batch]
    images, texts = [], []
    for row in rows:
        meta, words, pair = data.meta[row], "", []
        for view in range(2):
            source = "prompt" if rng.random() < 0.6 else "free"
            array, poses = (data.prompt, data.prompt_poses) if source == "prompt" else (data.free, data.free_poses)
            index = int(rng.integers(array.shape[1]))
            if view == 0 and rng.random() < 0.3:
                words = view_words(
                    float(poses[row, index, 0]), float(poses[row, index, 1]), meta["has_canonical_front"]
                )
            rgba = to_tensor(array[row, index])
            background = torch.from_numpy(random_background(rng))[:, None, None]
            pair.append(composite(rgba, background))
        images.append(torch.stack(pair))
        texts.append(meta["caption"] + words)
    return torch.stack(images), texts, rows
