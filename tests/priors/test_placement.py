"""Where networks are kept changes how much memory they take, and nothing that they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from maquette.errors import UserError
from maquette.priors import published
from maquette.priors.hub import load_prior
from maquette.priors.placement import Placement, current_placement, loading, placed, wait_on_cpu
from tests.priors.published_files import CONFIGS, write_published
from tests.priors.tiny import four_cameras, prompt, tiny_prior, tiny_published, tiny_stable_diffusion, tiny_zero123

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
    assert apart.codec.recompute and not whole.codec.recompute
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


def test_words_are_encoded_once_until_the_encoder_changes():
    prior, calls = tiny_prior(), []
    prior.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    first = prior.condition(prompt(), WHITE)
    again = prior.condition(prompt(), torch.zeros(3))
    assert len(calls) == 2, "the caption and the negative text, once each"
    assert torch.equal(first.text, again.text) and not torch.equal(first.image_tokens, again.image_tokens)
    with torch.no_grad():
        next(prior.text_encoder.parameters()).add_(0.5)
    changed = prior.condition(prompt(), WHITE)
    assert len(calls) == 4 and not torch.equal(changed.text, first.text)
    # Fused optimisers leave no trace on what they change; while an encoder learns nothing is kept.
    learning = list(prior.text_encoder.requires_grad_().parameters())
    optimizer = torch.optim.AdamW(learning, lr=0.1, fused=True)
    prior.encode_text(prompt().caption).square().sum().backward()
    optimizer.step()
    prior.text_encoder.requires_grad_(False)
    assert not torch.equal(prior.condition(prompt(), WHITE).text, changed.text)


COMPILED = """
import torch
from tests.priors.tiny import four_cameras, prompt, tiny_published

torch.set_num_threads(1)
whole, traced = tiny_published(), tiny_published()
traced.network.compile(backend="eager", fullgraph=True, dynamic=False)
latents = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
for t in (400, 20):
    found = []
    for prior in (whole, traced):
        cond = prior.condition(prompt(), torch.ones(3))
        both = {"cond": cond, "uncond": prior.unconditional(cond)}
        found.append(prior.predict_each(latents, torch.tensor([t]), both, four_cameras())["uncond"].eps)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
assert traced.fingerprint() == whole.fingerprint()
"""


def test_a_compiled_network_says_the_same_without_a_break_or_a_look_at_its_numbers():
    """One graph without questions to the host, so that CUDA graphs can hold it; "eager" spares the compilation itself.

    In a process of its own: the checks of shapes that tests run under cannot be traced.
    """
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_networks_of_compiled_priors_are_compiled(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **options: asked.append((type(module).__name__, options)))
    with loading(Placement(compile=True)):
        for make in (tiny_published, tiny_stable_diffusion, tiny_zero123):
            placed(make())
    assert asked == [("MultiViewUNet", {"mode": "default", "dynamic": False})] * 3
