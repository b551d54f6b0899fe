"""neus_alpha, neus_sdf_field, neus_occupancy, neus_schedules: the surface field and its renderer (instant-nsr-pl)."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from maquette.fields.encodings import FrequencyConfig, HashGrid, HashGridConfig
from maquette.fields.normals import FiniteDifferenceNormals
from maquette.fields.surface import SurfaceField, SurfaceFieldConfig, TextureConfig
from maquette.rendering.sharpness import Cap, Sharpness, neus_alpha, volsdf_density
from maquette.rendering.surface import ProgressiveLevels, SurfaceConfig, SurfaceScene
from maquette.schedules import Exponential, Linear, Schedule
from maquette.stages.regularizers import binary_entropy, crowding, eikonal, mask_entropy
from tests.parity.golden import CAMERA, EXACT, NETWORK, Checks, Golden, Kind, has

NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
PAPER = SurfaceConfig()
"""The package's defaults are the settings that were recorded."""
ANNEAL_STEPS = 20_000
ROUNDINGS = 4
"""Float32 roundings, ours and the recorded ones, in one output of the distance network."""


# Opacity


def run_alpha(golden: Golden, checks: Checks) -> None:
    """Opacities, and the gradients of their sum weighted from 0.5 to 1.5, for every s and annealing of the file."""
    given = golden.tensors
    upstream = torch.linspace(0.5, 1.5, len(given["sdf"]))
    for prefix in sorted({name.rpartition(".")[0] for name in checks.expected if name.endswith(".alpha")}):
        match = re.fullmatch(rf"inv{NUMBER}_cos{NUMBER}", prefix)
        assert match is not None, f"{prefix} names no s and no annealing"
        sharpness = Sharpness(math.log(float(match[1])) / 10)
        sdf, normal = given["sdf"].clone().requires_grad_(), given["normal"].clone().requires_grad_()
        cosine = (given["dirs"] * normal).sum(-1)
        alpha = neus_alpha(sdf, cosine, given["dists"], sharpness(), float(match[2]))
        (alpha * upstream).sum().backward()
        gradients = {"grad_sdf": sdf.grad, "grad_normal": normal.grad, "grad_variance": sharpness.variance.grad}
        checks.compare(f"{prefix}.alpha", alpha, NETWORK)
        checks.compare(f"{prefix}.inv_s", sharpness(), NETWORK)
        for name, gradient in gradients.items():
            assert gradient is not None
            checks.compare(f"{prefix}.{name}", gradient, NETWORK)
    for name in checks.expected:
        if match := re.fullmatch(rf"volsdf_density_inv{NUMBER}", name):
            checks.compare(name, volsdf_density(given["sdf"], float(match[1])), NETWORK)


def expects_alpha(golden: Golden) -> Checks:
    inputs = {"sdf", "normal", "dirs", "dists"}
    return Checks({name: tensor for name, tensor in golden.tensors.items() if name not in inputs})


# Field


def run_field(golden: Golden, checks: Checks) -> None:
    """Values, gradients and Laplacians for both sets of weights; the penalties on recorded opacities."""
    given, facts = golden.tensors, golden.metadata
    radius = float(facts["radius"])
    points = given["points"] / radius
    for prefix in ("init", "pert"):
        field = recorded_field(golden, prefix)
        answer = field(points, want=frozenset({"sdf", "gradient"}))
        assert answer.sdf is not None and answer.gradient is not None
        gradient = answer.gradient / radius
        checks.compare(f"{prefix}.sdf", answer.sdf[:, 0], NETWORK)
        checks.compare(f"{prefix}.grad", gradient, NETWORK)
        checks.compare(f"{prefix}.feature", field.features(points), NETWORK)
        if prefix == "pert":
            checks.compare("pert.eikonal", eikonal(gradient).mean()[None], NETWORK)
            checks.compare("forward_level", field.sdf(points)[:, 0], NETWORK)
            for name in checks.expected:
                if match := re.fullmatch(rf"loss_sparsity_scale{NUMBER}", name):
                    checks.compare(name, crowding(answer.sdf, float(match[1])).mean()[None], NETWORK)
    for name in checks.expected:
        if match := re.fullmatch(rf"fd{NUMBER}\.(grad|laplace)", name):
            epsilon = float(match[1]) / radius
            field = recorded_field(golden, "pert", epsilon)
            answer = field(points, want=frozenset({"gradient", "laplacian"}))
            assert answer.gradient is not None and answer.laplacian is not None
            ours = answer.gradient / radius if match[2] == "grad" else answer.laplacian[:, 0] / radius**2
            checks.compare(name, ours, difference_limit(given, checks.expected[name], float(match[1]), match[2]))
    opacity = given["opacity"]
    checks.compare("loss_mask", mask_entropy(opacity, given["fg_mask"].to(opacity)).mean()[None], NETWORK)
    checks.compare("loss_opaque", binary_entropy(opacity).mean()[None], NETWORK)


def difference_limit(given: dict[str, Tensor], reference: Tensor, epsilon: float, what: str) -> float:
    """What float32 leaves of a difference quotient: roundings of the values, divided by epsilon or its square."""
    rounding = ROUNDINGS * 2.0**-24 * float(given["pert.sdf"].abs().max())
    # Two values over 2 epsilon; six and six times the middle one over epsilon squared.
    noise = rounding / epsilon if what == "grad" else 12 * rounding / epsilon**2
    return (NETWORK if what == "grad" else 1e-3) + noise / float(reference.abs().max())


def recorded_field(golden: Golden, prefix: str, epsilon: float | None = None) -> SurfaceField:
    """The field of this package with the weights of the file."""
    facts = golden.metadata
    features = golden.tensors[f"{prefix}.feature"].shape[1]
    config = SurfaceFieldConfig(
        encoding=FrequencyConfig(int(facts["n_frequencies"]), include_input=False, phase="unit cube"),
        hidden=int(facts["n_neurons"]),
        layers=int(facts["n_hidden_layers"]),
        features=features,
        texture=TextureConfig(normals=False, directions=False),
        **({} if epsilon is None else {"normals": FiniteDifferenceNormals(epsilon)}),
    )
    field = SurfaceField(config)
    weights = golden.under(f"{prefix}.network.")
    names = {"length": "weight_g", "direction": "weight_v", "bias": "bias"}
    state = {
        f"layers.{index}.{ours}": weights[f"layers.{2 * index}.{theirs}"]
        for index in range(config.layers + 1)
        for ours, theirs in names.items()
    }
    field.distance_network.load_state_dict(state)
    return field


def expects_field(golden: Golden) -> Checks:
    inputs = re.compile(r"(init|pert)\.network\..*|points|fg_mask|opacity")
    return Checks({name: tensor for name, tensor in golden.tensors.items() if not inputs.fullmatch(name)})


# Occupancy


def run_occupancy(golden: Golden, checks: Checks) -> None:
    """What a scene remembers of a cell, at recorded distances and ray steps, and the annealing along the way."""
    given = golden.tensors
    for name in checks.expected:
        if match := re.fullmatch(r"cos_anneal_at_(\d+)", name):
            annealed = Linear(0.0, 1.0, ANNEAL_STEPS, unit="step")(int(match[1]))
            fraction = PAPER.anneal.at(int(match[1]), ANNEAL_STEPS)
            assert annealed == fraction, "the default annealing takes the whole run"
            checks.compare(name, torch.tensor(annealed), CAMERA)
            continue
        match = re.fullmatch(rf"occ_(?:inv{NUMBER}|reference_init_variance)", name)
        if match is None:
            continue
        variance = math.log(float(match[1])) / 10 if match[1] else PAPER.variance
        scene = SurfaceScene(small_scene(variance))
        scene.step_length = float(given["render_step_size"])
        checks.compare(name, scene.occupancy_alpha(given["sdf"].reshape(-1, 1)), NETWORK)


def small_scene(variance: float) -> SurfaceConfig:
    """A scene whose field and grid cost nothing: neither takes part."""
    field = SurfaceFieldConfig(encoding=FrequencyConfig(1))
    return SurfaceConfig(field=field, variance=variance)


def expects_occupancy(golden: Golden) -> Checks:
    inputs = {"sdf", "render_step_size"}
    return Checks({name: tensor for name, tensor in golden.tensors.items() if name not in inputs})


# Schedules


def run_schedules(golden: Golden, checks: Checks) -> None:
    """Levels, channels and differences over the steps; learning rates; the cap of s."""
    facts = golden.facts
    grid = HashGrid(HashGridConfig(base_resolution=32, growth=1.3195079107728942, table_size_log2=4))
    levels, channels, cells = [], [], []
    for step in facts["steps"]:
        grid.active_levels = ProgressiveLevels().at(step, ANNEAL_STEPS, grid.num_levels)
        levels.append(grid.active_levels)
        channels.append(int((grid(torch.tensor([[0.1, 0.2, 0.3]])) != 0).sum()))
        cells.append(grid.cell * float(facts["radius"]))
    checks.compare("progressive_level", torch.tensor(levels), EXACT)
    checks.compare("active_feature_channels", torch.tensor(channels), EXACT)
    checks.compare("finite_difference_eps", torch.tensor(cells, dtype=torch.float64), CAMERA)
    for name in checks.expected:
        if match := re.fullmatch(r"lr_(warmup|constant)(\d+)_total(\d+)", name):
            rate = learning_rate(int(match[2]), int(match[3]), warm=match[1] == "warmup")
            values = [0.01 * rate(step) for step in facts["lr_steps"]]
            checks.compare(name, torch.tensor(values, dtype=torch.float64), CAMERA)
    if "variance_modulation" in checks.expected:
        rows = [(int(step), float(raw)) for step, raw, _ in facts["variance_modulation"]]
        told = re.search(r"mod_start (\d+), reach_max (\d+), max (\d+)", facts["note"])
        assert told is not None, "the note does not say how s was limited"
        start, reach, highest = (float(text) for text in told.groups())
        checks.compare("variance_modulation", torch.tensor(capped(rows, Cap(highest, start, reach, "step"))), CAMERA)


def learning_rate(begin: int, total: int, *, warm: bool) -> Schedule:
    """The whole rate, from a hundredth if it is `warm`, then down to a tenth."""
    return Exponential(1.0, 0.1, total, begin, warmup=0.01 if warm else 1.0, unit="step")


def capped(rows: list[tuple[int, float]], cap: Cap) -> list[float]:
    """s after each (step, raw parameter), in order."""
    sharpness = Sharpness(rows[0][1], cap)
    values = []
    for step, raw in rows:
        with torch.no_grad():
            sharpness.variance.fill_(raw)
        sharpness.update(step, ANNEAL_STEPS)
        values.append(float(sharpness().detach()))
    return values


def expects_schedules(golden: Golden) -> Checks:
    facts = golden.facts
    inputs = {"steps", "lr_steps", "radius", "note"}
    found = {name: torch.tensor(value) for name, value in facts.items() if name not in inputs}
    for name in ("finite_difference_eps", *(name for name in facts if name.startswith("lr_") and name != "lr_steps")):
        found[name] = torch.tensor(facts[name], dtype=torch.float64)
    if "variance_modulation" in facts:
        found["variance_modulation"] = torch.tensor([row[2] for row in facts["variance_modulation"]])
    return Checks(found)


def is_schedules(golden: Golden) -> bool:
    if golden.path.suffix != ".json" or not isinstance(golden.facts, dict):
        return False
    return {"progressive_level", "lr_steps", "steps"} <= set(golden.facts)


KINDS = [
    Kind("neus opacity", has("sdf", "normal", "dirs", "dists"), run_alpha, expects_alpha),
    Kind("neus field", has("points", "pert.sdf", "init.sdf"), run_field, expects_field),
    Kind("neus occupancy", has("sdf", "render_step_size"), run_occupancy, expects_occupancy),
    Kind("neus schedules", is_schedules, run_schedules, expects_schedules),
]
