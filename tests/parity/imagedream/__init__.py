"""Cases of the MVDream and ImageDream goldens: networks, cameras, schedules, samplers, prompts, distillation."""

from tests.parity.imagedream import cameras, distillation, encoders, prompt, sampling, schedules, unet

KINDS = [
    unet.KIND, *encoders.KINDS, cameras.KIND, *schedules.KINDS, *sampling.KINDS, distillation.KIND, prompt.KIND,
]  # fmt: skip
