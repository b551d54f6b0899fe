"""Files with exactly the names and shapes of the released ones and random numbers in them, for rehearsals.

`write_model` writes what a person has after a download: one checkpoint (ImageDream, MVDream, Zero-1-to-3 with its
U-Net's average), or a folder in the diffusers layout. One tensor is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maquette.diffusion.autoencoder import Autoencoder
from maquette.diffusion.clip import TextTower, VisionTower
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import MultiViewUNet
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.checkpoints import KeyTable
from maquette.priors.clip_tokenizer import NUM_BASE, WORD_END, byte_symbols
from maquette.priors.published import MODELS, PublishedConfig, outline, parts, schedule_vectors
from maquette.priors.registry import find_model
from maquette.priors.single_view import STABLE_DIFFUSION_MODELS, ZERO123, ZERO123_MODELS, LdmConfig, ldm_parts
from maquette.priors.single_view_files import EMA, UNET
from maquette.priors.tensor_files import StoredTensor, write_safetensors, write_torch
from maquette.priors.zero123_pose import POSE_LENGTH

VOCABULARY = 49408
"""Of all published CLIP models."""
SPECIAL = NUM_BASE + 2
"""Tokens that are no merges: every byte twice, and the two marks."""

_DOWN, _UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
_SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768, "down_block_types": [_DOWN, _DOWN, _DOWN, "DownBlock2D"], "in_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", _UP, _UP, _UP],
}  # fmt: skip
_VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 4,
    "sample_size": 512,
}  # fmt: skip
_TEXT_L = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "quick_gelu", "vocab_size": VOCABULARY,
}  # fmt: skip
_TEXT_H = {
    "hidden_size": 1024, "num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "gelu", "vocab_size": VOCABULARY,
}  # fmt: skip
_VISION_L = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    "hidden_act": "quick_gelu", "projection_dim": 768, "image_size": 224, "patch_size": 14,
}  # fmt: skip
_SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}

FOLDERS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "stable-diffusion-1.5": {"unet": _SD15_UNET, "vae": _VAE, "text_encoder": _TEXT_L},
    "stable-diffusion-2.1-base": {
        "unet": _SD15_UNET | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
                              "use_linear_projection": True},
        "vae": _VAE, "text_encoder": _TEXT_H,
    },
    **{
        name: {"unet": _SD15_UNET | {"in_channels": 8, "sample_size": 32}, "vae": _VAE | {"sample_size": 256},
               "image_encoder": _VISION_L}
        for name in ZERO123_MODELS
    },
}  # fmt: skip
"""config.json of each part, by the model's name."""

Listed = list[tuple[str, StoredTensor]]


def write_model(
    folder: Path, name: str, dtype: torch.dtype = torch.float16, *, component: str | None = None
) -> tuple[int, int]:
    """A released model with random numbers in `folder`; (tensors, bytes).

    With `component`, one of the two names of its pose projection, a Zero-1-to-3 is written in the diffusers layout.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if name in STABLE_DIFFUSION_MODELS or component is not None:
        written = _write_folder(folder, name, dtype, component)
    else:
        listed = list(multi_view(MODELS[name](), dtype) if name in MODELS else zero123(ZERO123, dtype))
        path = folder / find_model(name).source.files[0].path
        write_torch(path, listed)
        written = len(listed), path.stat().st_size
    if name in MODELS:
        write_merges(folder, MODELS[name]().text.vocabulary - SPECIAL)
    elif name in STABLE_DIFFUSION_MODELS:
        write_merges(folder / "tokenizer", FOLDERS[name]["text_encoder"]["vocab_size"] - SPECIAL)
    return written


def multi_view(config: PublishedConfig, dtype: torch.dtype) -> Iterator[tuple[str, StoredTensor]]:
    """The checkpoint of MVDream or ImageDream."""
    draw = Draw(dtype)
    for part in parts(config).values():
        yield from draw.network(outline(part), part.table, part.prefix)
    if config.family == "mvdream-sd15":  # whole numbers that old library versions saved
        yield "cond_stage_model.transformer.text_model.embeddings.position_ids", _stored(torch.arange(77)[None])
    yield from _schedule()


def zero123(ldm: LdmConfig, dtype: torch.dtype) -> Iterator[tuple[str, StoredTensor]]:
    """The checkpoint of a Zero-1-to-3: with the U-Net's average, and what is left of CLIP's text tower."""
    draw = Draw(dtype)
    for part in ldm_parts(ldm).values():
        yield from draw.network(outline(part), part.table, part.prefix)
        if part.prefix == UNET:
            for key, stored in draw.network(outline(part), part.table, part.prefix):
                yield EMA + key.removeprefix("model.").replace(".", ""), stored
    yield f"{EMA}decay", _stored(torch.tensor(0.9999))
    yield f"{EMA}num_updates", _stored(torch.tensor(105_000, dtype=torch.int32))
    text = {
        "logit_scale": (), "text_projection": (768, 768), "positional_embedding": (77, 768),
        "token_embedding.weight": (VOCABULARY, 768), "ln_final.weight": (768,), "ln_final.bias": (768,),
    }  # fmt: skip
    for key, shape in text.items():
        yield f"cond_stage_model.model.{key}", draw(key, shape)
    yield from _schedule()


def _write_folder(folder: Path, name: str, dtype: torch.dtype, component: str | None) -> tuple[int, int]:
    settings, draw, count, size = FOLDERS[name], Draw(dtype), 0, 0
    networks: dict[str, tuple[Any, KeyTable, str]] = {}
    unet = layout_diffusers.unet_config(settings["unet"])
    networks["unet"] = (lambda: MultiViewUNet(unet), layout_diffusers.unet(unet), "")
    vae = layout_diffusers.autoencoder_config(settings["vae"])
    networks["vae"] = (lambda: Autoencoder(vae), layout_diffusers.autoencoder(vae), "")
    if "text_encoder" in settings:
        text = layout_diffusers.text_config(settings["text_encoder"])
        networks["text_encoder"] = (lambda: TextTower(text), layout_ldm.clip_text_huggingface(text), "text_model.")
    if "image_encoder" in settings:
        vision = layout_diffusers.vision_config(settings["image_encoder"])
        networks["image_encoder"] = (lambda: VisionTower(vision), layout_diffusers.image_encoder(vision), "")
    if component is not None:
        table = layout_diffusers.camera_projection(layout_diffusers.CAMERA_PROJECTIONS[component])
        inputs = vision.embed_dim + POSE_LENGTH
        networks[component] = (lambda: nn.Linear(inputs, unet.context_dim), table, "")
    for part, (make, table, prefix) in networks.items():
        (folder / part).mkdir(exist_ok=True)
        (folder / part / "config.json").write_text(json.dumps(settings.get(part, {})))
        stem = "model" if part.endswith("_encoder") else "diffusion_pytorch_model"
        with torch.device("meta"):
            module = make()
        listed = list(draw.network(module, table, prefix))
        path = folder / part / f"{stem}.safetensors"
        write_safetensors(path, listed, {"format": "pt"})
        count, size = count + len(listed), size + path.stat().st_size
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
    return count, size


class Draw:
    """Random tensors of one precision, drawn when they are read."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(0)

    def __call__(self, key: str, shape: tuple[int, ...]) -> StoredTensor:
        def read() -> Tensor:
            noise = torch.randn(shape, generator=self.generator)
            if len(shape) < 2:  # norms near 1, biases near 0
                return (0.1 * noise + (0.0 if key.endswith("bias") else 1.0)).to(self.dtype)
            # A third of the variance that keeps a signal's size, so that half precision never overflows.
            return (noise * (3 * torch.Size(shape[1:]).numel()) ** -0.5).to(self.dtype)

        return StoredTensor(self.dtype, shape, read)

    def network(self, module: nn.Module, table: KeyTable, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
        """All tensors of a network under their published names."""
        for key, shown in table.write(module.state_dict(), prefix).items():
            yield key, self(key, tuple(shown.shape))


def write_merges(folder: Path, count: int = VOCABULARY - SPECIAL) -> None:
    """A list of `count` merges that is none of any language: every pair of bytes, one at the end of a word."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = islice(product(byte_symbols(), byte_symbols()), count)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}{WORD_END}" for a, b in pairs), ""]))


def _schedule() -> Iterator[tuple[str, StoredTensor]]:
    for key, vector in schedule_vectors(NoiseSchedule.scaled_linear()).items():
        yield key, _stored(vector)


def _stored(tensor: Tensor) -> StoredTensor:
    return StoredTensor(tensor.dtype, tuple(tensor.shape), tensor.clone)


def random_networks(
    config: PublishedConfig, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, nn.Module]:
    """The networks of MVDream or ImageDream filled with random numbers on the device itself, without any file.

    `dtype` is for all but the autoencoder (float32).
    """
    found = {}
    for name, part in parts(config).items():
        module = outline(part).to(torch.float32 if name == "autoencoder" else dtype).to_empty(device=device)
        generator = torch.Generator(device).manual_seed(0)
        with torch.no_grad():
            for key, value in module.named_parameters():
                fan_in = 100 if value.ndim < 2 else 3 * value[0].numel()  # as `Draw` does
                value.normal_(0.0 if value.ndim > 1 or key.endswith("bias") else 1.0, fan_in**-0.5, generator=generator)
        found[name] = module
    return found
