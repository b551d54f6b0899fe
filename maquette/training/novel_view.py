"""Training of a novel-view prior (Zero-1-to-3, arXiv:2303.11328) in miniature.

A step noises views of objects and asks for them back, told a picture of each object and the pose between the two. The
paper's own dropout of conditions: with p = 0.05 each the embedding alone, both, the picture's latents alone. That this
makes the unconditional branch rare, and so biased, is what USD (arXiv:2312.06198) measures and mends.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from maquette.diffusion.unet import UNetConfig
from maquette.priors.codecs import SpaceToDepth
from maquette.priors.nano.encoders import NanoImageEncoder
from maquette.priors.nano.novel_view import NanoViewConfig, build_nano_view
from maquette.training.data import PackedObjects
from maquette.training.denoising import X0Loss, draw_noisy
from maquette.training.loop import chunk_rate
from maquette.training.pairs import draw_pairs
from maquette.training.weights import Average, autocast, load_state, save_state
from maquette.training.zero123 import dropped


def view_network() -> UNetConfig:
    """The network of the nano Zero-1-to-3: 4.7 million parameters on space-to-depth latents, 4 px a cell."""
    return UNetConfig(
        in_channels=96,
        out_channels=48,
        channels=104,
        channel_mult=(1, 1),
        res_blocks=(1, 1),
        attention=(True, True),
        head_width=52,
        context_dim=128,
        camera_dim=None,
        groups=8,
        ff_mult=2,
        patch=4,
        pixel_head=24,
        pixel_copy=True,
        data_deviation=0.6,
    )


@dataclass(frozen=True)
class NovelViewTraining:
    """Recipe of a novel-view prior."""

    unet: UNetConfig = field(default_factory=view_network)
    size: int = 32
    """Pixels of a view; renders are averaged down to it."""
    steps: int = 4000
    batch: int = 64
    """Pairs of a step."""
    drop: float = 0.05
    """Probability of each of the three drops (the paper's)."""
    recolour: float = 0.2
    """Share of pairs with permuted colours."""
    same: float = 0.2
    """Share of pairs that ask for the picture itself. Of random poses a small network learns nothing for very long:
    after 128 thousand random pairs all its views were alike."""
    turned: float = 0.4
    """Share of pairs that go round the circle of canonical views, from its first."""
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.01
    warmup: int = 100
    ema: float = 0.999
    high_noise: float = 0.0
    """Share of the pairs whose noise level is drawn from the upper 30 % of the schedule alone."""
    blank: float = 0.0
    """Share of the pairs that are noise alone, as sampling begins."""
    loss: X0Loss = field(default_factory=X0Loss)
    seed: int = 0


class NovelViewTrainer:
    """Network, projection, optimiser and average of one training run on one device; the image encoder is frozen."""

    def __init__(
        self,
        config: NovelViewTraining,
        encoder: NanoImageEncoder,
        device: str = "cpu",
        initial: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.device = config, device
        self.prior = build_nano_view(NanoViewConfig(config.unet, codec=SpaceToDepth(config.size, config.unet.patch)))
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.model = nn.ModuleDict({"network": self.prior.network, "projection": self.prior.projection}).to(device)
        if initial is not None:
            self.model.load_state_dict(initial)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay
        )
        self.average = Average(self.model, config.ema)
        self.step = 0

    def train_step(self, data: PackedObjects) -> dict[str, float]:
        """One update."""
        c, rng = self.config, np.random.default_rng((self.config.seed, 4, self.step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        for group in self.optimiser.param_groups:
            group["lr"] = chunk_rate(self.step, c.steps, c.learning_rate, c.warmup)
        loss = self.loss(data, rng, generator)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
            self.average.update(self.model)
        self.step += 1
        return {"loss": float(loss.detach()), "grad_norm": float(norm)}

    def loss(self, data: PackedObjects, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        """The weighted error of x0 on random pairs, with conditions dropped at random."""
        c, prior = self.config, self.prior
        batch = draw_pairs(data, rng, c.batch, c.size, recolour_share=c.recolour, same=c.same, turned=c.turned)
        no_embedding, no_latents = dropped(torch.from_numpy(rng.random(c.batch)), c.drop)
        latents = prior.codec.encode(batch.targets[:, None])
        picture = prior.codec.encode(batch.pictures[:, None]) / prior.codec.scale
        picture = torch.where(no_latents[:, None, None, None, None], 0.0, picture)
        latents_t, t = draw_noisy(latents, prior.noise_schedule, generator, high_noise=c.high_noise, blank=c.blank)
        with autocast(self.device):
            with torch.no_grad():
                embedding = self.encoder(batch.pictures.to(self.device))[1].float()
            embedding = torch.where(no_embedding[:, None].to(self.device), 0.0, embedding)
            context = prior.context(embedding, batch.pose.to(self.device))
            x0_pred = prior.denoise(latents_t.to(self.device), t.to(self.device), context, picture.to(self.device))
        return c.loss(x0_pred.float(), latents, batch.masks[:, None], t, prior.noise_schedule, c.unet.patch)

    def save(self, folder: Path) -> None:
        """Everything that a later `load` needs to continue to the same bytes, as safetensors."""
        save_state(folder / "trainer.safetensors", self.model, self.average, self.optimiser, self.step)

    def load(self, folder: Path) -> bool:
        """Continue from `folder`; False if there is nothing saved."""
        path = folder / "trainer.safetensors"
        if not path.exists():
            return False
        self.step = load_state(path, self.model, self.average, self.optimiser)
        return True
