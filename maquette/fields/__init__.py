"""Functions of position: density and colour, what lies behind, and how light falls."""

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
from maquette.fields.normals import AnalyticNormals, FiniteDifferenceNormals, NormalsConfig
from maquette.fields.radiance import (
    DensityBias,
    FlatBias,
    GaussianBlob,
    LinearBlob,
    RadianceConfig,
    RadianceField,
)

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
    "RadianceConfig",
    "RadianceField",
    "Shading",
    "TriPlanes",
    "TriPlanesConfig",
    "Want",
    "shade",
]
