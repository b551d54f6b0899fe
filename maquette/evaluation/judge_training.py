"""Training of nano-judge: a picture must find its caption, and another picture of its object, in a batch."""

from __future__ import annotations

import json
import math
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maquette.errors import RunFailed
from maquette.evaluation.judge import JudgeConfig, NanoJudge, config_entry, split_words
from maquette.priors.cards import write_package
from maquette.run.state import read_state, write_state

SOURCES = ("canonical", "prompt", "free", "ring")
"""Arrays of a packed folder that are looked at, as far as they exist; each uint8 [N, V, S, S, 4], straight alpha."""


@dataclass(frozen=True)
class JudgeTraining:
    """The recipe."""

    network: JudgeConfig = field(default_factory=JudgeConfig)
    """Shape of the towers; its words are filled in from the captions."""
    steps: int = 1500
    """Updates."""
    batch: int = 128
    """Distinct objects in an update, two pictures of each."""
    learning_rate: float = 2e-3
    """Peak; warmed up, then falling to zero along a cosine."""
    warmup: int = 100
    """Steps until the peak."""
    weight_decay: float = 0.05
    """Of matrices and kernels."""
    view_weight: float = 0.5
    """Weight of picture-to-picture against picture-to-caption."""
    forget: float = 0.1
    """Share of words that are made unknown, so that a caption is understood without each of its words."""
    minimum_count: int = 2
    """A word must occur in this many captions to be taught."""
    seed: int = 20260
    """Own seed: unlike those of the priors and their encoders."""
    checkpoint_every: int = 100
    """Steps between checkpoints, from which the same call goes on."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 2:
            raise ValueError(f"training needs steps >= 1 and batch >= 2, got {self.steps} and {self.batch}")


def train_judge(
    packed_folder: str | Path,
    out: str | Path,
    config: JudgeTraining = JudgeTraining(),
    *,
    val_folder: str | Path | None = None,
    device: str = "cpu",
    log: Callable[[dict[str, Any]], None] = lambda entry: None,
) -> NanoJudge:
    """Train on a packed folder and write the weights package `out` (card.json and a float16 safetensors file).

    With `val_folder`, another packed folder, the card says how well the judge tells its objects apart. A checkpoint
    in `out` makes an interrupted call go on with the same result on one machine. Raises RunFailed at a loss that is
    no number.
    """
    data, out = Renders.open(Path(packed_folder), device), Path(out)
    network = replace(config.network, words=vocabulary(data.captions, config.minimum_count))
    config = replace(config, network=network)
    torch.manual_seed(config.seed)
    judge = NanoJudge(network).to(device)
    optimiser = torch.optim.AdamW(
        [
            {"params": [p for p in judge.parameters() if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in judge.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    checkpoint, recipe = out / "training.safetensors", json.dumps(config_recipe(config), sort_keys=True)
    start, spent = 0, 0.0
    if checkpoint.exists() and (saved := read_state(checkpoint, device))["recipe"] == recipe:
        judge.load_state_dict(saved["judge"])
        optimiser.load_state_dict(saved["optimiser"])
        start, spent = saved["step"], saved["seconds"]
    judge.train()
    began = time.monotonic()
    for step in range(start, config.steps):
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * rate(step, config)
        loss, hits = update_loss(judge, data, config, step)
        if not bool(torch.isfinite(loss)):
            raise RunFailed(
                f"training of the judge met a loss of {float(loss.detach())} at step {step}; {checkpoint} is kept"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimiser.step()
        seconds = spent + time.monotonic() - began
        if step % 50 == 0 or step + 1 == config.steps:
            log(
                {
                    "stage": "judge",
                    "step": step,
                    "loss": float(loss.detach()),
                    "caption_top1": float(hits),
                    "seconds": seconds,
                }
            )
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < config.steps:
            state = {"judge": judge.state_dict(), "optimiser": optimiser.state_dict()}
            write_state(checkpoint, {**state, "step": step + 1, "seconds": seconds, "recipe": recipe})
    judge.eval()
    card = {
        "name": "nano-judge",
        "kind": "judge",
        "licence": "Apache-2.0",
        "config": config_entry(network),
        "recipe": config_recipe(config),
        "pictures_seen": 2 * config.batch * config.steps,
        "seconds": round(spent + time.monotonic() - began, 1),
        "machine": {"device": device, "processor": platform.machine(), "torch": torch.__version__},
        "data": {"objects": len(data.meta), "licences": dict(Counter(row.get("licence", "") for row in data.meta))},
        "measured": {} if val_folder is None else measure(judge, Renders.open(Path(val_folder), device), config.seed),
        "use": "evaluation only; never in training or guidance",
    }
    write_package(out, {f"judge.{name}": tensor for name, tensor in judge.state_dict().items()}, card)
    checkpoint.unlink(missing_ok=True)
    return judge


def config_recipe(config: JudgeTraining) -> dict[str, Any]:
    """The training settings without the network's, as they stand in a card."""
    return {name: value for name, value in asdict(config).items() if name != "network"}


def vocabulary(captions: list[str], minimum_count: int) -> tuple[str, ...]:
    """Words of at least `minimum_count` captions, in alphabetical order."""
    counts = Counter(word for caption in captions for word in set(split_words(caption)))
    return tuple(sorted(word for word, count in counts.items() if count >= minimum_count))


def rate(step: int, config: JudgeTraining) -> float:
    """Share of the peak learning rate at a step."""
    warm = min(1.0, (step + 1) / config.warmup)
    return warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


@dataclass(frozen=True)
class Renders:
    """Packed pictures of N objects, memory-mapped on a CPU, resident on a GPU."""

    meta: list[dict[str, Any]]
    arrays: tuple[Any, ...]
    """NumPy memory maps, or tensors on the device."""
    device: str

    @classmethod
    def open(cls, folder: Path, device: str) -> Renders:
        """ValueError naming the file that is missing or has another number of objects."""
        index = folder / "meta.jsonl"
        if not index.exists():
            raise ValueError(
                f"{folder} has no meta.jsonl; expected packed renders, as `maquette render --pack` writes them"
            )
        meta = [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines() if line.strip()]
        maps = [np.load(path, mmap_mode="r") for name in SOURCES if (path := folder / f"{name}.npy").exists()]
        if not maps:
            raise ValueError(f"{folder} has none of {', '.join(f'{name}.npy' for name in SOURCES)}")
        for array in maps:
            if len(array) != len(meta) or array.ndim != 5 or array.shape[-1] != 4:
                raise ValueError(
                    f"{folder} has {len(meta)} objects, but an array of shape {array.shape} among its renders"
                )
        if device == "cpu":
            return cls(meta, tuple(maps), device)
        return cls(meta, tuple(torch.from_numpy(np.array(array)).to(device) for array in maps), device)

    @property
    def captions(self) -> list[str]:
        """One an object."""
        return [row["caption"] for row in self.meta]

    def take(self, rows: Tensor, views: Tensor) -> Tensor:
        """Pictures [n, 4, s, s] in [0, 1] of objects `rows` [n]; `views` [n] counts through all arrays."""
        counts = [array.shape[1] for array in self.arrays]
        result: Tensor | None = None
        for array, first in zip(self.arrays, np.cumsum([0, *counts[:-1]]), strict=True):
            mine = torch.nonzero((views >= first) & (views < first + array.shape[1]))[:, 0]
            if isinstance(array, np.ndarray):
                chosen = torch.from_numpy(array[rows[mine].numpy(), (views[mine] - int(first)).numpy()])
            else:
                chosen = array[rows[mine].to(self.device), (views[mine] - int(first)).to(self.device)]
            if result is None:
                result = torch.empty(len(rows), *chosen.shape[1:], dtype=torch.uint8, device=self.device)
            result[mine.to(self.device)] = chosen
        assert result is not None
        return result.movedim(-1, 1).float() / 255

    @property
    def num_views(self) -> int:
        """Pictures of each object."""
        return sum(array.shape[1] for array in self.arrays)


def family(row: dict[str, Any]) -> str:
    """The group of near-duplicates that an object belongs to; members are no negatives of each other."""
    return row.get("family", row["id"])


def update_loss(judge: NanoJudge, data: Renders, config: JudgeTraining, step: int) -> tuple[Tensor, Tensor]:
    """The loss of one batch, which is a function of the seed and the step, and the share of captions found first."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rows = torch.randperm(len(data.meta), generator=generator)[: config.batch]
    views = torch.randint(data.num_views, (2, len(rows)), generator=generator)
    pictures = [augment(data.take(rows, view), judge.config.image_size, generator) for view in views]
    meta = [data.meta[row] for row in rows.tolist()]
    families = [family(row) for row in meta]
    distinct = torch.tensor([[a != b for b in families] for a in families])
    allowed = (distinct | torch.eye(len(rows), dtype=torch.bool)).to(data.device)
    indices, lengths = judge.indices([row["caption"] for row in meta])
    indices[torch.rand(indices.shape, generator=generator) < config.forget] = 0
    one, two = judge.image(torch.cat(pictures)).chunk(2)
    words = judge.text(indices.to(data.device), lengths)
    scale = judge.log_scale.clamp(max=math.log(100.0)).exp()
    captions = (contrast(one, words, scale, allowed) + contrast(two, words, scale, allowed)) / 2
    hits = ((one @ words.T).argmax(1) == torch.arange(len(rows), device=one.device)).float().mean()
    return captions + config.view_weight * contrast(one, two, scale, allowed), hits.detach()


def contrast(a: Tensor, b: Tensor, scale: Tensor, allowed: Tensor) -> Tensor:
    """Symmetric cross entropy of row i of `a` [n, d] finding row i of `b`, among pairs that `allowed` [n, n] keeps."""
    logits = (scale * a @ b.T).masked_fill(~allowed, -1e4)
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def augment(rgba: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Pictures [n, 3, size, size]: shifted, scaled, mirrored by chance, in other light, on another background."""
    count = len(rgba)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(rgba.device)

    scale, shift = uniform(0.8, 1.25), uniform(-0.12, 0.12, 2)
    mirror = torch.where(uniform(0.0, 1.0) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3, device=rgba.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale * mirror, scale, shift
    premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], dim=1)
    grid = F.affine_grid(theta, [count, 4, size, size], align_corners=False)
    moved = F.grid_sample(premultiplied, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    alpha = moved[:, 3:]
    colour = moved[:, :3] * uniform(0.75, 1.2, 1, 1, 1)
    background = uniform(0.0, 1.0, 3, 1, 1)
    white = uniform(0.0, 1.0, 1, 1, 1) < 0.5
    background = torch.where(white, torch.ones_like(background), background)
    return (colour + (1 - alpha) * background).clamp(0, 1)


@torch.no_grad()
def measure(judge: NanoJudge, data: Renders, seed: int) -> dict[str, float]:
    """Retrieval among the objects of another pack, on white: a picture's caption, and another picture of its object.

    Families count as one; shares of the first place, with the share that chance would have.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(data.meta))
    views = torch.randint(data.num_views, (2, len(rows)), generator=generator)
    vectors = []
    for view in views:
        rgba = data.take(rows, view)
        vectors.append(judge.embed_images(rgba[:, :3] * rgba[:, 3:] + 1 - rgba[:, 3:]))
    words = judge.embed_texts(data.captions)
    families = [family(row) for row in data.meta]
    same = torch.tensor([[a == b for b in families] for a in families])

    def first_place(a: Tensor, b: Tensor) -> float:
        return float(same[rows, (a @ b.T).argmax(1)].float().mean())

    return {
        "objects": float(len(rows)),
        "picture_to_caption": first_place(vectors[0], words),
        "caption_to_picture": first_place(words, vectors[0]),
        "picture_to_picture": first_place(vectors[0], vectors[1]),
        "chance": float(same.float().mean()),
    }
