"""Networks, noise schedules and samplers of diffusion models; blind to fields and renderers."""
