"""The diffusers layout: Stable Diffusion 1 and 2, Zero-1-to-3, one folder a component with its config.json.

For each component a key table (published parameter names <-> ours), and the translation of its config.json to our
config. Names carry no prefix. A config with a setting that changes what the network computes, in a way ours cannot
follow, is refused with the setting named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from maquette.diffusion.autoencoder import AutoencoderConfig
from maquette.diffusion.clip import Activation, TextConfig, VisionConfig
from maquette.diffusion.schedule import NoiseSchedule, Parametrisation
from maquette.diffusion.unet import UNetConfig
from maquette.priors.checkpoints import Entry, KeyTable
from maquette.priors.layout_parts import clip_blocks_huggingface, layers, transformer, weights

# Key tables


def unet(config: UNetConfig) -> KeyTable:
    """`UNet2DConditionModel`; ValueError for a network with cameras, image tokens or a pixel head."""
    if config.camera_dim or config.image_prompt or config.pixel_head:
        raise ValueError("the diffusers layout has no cameras, no image tokens and no pixel head.")
    entries = [
        *layers("time_embedding", "time_embedding", {"linear_in": "linear_1", "linear_out": "linear_2"}),
        *layers("", "", {"stem": "conv_in", "norm_out": "conv_norm_out", "head": "conv_out"}),
    ]
    widths = config.widths

    def block(ours: str, published: str, i: int, width: int, level: int) -> Iterator[Entry]:
        residual = f"{ours}.blocks.{i}.residual"
        yield from _residual(residual, f"{published}.resnets.{i}", _RESIDUAL, skip=width != widths[level])
        if config.attention[level]:
            yield from transformer(config, f"{ours}.blocks.{i}.transformer", f"{published}.attentions.{i}")

    width, skips = config.channels, [config.channels]
    for level, count in enumerate(config.res_blocks):
        for i in range(count):
            entries += block(f"down.{level}", f"down_blocks.{level}", i, width, level)
            width = widths[level]
            skips.append(width)
        if level < len(widths) - 1:
            entries += weights(f"down.{level}.downsample.conv", f"down_blocks.{level}.downsamplers.0.conv")
            skips.append(width)
    for i, part in enumerate(("residual_in", "residual_out")):
        entries += _residual(f"middle.{part}", f"mid_block.resnets.{i}", _RESIDUAL, skip=False)
    entries += transformer(config, "middle.transformer", "mid_block.attentions.0")
    for step, level in enumerate(reversed(range(len(widths)))):
        for i in range(config.res_blocks[level] + 1):
            entries += block(f"up.{step}", f"up_blocks.{step}", i, width + skips.pop(), level)
            width = widths[level]
        if level > 0:
            entries += weights(f"up.{step}.upsample.conv", f"up_blocks.{step}.upsamplers.0.conv")
    return KeyTable(tuple(entries))


def autoencoder(config: AutoencoderConfig, *, old_names: bool = False) -> KeyTable:
    """`AutoencoderKL`; `old_names` is for files of before 2023, which call the attention's layers otherwise."""
    levels = len(config.channel_mult)
    widths = config.widths
    attention = _OLD_VAE_ATTENTION if old_names else _VAE_ATTENTION
    entries = [*weights("to_moments", "quant_conv"), *weights("from_latents", "post_quant_conv")]
    for side in ("encoder", "decoder"):
        entries += layers(side, side, {"stem": "conv_in", "norm_out": "conv_norm_out", "head": "conv_out"})
        for i, part in enumerate(("residual_in", "residual_out")):
            entries += _residual(f"{side}.middle.{part}", f"{side}.mid_block.resnets.{i}", _VAE_RESIDUAL, skip=False)
        entries += layers(f"{side}.middle.attention", f"{side}.mid_block.attentions.0", attention)

    def level(ours: str, published: str, count: int, width: int, out: int, attended: bool) -> Iterator[Entry]:
        for i in range(count):
            skip = i == 0 and width != out
            yield from _residual(f"{ours}.blocks.{i}", f"{published}.resnets.{i}", _VAE_RESIDUAL, skip=skip)
            if attended:
                yield from layers(f"{ours}.attentions.{i}", f"{published}.attentions.{i}", attention)

    for i, out in enumerate(widths):
        before, count, step = widths[i - 1] if i else config.channels, config.res_blocks, levels - 1 - i
        entries += level(f"encoder.down.{i}", f"encoder.down_blocks.{i}", count, before, out, config.attention[i])
        before = widths[min(i + 1, levels - 1)]
        entries += level(f"decoder.up.{step}", f"decoder.up_blocks.{step}", count + 1, before, out, config.attention[i])
        if i < levels - 1:
            entries += weights(f"encoder.shrink.{i}.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv")
            entries += weights(f"decoder.grow.{i}.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv")
    return KeyTable(tuple(entries))


def image_encoder(config: VisionConfig) -> KeyTable:
    """`CLIPVisionModelWithProjection`, or `CLIPVisionModel` for a tower without one; ours is a `VisionTower`."""
    return KeyTable(
        (
            Entry("class_token", ("vision_model.embeddings.class_embedding",)),
            Entry("patches.weight", ("vision_model.embeddings.patch_embedding.weight",)),
            Entry("positions", ("vision_model.embeddings.position_embedding.weight",)),
            # Spelled that way in the published files.
            *layers("", "vision_model", {"norm_in": "pre_layrnorm", "norm_out": "post_layernorm"}),
            *clip_blocks_huggingface("blocks", "vision_model.encoder.layers", config.layers),
            *(weights("projection", "visual_projection", bias=False) if config.embed_dim else ()),
        ),
        ignored=(r"vision_model\.embeddings\.position_ids",),
    )


CAMERA_PROJECTIONS = {"clip_camera_projection": "proj", "cc_projection": "projection"}
"""Component of Zero-1-to-3's pose projection in the two published pipelines, and the name of its one layer."""


def camera_projection(layer: str) -> KeyTable:
    """The projection of [image token, pose]; ours is a `torch.nn.Linear`. `layer` is "proj" or "projection"."""
    return KeyTable((Entry("weight", (f"{layer}.weight",)), Entry("bias", (f"{layer}.bias",))))


# Configs


def unet_config(published: Mapping[str, Any]) -> UNetConfig:
    """Our config of a U-Net's config.json; ValueError for a setting that changes the network in a way ours cannot."""
    _check_settings("U-Net", published, _UNET_SETTINGS, _UNET_FIXED)
    widths = [int(width) for width in published["block_out_channels"]]
    levels = len(widths)
    attention = tuple(_is_attending(kind, "CrossAttnDownBlock2D", "DownBlock2D") for kind in _down_types(published))
    up_types = published.get("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1))
    if tuple(_is_attending(kind, "CrossAttnUpBlock2D", "UpBlock2D") for kind in reversed(up_types)) != attention:
        raise ValueError("this U-Net attends at other levels on the way up than on the way down; ours cannot.")
    # Named the width of a head in the published configs, but it always was their number.
    heads = published.get("num_attention_heads") or published.get("attention_head_dim", 8)
    counts = (heads,) * levels if isinstance(heads, int) else tuple(int(count) for count in heads)
    head_widths = {width // count for width, count in zip(widths, counts, strict=True)}
    uniform = isinstance(heads, int) or len(set(counts)) == 1
    one_width = not uniform and len(head_widths) == 1
    blocks = published.get("layers_per_block", 2)
    return UNetConfig(
        in_channels=int(published.get("in_channels", 4)),
        out_channels=int(published.get("out_channels", 4)),
        channels=widths[0],
        channel_mult=_over_first(widths),
        res_blocks=(blocks,) * levels if isinstance(blocks, int) else tuple(blocks),
        attention=attention,
        head_width=head_widths.pop() if one_width else None,
        num_heads=counts[0] if uniform else None,
        level_heads=None if uniform or one_width else counts,
        linear_projection=bool(published.get("use_linear_projection", False)),
        transformer_depth=_one(published.get("transformer_layers_per_block", 1), "transformer_layers_per_block"),
        context_dim=_one(published.get("cross_attention_dim", 1280), "cross_attention_dim"),
        camera_dim=None,
        groups=int(published.get("norm_num_groups", 32)),
    )


def autoencoder_config(published: Mapping[str, Any]) -> AutoencoderConfig:
    """Our config of an autoencoder's config.json; its `scaling_factor` belongs to the codec."""
    _check_settings("autoencoder", published, _VAE_SETTINGS, _VAE_FIXED)
    widths = [int(width) for width in published["block_out_channels"]]
    down, up = published["down_block_types"], published["up_block_types"]
    attention = tuple(_is_attending(kind, "AttnDownEncoderBlock2D", "DownEncoderBlock2D") for kind in down)
    if tuple(_is_attending(kind, "AttnUpDecoderBlock2D", "UpDecoderBlock2D") for kind in reversed(up)) != attention:
        raise ValueError("this autoencoder attends at other levels in its decoder than in its encoder; ours cannot.")
    latents = int(published.get("latent_channels", 4))
    return AutoencoderConfig(
        image_channels=int(published.get("in_channels", 3)),
        channels=widths[0],
        channel_mult=_over_first(widths),
        res_blocks=int(published.get("layers_per_block", 1)),
        attention=attention,
        inner_channels=latents,
        latent_channels=latents,
        groups=int(published.get("norm_num_groups", 32)),
    )


def vision_config(published: Mapping[str, Any]) -> VisionConfig:
    """Our config of a CLIP image encoder's config.json."""
    return VisionConfig(
        image_size=int(published.get("image_size", 224)),
        patch_size=int(published.get("patch_size", 32)),
        width=int(published.get("hidden_size", 768)),
        layers=int(published.get("num_hidden_layers", 12)),
        heads=int(published.get("num_attention_heads", 12)),
        mlp_width=int(published.get("intermediate_size", 3072)),
        embed_dim=int(published.get("projection_dim", 512)),
        activation=_activation(published),
    )


def text_config(published: Mapping[str, Any]) -> TextConfig:
    """Our config of a CLIP text encoder's config.json, without the projection that its files leave out.

    Stable Diffusion 2's says 23 layers: the 24th is not used and not stored, so none is skipped at the end.
    """
    return TextConfig(
        vocabulary=int(published.get("vocab_size", 49408)),
        context_length=int(published.get("max_position_embeddings", 77)),
        width=int(published.get("hidden_size", 512)),
        layers=int(published.get("num_hidden_layers", 12)),
        heads=int(published.get("num_attention_heads", 8)),
        mlp_width=int(published.get("intermediate_size", 2048)),
        embed_dim=None,
        activation=_activation(published),
    )


def noise_schedule(published: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a scheduler_config.json, and what the network predicts; the sampler's settings are ours."""
    predicts: dict[str, Parametrisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
    kind = published.get("prediction_type", "epsilon")
    if kind not in predicts:
        raise ValueError(f"this scheduler's prediction_type is {kind!r}; known are {', '.join(predicts)}.")
    steps = int(published.get("num_train_timesteps", 1000))
    ends = float(published.get("beta_start", 0.0001)), float(published.get("beta_end", 0.02))
    if published.get("trained_betas") is not None:
        raise ValueError("this scheduler lists betas of its own; only beta_start, beta_end and beta_schedule are read.")
    beta_schedule = published.get("beta_schedule", "linear")
    if beta_schedule == "scaled_linear":
        return NoiseSchedule.scaled_linear(steps, *ends, predicts[kind])
    if beta_schedule == "linear":
        return NoiseSchedule.from_betas(torch.linspace(*ends, steps, dtype=torch.float64), predicts[kind])
    raise ValueError(f"this scheduler's beta_schedule is {beta_schedule!r}; known are 'scaled_linear' and 'linear'.")


_UNET_SETTINGS = (
    "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block",
    "attention_head_dim", "num_attention_heads", "use_linear_projection", "transformer_layers_per_block",
    "cross_attention_dim", "norm_num_groups",
    # Without effect on what the network computes.
    "sample_size", "upcast_attention", "dropout", "addition_embed_type_num_heads", "attention_type",
)  # fmt: skip
_UNET_FIXED = {
    "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False, "downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu",
    "norm_eps": 1e-5, "resnet_time_scale_shift": "default", "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "conv_in_kernel": 3, "conv_out_kernel": 3,
}  # fmt: skip
_VAE_SETTINGS = (
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "latent_channels", "norm_num_groups", "scaling_factor",
    # Without effect on what the network computes.
    "sample_size", "force_upcast",
)  # fmt: skip
_VAE_FIXED = {"act_fn": "silu", "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True}

_RESIDUAL = {
    "norm_in": "norm1", "conv_in": "conv1", "embedding": "time_emb_proj", "norm_out": "norm2", "conv_out": "conv2",
}  # fmt: skip
_VAE_RESIDUAL = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"}
_VAE_ATTENTION = {"norm": "group_norm", "to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_OLD_VAE_ATTENTION = {
    "norm": "group_norm", "to_q": "query", "to_k": "key", "to_v": "value", "to_out": "proj_attn",
}  # fmt: skip


def _residual(ours: str, published: str, names: Mapping[str, str], skip: bool) -> Iterator[Entry]:
    yield from layers(ours, published, names)
    if skip:
        yield from weights(f"{ours}.skip", f"{published}.conv_shortcut")


def _check_settings(what: str, given: Mapping[str, Any], known: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
    """ValueError for a setting whose value our network cannot follow; those that are off or unset do nothing."""
    for name, value in given.items():
        if name.startswith("_") or name in known or value is None or (value is False and name not in fixed):
            continue
        if name not in fixed:
            raise ValueError(f"this {what} has an unknown setting {name} = {value!r}; it may be another network.")
        if value != fixed[name]:
            raise ValueError(f"this {what} has {name} = {value!r}; only {fixed[name]!r} is supported.")


def _down_types(published: Mapping[str, Any]) -> list[str]:
    levels = len(published["block_out_channels"])
    return list(published.get("down_block_types", ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"]))


def _is_attending(kind: str, yes: str, no: str) -> bool:
    if kind not in (yes, no):
        raise ValueError(f"this network has a block of type {kind!r}; known are {yes!r} and {no!r}.")
    return kind == yes


def _over_first(widths: list[int]) -> tuple[float, ...]:
    """Widths of levels over that of the first; whole numbers as such, as configurations write them."""
    return tuple(width / widths[0] if width % widths[0] else width // widths[0] for width in widths)


def _one(value: int | list[int], name: str) -> int:
    """A number that some configs repeat for each level."""
    values = {value} if isinstance(value, int) else set(value)
    if len(values) != 1:
        raise ValueError(f"this U-Net has several values of {name}, {sorted(values)}; only one is supported.")
    return int(values.pop())


def _activation(published: Mapping[str, Any]) -> Activation:
    activations: dict[str, Activation] = {"gelu": "gelu", "quick_gelu": "quick_gelu"}
    name = published.get("hidden_act", "quick_gelu")
    if name not in activations:
        raise ValueError(f"this CLIP tower's activation is {name!r}; known are {', '.join(activations)}.")
    return activations[name]
