"""Training of a multi-view prior with an image prompt (arXiv:2312.02201 section 4, mixture of arXiv:2308.16512).

Each step is either a 3D batch (V canonical target views attended jointly, cameras, text, image prompt) or a 2D batch
(single views, no cameras, text), so that the same network is also a text-to-image prior. The prompt is rendered from a
random front-facing camera, lit or unlit, and shares the flat background of its targets. Controllers are switched off
independently for whole batches, and for single samples the image or the text is dropped for classifier-free guidance.

A step depends on (seed, step) alone: a run resumed from a checkpoint continues with the same batches and noise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maquette.cameras import Cameras, from_angles
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet, UNetConfig, concatenate_prompt
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.multiview_cameras import mvdream_camera_condition
from maquette.priors.nano.vocabulary import tokenize
from maquette.training.batches import ThreeDBatch, draw_3d, draw_single
from maquette.training.data import PackedObjects
from maquette.training.denoising import X0Loss, draw_noisy
from maquette.training.encoders import Encoders
from maquette.training.loop import chunk_rate
from maquette.training.weights import Average, autocast, load_state, save_state

CONTROLS = ("local", "global", "pixel")
"""The image controllers, in the order in which a step draws whether each is dropped."""


@dataclass(frozen=True)
class MultiViewTraining:
    """Recipe of a multi-view prior."""

    unet: UNetConfig
    size: int = 64
    """Pixels of a view; renders are averaged down to it."""
    steps: int = 6000
    batch: int = 16
    """Scenes of a 3D step; a 2D step holds `num_views` times as many single views."""
    num_views: int = 4
    probability_2d: float = 0.3
    """Share of single-view steps (MVDream: 0.3)."""
    drop_text: float = 0.1
    drop_image: float = 0.1
    """Per sample: all image conditions at once, replaced by zeros (the unconditional branch)."""
    drop_control: float = 0.1
    """Per step and controller: global, local and pixel switched off independently."""
    front_prompts: float = 0.15
    """Share of prompts that show the exact front; the others come from random front-facing cameras."""
    front_share: float = 0.5
    """Share of scenes whose views are the canonical ones; the others' ring starts anywhere."""
    front_only: float = 0.0
    """Share of the steps, the first, that see nothing but exact fronts and canonical views: what a camera means is
    plainest there, and small networks that start on a mixture leave their cameras out."""
    relative_cameras: bool = False
    """Ablation: target azimuths count from the prompt's own azimuth instead of the object's front."""
    recolour: float = 0.25
    """Share of samples with permuted colours and no caption."""
    learning_rate: float = 6e-4
    weight_decay: float = 0.01
    warmup: int = 200
    ema: float = 0.999
    weight_cap: float = 4.0
    """Cap of the x0 loss weight 1 / sigma_t^2."""
    high_noise: float = 0.0
    """Share of the scenes whose noise level is drawn from the upper 30 % of the schedule alone."""
    blank: float = 0.0
    """Share of the scenes that are noise alone, as sampling begins."""
    object_weight: float = 1.65
    """Loss weight of the object's pixels against `background_weight` for the rest."""
    background_weight: float = 0.35
    seed: int = 0


class Trainer:
    """Network, optimiser and average of one training run on one device."""

    def __init__(
        self,
        config: MultiViewTraining,
        encoders: Encoders,
        device: str = "cpu",
        initial: dict[str, Tensor] | None = None,
        accelerator: Any = None,
    ) -> None:
        """`initial` continues from the weights of an earlier chunk; an `accelerate.Accelerator` spreads each step over
        its processes, which then see different batches of `config.batch` scenes each.
        """
        torch.manual_seed(config.seed)
        self.config, self.device = config, device if accelerator is None else str(accelerator.device)
        device = self.device
        self.schedule = NoiseSchedule.scaled_linear(predicts="x0")
        self.codec = SpaceToDepth(config.size, config.unet.patch)
        self.encoders = encoders.to(device).eval().requires_grad_(False)
        self.model = MultiViewUNet(config.unet).to(device)
        if initial is not None:
            self.model.load_state_dict(initial)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.average = Average(self.model, config.ema)
        self.step, self.rank = 0, 0
        self.accelerator, self.forward = accelerator, self.model
        if accelerator is not None:
            self.rank = accelerator.process_index
            self.forward, self.optimiser = accelerator.prepare(self.model, self.optimiser)

    def train_step(self, data: PackedObjects) -> dict[str, float]:
        """One optimiser step; returns the loss and whether it was a 2D step."""
        c, rng = self.config, np.random.default_rng((self.config.seed, 2, self.step, self.rank))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        # The kind of a step is the same on all processes, so that none waits for another.
        single = np.random.default_rng((self.config.seed, 3, self.step)).random() < c.probability_2d
        for group in self.optimiser.param_groups:
            group["lr"] = chunk_rate(self.step, c.steps, c.learning_rate, c.warmup)
        loss = self._loss_2d(data, rng, generator) if single else self._loss_3d(data, rng, generator)
        self.optimiser.zero_grad(set_to_none=True)
        if self.accelerator is None:
            loss.backward()
        else:
            self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
            self.average.update(self.model)
        self.step += 1
        return {"loss": float(loss.detach()), "single": float(single), "grad_norm": float(norm)}

    def _loss_3d(self, data: PackedObjects, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        c = self.config
        plain = self.step < c.front_only * c.steps
        batch = draw_3d(
            data, rng, c.batch, c.num_views, c.size,
            recolour_share=c.recolour, relative=c.relative_cameras,
            front_share=1.0 if plain else c.front_share, front_prompts=1.0 if plain else c.front_prompts,
        )  # fmt: skip
        use = frozenset(name for name in CONTROLS if rng.random() >= c.drop_control)
        keep_image = torch.from_numpy(rng.random(c.batch) >= c.drop_image).float()
        captions = self._some(batch.captions, rng)
        latents = self.codec.encode(batch.targets)
        noisy, t = self._noised(latents, generator)
        x0_pred = self.predict(replace(batch, captions=captions), noisy, t, use, keep_image)
        return self._x0_loss(x0_pred, latents, batch.masks, t)

    def predict(
        self,
        batch: ThreeDBatch,
        noisy: Tensor,
        t: Tensor,
        use: frozenset[str] = frozenset(CONTROLS),
        keep_image: Tensor | None = None,
    ) -> Tensor:
        """x0 [B, V, C, h, w] of noisy latents at steps `t` [B], told the batch's captions, cameras and prompts.

        `use` names the image controllers that are on for the whole batch; `keep_image` [B] is 0 for the scenes whose
        image conditions are zeros.
        """
        c = self.config
        keep = torch.ones(len(noisy)) if keep_image is None else keep_image
        local, pooled = self._image(batch, use, keep)
        camera = camera_vectors(batch.azimuth, batch.elevation)
        clean = None
        if "pixel" in use:
            clean = self.codec.encode(batch.prompts[:, None]) * keep[:, None, None, None, None]
            noisy = torch.cat([noisy, clean], dim=1)
            camera = torch.cat([camera, torch.zeros_like(camera[:, :1])], dim=1)
        noisy = concatenate_prompt(noisy, clean, c.unet.in_channels)
        with autocast(self.device):
            out = self.forward(
                noisy.to(self.device),
                t.to(self.device),
                self._text(batch.captions),
                camera.to(self.device),
                local_features=local,
                global_feature=pooled,
            )
        return out[:, : c.num_views].float()

    def _loss_2d(self, data: PackedObjects, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        c = self.config
        batch = draw_single(data, rng, c.batch * c.num_views, c.size, recolour_share=c.recolour)
        text = self._text(self._some(batch.captions, rng))
        latents = self.codec.encode(batch.images[:, None])
        noisy, t = self._noised(latents, generator)
        noisy = concatenate_prompt(noisy, None, c.unet.in_channels)
        with autocast(self.device):
            out = self.forward(noisy.to(self.device), t.to(self.device), text)
        return self._x0_loss(out.float(), latents, batch.masks[:, None], t)

    def _some(self, captions: list[str], rng: np.random.Generator) -> list[str]:
        """The captions, a share of them dropped."""
        return [caption if rng.random() >= self.config.drop_text else "" for caption in captions]

    @torch.no_grad()
    def _text(self, captions: list[str]) -> Tensor:
        return self.encoders.text(tokenize(captions).to(self.device))

    def _image(self, batch: ThreeDBatch, use: frozenset[str], keep: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if not use & {"local", "global"}:
            return None, None
        with torch.no_grad(), autocast(self.device):
            local, pooled = self.encoders.image(batch.prompts.to(self.device))
        keep = keep.to(self.device)
        return (
            local.float() * keep[:, None, None] if "local" in use else None,
            pooled.float() * keep[:, None] if "global" in use else None,
        )

    def _noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        c = self.config
        return draw_noisy(latents, self.schedule, generator, high_noise=c.high_noise, blank=c.blank)

    def _x0_loss(self, x0_pred: Tensor, latents: Tensor, masks: Tensor, t: Tensor) -> Tensor:
        c = self.config
        loss = X0Loss(c.weight_cap, c.object_weight, c.background_weight)
        return loss(x0_pred, latents, masks, t, self.schedule, c.unet.patch)

    def save(self, folder: Path) -> None:
        """Everything that a later `load` needs to continue to the same bytes, as safetensors; by the first process."""
        if self.rank:
            return
        save_state(folder / "trainer.safetensors", self.model, self.average, self.optimiser, self.step)

    def load(self, folder: Path) -> bool:
        """Continue from `folder`; False if there is nothing saved."""
        path = folder / "trainer.safetensors"
        if not path.exists():
            return False
        self.step = load_state(path, self.model, self.average, self.optimiser)
        return True


def camera_vectors(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Camera conditions [B, V, 16] of views at `azimuth` [B, V] and `elevation` [B, V] in degrees."""
    ones = torch.ones_like(azimuth)
    cameras: Cameras = from_angles(azimuth, elevation, 2.0 * ones, 40.0 * ones, height=1, width=1)
    return mvdream_camera_condition(cameras)
