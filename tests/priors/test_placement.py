"""Where networks are kept changes how much memory they take, and nothing that they say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maquette.errors import UserError
from maquette.priors import published
from maquette.priors.hub import load_prior
from maquette.priors.placement import Placement, current_placement, loading, placed, wait_on_cpu
from tests.priors.published_files import CONFIGS, write_published
from tests.priors.tiny import four_cameras, prompt, tiny_published, tiny_stable_diffusion, tiny_zero123

WHITE = torch.ones(3)


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.float16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("float16", "cuda", torch.float16),
    ],
)
def test_precisions(precision, device, expected):
    assert Placement(precision).dtype(device) is expected


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(UserError, match="float16 is for a GPU"):
        Placement("float16").dtype("cpu")


def test_it_holds_inside_only():
    assert current_placement() == Placement()
    with loading(Placement("bfloat16", True)):
        assert current_placement().low_memory
    assert current_placement() == Placement()


def test_what_a_prior_says_stays_the_same():
    cond_prompt, t = prompt(), torch.tensor([400])
    latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = tiny_published()
    with loading(Placement(low_memory=True)):
        apart = placed(tiny_published())
    assert not apart.config.batch_conditions and whole.config.batch_conditions
    found = []
    for prior in (whole, apart):
        cond = prior.condition(cond_prompt, WHITE)
        pair = prior.predict_each(latents, t, {"cond": cond, "uncond": prior.unconditional(cond)}, four_cameras())
        found.append(torch.stack([pair["cond"].eps, pair["uncond"].eps]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert whole.fingerprint() == apart.fingerprint(), "it is the same prior"
    assert placed(whole) is whole


def test_single_view_priors_too():
    with loading(Placement(low_memory=True)):
        for make in (tiny_stable_diffusion, tiny_zero123):
            assert not placed(make()).config.batch_conditions


class Watched(nn.Module):
    """Notes where it is sent."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.places = []

    def to(self, *args, **kwargs):
        self.places.append(str(args[0]))
        return self

    def forward(self, x):
        self.places.append("call")
        return x * self.weight


def test_an_encoder_is_on_the_device_while_it_computes():
    module = Watched()
    wait_on_cpu(module, "cuda")
    assert float(module(torch.tensor(3.0))) == 3.0
    assert module.places == ["cpu", "cuda", "call", "cpu"]
    assert set(module.state_dict()) == {"weight"}, "its names are as before"
    module.weight.requires_grad_()
    module(torch.tensor(3.0))
    assert module.places[4:] == ["cuda", "call"], "what is being trained stays"


def test_released_files_are_loaded_so(tmp_path, monkeypatch):
    monkeypatch.setitem(published.MODELS, "mvdream", lambda: CONFIGS["mvdream"])
    file = write_published(tmp_path / "mvdream", "mvdream")
    with loading(Placement("bfloat16", low_memory=True)):
        prior = load_prior("mvdream", file)
    assert prior.dtype is torch.bfloat16 and not prior.config.batch_conditions
    assert next(prior.codec.parameters()).dtype is torch.float32
    assert load_prior("mvdream", file).dtype is torch.float32
