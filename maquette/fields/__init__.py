"""Functions of position: density or distance and colour, what lies behind, and how light falls."""

from maquette.fields.background import (
    BackgroundConfig,
    FlatBackground,
    FlatBackgroundConfig,
    LearnedBackground,
    LearnedBackgroundConfig,
)
from maquette.fields.base import Field, FieldSample, Want
from maquette.fields.encodings import (
    EncodingConfig,
    Frequency,
    FrequencyConfig,
    HashGrid,
    HashGridConfig,
    TriPlanes,
    TriPlanesConfig,
)
from maquette.fields.material import Shading, shade
from maquette.fields.normals import AnalyticNormals, FiniteDifferenceNormals, NormalsConfig, ProgressiveNormals
from maquette.fields.radiance import (
    DensityBias,
    FlatBias,
    GaussianBlob,
    LinearBlob,
    RadianceConfig,
    RadianceField,
)
from maquette.fields.surface import SurfaceField, SurfaceFieldConfig, TextureConfig

__all__ = [
    "AnalyticNormals",
    "BackgroundConfig",
    "DensityBias",
    "EncodingConfig",
    "Field",
    "FieldSample",
    "FiniteDifferenceNormals",
    "FlatBackground",
    "FlatBackgroundConfig",
    "FlatBias",
    "Frequency",
    "FrequencyConfig",
    "GaussianBlob",
    "HashGrid",
    "HashGridConfig",
    "LearnedBackground",
    "LearnedBackgroundConfig",
    "LinearBlob",
    "NormalsConfig",
    "ProgressiveNormals",
    "RadianceConfig",
    "RadianceField",
    "Shading",
    "SurfaceField",
    "SurfaceFieldConfig",
    "TextureConfig",
    "TriPlanes",
    "TriPlanesConfig",
    "Want",
    "shade",
]
