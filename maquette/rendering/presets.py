"""Volume scenes by what they are for: the published one, and one for pictures on a CPU."""

from __future__ import annotations

from maquette.fields.background import FlatBackgroundConfig, LearnedBackgroundConfig
from maquette.fields.encodings import HashGridConfig, TriPlanesConfig
from maquette.fields.radiance import FlatBias, LinearBlob, RadianceConfig
from maquette.rendering.sampling import OccupancyConfig
from maquette.rendering.scene import VolumeConfig
from maquette.schedules import Constant


def imagedream_volume() -> VolumeConfig:
    """The field and renderer of ImageDream's released configuration (`imagedream-sd21-shading`): hash grid, 512
    samples.

    Differs from the released code: during its warm-up the occupancy grid forgets the past, so that space empties
    sooner.
    """
    return VolumeConfig(
        field=RadianceConfig(encoding=HashGridConfig(), bias=LinearBlob(10.0, 0.5), hidden=64),
        background=LearnedBackgroundConfig(),
        occupancy=OccupancyConfig(resolution=32, interval=16, warmup=256, decay=0.95, share=0.25, threshold=0.01),
        samples=Constant(512),
    )


def photometric_volume() -> VolumeConfig:
    """What fits masked pictures fastest on a CPU (`benchmarks/field.py`): half a million parameters, nearly empty at
    first."""
    return VolumeConfig(
        field=RadianceConfig(encoding=TriPlanesConfig(), bias=FlatBias(-4.0), density_scale=10.0, hidden=32),
        background=FlatBackgroundConfig(),
        samples=Constant(128),
    )
