"""Cases of the metrics goldens: image and shape metrics, distillation formulas, shading, retrieval scores."""

from tests.parity.metrics import distillation, geometry, images, retrieval, shading, syncdreamer

KINDS = [images.KIND, geometry.KIND, distillation.KIND, shading.KIND, retrieval.KIND, syncdreamer.KIND]
