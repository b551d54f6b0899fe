"""DreamBooth (arXiv:2208.12242): a prior learns one subject from a few captioned pictures.

    L = |pred(x_t; c_subject) - target|^2 + lambda |pred(x'_t'; c_class) - target'|^2

x are pictures of the subject, captioned with its placeholder ("a photo of a [v] dog"); x' are pictures that the
placeholder must *not* explain: of the class, sampled from the prior before it learned (`class_images`), or, in USD's
second step, other views of the object. Both halves go through the network together. What is predicted, eps, x0 or v,
is the prior's own affair.

One run gives any number of checkpoints: DreamBooth3D's partial model is an early one, its full model the last, and its
multi-view model a second call that starts from the partial one with other pictures. All are `Adapter`s, so the base
stays loaded once. No engine is needed: one process, one device, `torch.autocast` for precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maquette.diffusion.losses import denoising_loss, min_snr_weight, prior_preservation_loss
from maquette.diffusion.schedule import NoiseSchedule
from maquette.diffusion.unet import Block, Middle
from maquette.errors import RunFailed, UserError
from maquette.images import Prompt
from maquette.priors.adapters import Adapter, Full, Lora, new_adapter
from maquette.priors.base import AdaptablePrior, Condition, Prediction, Prior, stack_conditions
from maquette.priors.placement import current_placement
from maquette.run import Stage
from maquette.subjects import CaptionedImages


@dataclass(frozen=True)
class PersonalizeConfig:
    """How a subject is learned; the defaults are the usual recipe for all weights of Stable Diffusion."""

    adapter: Full | Lora = Full()
    """What learns: all weights, or low-rank updates of the attention."""
    steps: int = 800
    """Optimiser steps."""
    keep: tuple[int, ...] = ()
    """Steps after which the state is kept as well; the last always is."""
    keep_every: int = 0
    """Keep every so many steps too, to choose among them; 0 does not."""
    batch: int = 1
    """Pictures of the subject a step, and as many of the class."""
    accumulate: int = 1
    """Batches whose gradients are added up to one step: a larger batch in the memory of a small one."""
    learning_rate: float = 5e-6
    """Constant; 1e-4 for low-rank updates."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Memory of AdamW's two moments."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    prior_weight: float = 1.0
    """lambda, the weight of the class's pictures."""
    preserve: float = 0.0
    """Weight of |theta - theta_0|_1 / N, MVDream's brake in place of class pictures; for all weights only."""
    weighting: Literal["uniform", "min-snr", "min-snr-both"] = "uniform"
    """Weight of the subject's timesteps, or also of the others'. Uniform errors of x0, which nano predicts, are nearly
    all from high noise; the papers' errors of eps are those of x0 times the signal-to-noise ratio."""
    snr_gamma: float = 5.0
    """Cap of min-snr."""
    background: Literal["white", "random"] = "white"
    """What masked objects are put onto: white, or another flat colour each time."""
    sample_posterior: bool = True
    """Encode to a sample of the autoencoder's posterior, not its mean."""
    checkpointing: bool = False
    """Recompute the blocks of the network in the backward pass: about half the memory, a third more time. Also on where
    a run is told to take little memory (`priors.placement`)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; what learns stays float32. A base that is kept in float16 takes bfloat16 always."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints."""
    max_skipped: int = 10
    """Steps with NaN or infinite gradients that are skipped before the run fails."""

    def __post_init__(self) -> None:
        if self.steps < 0 or min(self.batch, self.accumulate) < 1:
            raise UserError(
                f"steps is at least 0, batch and accumulate at least 1; got {self.steps}, {self.batch} and "
                f"{self.accumulate}"
            )
        late = [step for step in self.keep if not 0 <= step <= self.steps]
        if late:
            raise UserError(f"keep names steps from 0 to {self.steps}, got {', '.join(map(str, late))}")
        if min(self.learning_rate, self.prior_weight, self.preserve) < 0 or self.clip <= 0:
            raise UserError("learning_rate, prior_weight and preserve are at least 0, clip is above 0")
        if self.preserve > 0 and isinstance(self.adapter, Lora):
            raise UserError(
                "preserve keeps all weights near where they were; low-rank updates have none, so leave it 0"
            )

    def kept(self) -> frozenset[int]:
        """Numbers of steps after which the state is kept."""
        every = range(self.keep_every, self.steps + 1, self.keep_every) if self.keep_every > 0 else ()
        return frozenset((*self.keep, *every, self.steps))


def personalize(
    prior: AdaptablePrior,
    subject: CaptionedImages,
    others: CaptionedImages | None,
    config: PersonalizeConfig,
    start: Adapter | None = None,
    *,
    run: Stage,
) -> dict[int, Adapter]:
    """What `prior` learned after each of `config.kept()` steps; the prior given stays as it is.

    `others` are the pictures that the subject's placeholder must not explain (none: plain fine-tuning), `start` is an
    adapter of the same kind to go on from, with a fresh optimiser. Each list of pictures is passed through in a random
    order, again and again (or drawn by its `shares`). A step whose gradient is not finite is skipped and counted;
    RunFailed after `config.max_skipped` of them, with the last good state kept. The log gets a line a step.
    """
    if not len(subject) or (others is not None and not len(others)):
        raise ValueError("personalize needs at least one picture of the subject, and none or some of the class")
    adapter = _first(prior, config, start, run)
    # Clones: the adapter that learning starts from is a value, and may be somebody's partial model.
    learning = {name: nn.Parameter(tensor.to(prior.device).clone()) for name, tensor in adapter.tensors.items()}
    if 0 not in config.kept():
        adapter = replace(adapter, tensors={})  # a machine may lack the memory for all weights once more
    # A parameter, its gradient and AdamW's two moments.
    run.require_memory(sum(4 * 4 * parameter.numel() for parameter in learning.values()))
    model = prior.adapted(replace(adapter, tensors=learning))
    optimizer = torch.optim.AdamW(
        list(learning.values()), lr=config.learning_rate, betas=config.betas, eps=config.eps,
        weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    begin, skipped = 0, 0
    if (found := run.load_checkpoint()) is not None and _all_there(run, found[1]["kept"]):
        begin, state = found
        with torch.no_grad():
            for name, tensor in state["tensors"].items():
                learning[name].copy_(tensor)
        optimizer.load_state_dict(state["optimizer"])
        skipped = state["skipped"]
    kept = {step for step in config.kept() if 0 < step <= begin}

    def snapshot(step: int) -> Adapter:
        tensors = {name: parameter.detach().cpu() for name, parameter in learning.items()}
        return replace(adapter, tensors=tensors, steps=adapter.steps + step)

    def state_of() -> dict[str, Any]:
        tensors = {name: parameter.detach() for name, parameter in learning.items()}
        return {"tensors": tensors, "optimizer": optimizer.state_dict(), "skipped": skipped, "kept": sorted(kept)}

    batches = _Batches(model, subject, others, config, run, dict(prior.networks()) if config.preserve else None)
    saving = config.checkpointing or current_placement().low_memory
    recomputing = _recomputed(model.networks()) if saving else nullcontext()
    with run.progress(config.steps, start=begin) as progress, recomputing:
        for step in range(begin, config.steps):
            figures = batches.accumulate(step)
            norm = nn.utils.clip_grad_norm_(learning.values(), config.clip)
            if bool(torch.isfinite(norm)):
                optimizer.step()
            else:
                skipped += 1
                run.log(step, event="skipped", reason="the gradient is not finite", **figures)
                if skipped >= config.max_skipped:
                    run.save_checkpoint(step, state_of())
                    raise RunFailed(
                        f"{run.name}: the gradient was NaN or infinite in {skipped} steps, last in step {step}; the "
                        f"last good state, that before this step, is kept. Lower the learning rate."
                    )
            optimizer.zero_grad(set_to_none=True)  # before anything is written, which takes memory, too
            run.log(step, **figures, gradient=float(norm))
            progress.update(step + 1, loss=figures["loss"])
            if step + 1 in config.kept():
                snapshot(step + 1).save(_place(run, step + 1))
                kept.add(step + 1)
            run.checkpoint(step + 1, state_of, every=config.checkpoint_seconds)
    optimizer.state.clear()  # its moments make room for what is loaded now
    made = {step: Adapter.load(_place(run, step)) if step else adapter for step in sorted(config.kept())}
    # A kill from here until the stage's result is written costs the whole stage's time again, but no correctness.
    shutil.rmtree(run.folder / "kept", ignore_errors=True)
    return made


def _first(prior: AdaptablePrior, config: PersonalizeConfig, start: Adapter | None, run: Stage) -> Adapter:
    """The adapter that learning starts from."""
    if start is None:
        generator = run.generator(purpose="adapter", device="cpu")
        return new_adapter(prior.networks(), prior.weights_fingerprint(), config.adapter, generator)
    if start.config != config.adapter:
        raise ValueError(f"an adapter of {start.config} cannot go on as {config.adapter}; use the same settings")
    return start.to("cpu")


def _place(run: Stage, step: int) -> Path:
    """Where the state after a step waits for the end of the stage."""
    return run.folder / "kept" / f"{step:06d}"


def _all_there(run: Stage, steps: Sequence[int]) -> bool:
    """Whether the kept states that a checkpoint counts on are still on the disk."""
    return all(_place(run, step).is_dir() for step in steps)


# One step


class _Batches:
    """What each step sees, as a function of the step alone, and how wrong the model is about it."""

    def __init__(
        self,
        model: AdaptablePrior,
        subject: CaptionedImages,
        others: CaptionedImages | None,
        config: PersonalizeConfig,
        run: Stage,
        base: Mapping[str, nn.Module] | None,
    ) -> None:
        self.model, self.subject, self.others, self.config, self.run = model, subject, others, config, run
        self.captions = _Captions(model, config.adapter.text_encoder)
        self.posteriors: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self.drifting: list[tuple[Tensor, Tensor]] = []
        if base is not None:
            networks, parts = model.networks(), ("network", "text_encoder")
            self.drifting = [
                (new, old.detach())
                for part in parts
                for new, old in zip(networks[part].parameters(), base[part].parameters(), strict=True)
                if new is not old
            ]

    def accumulate(self, step: int) -> dict[str, float]:
        """Add up the gradients of one step; its figures."""
        total: dict[str, float] = {}
        for part in range(self.config.accumulate):
            loss, figures = self.loss(step * self.config.accumulate + part)
            (loss / self.config.accumulate).backward()
            for name, value in {"loss": loss, **figures}.items():
                total[name] = total.get(name, 0.0) + float(value.detach()) / self.config.accumulate
        return total

    def loss(self, turn: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of one batch and its parts."""
        config, schedule = self.config, self.model.noise_schedule
        halves = [self.draw(self.subject, turn, "subject")]
        if self.others is not None:
            halves.append(self.draw(self.others, turn, "others"))
        captions = [caption for half in halves for caption in half[0]]
        latents, t, eps = (torch.cat(parts) for parts in zip(*(half[1:] for half in halves), strict=True))
        mine = len(halves[0][0])
        with self.arithmetic(latents.device):
            prediction = self.model.predict(schedule.add_noise(latents, eps, t), t, self.captions.stacked(captions))
        pred, target = as_predicted(prediction, schedule, t).float(), schedule.target(latents, eps, t)
        weight = None
        theirs = None
        if config.weighting != "uniform":
            weights = min_snr_weight(schedule.snr(t, latents[:, 0, 0, 0, 0]), config.snr_gamma, schedule.predicts)
            weight, theirs = weights[:mine], weights[mine:] if config.weighting == "min-snr-both" else None
        parts = {"subject": denoising_loss(pred=pred[:mine], target=target[:mine], sample_weight=weight)}
        loss = parts["subject"]
        if self.others is not None:
            loss = prior_preservation_loss(
                pred=pred[:mine], target=target[:mine], prior_pred=pred[mine:], prior_target=target[mine:],
                prior_weight=config.prior_weight, sample_weight=weight, prior_sample_weight=theirs,
            )  # fmt: skip
            parts["others"] = denoising_loss(pred=pred[mine:], target=target[mine:], sample_weight=theirs)
        if self.drifting:
            count = sum(new.numel() for new, _ in self.drifting)
            parts["drift"] = torch.stack([(new - old).abs().sum() for new, old in self.drifting]).sum() / count
            loss = loss + config.preserve * parts["drift"]
        return loss, parts

    def arithmetic(self, device: torch.device) -> Any:
        """The precision of a step. A frozen base in float16 computes in bfloat16, whose small gradients survive."""
        half = any(tensor.dtype == torch.float16 for tensor in self.model.networks()["network"].parameters())
        if self.config.precision == "bfloat16" or half:
            return torch.autocast(device.type, dtype=torch.bfloat16)
        return nullcontext()

    def draw(self, pictures: CaptionedImages, turn: int, role: str) -> tuple[list[str], Tensor, Tensor, Tensor]:
        """Captions, latents [k, 1, C, h, w], timesteps [k] and eps of one half, from generators of its own."""
        generator = self.run.generator(turn, f"{role} noise", "cpu")
        index = draw_indices(pictures, turn, self.config.batch, self.run, role)
        latents = torch.cat([self.latents(pictures, i, role, generator) for i in index])
        t = torch.randint(0, self.model.noise_schedule.num_steps, (len(index),), generator=generator)
        eps = torch.randn(latents.shape, generator=generator)
        return [pictures.captions[i] for i in index], latents, t.to(latents.device), eps.to(latents)

    def latents(
        self, pictures: CaptionedImages, index: int, role: str, generator: torch.Generator
    ) -> Float[Tensor, "1 1 c h w"]:
        """A sample of one picture's latents. What does not change is encoded once.

        A posterior's sample is affine in its noise, so that zero and one tell its mean and its deviation.
        """
        codec = self.model.codec
        if self.config.background == "random":
            return encode(self.model, pictures, [index], self.config, generator)
        if (role, index) not in self.posteriors:
            image = pictures.composite([index], torch.ones(1, 3))[:, None].to(self.model.device)
            with torch.no_grad():
                mean = codec.encode(image)
                self.posteriors[role, index] = mean, codec.encode(image, torch.ones_like(mean)) - mean
        mean, deviation = self.posteriors[role, index]
        if not (codec.stochastic and self.config.sample_posterior):
            return mean
        return mean + deviation * torch.randn(mean.shape, generator=generator).to(mean)


class _Captions:
    """Conditions by caption: made once where the text encoder is frozen, their texts anew where it learns."""

    def __init__(self, model: AdaptablePrior, text_learns: bool) -> None:
        self.model, self.text_learns = model, text_learns
        self.known: dict[str, Condition] = {}

    def stacked(self, captions: Sequence[str]) -> Condition:
        """One row a caption."""
        for caption in captions:
            if caption not in self.known:
                self.known[caption] = words(self.model, caption)
        condition = stack_conditions([self.known[caption] for caption in captions])
        if self.text_learns:
            texts = {caption: self.model.encode_text(caption) for caption in dict.fromkeys(captions)}
            condition = replace(condition, text=torch.cat([texts[caption] for caption in captions]))
        return condition


def words(prior: Prior, caption: str, negative: str = "") -> Condition:
    """The condition of words alone."""
    return prior.condition(Prompt(None, caption, negative), torch.ones(3))


def draw_indices(pictures: CaptionedImages, turn: int, count: int, run: Stage, purpose: str) -> list[int]:
    """Which pictures a turn sees: the next of a random order that is new in every pass, or by their shares."""
    if pictures.shares is not None:
        generator = run.generator(turn, purpose, "cpu")
        return torch.multinomial(torch.tensor(pictures.shares), count, replacement=True, generator=generator).tolist()
    chosen = []
    for position in range(turn * count, (turn + 1) * count):
        epoch, place = divmod(position, len(pictures))
        order = torch.randperm(len(pictures), generator=run.generator(epoch, purpose, "cpu"))
        chosen.append(int(order[place]))
    return chosen


@torch.no_grad()
def encode(
    prior: AdaptablePrior,
    pictures: CaptionedImages,
    index: Sequence[int],
    config: PersonalizeConfig,
    generator: torch.Generator,
) -> Float[Tensor, "k 1 c h w"]:
    """Latents of some pictures, on the prior's device."""
    colours = torch.ones(len(index), 3)
    if config.background == "random":
        colours = torch.rand(len(index), 3, generator=generator)
    images = pictures.composite(list(index), colours)[:, None].to(prior.device)
    noise = None
    if prior.codec.stochastic and config.sample_posterior:
        noise = torch.randn(len(index), 1, *prior.codec.latent_shape, generator=generator).to(images)
    return prior.codec.encode(images, noise)


def as_predicted(prediction: Prediction, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """The side of a prediction that the network itself puts out, which is what its loss is about."""
    if schedule.predicts == "v":
        return schedule.v_from(prediction.x0, prediction.eps, t)
    return prediction.x0 if schedule.predicts == "x0" else prediction.eps


@torch.no_grad()
def denoising_error(prior: AdaptablePrior, pictures: CaptionedImages, *, draws: int = 8, seed: int = 0) -> float:
    """Mean squared error of what the network puts out for pictures under their captions, over all noise levels.

    The same noise for every prior, so that two of them compare; pictures with masks stand on white.
    """
    generator, schedule = torch.Generator().manual_seed(seed), prior.noise_schedule
    settings = PersonalizeConfig(sample_posterior=False)
    everything = list(range(len(pictures)))
    latents = encode(prior, pictures, everything, settings, generator)
    condition = _Captions(prior, False).stacked(pictures.captions)
    errors = []
    for k in range(draws):
        t = torch.full((len(pictures),), int((k + 0.5) / draws * schedule.num_steps), device=latents.device)
        eps = torch.randn(latents.shape, generator=generator).to(latents)
        prediction = prior.predict(schedule.add_noise(latents, eps, t), t, condition)
        target = schedule.target(latents, eps, t)
        errors.append(denoising_loss(pred=as_predicted(prediction, schedule, t), target=target))
    return float(torch.stack(errors).mean())


# Memory and precision


@contextmanager
def _recomputed(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Let the U-Net's blocks forget what they computed until the backward pass asks for it again.

    Set on the instances of an adapted copy, whose structure is its own, and taken back at the end.
    """
    blocks = [module for module in networks["network"].modules() if isinstance(module, (Block, Middle))]
    if not blocks:
        raise ValueError("checkpointing knows the blocks of MultiViewUNet, and this prior's network has none")
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
