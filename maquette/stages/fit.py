"""The one loop: a scene descends the losses of its objectives.

Score distillation, photometric fits of radiance fields and of surfaces, texture refinement: they differ in scene and
objectives. Every draw of a step comes from generators that are functions of (seed, stage, step, purpose), so a run
that was killed continues from its last checkpoint to the same bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from maquette.errors import RunFailed, UserError
from maquette.rendering.base import Scene
from maquette.rendering.views import render_turn
from maquette.run import Stage
from maquette.schedules import Constant, Exponential
from maquette.stages.balance import Balance, Balancer
from maquette.stages.objectives import Objective
from maquette.stages.regularizers import Ramp

S = TypeVar("S", bound=Scene)


@dataclass(frozen=True)
class FitConfig:
    """How a scene is optimised; the defaults are ImageDream's released configuration."""

    steps: int = 12500
    """Optimiser steps; schedules are fractions of it."""
    encoding_rate: float = 0.01
    """Learning rate of the encoding."""
    network_rate: float = 0.001
    """Learning rate of the small networks."""
    background_rate: float = 0.001
    """Learning rate of a learned background."""
    other_rate: float = 0.001
    """Learning rate of whatever else a scene learns."""
    rate: Ramp | Exponential = Constant(1.0)
    """Factor on all learning rates over the run."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Memory of AdamW's two moments."""
    eps: float = 1e-15
    """AdamW's epsilon: tiny, because gradients of single grid entries are."""
    weight_decay: float = 0.01
    """AdamW's decoupled decay; PyTorch's default, which the published configurations do not change."""
    total_variation: Ramp = Constant(0.0)
    """Weight of the roughness of the encoding's planes."""
    checkpoint_seconds: float = 30.0
    """Seconds between two checkpoints."""
    max_skipped: int = 10
    """Steps with NaN or infinite gradients that are skipped before the run fails."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"a fit has at least one step, got steps={self.steps}")
        rates = (self.encoding_rate, self.network_rate, self.background_rate, self.other_rate)
        if min(rates) < 0:
            raise UserError(f"learning rates are at least 0, got {rates}")

    def rate_of(self, group: str) -> float:
        """Learning rate of one of a scene's parameter groups."""
        named = {"encoding": self.encoding_rate, "networks": self.network_rate, "background": self.background_rate}
        return named.get(group, self.other_rate)


def fit(
    scene: S, objectives: Sequence[Objective], config: FitConfig, balance: Balance | None = None, *, run: Stage
) -> S:
    """A copy of `scene`, fitted to `objectives`; the scene given stays as it is.

    Each step renders each objective's shot, adds up the gradients of their weighted losses, and takes one AdamW step.
    `balance` sets the weight of one objective by the size of its gradient beside another's.
    A step whose gradient is not finite is skipped and counted; RunFailed after `config.max_skipped` of them. The log
    gets a line a step. KeyboardInterrupt, with everything saved, when the person asked to stop.
    """
    names = [objective.name for objective in objectives]
    if not objectives or len(set(names)) < len(names):
        raise ValueError(f"fit expects one or more objectives with different names, got {names}")
    scene = copy.deepcopy(scene).to(run.device)
    objectives = [objective.to(run.device) for objective in objectives]
    optimizer = build_optimizer(scene, config)
    balancer = None if balance is None else Balancer(balance, names)
    start, skipped, saved = 0, 0, 0
    if (checkpoint := run.load_checkpoint()) is not None:
        start, state = checkpoint
        scene.load_state_dict(state["scene"])
        optimizer.load_state_dict(state["optimizer"])
        skipped, saved = state["skipped"], start
        if balancer is not None:
            balancer.means = dict(state["balance"])

    with run.progress(config.steps, start=start) as progress:
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.rate_of(group["name"]) * config.rate.at(step, config.steps)
            scene.update(step, config.steps, run.generator(step, "scene"))
            optimizer.zero_grad()
            metrics = _accumulate(scene, objectives, config, balancer, step, run)
            norm = _gradient_norm(optimizer)
            if bool(torch.isfinite(norm)):
                optimizer.step()
            else:
                skipped += 1
                run.log(step, event="skipped", reason="the gradient is not finite", **metrics)
                if skipped >= config.max_skipped:
                    kept = (
                        f"the last good checkpoint is that of step {saved}" if saved else "there is no checkpoint yet"
                    )
                    raise RunFailed(
                        f"{run.name}: the gradient was NaN or infinite in {skipped} steps, last in step {step}; "
                        f"{kept}. Lower the learning rates or the weights of the losses."
                    )
            run.log(step, **metrics, gradient=float(norm))
            progress.update(step + 1, **_shown(metrics))
            run.preview(step, lambda: render_turn(scene, frames=12, size=64))
            saved = _checkpoint(run, step + 1, config, scene, optimizer, balancer, skipped, saved)
    scene.update(config.steps, config.steps, run.generator(config.steps, "scene"))
    return scene


def build_optimizer(scene: Scene, config: FitConfig) -> torch.optim.AdamW:
    """AdamW with one named group for each of the scene's parameter groups."""
    groups = [
        {"params": parameters, "name": name, "lr": config.rate_of(name)}
        for name, parameters in scene.parameter_groups().items()
    ]
    # The fused kernel is five times faster on a CPU than the loop over tensors; both are elementwise, so deterministic.
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True)


def _accumulate(
    scene: Scene,
    objectives: Sequence[Objective],
    config: FitConfig,
    balancer: Balancer | None,
    step: int,
    run: Stage,
) -> dict[str, Any]:
    """Add the gradients of all objectives that are due; the figures of the step."""
    metrics: dict[str, Any] = {}
    total = config.steps
    for objective in objectives:
        weight = objective.weight.at(step, total)
        if weight == 0 or step % objective.every:
            continue
        generator = run.generator(step, objective.name)
        shot = objective.shot(step, total, generator, run.device)
        rendering = scene.render(shot, generator)
        loss, figures = objective.loss(rendering, shot, step, total, generator)
        if balancer is not None:
            balancer.measure(objective.name, weight * loss, rendering, step)
            weight *= balancer.factor(objective.name, step, total)
            figures |= {"weight": weight} if objective.name == balancer.config.objective else {}
        (weight * loss).backward()
        prefix = "" if len(objectives) == 1 else f"{objective.name}."
        metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
        metrics[f"{prefix}loss"] = loss.detach()
        if rendering.samples is not None:
            metrics[f"{prefix}samples_per_ray"] = len(rendering.samples.t_mid) / max(1, rendering.samples.num_rays)
    if (smoothness := config.total_variation.at(step, total)) > 0:
        roughness = scene.total_variation()
        (smoothness * roughness).backward()
        metrics["total_variation"] = roughness.detach()
    return {name: float(value) for name, value in metrics.items()}


def _gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """Euclidean norm of all gradients together; zero where there are none."""
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not grads:
        return torch.zeros(())
    return torch.stack([torch.linalg.vector_norm(grad) for grad in grads]).norm()


def _checkpoint(
    run: Stage,
    done: int,
    config: FitConfig,
    scene: Scene,
    optimizer: torch.optim.Optimizer,
    balancer: Balancer | None,
    skipped: int,
    saved: int,
) -> int:
    """Save when it is time to; the number of steps of the newest checkpoint."""
    made = []

    def state() -> dict[str, Any]:
        made.append(done)
        kept = {} if balancer is None else {"balance": dict(balancer.means)}
        return {"scene": dict(scene.state_dict()), "optimizer": optimizer.state_dict(), "skipped": skipped, **kept}

    run.checkpoint(done, state, every=config.checkpoint_seconds)
    return made[0] if made else saved


def _shown(metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures worth a place beside the progress bar."""
    return {name: value for name, value in metrics.items() if name.split(".")[-1] in ("loss", "psnr")}
