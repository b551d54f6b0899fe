"""Pieces of key tables that the published layouts share: layers, transformers of the U-Net, Hugging Face's CLIP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from maquette.diffusion.unet import UNetConfig
from maquette.priors.checkpoints import Entry, Form


def join(prefix: str, name: str) -> str:
    """A dotted name, also below an empty prefix."""
    return f"{prefix}.{name}" if prefix else name


def weights(ours: str, published: str, *, bias: bool = True, form: Form = "same") -> Iterator[Entry]:
    """A layer's weight and, where it has one, bias."""
    yield Entry(f"{ours}.weight", (f"{published}.weight",), form)
    if bias:
        yield Entry(f"{ours}.bias", (f"{published}.bias",))


def layers(ours: str, published: str, names: Mapping[str, str]) -> Iterator[Entry]:
    """Several layers of one block, each with weight and bias."""
    for mine, theirs in names.items():
        yield from weights(join(ours, mine), join(published, theirs))


def transformer(config: UNetConfig, ours: str, published: str) -> Iterator[Entry]:
    """A transformer of the U-Net; every layout names its inside alike."""
    yield from layers(ours, published, {name: name for name in ("norm", "proj_in", "proj_out")})
    for i in range(config.transformer_depth):
        mine, theirs = f"{ours}.blocks.{i}", f"{published}.transformer_blocks.{i}"
        yield from layers(mine, theirs, {
            "norm_self": "norm1", "norm_cross": "norm2", "norm_ff": "norm3",
            "feed_forward.proj_in": "ff.net.0.proj", "feed_forward.proj_out": "ff.net.2",
        })  # fmt: skip
        for a, b in (("self_attention", "attn1"), ("cross_attention", "attn2")):
            for name in ("to_q", "to_k", "to_v"):
                yield from weights(f"{mine}.{a}.{name}", f"{theirs}.{b}.{name}", bias=False)
            yield from weights(f"{mine}.{a}.to_out", f"{theirs}.{b}.to_out.0")
        if config.image_prompt:
            for name in ("to_k", "to_v"):
                yield from weights(f"{mine}.cross_attention.{name}_image", f"{theirs}.attn2.{name}_ip", bias=False)


def clip_blocks_huggingface(ours: str, published: str, count: int) -> Iterator[Entry]:
    """Blocks of a CLIP tower in Hugging Face's layout, which keeps q, k and v apart."""
    for i in range(count):
        mine, theirs = f"{ours}.{i}", f"{published}.{i}"
        yield from layers(mine, theirs, {
            "norm_attention": "layer_norm1", "norm_mlp": "layer_norm2", "to_out": "self_attn.out_proj",
            "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
        })  # fmt: skip
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}.self_attn.{name}_proj.{kind}" for name in ("q", "k", "v"))
            yield Entry(f"{mine}.to_qkv.{kind}", parts)
