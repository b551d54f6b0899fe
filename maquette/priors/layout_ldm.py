"""The original latent-diffusion ("ldm") layout: MVDream, ImageDream, Stable Diffusion 1 and 2 as released.

For each network a key table (published parameter names <-> ours), and the translation of the keyword arguments in the
published yaml files to our configs. Names carry no prefix here; where a network stands in a complete checkpoint is
said in its function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from maquette.diffusion.autoencoder import AutoencoderConfig
from maquette.diffusion.clip import Activation, TextConfig, VisionConfig
from maquette.diffusion.unet import ImagePromptConfig, UNetConfig
from maquette.priors.checkpoints import Entry, KeyTable
from maquette.priors.layout_parts import clip_blocks_huggingface, layers, transformer, weights


def unet(config: UNetConfig) -> KeyTable:
    """The U-Net of the published files, found there under `model.diffusion_model.`.

    Raises ValueError for a config that the layout cannot express (both local and global image control, the pixel head).
    """
    prompt = config.image_prompt
    if config.pixel_head or (prompt and prompt.local_dim and prompt.global_dim):
        raise ValueError("the ldm layout has one kind of image tokens and no pixel head; this network is only ours.")
    entries = [*layers("time_embedding", "time_embed", _MLP), *weights("stem", "input_blocks.0.0")]
    if config.camera_dim:
        entries += layers("camera_embedding", "camera_embed", _MLP)
    if prompt:
        entries += _image_tokens(prompt).under("", "image_embed.").entries
    widths = config.widths

    # The published encoder and decoder are flat lists of blocks, among them the changes of resolution.
    index, width, skips = 1, config.channels, [config.channels]
    for level, count in enumerate(config.res_blocks):
        for i in range(count):
            entries += _block(config, f"down.{level}.blocks.{i}", f"input_blocks.{index}", width, level)
            index, width = index + 1, widths[level]
            skips.append(width)
        if level < len(widths) - 1:
            entries += weights(f"down.{level}.downsample.conv", f"input_blocks.{index}.0.op")
            index += 1
            skips.append(width)
    entries += _residual("middle.residual_in", "middle_block.0", skip=False)
    entries += transformer(config, "middle.transformer", "middle_block.1")
    entries += _residual("middle.residual_out", "middle_block.2", skip=False)
    index = 0
    for step, level in enumerate(reversed(range(len(widths)))):
        for i in range(config.res_blocks[level] + 1):
            entries += _block(config, f"up.{step}.blocks.{i}", f"output_blocks.{index}", width + skips.pop(), level)
            width = widths[level]
            if level > 0 and i == config.res_blocks[level]:
                place = 2 if config.attention[level] else 1
                entries += weights(f"up.{step}.upsample.conv", f"output_blocks.{index}.{place}.conv")
            index += 1
    return KeyTable((*entries, *weights("norm_out", "out.0"), *weights("head", "out.2")))


def autoencoder(config: AutoencoderConfig) -> KeyTable:
    """The KL autoencoder, under `first_stage_model.` (Stable Diffusion, MVDream) or `vae_model.` (ImageDream)."""
    levels = len(config.channel_mult)
    widths = config.widths
    entries = [*weights("to_moments", "quant_conv"), *weights("from_latents", "post_quant_conv")]
    for ours in ("encoder", "decoder"):
        entries += layers(ours, ours, {"stem": "conv_in", "norm_out": "norm_out", "head": "conv_out"})
        for part, published in (("residual_in", "block_1"), ("residual_out", "block_2")):
            entries += layers(f"{ours}.middle.{part}", f"{ours}.mid.{published}", _VAE_RESIDUAL)
        entries += _vae_attention(f"{ours}.middle.attention", f"{ours}.mid.attn_1")

    def level(ours: str, published: str, count: int, width: int, out: int, attention: bool) -> Iterator[Entry]:
        for i in range(count):
            yield from layers(f"{ours}.blocks.{i}", f"{published}.block.{i}", _VAE_RESIDUAL)
            if i == 0 and width != out:
                yield from weights(f"{ours}.blocks.{i}.skip", f"{published}.block.{i}.nin_shortcut")
            if attention:
                yield from _vae_attention(f"{ours}.attentions.{i}", f"{published}.attn.{i}")

    for i, out in enumerate(widths):
        before, count = widths[i - 1] if i else config.channels, config.res_blocks
        entries += level(f"encoder.down.{i}", f"encoder.down.{i}", count, before, out, config.attention[i])
        # Published decoder levels are numbered from the finest, ours run from the coarsest.
        before, step = widths[min(i + 1, levels - 1)], levels - 1 - i
        entries += level(f"decoder.up.{step}", f"decoder.up.{i}", count + 1, before, out, config.attention[i])
        if i < levels - 1:
            entries += weights(f"encoder.shrink.{i}.conv", f"encoder.down.{i}.downsample.conv")
            entries += weights(f"decoder.grow.{i}.conv", f"decoder.up.{levels - 1 - i}.upsample.conv")
    return KeyTable(tuple(entries))


def openclip(vision: VisionConfig | None, text: TextConfig | None) -> KeyTable:
    """OpenCLIP's (and OpenAI's) own layout: `cond_stage_model.model.` in MVDream, `clip_model.model.` in ImageDream.

    MVDream's file has the text tower only. A text tower published without projection has none here either.
    """
    entries = [Entry("log_temperature", ("logit_scale",))]
    if vision:
        entries += [
            Entry("vision.class_token", ("visual.class_embedding",)),
            Entry("vision.positions", ("visual.positional_embedding",)),
            Entry("vision.patches.weight", ("visual.conv1.weight",)),
            Entry("vision.projection.weight", ("visual.proj",), "transposed"),
            *layers("vision", "visual", {"norm_in": "ln_pre", "norm_out": "ln_post"}),
            *_clip_blocks("vision.blocks", "visual.transformer.resblocks", vision.layers),
        ]
    if text:
        entries += [
            Entry("text.tokens.weight", ("token_embedding.weight",)),
            Entry("text.positions", ("positional_embedding",)),
            *weights("text.norm_out", "ln_final"),
            *_clip_blocks("text.blocks", "transformer.resblocks", text.layers),
        ]
        if text.embed_dim:
            entries.append(Entry("text.projection.weight", ("text_projection",), "transposed"))
    # The causal mask was saved as a buffer by some versions; it is a constant.
    return KeyTable(tuple(entries), ignored=("attn_mask",))


def openai_image_tower(vision: VisionConfig) -> KeyTable:
    """The image tower of Zero-1-to-3, under `cond_stage_model.model.`. Ours is a `VisionTower` here, not a `CLIP`.

    What the published file keeps of the text tower, which has no blocks any more, is left alone.
    """
    entries = [e for e in openclip(vision, None).entries if e.ours.startswith("vision.")]
    text = ("logit_scale", "text_projection", "positional_embedding", r"token_embedding\..*", r"ln_final\..*")
    return KeyTable(tuple(Entry(e.ours.removeprefix("vision."), e.published, e.form) for e in entries), text)


def camera_projection() -> KeyTable:
    """The projection of [image embedding, pose] of Zero-1-to-3, under `cc_projection.`; ours is a `Linear`."""
    return KeyTable((Entry("weight", ("weight",)), Entry("bias", ("bias",))))


def clip_text_huggingface(text: TextConfig) -> KeyTable:
    """The text tower alone in Hugging Face's layout, as in Stable Diffusion 1 files.

    It stands there under `cond_stage_model.transformer.text_model.`. Ours is a `TextTower` here, not a `CLIP`.
    """
    entries = [
        Entry("tokens.weight", ("embeddings.token_embedding.weight",)),
        Entry("positions", ("embeddings.position_embedding.weight",)),
        *weights("norm_out", "final_layer_norm"),
        *clip_blocks_huggingface("blocks", "encoder.layers", text.layers),
    ]
    if text.embed_dim:
        raise ValueError("Stable Diffusion 1's text tower was published without projection; set embed_dim to none.")
    # 0..76, an integer buffer of old library versions.
    return KeyTable(tuple(entries), ignored=(r"embeddings\.position_ids",))


def resampler(depth: int) -> KeyTable:
    """The resampler of `depth` layers by itself, as in `image_embed.` of ImageDream's U-Net."""
    return KeyTable(tuple(_resampler(depth)))


def global_projection() -> KeyTable:
    """The projection of the pooled embedding by itself, as in `image_embed.` of a U-Net with global control."""
    return KeyTable(tuple(layers("", "", {"proj": "proj", "norm": "norm"})))


def unet_config(published: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]] | None = None) -> UNetConfig:
    """Our config of a published U-Net's keyword arguments (`unet_config.params` of its yaml file).

    The yaml files leave out the widths of the image features and the size of the resampler. They are the published
    ones unless `shapes`, the tensor shapes of the checkpoint by published name, tells them. `ip_weight` is a setting
    of each call, not of the network, and is not part of the result. ValueError for an argument that changes the
    network in a way ours cannot.
    """
    _check_arguments("U-Net", published, _UNET_ARGUMENTS, _UNET_FIXED)
    mult = tuple(int(m) for m in published["channel_mult"])
    blocks, places = published["num_res_blocks"], published["attention_resolutions"]
    head_width, num_heads = int(published.get("num_head_channels", -1)), int(published.get("num_heads", -1))
    level_heads: tuple[int, ...] | None = None
    widths = [int(published["model_channels"]) * m for m in mult]
    if head_width != -1 and published.get("legacy", True) and any(width % head_width for width in widths):
        # The released networks' "legacy" way, their default: the heads share all channels, whatever is left over.
        level_heads = tuple(max(1, width // head_width) for width in widths)
    return UNetConfig(
        in_channels=int(published["in_channels"]),
        out_channels=int(published["out_channels"]),
        channels=int(published["model_channels"]),
        channel_mult=mult,
        res_blocks=(blocks,) * len(mult) if isinstance(blocks, int) else tuple(blocks),
        # Published as down-sampling factors, ours is one answer per level.
        attention=tuple(2**level in places for level in range(len(mult))),
        head_width=None if head_width == -1 or level_heads is not None else head_width,
        num_heads=num_heads if head_width == -1 else None,
        level_heads=level_heads,
        linear_projection=bool(published.get("use_linear_in_transformer", False)),
        transformer_depth=int(published.get("transformer_depth", 1)),
        context_dim=_one(published["context_dim"]),
        camera_dim=published.get("camera_dim"),
        image_prompt=_image_prompt_config(published, shapes or {}) if published.get("with_ip") else None,
    )


def autoencoder_config(published: Mapping[str, Any]) -> AutoencoderConfig:
    """Our config of a published autoencoder's arguments (`first_stage_config.params`: `ddconfig` and `embed_dim`)."""
    shape = published["ddconfig"]
    _check_arguments("autoencoder", shape, _AUTOENCODER_ARGUMENTS, _AUTOENCODER_FIXED)
    mult = tuple(int(m) for m in shape["ch_mult"])
    if shape["in_channels"] != shape["out_ch"]:
        raise ValueError(
            f"an autoencoder gives back what it reads, got {shape['in_channels']} and {shape['out_ch']} channels."
        )
    return AutoencoderConfig(
        image_channels=int(shape["in_channels"]),
        channels=int(shape["ch"]),
        channel_mult=mult,
        res_blocks=int(shape["num_res_blocks"]),
        # Attention is placed by the side of the map in training, `resolution` at the finest level.
        attention=tuple(shape["resolution"] // 2**level in shape["attn_resolutions"] for level in range(len(mult))),
        inner_channels=int(shape["z_channels"]),
        latent_channels=int(published["embed_dim"]),
    )


def openclip_configs(published: Mapping[str, Any]) -> tuple[VisionConfig, TextConfig]:
    """Our configs of an OpenCLIP model's config file."""
    vision, text, embed = published["vision_cfg"], published["text_cfg"], int(published["embed_dim"])
    activation: Activation = "quick_gelu" if published.get("quick_gelu") else "gelu"
    return (
        VisionConfig(
            image_size=int(vision["image_size"]),
            patch_size=int(vision["patch_size"]),
            width=int(vision["width"]),
            layers=int(vision["layers"]),
            heads=int(vision["width"]) // int(vision.get("head_width", 64)),
            mlp_width=int(vision["width"] * vision.get("mlp_ratio", 4.0)),
            embed_dim=embed,
            activation=activation,
        ),
        TextConfig(
            vocabulary=int(text["vocab_size"]),
            context_length=int(text["context_length"]),
            width=int(text["width"]),
            layers=int(text["layers"]),
            heads=int(text["heads"]),
            mlp_width=int(text["width"] * text.get("mlp_ratio", 4.0)),
            embed_dim=embed,
            activation=activation,
        ),
    )


_UNET_ARGUMENTS = (
    "in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_resolutions",
    "num_head_channels", "num_heads", "use_linear_in_transformer", "transformer_depth", "context_dim", "camera_dim",
    "with_ip", "ip_dim", "ip_mode", "ip_weight", "legacy",
    # Without effect on what the network computes.
    "image_size", "use_checkpoint", "use_fp16", "use_bf16",
)  # fmt: skip
_UNET_FIXED = {
    "use_spatial_transformer": True, "dims": 2, "dropout": 0, "conv_resample": True, "use_scale_shift_norm": False,
    "resblock_updown": False, "num_classes": None, "n_embed": None, "disable_middle_self_attn": False,
    "num_heads_upsample": -1, "use_new_attention_order": False,
}  # fmt: skip
_AUTOENCODER_ARGUMENTS = (
    "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks", "attn_resolutions",
)  # fmt: skip
_AUTOENCODER_FIXED = {
    "double_z": True, "dropout": 0, "resamp_with_conv": True, "attn_type": "vanilla", "use_linear_attn": False,
    "tanh_out": False, "give_pre_end": False,
}  # fmt: skip


def _check_arguments(what: str, given: Mapping[str, Any], known: tuple[str, ...], fixed: Mapping[str, Any]) -> None:
    """ValueError for an argument we do not know, or one whose value our network cannot follow."""
    for name, value in given.items():
        if name in fixed and value != fixed[name]:
            raise ValueError(f"this {what} has {name} = {value!r}; only {fixed[name]!r} is supported.")
        if name not in fixed and name not in known:
            raise ValueError(
                f"this {what} has an unknown setting {name} = {value!r}; it may be another kind of network."
            )


def _one(value: int | list[int]) -> int:
    """A width that some files repeat for each block of a transformer."""
    widths = {value} if isinstance(value, int) else set(value)
    if len(widths) != 1:
        raise ValueError(f"this U-Net reads contexts of several widths, {sorted(widths)}; only one width is supported.")
    return widths.pop()


def _image_prompt_config(published: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> ImagePromptConfig:
    mode, tokens = published["ip_mode"], int(published["ip_dim"])
    shape = {name.removeprefix("image_embed."): s for name, s in shapes.items() if name.startswith("image_embed.")}
    if mode == "global":
        width = shape["proj.weight"][1] if shape else 1024
        return ImagePromptConfig(local_dim=0, global_dim=width, num_global=tokens)
    if mode != "local_resample":
        raise ValueError(f"image control {mode!r} was never released; known are 'global' and 'local_resample'.")
    if not shape:
        return ImagePromptConfig(num_queries=tokens)
    default = ImagePromptConfig()
    return ImagePromptConfig(
        local_dim=shape["proj_in.weight"][1],
        num_queries=tokens,
        depth=sum(name.endswith("to_kv.weight") for name in shape),
        # Only heads x width can be read from a file; heads were always 64 wide.
        heads=shape["layers.0.0.to_q.weight"][0] // default.head_width,
        ff_mult=shape["layers.0.1.1.weight"][0] // shape["layers.0.1.1.weight"][1],
    )


_MLP = {"linear_in": "0", "linear_out": "2"}
_RESIDUAL = {
    "norm_in": "in_layers.0", "conv_in": "in_layers.2", "embedding": "emb_layers.1",
    "norm_out": "out_layers.0", "conv_out": "out_layers.3",
}  # fmt: skip
_VAE_RESIDUAL = {"norm_in": "norm1", "conv_in": "conv1", "norm_out": "norm2", "conv_out": "conv2"}
_CLIP_BLOCK = {
    "norm_attention": "ln_1", "norm_mlp": "ln_2", "to_out": "attn.out_proj",
    "mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj",
}  # fmt: skip


def _residual(ours: str, published: str, skip: bool) -> Iterator[Entry]:
    yield from layers(ours, published, _RESIDUAL)
    if skip:
        yield from weights(f"{ours}.skip", f"{published}.skip_connection")


def _block(config: UNetConfig, ours: str, published: str, width: int, level: int) -> Iterator[Entry]:
    """A residual block of `width` input channels and, where the level has attention, its transformer."""
    out = config.widths[level]
    yield from _residual(f"{ours}.residual", f"{published}.0", skip=width != out)
    if config.attention[level]:
        yield from transformer(config, f"{ours}.transformer", f"{published}.1")


def _image_tokens(prompt: ImagePromptConfig) -> KeyTable:
    """What stands under `image_embed.`: the resampler, or the projection of the pooled embedding."""
    if prompt.global_dim:
        return global_projection().under("global_tokens.", "")
    if not prompt.resample:
        raise ValueError("no published file projects local tokens without resampling; this network is only ours.")
    return KeyTable(tuple(_resampler(prompt.depth))).under("local_tokens.", "")


def _resampler(depth: int) -> Iterator[Entry]:
    yield Entry("queries", ("latents",))
    yield from layers("", "", {name: name for name in ("proj_in", "proj_out", "norm_out")})
    for i in range(depth):
        mine, theirs = f"attentions.{i}", f"layers.{i}.0"
        yield from layers(mine, theirs, {"norm_image": "norm1", "norm_queries": "norm2"})
        for name in ("to_q", "to_kv", "to_out"):
            yield from weights(f"{mine}.{name}", f"{theirs}.{name}", bias=False)
        yield from weights(f"feed_forwards.{i}.0", f"layers.{i}.1.0")
        for j in (1, 3):
            yield from weights(f"feed_forwards.{i}.{j}", f"layers.{i}.1.{j}", bias=False)


def _vae_attention(ours: str, published: str) -> Iterator[Entry]:
    yield from weights(f"{ours}.norm", f"{published}.norm")
    for mine, theirs in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out", "proj_out")):
        yield from weights(f"{ours}.{mine}", f"{published}.{theirs}", form="pointwise")


def _clip_blocks(ours: str, published: str, count: int) -> Iterator[Entry]:
    for i in range(count):
        yield from layers(f"{ours}.{i}", f"{published}.{i}", _CLIP_BLOCK)
        for kind in ("weight", "bias"):
            yield Entry(f"{ours}.{i}.to_qkv.{kind}", (f"{published}.{i}.attn.in_proj_{kind}",))
