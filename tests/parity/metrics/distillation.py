"""sds_examples: every score-distillation formula, both conventions of guidance, surrogate, DreamBooth's loss."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maquette.diffusion.cfg import guide, rescale_std
from maquette.diffusion.losses import min_snr_weight, prior_preservation_loss
from maquette.diffusion.sampling import SamplingSteps
from maquette.diffusion.schedule import NoiseSchedule
from maquette.guidance import csd, ism, nfsd, perp_neg, score, sjc, vsd
from maquette.guidance.base import surrogate
from maquette.schedules import Constant, timestep_bounds
from tests.parity.golden import EXACT, Checks, Golden, Kind, has
from tests.parity.metrics.numbers import FORMULA, expected, facts, from_name, tell

INPUT_ARRAYS = re.compile(r"x|eps|t|eps_(cond|uncond|neg\d*|lora|s)|v_pred|perp_neg_weights|renderer_A|theta|db_\w+")
INPUT_NUMBERS = re.compile(
    r"guidance_scale|csd_negative_weights\..*|nfsd_(scale|threshold_timestep)|timesteps|timestep_bounds\.\d+\.(T|range)"
    r"|schedule\.(beta_start|beta_end|num_train_timesteps)|img2img_strength\.\d+\.(strength|num_inference_steps)"
    r"|dreambooth\.(lambda_prior|min_snr_gamma)"
)
WEIGHTINGS = {
    "sigma2": score.sigma_squared,
    "uniform": score.uniform,
    "fantasia3d": score.alpha_sigma_squared,
    "sigma_over_alpha": score.sigma_over_alpha,
    "snr_inv": score.inverse_snr,
}


@dataclass(frozen=True)
class Case:
    """The file's inputs, latents as [B, 1, C, h, w] so that a sample is a scene of one view."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    schedule: NoiseSchedule
    scale: float
    """Guidance scale of the estimators that want an ordinary one, from the names of the expected tensors."""

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name].unsqueeze(1)

    @property
    def t(self) -> Tensor:
        return self.tensors["t"]

    @property
    def halves(self) -> dict[str, Tensor]:
        return {"eps_cond": self["eps_cond"], "eps_uncond": self["eps_uncond"]}

    def weight(self, name: str) -> Tensor:
        x = self["x"]
        return WEIGHTINGS[name](alpha_t=self.schedule.alpha(self.t, x), sigma_t=self.schedule.sigma(self.t, x))

    def guided(self, scale: float) -> Tensor:
        return guide(**self.halves, guidance_scale=scale)


def expects(golden: Golden) -> Checks:
    values = facts(golden, instead="sds_examples")
    return expected(
        golden, values, lambda n: bool(INPUT_NUMBERS.fullmatch(n)), arrays=lambda n: not INPUT_ARRAYS.fullmatch(n)
    )


def run(golden: Golden, checks: Checks) -> None:
    """All of it in float64."""
    values = facts(golden, instead="sds_examples")
    schedule = noise_schedule(values["schedule"])
    plain = [name for name in checks.expected if re.fullmatch(r"eps_cfg_\d+p\d+", name)]
    scale = from_name(plain[0].removeprefix("eps_cfg_")) if plain else float(values["nfsd_scale"])
    case = Case({k: v.double() if k != "t" else v for k, v in golden.tensors.items()}, values, schedule, scale)
    forward_process(case, checks)
    results = {**guidance(case, checks), **directions(case)}
    for name, value in results.items():
        tell(checks, name, value.squeeze(1))
        tell(checks, f"grad_norms.{name}", value.norm())
    reconstruction(case, checks)
    through_a_renderer(case, checks, results)
    dreambooth(case, checks)
    counting(case, checks)


def noise_schedule(settings: dict[str, Any]) -> NoiseSchedule:
    """The schedule that the case names; ValueError for a kind that we do not have."""
    if settings["beta_schedule"] != "scaled_linear":
        raise ValueError(f"unknown beta_schedule {settings['beta_schedule']!r}")
    return NoiseSchedule.scaled_linear(settings["num_train_timesteps"], settings["beta_start"], settings["beta_end"])


def forward_process(case: Case, checks: Checks) -> None:
    """Schedule, weightings, noising, and conversions between eps, x0 and v."""
    schedule, t, x, eps = case.schedule, case.t, case["x"], case["eps"]
    for name in checks.expected:
        if match := re.fullmatch(r"schedule\.alpha_bar_(\d+|first|last)", name):
            index = {"first": 0, "last": -1}.get(match[1])
            tell(checks, name, schedule.alphas_cumprod[int(match[1]) if index is None else index])
    tell(checks, "alpha_bar", schedule.alphas_cumprod[t])
    tell(checks, "snr", schedule.snr(t, x).flatten())
    for name in WEIGHTINGS:
        weight = case.weight(name).flatten()
        tell(checks, f"w_{name}", weight)
        tell(checks, f"weights.{name}", weight)
    x_t = schedule.add_noise(x, eps, t)
    tell(checks, "x_t", x_t.squeeze(1))
    tell(checks, "velocity_of_x_eps", schedule.v_from(x, eps, t).squeeze(1))
    tell(checks, "noise_recovered_from_x_t", schedule.eps_from_x0(x_t, x, t).squeeze(1))
    tell(checks, "eps_from_v", schedule.eps_from_v(x_t, case["v_pred"], t).squeeze(1))
    tell(checks, "x0_from_v", schedule.x0_from_v(x_t, case["v_pred"], t).squeeze(1))


def guidance(case: Case, checks: Checks) -> dict[str, Tensor]:
    """Guided predictions in both conventions, and with perpendicular negatives."""
    scale = float(case.facts["guidance_scale"])
    found = {
        "eps_cfg_dreamfusion": case.guided(score.from_dreamfusion(scale)),
        "eps_cfg_diffusers": case.guided(scale),
        "eps_perp_neg": perp_neg.guide_perpendicular(
            **case.halves,
            eps_neg=torch.stack([case["eps_neg"], case["eps_neg2"]]),
            weights=case.tensors["perp_neg_weights"].T,
            guidance_scale=case.scale,
        ),
    }
    for name in checks.expected:
        if match := re.fullmatch(r"eps_cfg_(\d+p\d+)", name):
            found[name] = case.guided(from_name(match[1]))
    return found


def directions(case: Case) -> dict[str, Tensor]:
    """One direction per estimator."""
    scale, eps, x = float(case.facts["guidance_scale"]), case["eps"], case["x"]
    sigma2, omega = case.weight("sigma2"), score.from_dreamfusion(scale)
    t = case.t.reshape(-1, *[1] * (x.ndim - 1))
    u = case.weight("sigma_over_alpha")
    strengths = case.facts["csd_negative_weights"]
    perpendicular = guidance(case, Checks({}))["eps_perp_neg"]
    found = {
        f"grad_sds_{name}": score.direction(**case.halves, eps=eps, guidance_scale=omega, weight=case.weight(name))
        for name in WEIGHTINGS
    }
    return found | {
        "grad_sds_diffusers_cfg_sigma2": score.direction(**case.halves, eps=eps, guidance_scale=scale, weight=sigma2),
        "grad_sds_perp_neg_sigma2": sigma2 * (perpendicular - eps),
        "grad_csd_sigma2": csd.direction(**case.halves, weight=sigma2),
        "grad_csd_negative_sigma2": csd.direction_with_negative(
            **case.halves, eps_neg=case["eps_neg"], weight=sigma2, **strengths
        ),
        "grad_nfsd_sigma2": nfsd.direction(
            **case.halves,
            eps_neg=case["eps_neg"],
            t=t,
            weight=sigma2,
            guidance_scale=float(case.facts["nfsd_scale"]),
            threshold=int(case.facts["nfsd_threshold_timestep"]),
        ),
        "grad_vsd_sigma2": vsd.direction(
            **case.halves, eps_lora=case["eps_lora"], weight=sigma2, guidance_scale=case.scale
        ),
        "grad_ism": ism.direction(**case.halves, eps_s=case["eps_s"], weight=u, guidance_scale=case.scale),
        "grad_sjc_var_reduced": sjc.direction(x=x, eps=eps, eps_pred=case.guided(omega), u=u),
        "sjc_scaled_input": sjc.perturb(x, eps, u)[1],
    }


def reconstruction(case: Case, checks: Checks) -> None:
    """x0 forms, with and without the rescaled contrast, and the noise level of the variance-exploding view."""
    x, t, schedule = case["x"], case.t, case.schedule
    x_t = schedule.add_noise(x, case["eps"], t)
    x0_cond = schedule.x0_from_eps(x_t, case["eps_cond"], t)
    x0_pred = schedule.x0_from_eps(x_t, case.guided(case.scale), t)
    tell(checks, "sjc_sigma", case.weight("sigma_over_alpha").flatten())
    tell(checks, "x0_hat_cond_only", x0_cond.squeeze(1))
    found = {"grad_x0_reconstruction": x - x0_pred}
    for name in checks.expected:
        if match := re.fullmatch(r"x0_hat_cfg_(\d+p\d+)", name):
            guided = schedule.x0_from_eps(x_t, case.guided(from_name(match[1])), t)
            tell(checks, name, guided.squeeze(1))
        elif match := re.fullmatch(r"(x0_hat|grad_x0_reconstruction)_rescaled_phi(\d+p\d+)", name):
            rescaled = rescale_std(x0_pred, x0_cond=x0_cond, strength=from_name(match[2]))
            found[name] = rescaled if match[1] == "x0_hat" else x - rescaled
    for name, value in found.items():
        # The product adds 1e-8 to both standard deviations, as the released code does.
        limit = 1e-7 if "rescaled" in name else FORMULA
        tell(checks, name, value.squeeze(1), limit)
        tell(checks, f"grad_norms.{name}", value.norm(), limit)


def through_a_renderer(case: Case, checks: Checks, results: dict[str, Tensor]) -> None:
    """The surrogate's value and gradient, on latents and through a linear renderer x = A theta."""
    batch = len(case.t)
    for name in checks.expected:
        if match := re.fullmatch(r"surrogate_loss_value_(\w+)", name):
            latents = case["x"].clone().requires_grad_()
            loss = surrogate(latents, results[f"grad_sds_{match[1]}"])
            loss.backward()
            assert latents.grad is not None
            tell(checks, name, loss)
            tell(checks, f"grad_sds_{match[1]}", (latents.grad * batch).squeeze(1))
    if "renderer_A" in case.tensors:
        theta = case.tensors["theta"].clone().requires_grad_()
        first = results["grad_sds_sigma2"][:1]
        rendered = (case.tensors["renderer_A"] @ theta).reshape(first.shape)
        surrogate(rendered, first).backward()
        assert theta.grad is not None
        tell(checks, "theta_grad_from_sample0", theta.grad)


def dreambooth(case: Case, checks: Checks) -> None:
    """Prior preservation and min-SNR weights."""
    settings = case.facts.get("dreambooth")
    if settings is None:
        return
    names = ("db_pred_instance", "db_target_instance", "db_pred_prior", "db_target_prior")
    instance, instance_target, prior, prior_target = (case.tensors[name] for name in names)
    gamma, weight = float(settings["min_snr_gamma"]), float(settings["lambda_prior"])
    snr = case.schedule.snr(case.t, case["x"]).flatten()
    tell(checks, "dreambooth.min_snr_weights_eps", min_snr_weight(snr, gamma, "eps"))
    tell(checks, "dreambooth.min_snr_weights_v", min_snr_weight(snr, gamma, "v"))
    nothing = torch.zeros_like(prior)
    arguments = {"pred": instance, "target": instance_target}
    tell(
        checks,
        "dreambooth.instance_mse",
        prior_preservation_loss(**arguments, prior_pred=prior, prior_target=prior, prior_weight=0.0),
    )
    tell(
        checks,
        "dreambooth.prior_mse",
        prior_preservation_loss(pred=nothing, target=nothing, prior_pred=prior, prior_target=prior_target),
    )
    both = {**arguments, "prior_pred": prior, "prior_target": prior_target, "prior_weight": weight}
    tell(checks, "dreambooth.loss", prior_preservation_loss(**both))
    weights = min_snr_weight(snr, gamma, "eps")
    tell(checks, "dreambooth.loss_min_snr_eps_on_instance_only", prior_preservation_loss(**both, sample_weight=weights))


def counting(case: Case, checks: Checks) -> None:
    """Integer bounds of t, and how many steps an image-to-image run makes."""
    for index, entry in enumerate(case.facts.get("timestep_bounds", [])):
        low, high = timestep_bounds(*(Constant(value) for value in entry["range"]), 0, 1, entry["T"])
        tell(checks, f"timestep_bounds.{index}.min_step", low, EXACT)
        tell(checks, f"timestep_bounds.{index}.max_step", high, EXACT)
    for index, entry in enumerate(case.facts.get("img2img_strength", [])):
        steps = SamplingSteps.exact(case.schedule, entry["num_inference_steps"])
        kept = len(steps.partial(entry["strength"]))
        tell(checks, f"img2img_strength.{index}.steps_run", kept, EXACT)
        tell(checks, f"img2img_strength.{index}.first_index", len(steps) - kept, EXACT)


KIND = Kind("sds_examples", has("eps_cond", "eps_uncond", "alpha_bar"), run, expects)
