"""The ImageDream protocol: how good do views look, and how like their prompt are they, without any ground truth.

Section 4 of arXiv:2312.02201. For every prompt image, the views that the prior samples ("diffused") and views rendered
again from the finished asset ("rendered") are scored by the quality-only inception score, by CLIP against the caption
and by CLIP against the prompt; a case's score is the mean over its views, and the table gives mean and standard
deviation over cases. The prompts score themselves, as the paper's first row does. None of these scores sees whether the
views agree with one another or what the shape is like: read them beside the object benchmark.

The paper names neither its CLIP nor its classifier, so every figure carries the name of the network that made it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from maquette import __version__
from maquette.asset import Asset, load_mesh
from maquette.cameras import orbit
from maquette.errors import RunFailed, UserError
from maquette.evaluation.baselines import read_jsonl
from maquette.evaluation.encoders import ImageClassifier, ImageEncoder, ImageTextEncoder
from maquette.evaluation.object_record import ObjectRecord, Record
from maquette.evaluation.quality import Spread, bootstrap_interval, quality_score
from maquette.images import Prompt, Views, read_prompt, save_image, sheet
from maquette.matting import Matting
from maquette.rendering.raster import render_mesh
from maquette.run.files import write_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class PromptBenchmark:
    """Which prompts, and how answers are looked at."""

    limit: int | None = None
    """Only the first so many prompts of the folder."""
    prompt_size: int = 256
    """Pixels a side of the prompt."""
    matting: Matting = "auto"
    """How prompts are cut out (`read_prompt`)."""
    num_renders: int = 16
    """Pictures taken again of an asset, evenly around it."""
    render_size: int = 320
    """Pixels a side of those; the paper's."""
    render_elevation: float = 15.0
    """Degrees."""
    seed: int = 0
    """Of the intervals."""

    def __post_init__(self) -> None:
        for name in ("limit", "prompt_size", "num_renders", "render_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def find_prompts(folder: str | Path, limit: int | None = None) -> list[tuple[Path, str]]:
    """Pictures of a folder with their captions: in the order of its index.jsonl, or by name, without captions.

    Raises UserError if there is none, or two would share a folder of results.
    """
    folder = Path(folder)
    if (folder / "index.jsonl").exists():
        rows = read_jsonl(folder / "index.jsonl", ("file",))
        found = [(folder / row["file"], str(row.get("caption", ""))) for row in rows]
    else:
        found = [(path, "") for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    found = found[:limit]
    if not found:
        raise UserError(f"{folder} holds no prompt images; expected {', '.join(SUFFIXES)} files, or an index.jsonl")
    stems = [path.stem for path, _ in found]
    if len(set(stems)) < len(stems):
        raise UserError(f"{folder} has two prompts named {max(stems, key=stems.count)!r}; rename one")
    return found


def evaluate_prompts(
    folder: str | Path,
    *,
    sample: Callable[[Prompt, Path], Views] | None = None,
    reconstruct: Callable[[Prompt, Path], Asset] | None = None,
    encoders: Sequence[ImageEncoder | ImageTextEncoder] = (),
    classifier: ImageClassifier | None = None,
    config: PromptBenchmark = PromptBenchmark(),
    out: str | Path = "prompts.json",
    method: dict[str, Any] | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Score what a method makes of the prompts in `folder`; returns what it also writes to `out`.

    `reconstruct` gives assets (whose own `views` count as the diffused ones), `sample` views alone; give one of
    them. Figures are `<encoder>_image`, `<encoder>_text` where the encoder reads and a caption exists, and
    `qis_<classifier>`. Answers are kept beside `out` as the object benchmark keeps its own, and finished cases are
    not made again. Raises UserError unless something measures and something answers; RunFailed if every case
    failed.
    """
    if (sample is None) == (reconstruct is None):
        raise UserError("give either a method that samples views or one that makes assets")
    if not encoders and classifier is None:
        raise UserError(
            "nothing measures: give a path to the weights of CLIP or of an Inception network, or nano-judge"
        )
    prompts = find_prompts(folder, config.limit)
    names = {"encoders": [e.name for e in encoders], "classifier": None if classifier is None else classifier.name}
    settings = {"kind": "prompts", "protocol": config, **names, "method": method or {}}
    score = _Scorer(encoders, classifier)
    cases: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    with Record.open(Path(out), settings, overwrite=overwrite) as record:
        for done, (path, caption) in enumerate(prompts):
            one = record.object(path.stem, None)
            if one.figures is None:
                prompt = read_prompt(path, caption=caption, size=config.prompt_size, matting=config.matting)
                try:
                    one.finish(_answer(one, prompt, sample, reconstruct, score, config))
                except Exception as error:
                    failures.append({"id": path.stem, "error": f"{type(error).__name__}: {error}"})
                    say(f"{done + 1}/{len(prompts)} {path.stem}: {failures[-1]['error']}")
                    continue
            figures = one.figures
            assert figures is not None
            cases.append({"id": path.stem, "caption": caption, **figures})
            say(f"{done + 1}/{len(prompts)} {path.stem}: {_line(figures)}")
        if not cases:
            raise RunFailed(
                f"the method failed on every prompt; the first: {failures[0]['id']}: {failures[0]['error']}"
            )
        kinds = [kind for kind in ("prompt", "diffused", "rendered") if any(kind in case for case in cases)]
        report = {
            **{kind: _table([case[kind] for case in cases if kind in case], config.seed) for kind in kinds},
            "cases": cases,
            "failures": failures,
            **record.settings,
            "version": __version__,
        }
        write_json(out, report)
        record.write_sheet([case["id"] for case in cases])
    return report


def _answer(
    record: ObjectRecord,
    prompt: Prompt,
    sample: Callable[[Prompt, Path], Views] | None,
    reconstruct: Callable[[Prompt, Path], Asset] | None,
    score: _Scorer,
    config: PromptBenchmark,
) -> dict[str, Any]:
    """Let the method answer one prompt, keep the answer, score it."""
    assert prompt.image is not None
    white = torch.ones(3)
    picture = prompt.image.composite(white)
    save_image(record.folder / "prompt.png", prompt.image.rgba())
    began = time.perf_counter()
    asset = None if reconstruct is None else reconstruct(prompt, record.run)
    views = asset.views if asset is not None else sample(prompt, record.run) if sample is not None else None
    figures: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "prompt": score(picture[None], picture, prompt.caption),
    }
    strip = [picture]
    if views is not None:
        views.save(record.folder / "views")
        diffused = views.composite(white)
        figures["diffused"] = score(diffused, picture, prompt.caption)
        strip += _resized(diffused[:4], picture)
    if asset is not None:
        asset.save(record.folder / "asset.glb")
        cameras = orbit(
            config.num_renders,
            elevation=config.render_elevation,
            height=config.render_size,
            width=config.render_size,
        )
        mesh = load_mesh(record.folder / "asset.glb").normalized()
        rendered = render_mesh(mesh, cameras, samples=2).views().composite(white)
        figures["rendered"] = score(rendered, picture, prompt.caption)
        strip += _resized(rendered[:: max(1, len(rendered) // 4)][:4], picture)
    save_image(record.folder / "sides.png", sheet(torch.stack(strip)))
    return figures


class _Scorer:
    """All figures of a set of views: the mean over views of each."""

    def __init__(self, encoders: Sequence[ImageEncoder | ImageTextEncoder], classifier: ImageClassifier | None) -> None:
        self.encoders, self.classifier = encoders, classifier

    def __call__(
        self, views: Float[Tensor, "v 3 h w"], prompt: Float[Tensor, "3 p q"], caption: str
    ) -> dict[str, float]:
        figures: dict[str, float] = {}
        for encoder in self.encoders:
            image = encoder.embed_images(views).double()
            figures[f"{encoder.name}_image"] = 100 * float(
                (image @ encoder.embed_images(prompt[None]).double().T).mean()
            )
            if caption and isinstance(encoder, ImageTextEncoder):
                text = encoder.embed_texts([caption]).double()
                figures[f"{encoder.name}_text"] = 100 * float((image @ text.T).mean())
        if self.classifier is not None:
            scores = quality_score(self.classifier.logits(views).double())
            figures[f"qis_{self.classifier.name}"] = float(scores.mean())
        return figures


def _table(rows: Sequence[dict[str, float]], seed: int) -> dict[str, dict[str, Any]]:
    """For each figure that any case has: mean, standard deviation over cases, their number, 95 % interval."""
    table = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
        spread = Spread.of(values)
        table[name] = {
            "mean": spread.mean,
            "std": spread.std,
            "count": spread.count,
            "interval": list(bootstrap_interval(values, seed)),
        }
    return table


def _resized(images: Float[Tensor, "n 3 h w"], like: Float[Tensor, "3 p q"]) -> list[Tensor]:
    size = (like.shape[-2], like.shape[-1])
    return list(torch.nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True))


def _line(figures: dict[str, Any]) -> str:
    shown = figures.get("rendered", figures.get("diffused", {}))
    return "  ".join(f"{name} {value:.1f}" for name, value in shown.items()) + f"  seconds {figures['seconds']:.1f}"
