"""A view prior that knows the object and the picture's true elevation, and is told where views stand relative to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maquette.asset import Mesh
from maquette.cameras import Cameras, fit_distance, from_angles
from maquette.diffusion.schedule import NoiseSchedule
from maquette.images import Prompt
from maquette.priors.base import Condition, Prediction, UnconditionalKind
from maquette.priors.codecs import SpaceToDepth
from maquette.rendering.raster import MeshRenderer
from maquette.run.fingerprints import fingerprint

WHITE = torch.ones(3)


@dataclass
class RelativePrior:
    """x0 = what the camera sees, once its pose relative to the picture is put where the picture truly stands.

    It knows the pictures taken at `elevation`, and at 30 degrees above and below, when it is shown one.
    """

    mesh: Mesh
    elevation: float
    """Of the picture, degrees: what nobody is told."""
    codec: SpaceToDepth = field(default_factory=lambda: SpaceToDepth(32, 4))
    noise_schedule: NoiseSchedule = field(default_factory=lambda: NoiseSchedule.scaled_linear(predicts="x0"))
    num_views: int | None = 1
    calls: list[tuple[str, ...]] = field(default_factory=list)
    """Names of every evaluation."""

    def __post_init__(self) -> None:
        self._renderer = MeshRenderer(self.mesh)
        self._kept: dict[tuple[float, ...], Tensor] = {}

    def look(self, cameras: Cameras) -> Tensor:
        """Pictures [V, 4, s, s] of the object: colours on white, and masks."""
        seen = self._renderer.render(cameras.with_size(32, 32), samples=4, want=frozenset({"rgb"}))
        return torch.cat([seen.composite(WHITE), seen.opacity], dim=-1).movedim(-1, 1)

    def condition(self, prompt: Prompt, background: Tensor) -> Condition:
        assert prompt.camera is not None
        shown = prompt.image
        elevation = self.elevation if shown is None else self.recognise(shown.resized(32).composite(WHITE))
        camera = torch.tensor([[prompt.camera.elevation, prompt.camera.azimuth, elevation]])
        return Condition(text=torch.zeros(1, 1, 1), background=background, camera=camera)

    def recognise(self, picture: Tensor) -> float:
        """The elevation from which a picture [3, 32, 32] was taken."""
        known = [self.elevation, self.elevation + 30.0, self.elevation - 30.0]
        distance, fovy = torch.tensor(fit_distance(40.0)), torch.tensor(40.0)
        cameras = from_angles(torch.zeros(3), torch.tensor(known), distance, fovy, height=32, width=32)
        away = (self.look(cameras)[:, :3] - picture).square().mean(dim=(1, 2, 3))
        return known[int(away.argmin())]

    def unconditional(self, condition: Condition, kind: UnconditionalKind = "zeros") -> Condition:
        return condition

    def predict(self, latents_t: Tensor, t: Tensor, condition: Condition, cameras: Cameras | None = None) -> Prediction:
        return self.predict_each(latents_t, t, {"condition": condition}, cameras)["condition"]

    def predict_each(
        self, latents_t: Tensor, t: Tensor, conditions: Mapping[str, Condition], cameras: Cameras | None = None
    ) -> dict[str, Prediction]:
        assert cameras is not None and tuple(cameras.batch_shape) == tuple(latents_t.shape[:2])
        self.calls.append(tuple(conditions))
        found = {}
        for name, condition in conditions.items():
            assert condition.camera is not None
            (told,) = condition.camera.tolist()
            flat = cameras.flatten()
            azimuth, elevation = flat.azimuth - told[1], flat.elevation - told[0] + told[2]
            key = (*azimuth.tolist(), *elevation.tolist())
            if key not in self._kept:
                true = from_angles(azimuth, elevation, flat.distance, flat.fovy, height=32, width=32)
                self._kept[key] = self.codec.encode(self.look(true)[:, None, :3])
            x0 = self._kept[key]
            found[name] = Prediction(eps=self.noise_schedule.eps_from_x0(latents_t, x0, t), x0=x0)
        return found

    def fingerprint(self) -> str:
        return fingerprint((type(self).__name__, self.mesh, self.elevation))

    def card(self) -> dict[str, Any]:
        return {"name": "relative"}
