"""Where the networks of Zero-1-to-3 and Stable Diffusion stand in their published files, in both layouts.

*ldm*: one checkpoint with all networks, and often the U-Net twice, the second time as the running average of training
(`model_ema.`, names without their dots). The average is what the authors sampled with, so it is taken where it is.
*diffusers*: a folder with a folder for each network, which has its config.json and the same weights in one or several
precisions; files named after an average go first, full precision next, half precision last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maquette.errors import UserError
from maquette.priors.checkpoints import KeyTable, stream
from maquette.priors.tensor_files import TensorFile, open_tensors

UNET, AUTOENCODER, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
PROJECTION, IMAGE_TOWER = "cc_projection.", "cond_stage_model.model."
TEXT_SD1, TEXT_SD2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."

_SIGNS: tuple[tuple[str, str], ...] = (
    (r"cc_projection\..*", "Zero-1-to-3 in the original (ldm) layout"),
    (r"model\.diffusion_model\.image_embed\..*", "ImageDream"),
    (r"model\.diffusion_model\.camera_embed\..*", "MVDream"),
    (r"control_model\..*", "a ControlNet"),
    (r"cond_stage_model\.transformer\..*", "Stable Diffusion 1 in the original (ldm) layout"),
    (r"cond_stage_model\.model\.transformer\..*", "Stable Diffusion 2 in the original (ldm) layout"),
    (r"model\.diffusion_model\..*", "a latent-diffusion model of another kind"),
    (r"conditioner\.embedders\..*", "Stable Diffusion XL"),
    (r".*\.lora_(up|down|A|B)\..*", "a low-rank adapter"),
    (r"input_blocks\..*", "an ldm U-Net alone, without the other networks"),
    (r"down_blocks\..*transformer_blocks\..*", "a U-Net of the diffusers layout"),
    (r"encoder\.(down_blocks|down)\..*", "an autoencoder"),
    (r"vision_model\..*", "a CLIP image encoder"),
    (r"text_model\..*", "a CLIP text encoder"),
    (r"visual\..*", "an OpenCLIP model"),
    (r"proj(ection)?\.weight", "Zero-1-to-3's camera projection"),
)
"""Names that tell models apart, the most particular first."""


def looks_like(file: TensorFile) -> str:
    """What a file seems to hold, in a few words, for messages about wrong files."""
    for pattern, description in _SIGNS:
        if any(re.fullmatch(pattern, name) for name in file.tensors):
            if description == "a U-Net of the diffusers layout" and "conv_in.weight" in file.tensors:
                return f"{description} with {file.tensors['conv_in.weight'].shape[1]} input channels"
            return description
    first = next(iter(file.tensors), None)
    return "a file without tensors" if first is None else f"no model that this version knows (it has {first!r})"


def filled(
    module: nn.Module,
    file: TensorFile,
    table: KeyTable,
    prefix: str = "",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """A module of the meta device with a file's tensors, read one at a time, in evaluation mode without gradients.

    UserError that says what differs and which model the file looks like.
    """
    try:
        stream(module, file, table, prefix, device=device, dtype=dtype)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{str(error).rstrip('.')}; it looks like {looks_like(file)}") from None
    return module.eval().requires_grad_(False)


def averaged(file: TensorFile, table: KeyTable) -> tuple[TensorFile, bool]:
    """The file with the U-Net's running average in its place, and whether it has one.

    UserError where only a part of the average is there.
    """
    inner = UNET.removeprefix("model.")
    # Two names must not become one without their dots; the published ones do not.
    names = {name: EMA + (inner + name).replace(".", "") for name in table.published()}
    assert len(set(names.values())) == len(names)
    missing = [average for average in names.values() if average not in file.tensors]
    if len(missing) == len(names):
        return file, False
    if missing:
        raise UserError(
            f"{file.path} has only a part of the averaged weights: it lacks {len(missing)} of {len(names)} tensors, "
            f"such as {missing[0]!r}; it is damaged or was cut"
        )
    average = {UNET + name: file.tensors[source] for name, source in names.items()}
    others = {name: tensor for name, tensor in file.tensors.items() if not name.startswith(UNET)}
    return replace(file, tensors={**others, **average}), True


@dataclass(frozen=True)
class DiffusersFolder:
    """A published folder of networks."""

    path: Path

    def has(self, component: str) -> bool:
        """Whether the folder of a network is there."""
        return (self.path / component).is_dir()

    def config(self, component: str, name: str = "config.json") -> dict[str, Any]:
        """The settings of a network. UserError where they are missing or no JSON."""
        path = self.path / component / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} is no whole model in the diffusers layout: {component}/{name} is missing"
            ) from (None)
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} cannot be read as JSON ({error}); copy or fetch it again") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} does not hold settings; copy or fetch it again")
        return content

    def file(self, component: str) -> TensorFile:
        """The tensors of a network, of the best of its files. UserError where it has none."""
        folder = self.path / component
        if not folder.is_dir():
            raise UserError(f"{self.path} is no whole model in the diffusers layout: the folder {component} is missing")
        found = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin")]
        if not found:
            raise UserError(f"{folder} has no weights; it should hold a .safetensors or a .bin file")
        shards = [_shards(path, found) for path in found]
        chosen = min((group for group in shards if group), key=lambda group: _preference(group[0]))
        files = [open_tensors(path) for path in chosen]
        tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
        return replace(files[0], path=chosen[0], tensors=tensors)


def _shards(path: Path, beside: list[Path]) -> list[Path]:
    """A file, or all parts of one that was split; nothing for a part that is not the first. UserError for lost ones."""
    match = re.fullmatch(r"(.*)-(\d+)-of-(\d+)(.*)", path.name)
    if match is None:
        return [path]
    if int(match[2]) != 1:
        return []
    parts = [
        path.with_name(f"{match[1]}-{i + 1:0{len(match[2])}}-of-{match[3]}{match[4]}") for i in range(int(match[3]))
    ]
    lost = [part.name for part in parts if part not in beside]
    if lost:
        raise UserError(f"{path.parent} is not whole: {lost[0]} is missing; copy or fetch it again")
    return parts


def _preference(path: Path) -> tuple[int, bool, str]:
    """Lower is better: the average, then full precision, then half, the weights that are no average last."""
    words = set(re.split(r"[._-]", path.name.lower()))
    average = "ema" in words and "non" not in words
    half = bool(words & {"fp16", "bf16", "half"})
    rank = 0 if average else 3 if "non" in words else 2 if half else 1
    return rank, path.suffix != ".safetensors", path.name


def is_average(file: TensorFile) -> bool:
    """Whether a diffusers file is named after a running average."""
    return _preference(file.path)[0] == 0


def weights_path(path: Path) -> TensorFile | DiffusersFolder:
    """What a person pointed to: a checkpoint, a folder in the diffusers layout, or a folder with one checkpoint.

    UserError saying what was expected.
    """
    if path.is_file():
        return open_tensors(path)
    if not path.is_dir():
        raise UserError(f"no weights at {path}; give a checkpoint file or a folder in the diffusers layout")
    if (path / "unet").is_dir():
        return DiffusersFolder(path)
    found = [file for file in sorted(path.iterdir()) if file.suffix in (".ckpt", ".safetensors", ".pt", ".bin")]
    if len(found) != 1:
        what = "no checkpoint" if not found else f"{len(found)} checkpoints ({', '.join(f.name for f in found[:3])})"
        raise UserError(
            f"{path} has no folder 'unet' and {what}; give one checkpoint file, or a folder in the diffusers layout"
        )
    return open_tensors(found[0])


def outline(make: Any, *arguments: Any) -> Any:
    """A network without memory, to be filled."""
    with torch.device("meta"):
        return make(*arguments)


def understood(read: Any, settings: Mapping[str, Any], where: Path) -> Any:
    """Settings as our config; UserError naming the folder where they are of another kind of network."""
    try:
        return read(settings)
    except KeyError as error:
        raise UserError(f"the settings in {where} lack {error}; copy or fetch them again") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def hashed(files: Mapping[str, Path]) -> dict[str, Any]:
    """sha256 of the files that were read, one for all, and their names by what they hold."""
    import hashlib

    from maquette.run.fingerprints import file_sha256

    hashes = {path: file_sha256(path) for path in dict.fromkeys(files.values())}
    digests = list(hashes.values())
    one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return {"sha256": one, "files": {name: path.name for name, path in files.items()}}
