"""Inception, LPIPS, and files of weights: shapes of the published networks, laws, and refusals."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from maquette.errors import UserError
from maquette.evaluation.inception import InceptionClassifier, InceptionV3
from maquette.evaluation.lpips import Lpips
from maquette.evaluation.weights_file import load_strictly, read_state_dict


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """A file as torchvision's is: with the auxiliary head and in .pth form."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    state = InceptionV3().state_dict()
    torch.save({**state, "AuxLogits.fc.weight": torch.zeros(1000, 768)}, path)
    return path


def test_inception_has_the_published_size():
    # torchvision's 27 161 264 parameters without the auxiliary head's 3 326 696.
    assert sum(p.numel() for p in InceptionV3().parameters()) == 27_161_264 - 3_326_696
    assert InceptionV3(1008).Mixed_7c.maximum and not InceptionV3(1008).Mixed_5b.count_border
    assert not InceptionV3(1000).Mixed_7c.maximum and InceptionV3(1000).Mixed_5b.count_border


def test_inception_logits_do_not_depend_on_batch_or_size(inception_file, generator):
    classifier = InceptionClassifier(inception_file)
    assert classifier.name == "inception1000"
    image = torch.rand(1, 3, 4, 4, generator=generator).repeat_interleave(32, -1).repeat_interleave(32, -2)
    alone = classifier.logits(image)
    assert alone.shape == (1, 1000)
    together = classifier.logits(torch.cat([image, 1 - image]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


def test_files_of_other_networks_are_refused(inception_file, tmp_path):
    state = read_state_dict(inception_file)
    torch.save({name: value for name, value in state.items() if "Mixed_6c" not in name}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part\.pth is of another model: it lacks"):
        InceptionClassifier(tmp_path / "part.pth")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"fc\.weight"):
        InceptionClassifier(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="no weights at"):
        InceptionClassifier(tmp_path / "absent.pth")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_weights_never_execute_code(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"fc.weight": Evil()}, protocol=2))
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_state_dict(path)
    torch.save({"fc.weight": Evil()}, path)
    with pytest.raises(UserError, match=r"evil\.pth"):
        read_state_dict(path)
    assert "executed" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(UserError, match="not a safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="state dict"):
        read_state_dict(tmp_path / "list.pth")


def test_strict_loading_says_what_differs():
    module, state = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3).state_dict()
    load_strictly(module, state, "here")
    torch.testing.assert_close(module.weight, state["weight"])
    for wrong, message in (
        ({"weight": state["weight"]}, "lacks 1 tensors such as 'bias'"),
        ({**state, "scale": torch.ones(1)}, "has unknown 1 tensors such as 'scale'"),
        ({**state, "bias": torch.ones(4)}, "has other shapes in 1 tensors such as 'bias'"),
    ):
        with pytest.raises(UserError, match=message):
            load_strictly(module, wrong, "here")
    load_strictly(module, {**state, "head.weight": torch.ones(1)}, "here", ignored=("head.",))


@pytest.fixture(params=["vgg", "alex"])
def lpips(request, tmp_path):
    """The distance with random features and heads, loaded from files of the published layout."""
    torch.manual_seed(0)
    backbone = request.param
    model = Lpips(backbone)
    features = {f"features.{name}": value for name, value in model.features.state_dict().items()}
    torch.save({**features, "classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "features.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, head.numel(), 1, 1) for i, head in enumerate(model.heads)}
    torch.save(heads, tmp_path / "heads.pth")
    return Lpips.load(tmp_path / "features.pth", tmp_path / "heads.pth", backbone), heads, tmp_path


def test_lpips_is_a_distance_that_grows_with_noise(lpips, generator):
    model, _, _ = lpips
    a, noise = torch.rand(1, 3, 64, 64, generator=generator), torch.randn(1, 3, 64, 64, generator=generator)
    steps = [float(model(a, (a + level * noise).clamp(0, 1))) for level in (0.0, 0.05, 0.2)]
    assert steps[0] == 0 and steps == sorted(steps) and steps[2] > steps[1] > 0
    b = (a + noise).clamp(0, 1)
    torch.testing.assert_close(model(a, b), model(b, a))
    torch.testing.assert_close(model(torch.cat([a, b]), torch.cat([b, b]))[:1], model(a, b), rtol=1e-4, atol=1e-6)


def test_lpips_heads_weigh_channels(lpips, generator):
    """Doubling every head doubles the distance; the published file's shapes are read flat."""
    model, heads, folder = lpips
    a, b = torch.rand(2, 1, 3, 64, 64, generator=generator)
    torch.save({name: 2 * value for name, value in heads.items()}, folder / "double.pth")
    double = Lpips.load(folder / "features.pth", folder / "double.pth", model.backbone)
    torch.testing.assert_close(double(a, b), 2 * model(a, b))


def test_lpips_refuses_heads_of_the_other_backbone(lpips):
    model, _, folder = lpips
    other = "alex" if model.backbone == "vgg" else "vgg"
    with pytest.raises(UserError, match="another model"):
        Lpips.load(folder / "features.pth", folder / "heads.pth", other)
