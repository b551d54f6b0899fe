"""Released files in miniature: the layout of the real ones around networks small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from maquette.diffusion.autoencoder import AutoencoderConfig
from maquette.diffusion.clip import TextConfig, VisionConfig
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import ImagePromptConfig, UNetConfig
from maquette.priors.clip_tokenizer import NUM_BASE
from maquette.priors.multiview import MultiViewConfig
from maquette.priors.published import PublishedConfig, parts, schedule_vectors
from tests.priors.tiny import randomised

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "r e", "re d</w>"]

NETWORK = UNetConfig(
    channels=16, channel_mult=(1, 2), res_blocks=(1, 1), attention=(True, False), head_width=8, context_dim=16,
    groups=8,
)  # fmt: skip
TEXT = TextConfig(
    vocabulary=NUM_BASE + len(MERGES) + 2, context_length=10, width=16, layers=2, heads=2, mlp_width=32, embed_dim=12
)
VISION = VisionConfig(image_size=28, patch_size=14, width=20, layers=3, heads=2, mlp_width=40, embed_dim=12)
AUTOENCODER = AutoencoderConfig(
    channels=8, channel_mult=(1, 2), res_blocks=1, attention=(False, False), groups=4
)  # fmt: skip
PROMPT = ImagePromptConfig(local_dim=20, num_queries=3, depth=1, heads=2)

CONFIGS: dict[str, PublishedConfig] = {
    "imagedream": PublishedConfig(
        "imagedream", replace(NETWORK, image_prompt=PROMPT), AUTOENCODER, TEXT, VISION,
        MultiViewConfig(name="ImageDream", control="local+pixel"), 16,
    ),
    "imagedream-local": PublishedConfig(
        "imagedream", replace(NETWORK, image_prompt=PROMPT), AUTOENCODER, TEXT, VISION,
        MultiViewConfig(name="ImageDream", control="local"), 16,
    ),
    "mvdream": PublishedConfig(
        "mvdream-sd21", NETWORK, AUTOENCODER, TEXT, None, MultiViewConfig(name="MVDream", control="none"), 16
    ),
    "mvdream-sd15": PublishedConfig(
        "mvdream-sd15", replace(NETWORK, head_width=None, num_heads=2, linear_projection=False), AUTOENCODER,
        replace(TEXT, embed_dim=None), None, MultiViewConfig(name="MVDream", control="none"), 16,
    ),
}  # fmt: skip
FILES = {
    "imagedream": "sd-v2.1-base-4view-ipmv.pt", "imagedream-local": "sd-v2.1-base-4view-ipmv-local.pt",
    "mvdream": "sd-v2.1-base-4view.pt", "mvdream-sd15": "sd-v1.5-4view.pt",
}  # fmt: skip


def networks(config: PublishedConfig, seed: int = 0) -> dict[str, nn.Module]:
    """Random networks of a model."""
    return {name: randomised(part.make(), seed + i) for i, (name, part) in enumerate(parts(config).items())}


def published_state(config: PublishedConfig, filled: dict[str, nn.Module]) -> dict[str, Tensor]:
    """What the released file of these networks holds."""
    state: dict[str, Tensor] = {}
    for name, part in parts(config).items():
        state |= part.table.write(filled[name].state_dict(), part.prefix)
    if config.family == "mvdream-sd15":  # an integer buffer of old library versions
        state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(10)[None]
    return {**state, **schedule_vectors(NoiseSchedule.scaled_linear())}


def write_published(folder: Path, name: str, dtype: torch.dtype = torch.float32, merges: bool = True) -> Path:
    """A folder as a person has it after a download: the file and the list of merges."""
    config = CONFIGS[name]
    state = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor
             for key, tensor in published_state(config, networks(config)).items()}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({key: tensor.clone() for key, tensor in state.items()}, folder / FILES[name])
    if merges:
        write_merges(folder)
    return folder / FILES[name]


def write_merges(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
