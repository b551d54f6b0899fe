"""Adapters: they start as nothing, share the base's weights, fit no other base, and survive the disk."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
import torch

from maquette.errors import UserError
from maquette.priors.adapters import FILE, Adapter, Full, Lora, new_adapter, parameters_of
from maquette.priors.base import AdaptablePrior, stack_conditions
from maquette.run.fingerprints import file_sha256
from tests.priors.tiny import noisy, prompt, randomised, tiny_prior, tiny_published, tiny_stable_diffusion

WHITE = torch.ones(3)
LORA = Lora(rank=2)
PRIORS = {"nano": tiny_prior, "published": tiny_published, "Stable Diffusion": tiny_stable_diffusion}
CONFIGS = [LORA, Lora(rank=3, scale=0.5, text_encoder=True, text_targets=("qkv", "out")), Full(), Full(True)]


def start(prior, config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return new_adapter(prior.networks(), prior.weights_fingerprint(), config, generator)


def learned(prior, config, seed=0):
    """An adapter that has moved in every tensor."""
    adapter = start(prior, config, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    moved = {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in adapter.tensors.items()}
    return replace(adapter, tensors=moved, steps=7)


def predicted(prior, caption="a red barrel"):
    condition = prior.condition(replace(prompt(), image=None, caption=caption), WHITE)
    return prior.predict(noisy(prior, views=1), torch.tensor([300, 700]), condition).x0


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("config", [LORA, Full()])
def test_every_prior_can_learn(make, config):
    prior = make()
    assert isinstance(prior, AdaptablePrior)
    adapter, moved = start(prior, config), learned(prior, config)
    assert torch.equal(predicted(prior.adapted(adapter)), predicted(prior))
    difference = predicted(prior.adapted(moved)) - predicted(prior)
    assert difference.abs().max() > 1e-3
    assert prior.adapted(moved).fingerprint() != prior.fingerprint() == make().fingerprint()


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_a_rare_word_stands_for_the_subject(make):
    prior = make().with_config(identifiers=(("[v]", "blue"),))
    assert torch.equal(prior.encode_text("a [V] barrel"), prior.encode_text("a blue barrel"))
    assert prior.fingerprint() != make().fingerprint()
    plain = make().with_config(identifiers=())
    assert not torch.equal(plain.encode_text("a [v] barrel"), plain.encode_text("a blue barrel"))


@pytest.mark.parametrize("config", CONFIGS)
def test_a_new_adapter_changes_nothing(config):
    prior = tiny_prior()
    adapted = prior.adapted(start(prior, config))
    assert isinstance(prior, AdaptablePrior) and isinstance(adapted, AdaptablePrior)
    assert torch.equal(predicted(adapted), predicted(prior))


@pytest.mark.parametrize("config", CONFIGS)
def test_what_is_not_learned_is_shared(config):
    prior = tiny_prior()
    before = {id(t): t.clone() for module in prior.networks().values() for t in module.parameters()}
    adapter = learned(prior, config)
    adapted = prior.adapted(adapter)
    assert (predicted(adapted) - predicted(prior)).abs().max() > 1e-3
    own = {id(t) for t in parameters_of(adapted.networks(), adapter).values()}
    for t in chain.from_iterable(module.parameters() for module in adapted.networks().values()):
        assert (id(t) in own) != (id(t) in before), "a parameter is the adapter's or the base's own"
    now = {id(t): t for module in prior.networks().values() for t in module.parameters()}
    assert before.keys() == now.keys() and all(torch.equal(before[key], now[key]) for key in before)


def test_in_half_precision_new_weights_are_half_and_updates_are_not():
    """What learns is float32; a base that is kept in half would lose half of its memory again to full copies of it."""
    half = tiny_stable_diffusion().to("cpu", torch.bfloat16)
    for config, dtype in ((Full(), torch.bfloat16), (LORA, torch.float32)):
        adapter = learned(half, config)
        assert {tensor.dtype for tensor in adapter.tensors.values()} == {torch.float32}
        adapted = half.adapted(adapter)
        assert {p.dtype for p in parameters_of(adapted.networks(), adapter).values()} == {dtype}
        assert adapted.dtype == torch.bfloat16 and torch.isfinite(predicted(adapted)).all()


def test_weights_of_the_same_precision_are_not_copied():
    prior = tiny_prior()
    adapter = learned(prior, Full())
    shown = parameters_of(prior.adapted(adapter).networks(), adapter)
    assert all(shown[name].data_ptr() == tensor.data_ptr() for name, tensor in adapter.tensors.items())


def test_two_adapters_and_their_base_live_side_by_side():
    prior = tiny_prior()
    one, two = (prior.adapted(learned(prior, LORA, seed)) for seed in (1, 2))
    base, first = predicted(prior), predicted(one)
    assert (predicted(two) - first).abs().max() > 1e-3
    assert torch.equal(predicted(prior), base) and torch.equal(predicted(one), first)
    assert len({prior.fingerprint(), one.fingerprint(), two.fingerprint()}) == 3
    assert one.card()["adapter"] == learned(prior, LORA, 1).fingerprint()


def test_low_rank_is_a_change_of_the_matrix():
    """W x + s up down x = (W + s up down) x, the slow twin."""
    prior = tiny_prior()
    adapter = learned(prior, Lora(rank=3, scale=0.7))
    slow = tiny_prior()
    with torch.no_grad():
        for name in (name.removesuffix(".lora_down") for name in adapter.tensors if name.endswith("down")):
            update = adapter.tensors[f"{name}.lora_up"] @ adapter.tensors[f"{name}.lora_down"]
            slow.network.get_parameter(f"{name.removeprefix('network.')}.weight").add_(0.7 * update)
    torch.testing.assert_close(predicted(prior.adapted(adapter)), predicted(slow), rtol=1e-4, atol=1e-5)


def test_every_projection_of_the_attention_gets_an_update():
    tensors = start(tiny_prior(), Lora(rank=2)).tensors
    blocks = sum("self_attention.to_q.lora_up" in name for name in tensors)
    assert blocks >= 5 and len(tensors) == blocks * 2 * 4 * 2
    assert all(t.shape[0] == 2 for name, t in tensors.items() if name.endswith("lora_down"))
    assert all(not t.any() for name, t in tensors.items() if name.endswith("lora_up"))


def test_the_text_encoder_learns_where_it_is_asked_to():
    prior = tiny_prior()
    caption = "a [v] barrel"
    for config, moves in ((LORA, False), (CONFIGS[1], True), (Full(), False), (Full(True), True)):
        text = prior.adapted(learned(prior, config)).encode_text(caption)
        assert torch.equal(text, prior.encode_text(caption)) != moves


@pytest.mark.parametrize("config", CONFIGS)
def test_saved_and_loaded_it_says_the_same(config, tmp_path):
    prior = tiny_prior()
    adapter = learned(prior, config)
    for place in ("one", "two"):
        adapter.save(tmp_path / place)
    assert file_sha256(tmp_path / "one" / FILE) == file_sha256(tmp_path / "two" / FILE)
    loaded = Adapter.load(tmp_path / "one")
    assert loaded.fingerprint() == adapter.fingerprint() and loaded.config == config and loaded.steps == 7
    assert torch.equal(predicted(prior.adapted(loaded)), predicted(prior.adapted(adapter)))


def test_faults_are_named(tmp_path):
    prior = tiny_prior()
    adapter = learned(prior, LORA)
    other = replace(prior, network=randomised(tiny_prior().network, 9))
    with pytest.raises(UserError, match="learned on other weights"):
        other.adapted(adapter)
    with pytest.raises(UserError, match="there is no adapter at"):
        Adapter.load(tmp_path)
    adapter.save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged"):
        Adapter.load(tmp_path)
    (tmp_path / FILE).write_bytes(whole[:-4] + b"\1\2\3\4")
    with pytest.raises(UserError, match="damaged: its tensors"):
        Adapter.load(tmp_path)
    with pytest.raises(ValueError, match="no linear layers named like any of to_nothing"):
        start(prior, Lora(targets=("to_nothing",)))
    with pytest.raises(UserError, match="rank of at least 1"):
        Lora(rank=0)


def test_conditions_are_stacked_by_kind():
    prior = tiny_published()
    one, two = (prior.condition(replace(prompt(), caption=caption), WHITE) for caption in ("a", "b"))
    both = stack_conditions([one, two])
    assert torch.equal(both.text, torch.cat([one.text, two.text])) and both.negative is None
    with pytest.raises(ValueError, match="same kind"):
        stack_conditions([one, prior.condition(replace(prompt(), image=None), WHITE)])
