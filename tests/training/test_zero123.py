"""Zero-1-to-3's training step: which conditions are dropped, and that it can learn."""

from __future__ import annotations

import pytest
import torch

from maquette.training.zero123 import TrainingBatch, dropped, training_step
from tests.priors.tiny import tiny_zero123


def test_the_two_drops_overlap():
    uniform = torch.tensor([0.0, 0.049, 0.05, 0.0999, 0.1, 0.1499, 0.15, 0.999])
    embedding, latents = dropped(uniform)
    assert embedding.tolist() == [True, True, True, True, False, False, False, False]
    assert latents.tolist() == [False, False, True, True, True, True, False, False]
    assert not torch.stack(dropped(uniform, 0.0)).any()
    with pytest.raises(ValueError, match="at most 1/3"):
        dropped(uniform, 0.4)


def test_a_step_reaches_network_and_projection(generator):
    prior = tiny_zero123()
    for module in (prior.network, prior.projection):
        module.requires_grad_(True)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    batch = TrainingBatch(
        latents=normal(3, 4, 8, 8), picture=normal(3, 4, 8, 8), embedding=normal(3, 12), pose=normal(3, 4),
        t=torch.tensor([10, 500, 990]), eps=normal(3, 4, 8, 8), uniform=torch.tensor([0.01, 0.12, 0.5]),
    )  # fmt: skip
    step = training_step(prior, batch)
    step.loss.backward()
    assert float(step.loss.detach()) > 0
    assert prior.projection.weight.grad.abs().sum() > 0
    assert next(prior.network.parameters()).grad.abs().sum() > 0
    assert torch.equal(step.picture[0], batch.picture[0]) and not step.picture[1].any()
    # The embedding is dropped before the projection: the pose still counts.
    no_embedding = prior.context(torch.zeros(1, 12), batch.pose[:1])
    torch.testing.assert_close(step.context[:1], no_embedding)
