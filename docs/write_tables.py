"""Writes the tables of docs/methods that come from the code: `python docs/write_tables.py`.

A preset that changes, or a network of another size, changes the page with it; tests/test_docs.py fails until it does.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from maquette.diffusion.unet import ImagePromptConfig, MultiViewUNet, UNetConfig
from maquette.fields import HashGridConfig, TriPlanesConfig
from maquette.methods import dreambooth3d, imagedream, usd
from maquette.schedules import Constant, Linear, Piecewise
from maquette.training.nano import nano_network

PAGES = Path(__file__).resolve().parent / "methods"

# Setting of the config, what the paper says, what the released code and configuration say.
PRESETS: tuple[tuple[str, str, str], ...] = (
    ("control", "local+pixel (its final model)", "local+pixel, or local"),
    ("sampling.steps", "not stated", "50"),
    ("sampling.guidance_scale", "not stated", "5"),
    ("sampling.eta", "not stated", "0"),
    ("sampling.spacing", "not stated", "every 20th step, plus one"),
    ("sampling.unconditional", "trained with a flat colour", "zeros"),
    ("view_words.negative", "not stated", "the demo's, the same"),
    ("view_words.suffix", "not stated", "the demo's, the same"),
    ("view_elevation", "5 (all results shown)", "5, fixed in the demo"),
    ("background", "not stated", "one random grey"),
    ("guidance.form", "x0", "x0"),
    ("guidance.guidance_scale", "not stated", "5"),
    ("guidance.rescale", "not mentioned", "0.2"),
    ("guidance.alignment", "the render's background", "its brightness only"),
    ("guidance.sample_posterior", "not stated", "yes"),
    ("words.negative", "not mentioned", "the configuration's, the same"),
    ("distillation.noise_range.low", "not mentioned", "0.98 → 0.02 over 8000 steps"),
    ("distillation.noise_range.high", "not mentioned", "0.98 → 0.5 over 8000 steps"),
    ("cameras.elevation", "0 to 5", "0 to 5"),
    ("cameras.fovy", "45 to 50", "45 to 50"),
    ("cameras.relative_distance", "0.6 to 0.85", "0.6 to 0.75"),
    ("cameras.distance", "from the above", "from the above"),
    ("cameras.num_views", "4", "4"),
    ("distillation.resolution", "switches at steps 5000 and 10 000", "64, then 192, then 256"),
    ("distillation.scenes", "not stated", "2, then 1"),
    ("distillation.random_background", "random", "0.5"),
    ("distillation.shading.begin", "not stated", "5000 of 12 500 steps"),
    ("distillation.shading.albedo", "not stated", "0.25"),
    ("distillation.shading.textureless", "not stated", "0.5"),
    ("distillation.regularizers.orientation", "not mentioned", "10 → 1000 over 5000 steps"),
    ("distillation.regularizers.sparsity", "not mentioned", "1"),
    ("fit.steps", "not stated", "12 500"),
    ("fit.encoding_rate", "not stated", "0.01"),
    ("fit.network_rate", "not stated", "0.001"),
    ("fit.rate", "not stated", "constant"),
    ("fit.total_variation", "not mentioned", "0"),
    ("scene.field.encoding", "not stated", "hash grid, 16 levels of 2 features"),
    ("scene.samples", "not stated", "512"),
    ("scene.occupancy.resolution", "not stated", "32"),
    ("outlines", "–", "–"),
    ("warm_start", "–", "–"),
    ("keep_views", "–", "–"),
    ("paint_views", "–", "–"),
    ("prompt_view", "–", "–"),
    ("mesh.resolution", "no mesh", "no mesh"),
    ("mesh.blur", "no mesh", "no mesh"),
    ("mesh.fill_pits", "no mesh", "no mesh"),
)


# Setting of the config, what the released code has.
USD_PRESETS: tuple[tuple[str, str], ...] = (
    ("prior", "Zero123-XL"),
    ("free_prior", "Stable Diffusion 2.1-base"),
    ("default_elevation", "15, always"),
    ("fovy", "39.6"),
    ("distance", "1.5"),
    ("guidance.omega", "7.5"),
    ("guidance.lambda_", "0"),
    ("guidance.null", "the free prior's"),
    ("distillation.noise_range.low", "0.02"),
    ("distillation.noise_range.high", "0.98, 0.5 from step 5001 of 15 000"),
    ("distillation.resolution", "512"),
    ("distillation.weight", "1"),
    ("distillation.regularizers.sparsity", "10"),
    ("distillation.regularizers.opaque", "0, 1000 from step 10 000"),
    ("cameras.elevation", "-10 to 45"),
    ("reference.noise_range.high", "0.98"),
    ("reference.weight", "1"),
    ("patch", "128 of 512 px, factor 4"),
    ("scene.field.encoding", "hash grid, 16 levels of 2 features"),
    ("scene.samples", "512"),
    ("scene.occupancy.resolution", "32"),
    ("fit.steps", "15 000"),
    ("fit.encoding_rate", "0.01"),
    ("fit.network_rate", "0.001"),
    ("fit.rate", "constant"),
    ("fit.total_variation", "0"),
    ("novel.count", "the picture and 5"),
    ("novel.sampling.steps", "not stated"),
    ("novel.sampling.guidance_scale", "not stated (Zero-1-to-3: 3)"),
    ("novel.rectified", "in the supplement"),
    ("renderings.count", "120"),
    ("renderings.size", "512"),
    ("renderings.hardening", "–"),
    ("refinement.specialize.class_images.count", "200"),
    ("refinement.specialize.first.adapter.rank", "4"),
    ("refinement.specialize.first.steps", "600"),
    ("refinement.specialize.first.learning_rate", "2e-4"),
    ("refinement.specialize.second.steps", "5"),
    ("refinement.translate.strength", "10 of 50 steps"),
    ("refinement.translate.sampling.guidance_scale", "6.5"),
    ("recovery.fit.steps", "unknown"),
    ("recovery.scene.field.encoding", "unknown"),
    ("surface_reference", "unknown"),
    ("warm_start", "–"),
    ("keep_views", "–"),
    ("prompt_view", "–"),
    ("paint_prompt", "no"),
)


def usd_presets() -> str:
    """Every setting that decides a result of USD, as the released code and both presets have it."""
    ours, small = usd.paper(), usd.nano()
    rows = [
        (f"`{path}`", released, shown(value_at(ours, path)), shown(value_at(small, path)))
        for path, released in USD_PRESETS
    ]
    return markdown(("setting", "released code", "`paper()`", "`nano()`"), rows)


# Setting of the config, what the paper says, what is recommended for Stable Diffusion where the paper is silent.
DREAMBOOTH3D_PRESETS: tuple[tuple[str, str, str], ...] = (
    ("prior", "Imagen", "Stable Diffusion 2.1-base"),
    ("personal.keep", "150", "150 to 200, or by a test"),
    ("personal.steps", "800", "800"),
    ("personal.learning_rate", "not given", "5e-6"),
    ("personal.batch", "not given", "1, and 1 of the class"),
    ("personal.prior_weight", "not stated", "1"),
    ("class_pictures.count", "not stated", "200"),
    ("multiview.personal.steps", "150", "150 to 200"),
    ("multiview.captions", "not stated", "context and view"),
    ("multiview.real_fraction", "not stated", "uniform over all pictures"),
    ("pseudo_views.count", "20", "20"),
    ("pseudo_views.elevations", "not given", "0, 15, 30"),
    ("pseudo_views.translate.strength", "fixed, not given", "0.5"),
    ("pseudo_views.translate.sampling.steps", "not given", "50"),
    ("pseudo_views.translate.sampling.guidance_scale", "not given", "7.5"),
    ("pseudo_views.translate.candidates", "–", "2 to 4 where there is time"),
    ("guidance.omega", "101 (100 as DreamFusion writes it)", "101"),
    ("guidance.lambda_", "1", "1"),
    ("distillation.noise_range.low", "0.02", "0.02"),
    ("distillation.noise_range.high", "0.98", "0.98"),
    ("distillation.resolution", "64", "64, then 128"),
    ("distillation.shading.begin", "1000 of 15 000 steps", "0.2"),
    ("distillation.shading.albedo", "0.25", "0.25"),
    ("distillation.shading.textureless", "0.5", "0.5"),
    ("distillation.regularizers.orientation", "1e-4 → 1e-2, as a mean over rays", "10 → 1000, over rays that hit"),
    ("distillation.regularizers.sparsity", "1e-3 to 5e-3, as a mean over rays", "1"),
    ("cameras.elevation", "-10 to 90", "-10 to 45"),
    ("cameras.fovy", "40.6 to 71.1", "40 to 70"),
    ("cameras.distance", "1 to 1.5", "1.5 to 2"),
    ("scene.field.encoding", "frequencies, 5 x 128 MLP", "hash grid"),
    ("initial_fit.steps", "15 000 (DreamFusion's)", "10 000"),
    ("fit.steps", "15 000 (DreamFusion's)", "10 000"),
    ("reconstruction.compare.norm", "p, not given", "1"),
    ("reconstruction.mask", "not mentioned", "0"),
    ("balance.share", "a fixed weight, not given", "0.3, to 0.05 at the end"),
    ("warm_start", "not mentioned", "no"),
    ("first_views", "–", "–"),
)


def dreambooth3d_presets() -> str:
    """Every setting that decides a result of DreamBooth3D: the paper, the recommendation and both presets."""
    ours, small = dreambooth3d.paper(), dreambooth3d.nano()
    rows = [
        (f"`{path}`", written, recommended, shown(value_at(ours, path)), shown(value_at(small, path)))
        for path, written, recommended in DREAMBOOTH3D_PRESETS
    ]
    return markdown(("setting", "paper", "recommended", "`paper()`", "`nano()`"), rows)


def presets() -> str:
    """Every setting that decides a result, as the paper, the released code and both presets have it."""
    ours, small = imagedream.paper(), imagedream.nano()
    rows = [
        (f"`{path}`", written, released, shown(value_at(ours, path)), shown(value_at(small, path)))
        for path, written, released in PRESETS
    ]
    return markdown(("setting", "paper", "released code", "`paper()`", "`nano()`"), rows)


def value_at(config: Any, path: str) -> Any:
    """The setting that a dotted path names."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def shown(value: Any) -> str:
    """A setting as a reader would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value == "":
        return "none"
    if isinstance(value, str) and len(value.split()) > 6:
        return f'"{" ".join(value.split()[:3])} …"'
    if isinstance(value, Constant):
        return shown(value.value)
    if isinstance(value, Linear):
        span = "the run" if value.end == 1 else f"the first {value.end:.0%}".replace("%", " %")
        return f"{value.first:g} → {value.last:g} over {span}"
    if isinstance(value, Piecewise):
        later = zip(value.values[1:], value.milestones, strict=True)
        return ", ".join([f"{value.values[0]:g}", *(f"{v:g} from {m:.0%}".replace("%", " %") for v, m in later)])
    if isinstance(value, TriPlanesConfig):
        return f"tri-planes, {' and '.join(map(str, value.resolutions))} texels, {value.features} features"
    if isinstance(value, HashGridConfig):
        return f"hash grid, {value.levels} levels of {value.features} features"
    if dataclasses.is_dataclass(value):
        return "in use"
    if isinstance(value, tuple):
        return " to ".join(dict.fromkeys(f"{item:.4g}" for item in value))
    return (
        f"{value:g}"
        if isinstance(value, float)
        else f"{value:_}".replace("_", " ")
        if isinstance(value, int)
        else value
    )


def controllers() -> str:
    """What each controller costs in parameters and in arithmetic, at the published size and in nano."""
    published = UNetConfig(image_prompt=ImagePromptConfig())
    sizes = (Size(published, tokens=257, side=32, words=77), Size(nano_network(), tokens=65, side=16, words=24))
    rows: list[tuple[str, ...]] = [
        ("parameters of the whole U-Net", *(f"{size.parameters():,}" for size in sizes)),
        ("… of the resampler", *(f"{size.parameters('local_tokens'):,}" for size in sizes)),
        ("… of the image keys and values", *(f"{size.parameters('to_[kv]_image'):,}" for size in sizes)),
        ("… added by pixel control", "0", "0"),
        ("arithmetic for 4 views, text only", "1", "1"),
        ("… with local control", *(f"{size.arithmetic(local=True):.3f}" for size in sizes)),
        (
            "… with local control, no resampler",
            *(f"{size.arithmetic(local=True, resample=False):.3f}" for size in sizes),
        ),
        ("… with local and pixel control", *(f"{size.arithmetic(local=True, views=5):.3f}" for size in sizes)),
    ]
    return markdown(("", "published size", "nano"), rows)


@dataclasses.dataclass(frozen=True)
class Size:
    """A network whose costs are counted without allocating it."""

    config: UNetConfig
    tokens: int
    """Hidden tokens of the image encoder."""
    side: int
    """Latent pixels along the side of a view."""
    words: int
    """Tokens of a caption."""

    @cache  # noqa: B019 (a value that lives as long as the script)
    def build(self, resample: bool = True) -> MultiViewUNet:
        """The network on no device at all."""
        assert self.config.image_prompt is not None
        prompt = replace(self.config.image_prompt, resample=resample)
        with torch.device("meta"):
            return MultiViewUNet(replace(self.config, image_prompt=prompt))

    def parameters(self, part: str = "") -> int:
        """Numbers in all tensors whose name contains the pattern `part`."""
        return sum(tensor.numel() for name, tensor in self.build().named_parameters() if re.search(part, name))

    @cache  # noqa: B019 (a value that lives as long as the script)
    def operations(self, *, local: bool, views: int, resample: bool) -> int:
        """Floating-point operations of one evaluation of one scene."""
        network, config = self.build(resample), self.config
        assert config.image_prompt is not None
        with torch.device("meta"):
            x = torch.empty(1, views, config.in_channels, self.side, self.side)
            text, camera = torch.empty(1, self.words, config.context_dim), torch.empty(1, views, config.camera_dim or 0)
            features = torch.empty(1, self.tokens, config.image_prompt.local_dim) if local else None
            with FlopCounterMode(display=False) as counter:
                network(x, torch.zeros(1, dtype=torch.long), text, camera, local_features=features)
        return counter.get_total_flops()

    def arithmetic(self, *, local: bool, views: int = 4, resample: bool = True) -> float:
        """Operations against those of four views without an image prompt."""
        base = self.operations(local=False, views=4, resample=True)
        return self.operations(local=local, views=views, resample=resample) / base


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "presets": presets,
    "controllers": controllers,
    "usd_presets": usd_presets,
    "dreambooth3d_presets": dreambooth3d_presets,
}


def filled(page: str) -> str:
    """The page with every table between its marks `<!-- table: NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


if __name__ == "__main__":
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"wrote the tables of {PAGES}")
