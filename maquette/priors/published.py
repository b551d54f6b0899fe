"""MVDream and ImageDream from their published files: what such a file holds, and how it becomes a prior.

One file holds the U-Net, the autoencoder, CLIP's towers and the noise schedule; the list of merges for the tokeniser
lies beside it. `MODELS` has the configurations of the released models; a config is plain data and stands in the card of
a converted package too. The local and the pixel ImageDream cannot be told apart by their files: the name says which one
is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maquette.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from maquette.diffusion.clip import CLIP, TextConfig, TextTower, VisionConfig, VisionTower, vit_h14, vit_l14
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.errors import UserError
from maquette.priors import layout_diffusers, layout_ldm
from maquette.priors.checkpoints import KeyTable, stream
from maquette.priors.clip_encoders import ClipImageEncoder, ClipTextEncoder
from maquette.priors.clip_tokenizer import ClipTokenizer
from maquette.priors.codecs import KLCodec
from maquette.priors.multiview import MultiViewConfig, MultiViewPrior
from maquette.priors.tensor_files import StoredTensor, TensorFile, open_tensors

Family = Literal["imagedream", "mvdream-sd21", "mvdream-sd15", "imagedream-folder", "mvdream-folder"]


@dataclass(frozen=True)
class PublishedConfig:
    """What a released multi-view model is made of, apart from its weights."""

    family: Family
    """How its file names things, and which text encoder it has; the last two are exports (see `multiview_folder`)."""
    network: UNetConfig
    autoencoder: AutoencoderConfig
    text: TextConfig
    vision: VisionConfig | None
    use: MultiViewConfig
    """How it was trained to be used."""
    image_size: int = 256

    def __post_init__(self) -> None:
        if self.family.startswith("imagedream") != (self.vision is not None):
            raise ValueError("ImageDream has an image encoder, and MVDream has none; set `vision` accordingly")


@dataclass(frozen=True)
class Part:
    """A network inside a published file."""

    prefix: str
    """What its names there begin with."""
    table: KeyTable
    make: Callable[[], nn.Module]


def imagedream(control: str = "local+pixel") -> PublishedConfig:
    """ImageDream as released, with the control that its file was trained with."""
    vision, text = vit_h14()
    return PublishedConfig(
        "imagedream", UNetConfig(image_prompt=ImagePromptConfig()), AutoencoderConfig(), text, vision,
        MultiViewConfig(name="ImageDream", control=control),
    )  # fmt: skip


def mvdream() -> PublishedConfig:
    """MVDream on Stable Diffusion 2.1-base."""
    return PublishedConfig(
        "mvdream-sd21", UNetConfig(), AutoencoderConfig(), vit_h14()[1], None,
        MultiViewConfig(name="MVDream", control="none"),
    )  # fmt: skip


def mvdream_sd15() -> PublishedConfig:
    """MVDream on Stable Diffusion 1.5."""
    network = UNetConfig(head_width=None, num_heads=8, linear_projection=False, context_dim=768)
    return PublishedConfig(
        "mvdream-sd15", network, AutoencoderConfig(), replace(vit_l14()[1], embed_dim=None), None,
        MultiViewConfig(name="MVDream", control="none"),
    )  # fmt: skip


MODELS: dict[str, Callable[[], PublishedConfig]] = {
    "imagedream": imagedream,
    "imagedream-local": lambda: imagedream("local"),
    "mvdream": mvdream,
    "mvdream-sd15": mvdream_sd15,
}
"""Registry name -> configuration."""

SCHEDULE = (
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2",
)  # fmt: skip
"""Vectors of the noise schedule that released files carry; they follow from a formula and are not read."""


def parts(config: PublishedConfig) -> dict[str, Part]:
    """The networks of a model by the names that they have in a converted package."""
    if config.family in ("imagedream-folder", "mvdream-folder"):
        return _folder_parts(config)
    imagedream = config.family == "imagedream"
    found = {
        "network": Part(
            "model.diffusion_model.", layout_ldm.unet(config.network), lambda: MultiViewUNet(config.network)
        ),
        "autoencoder": Part(
            "vae_model." if imagedream else "first_stage_model.",
            layout_ldm.autoencoder(config.autoencoder),
            lambda: Autoencoder(config.autoencoder),
        ),
    }
    if config.family == "mvdream-sd15":
        prefix = "cond_stage_model.transformer.text_model."
        table = layout_ldm.clip_text_huggingface(config.text)
        return {**found, "text": Part(prefix, table, lambda: TextTower(config.text))}
    prefix = "clip_model.model." if imagedream else "cond_stage_model.model."
    table = layout_ldm.openclip(config.vision, config.text)
    return {**found, "clip": Part(prefix, table, lambda: CLIP(config.vision, config.text))}


def _folder_parts(config: PublishedConfig) -> dict[str, Part]:
    """The networks of an export: the U-Net with its original names, the others with diffusers' and transformers'."""
    text = layout_ldm.clip_text_huggingface(config.text)
    found = {
        "network": Part("unet.", layout_ldm.unet(config.network), lambda: MultiViewUNet(config.network)),
        "autoencoder": Part(
            "vae.", layout_diffusers.autoencoder(config.autoencoder), lambda: Autoencoder(config.autoencoder)
        ),
        "text": Part("text_encoder.text_model.", text, lambda: TextTower(config.text)),
    }
    if (vision := config.vision) is not None:
        found["vision"] = Part("image_encoder.", layout_diffusers.image_encoder(vision), lambda: VisionTower(vision))
    return found


def outline(part: Part) -> nn.Module:
    """The network without memory."""
    with torch.device("meta"):
        return part.make()


def assemble(networks: Mapping[str, nn.Module], config: PublishedConfig, tokenizer: ClipTokenizer) -> MultiViewPrior:
    """The prior of filled networks, named as in `parts`."""
    for module in networks.values():
        module.eval().requires_grad_(False)
    network, autoencoder = networks["network"], networks["autoencoder"]
    assert isinstance(network, MultiViewUNet) and isinstance(autoencoder, Autoencoder)
    # A text tower of its own has no block too many.
    text, vision, skip_last = networks.get("text"), networks.get("vision"), 0
    if text is None:
        skip_last = 1
        clip = networks["clip"]
        assert isinstance(clip, CLIP)
        text, vision = clip.text, clip.vision
    assert isinstance(text, TextTower) and (vision is None or isinstance(vision, VisionTower))
    return MultiViewPrior(
        network=network,
        # One image at a time: the autoencoder's maps are the largest of all.
        codec=KLCodec(autoencoder, config.image_size, chunk=1).eval().requires_grad_(False),
        noise_schedule=NoiseSchedule.scaled_linear(),
        tokenizer=tokenizer,
        text_encoder=ClipTextEncoder(text, skip_last).eval(),
        image_encoder=ClipImageEncoder(vision).eval() if vision is not None else None,
        config=config.use,
    )


def completed(file: TensorFile, config: PublishedConfig, towers: Path | None) -> TensorFile:
    """A released file that has every name of the model, with CLIP's towers from OpenCLIP's own file (`towers`) where
    it was published without them.

    UserError naming what is missing or unknown; nothing is loaded.
    """
    listed = parts(config)
    clip = listed.get("clip")
    bare = clip is not None and not any(name.startswith(clip.prefix) for name in file.tensors)
    for name, part in listed.items():
        if not (name == "clip" and bare):
            _check_names(file, part)
    if clip is None or not bare:
        return file
    if towers is None:
        raise UserError(
            f"{file.path} holds no CLIP towers; put open_clip_pytorch_model.bin beside it "
            "(`maquette models fetch clip-vit-h14` gets it)"
        )
    added = {clip.prefix + name: stored for name, stored in open_tensors(towers).tensors.items()}
    whole = replace(file, tensors={**file.tensors, **added})
    _check_names(replace(whole, path=towers), clip)
    return whole


def _check_names(file: TensorFile, part: Part) -> None:
    try:
        part.table.read(file.outlines(part.prefix), part.prefix, str(file.path))
    except ValueError as error:
        raise UserError(str(error)) from None


def load_networks(
    file: TensorFile,
    config: PublishedConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> dict[str, nn.Module]:
    """The networks of a released file, filled one tensor at a time; `dtype` is for all but the autoencoder (float32).

    UserError naming what does not fit.
    """
    _check_schedule(file)
    networks = {}
    for name, part in parts(config).items():
        module = outline(part)
        kind = torch.float32 if name == "autoencoder" else dtype
        try:
            stream(module, file, part.table, part.prefix, device=device, dtype=kind)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(str(error)) from None
        networks[name] = module
    return networks


def _check_schedule(file: TensorFile) -> None:
    """UserError for a file with a noise schedule other than that of all released models."""
    stored = file.tensors.get("alphas_cumprod")
    ours = NoiseSchedule.scaled_linear().alphas_cumprod
    if stored is not None and not (
        stored.shape == tuple(ours.shape) and torch.allclose(stored.read().double(), ours, atol=1e-3)
    ):
        raise UserError(f"{file.path} was trained with another noise schedule than MVDream and ImageDream have")


def packaged(
    file: TensorFile, config: PublishedConfig, dtype: torch.dtype | None
) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a released file under the names that they have in a package: "network.stem.weight" ..."""
    for name, part in parts(config).items():
        outlines = part.table.read(file.outlines(part.prefix), part.prefix, str(file.path))
        for entry in part.table.entries:
            shown = outlines[entry.ours]
            kind = dtype if dtype is not None and name != "autoencoder" else shown.dtype

            def read(entry: Any = entry, prefix: str = part.prefix, kind: torch.dtype = kind) -> Tensor:
                tensors = {key: file.tensors[prefix + key].read() for key in entry.published}
                return entry.read(tensors).to(kind).contiguous()

            yield f"{name}.{entry.ours}", StoredTensor(kind, tuple(shown.shape), read)


def unpackaged(file: TensorFile, config: PublishedConfig, dtype: torch.dtype | None) -> list[tuple[str, StoredTensor]]:
    """The tensors of a package under their published names, with the vectors of the noise schedule."""
    written: list[tuple[str, StoredTensor]] = []
    for name, part in parts(config).items():
        ours = {key.removeprefix(f"{name}."): value for key, value in file.outlines(f"{name}.").items()}
        shapes = part.table.write(ours)
        for entry in part.table.entries:
            kind = dtype or ours[entry.ours].dtype

            for key in entry.published:

                def read(entry: Any = entry, key: str = key, name: str = name, kind: torch.dtype = kind) -> Tensor:
                    tensor = file.tensors[f"{name}.{entry.ours}"].read()
                    return entry.write(tensor)[key].to(kind).contiguous()

                written.append((part.prefix + key, StoredTensor(kind, tuple(shapes[key].shape), read)))
    for key, vector in schedule_vectors(NoiseSchedule.scaled_linear()).items():
        written.append((key, StoredTensor(vector.dtype, tuple(vector.shape), vector.clone)))
    return written


def schedule_vectors(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The vectors of `SCHEDULE` in float32, by the formulas of arXiv:2006.11239."""
    a = schedule.alphas_cumprod
    before = torch.cat([a.new_ones(1), a[:-1]])
    betas = 1 - a / before
    variance = betas * (1 - before) / (1 - a)
    values = (
        betas, a, before, a.sqrt(), (1 - a).sqrt(), (1 - a).log(), a.rsqrt(), (1 / a - 1).sqrt(), variance,
        variance.clamp(min=1e-20).log(), betas * before.sqrt() / (1 - a), (1 - before) * (1 - betas).sqrt() / (1 - a),
    )  # fmt: skip
    return {name: value.float() for name, value in zip(SCHEDULE, values, strict=True)}
