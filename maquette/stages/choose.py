"""Which checkpoint of one personalisation is the partial model and which the full one.

DreamBooth3D's numbers, 150 and 800, belong to one network, learning rate and batch. What they stand for can be
measured: the full model is the most alike that still knows its class, the partial one the earliest that has half of
the likeness and still shows the side that it is asked for. The paper chose by eye; this criterion is ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from maquette.errors import UserError
from maquette.priors.adapters import Adapter
from maquette.priors.base import AdaptablePrior
from maquette.run import Stage
from maquette.run.files import write_json
from maquette.stages.likeness import PictureEncoder, diversity, likeness, on_white, sides
from maquette.stages.look import SamplingConfig, draw_scenes
from maquette.stages.personalize import words
from maquette.subjects import Subject
from maquette.wording import VIEWS, with_view


@dataclass(frozen=True)
class ChooseConfig:
    """How checkpoints are compared."""

    images: int = 8
    """Pictures sampled for each of the four view words."""
    share: float = 0.5
    """How far from base to full model the partial one's likeness must have come."""
    view_share: float = 0.9
    """Share of the base model's view score that the partial one must keep."""
    class_share: float = 0.9
    """Share of the base model's class score that the full one must keep."""
    sampling: SamplingConfig = SamplingConfig(steps=50, guidance_scale=7.5)
    """The sampler."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise UserError(f"images is at least 1, got {self.images}")
        shares = (self.share, self.view_share, self.class_share)
        if not all(0 <= share <= 1 for share in shares):
            raise UserError(f"shares lie between 0 and 1, got {shares}")


@dataclass(frozen=True)
class Row:
    """What was measured of one checkpoint; step 0 is the base model."""

    step: int
    subject: float
    """Mean cosine of its pictures of the subject to the photos."""
    views: float
    """Share of them that show the side that was asked for."""
    diversity: float
    """Mean distance between them."""
    of_class: float
    """Mean cosine of its pictures of the class to the class's prompt."""


@dataclass(frozen=True)
class Choice:
    """The partial and the full model by their steps, why, and the table behind it."""

    partial: int
    full: int
    reason: str
    table: tuple[Row, ...]

    def save(self, folder: Path) -> None:
        """Write choice.json."""
        write_json(folder / "choice.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Choice:
        """Read what `save` wrote."""
        values = json.loads((folder / "choice.json").read_text("utf-8"))
        return cls(**{**values, "table": tuple(Row(**row) for row in values["table"])})


def choose_checkpoints(
    prior: AdaptablePrior,
    adapters: Mapping[int, Adapter],
    subject: Subject,
    encoder: PictureEncoder,
    config: ChooseConfig,
    *,
    run: Stage,
) -> Choice:
    """Sample every checkpoint with every view word, and choose by the table. Goes on after the last one measured."""
    steps = sorted(step for step in adapters if step > 0)
    if not steps:
        raise ValueError("there is no checkpoint to choose among; personalize keeps at least the last step")
    photos = encoder.embed_images(on_white(subject.photos))
    rows: list[Row] = []
    if (found := run.load_checkpoint()) is not None:
        rows = [Row(**row) for row in found[1]["rows"]]
    for step in [0, *steps][len(rows) :]:
        model = prior.adapted(adapters[step]) if step else prior
        rows.append(_measure(model, step, subject, photos, encoder, config, run))
        run.log(step, encoder=encoder.name, **{k: v for k, v in asdict(rows[-1]).items() if k != "step"})
        run.checkpoint(len(rows), lambda: {"rows": [asdict(row) for row in rows]}, every=0.0)
    partial, full, reason = decide(rows, config)
    return Choice(partial, full, reason, tuple(rows))


def _measure(
    model: AdaptablePrior,
    step: int,
    subject: Subject,
    photos: Float[Tensor, "k d"],
    encoder: PictureEncoder,
    config: ChooseConfig,
    run: Stage,
) -> Row:
    """One row: the same noise for every checkpoint, so that only the weights differ."""

    def sampled(caption: str, purpose: str) -> Float[Tensor, "n 3 h w"]:
        generators = [run.generator(index, purpose, "cpu") for index in range(config.images)]
        return draw_scenes(model, words(model, caption), None, config.sampling, generators, run)[:, 0]

    # The base model knows no [v]; what it makes of the prompt is where learning begins.
    pictures = {view: sampled(with_view(subject.instance_prompt, view), view) for view in VIEWS}
    right = [side == view for view in VIEWS for side in sides(encoder, pictures[view], subject.class_prompt)]
    everything = torch.cat(list(pictures.values()))
    class_text = encoder.embed_texts([subject.class_prompt])
    class_pictures = encoder.embed_images(sampled(subject.class_prompt, "class"))
    return Row(
        step=step,
        subject=float(likeness(encoder, everything, photos).mean()),
        views=sum(right) / len(right),
        diversity=diversity(encoder.embed_images(everything)),
        of_class=float((class_pictures @ class_text.T).mean()),
    )


def decide(rows: list[Row], config: ChooseConfig) -> tuple[int, int, str]:
    """(partial, full, why) from a table whose first row is the base model and whose others are in order of steps."""
    base, *learned = sorted(rows, key=lambda row: row.step)
    sound = [row for row in learned if row.of_class >= config.class_share * base.of_class]
    full = max(sound or learned, key=lambda row: (row.subject, -row.step))
    why = "the most alike that still knows its class" if sound else "the most alike; none still knows its class"
    wanted = base.subject + config.share * (full.subject - base.subject)
    seeing = [row for row in learned if row.step <= full.step and row.views >= config.view_share * base.views]
    alike = [row for row in seeing if row.subject >= wanted]
    if alike:
        partial, reason = alike[0], f"the earliest with {config.share:.0%} of the likeness that keeps the views"
    elif seeing:
        partial, reason = (
            seeing[-1],
            f"the latest that keeps the views; none has {config.share:.0%} of the likeness too",
        )
    else:
        partial, reason = learned[0], "the earliest; none keeps the views, so expect the same side all around"
    return partial.step, full.step, f"full: {why}; partial: {reason}"
