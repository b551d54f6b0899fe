"""The finished page: what it opens on, what it says, that it needs nothing else, and that the folder decides it."""

from __future__ import annotations

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from finished_run import make_run

from maquette.asset import Asset, load_mesh
from maquette.commands.outcome import save_object
from maquette.errors import UserError
from maquette.methods import imagedream
from maquette.report import write_report
from maquette.report.words import STAGES
from maquette.run.settings import plain


class Outline(HTMLParser):
    """Tags with their attributes in order, addresses, and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text, self._hidden = [], "", False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text += data


@pytest.fixture(scope="module")
def page(reported):
    return (reported / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def outline(page):
    return Outline(page)


def test_it_opens_on_picture_object_and_turntable(outline):
    classes = [attributes.get("class") for tag, attributes in outline.tags if tag in ("figure", "section")]
    assert classes[:3] == ["prompt", "object", "turn"]
    viewer = next(attributes for tag, attributes in outline.tags if tag == "model-viewer")
    assert viewer["camera-orbit"].startswith("0deg ") and viewer["environment-image"] == "neutral"
    assert "src" not in viewer  # it gets the model from the page's own bytes
    sections = [attributes["id"] for tag, attributes in outline.tags if tag == "section"]
    assert sections == ["views", "reading", "surface", "making", "print"]


def test_every_picture_lies_in_the_page_and_has_words(outline):
    pictures = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert (
        len(pictures) == 1 + 1 + 1 + 3 * 4 + 4 + 2
    )  # prompt, poster, turning, four sides in three rows, more, compared
    assert all(attributes["src"].startswith("data:image/") and attributes["alt"] for attributes in pictures)
    addresses = [
        value for _, attributes in outline.tags for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href")
    ]  # fmt: skip
    assert {address for address in addresses if not address.startswith("data:")} == {"asset.glb"}
    for name in ("front", "left", "back", "right", "front left"):
        assert outline.text.count(name) >= 1


def test_formats_beside_the_page_are_linked(reported, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reported, folder)
    save_object(Asset(load_mesh(folder / "asset.glb")), folder, ["obj", "stl"])
    outline = Outline(write_report(folder).read_text(encoding="utf-8"))
    links = {tag["href"]: tag.get("title") for name, tag in outline.tags if name == "a" and "href" in tag}
    beside = {name: title for name, title in links.items() if name.startswith("asset.")}
    assert beside == {
        "asset.glb": None,
        "asset.obj": "it needs asset.mtl and asset.png beside it",
        "asset.stl": "the same object as STL",
    }


def test_the_object_in_the_page_is_the_file(page, reported):
    stored = re.search(r'<script type="text/plain" id="asset">([^<]*)</script>', page)[1]
    assert base64.b64decode(stored) == (reported / "asset.glb").read_bytes()


def test_it_explains_what_was_done(outline, reported):
    text = " ".join(outline.text.split())
    for expected in (
        "A painted pawn",
        "Made by ImageDream from one picture with the nano prior",
        "nano is a small prior",
        "38\N{DEGREE SIGN} from the front towards its left side, 12\N{DEGREE SIGN} above eye level",
        "overlap by 91\N{NO-BREAK SPACE}%",
        "was trusted",
        "one smooth colour",
        "It has no holes",
        "Not in the paper",
        "Pits filled from above",
        "In the paper, left out here",
        "Likeness to the imagined views",
        "Mismatch with the prior",
        "licence Apache-2.0",
        "1850 objects under CC0-1.0, MIT",
        "arXiv:2312.02201",
        "prompt_view.projection.grazing",
        "three.js authors",
    ):
        assert " ".join(expected.split()) in text.replace("\N{NO-BREAK SPACE}", " ") or expected in outline.text, (
            expected
        )
    for stage in ("views", "views_1", "warm_start", "locate", "radiance_field", "mesh"):
        assert STAGES[stage][0] in text
    log = [json.loads(line) for line in (reported / "log.jsonl").read_text().splitlines()]
    faces = next(line["faces"] for line in log if line.get("event") == "mesh_quality")
    assert f"{faces:,}".replace(",", "\N{NARROW NO-BREAK SPACE}") in outline.text
    assert text.count("distillation.guidance") == 0  # the same curve as distillation.loss is drawn once


def test_nothing_but_the_folder_decides_the_bytes(run_folder):
    before = (run_folder / "report.html").read_bytes(), (run_folder / "turntable.webp").read_bytes()
    (run_folder / "preview.webp").write_bytes(b"of the live page")
    assert write_report(run_folder) == run_folder / "report.html"
    assert ((run_folder / "report.html").read_bytes(), (run_folder / "turntable.webp").read_bytes()) == before
    assert not (run_folder / "preview.webp").exists()


def test_words_from_outside_stay_words(tmp_path):
    hostile = '</title><script>alert(1)</script><img src=x onerror="alert(2)">'
    folder = make_run(tmp_path / "run", caption=hostile, steps=3)
    outline = Outline(write_report(folder).read_text())
    assert hostile[8:] in outline.text
    assert not any("onerror" in attributes for _, attributes in outline.tags)
    assert sum(tag == "script" for tag, _ in outline.tags) == 3  # the model, the viewer, the page's own


def test_an_unreliable_viewpoint_is_said_to_be_unused(tmp_path):
    folder = make_run(tmp_path / "run", reliable=False, steps=3)
    text = Outline(write_report(folder).read_text()).text
    assert "not reliable" in text and "was not painted on" in text
    assert "Switched off in this run" in text and "was trusted" not in text


@pytest.mark.parametrize(
    ("reliable", "said"),
    [(True, "one of the imagined views is the picture, but for"), (False, "None of the imagined views is the picture")],
)
def test_a_view_that_is_the_picture_is_said_to_be(tmp_path, reliable, said):
    folder = make_run(tmp_path / "run", steps=3)
    found = {"azimuth": 0.0, "elevation": 5.0, "reliable": reliable, "error": 0.04, "scale": 1.0, "view": 0}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"seconds": 1.0, "stage": "match", "step": None, **found}) + "\n")
    text = Outline(write_report(folder).read_text()).text
    assert said in text and "4\N{NO-BREAK SPACE}%" in text and "overlap by" not in text


RANGES = [
    (
        (-5.0, 42.0, 42.0, True),
        "-5\N{DEGREE SIGN} to 42\N{DEGREE SIGN} of height, which was widened to hold the picture's own 42",
    ),
    ((-5.0, 30.0, 12.0, False), "-5\N{DEGREE SIGN} to 30\N{DEGREE SIGN} of height, which holds the picture's own 12"),
    (
        (-5.0, 40.0, 60.0, True),
        "the picture's own 60\N{DEGREE SIGN} lie beyond, and the range was widened as far as it may be",
    ),
    ((-5.0, 30.0, 60.0, False), "lie beyond, and the range was left as it was (--prompt-view.cover)"),
]


@pytest.mark.parametrize(("numbers", "said"), RANGES)
def test_the_page_says_from_where_the_prior_looked(tmp_path, numbers, said):
    folder = make_run(tmp_path / "run", steps=3)
    line = dict(zip(("low", "high", "own", "widened"), numbers, strict=True))
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"seconds": 1.0, "stage": None, "step": None, "event": "camera_range", **line}) + "\n")
    assert said in Outline(write_report(folder).read_text()).text


def test_an_elevation_that_does_not_follow_is_said_to_be_unused(tmp_path):
    folder = make_run(tmp_path / "run", steps=3)
    config = json.loads((folder / "config.json").read_text())
    config["config"] |= {"default_elevation": 15.0, "prompt_view": {}}
    (folder / "config.json").write_text(json.dumps(config))
    found = {"event": "elevation", "azimuth": 0.0, "elevation": 2.0, "reliable": False, "lift": 30.0, "rise": 1.2}
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({"seconds": 1.0, "stage": "views", "step": None, **found}) + "\n")
    text = Outline(write_report(folder).read_text()).text
    assert (
        "moved by +30\N{DEGREE SIGN} was found +1\N{DEGREE SIGN} away" in text and "15\N{DEGREE SIGN} was taken" in text
    )
    assert "not reliable" in text and "Switched off in this run" not in text, "the picture itself was used"


def test_the_paper_has_nothing_added(run_folder):
    config = json.loads((run_folder / "config.json").read_text())
    config["config"] = plain(imagedream.paper())
    (run_folder / "config.json").write_text(json.dumps(config))
    text = Outline(write_report(run_folder).read_text()).text
    assert "Nothing: this run does what the paper of ImageDream describes." in text
    assert "left out here" not in text
    assert "nano is a small prior" not in text


def test_a_run_of_views_has_a_page_without_a_model(tmp_path):
    folder = make_run(tmp_path / "run", finish=False)
    outline = Outline(write_report(folder).read_text())
    tags = [tag for tag, _ in outline.tags]
    assert "model-viewer" not in tags and "script" not in tags and "Imagined" in outline.text
    assert not (folder / "turntable.webp").exists()


def test_a_run_without_picture_views_or_logged_quality(run_folder):
    """As a method that starts from words may leave it."""
    import shutil

    (run_folder / "prompt.png").unlink()
    shutil.rmtree(run_folder / "views")
    shutil.rmtree(run_folder / "stages")
    log = run_folder / "log.jsonl"
    log.write_text(log.read_text().splitlines()[0] + "\n")  # the opening
    config = json.loads((run_folder / "config.json").read_text())
    config["inputs"] = {"caption": "a pawn"}
    (run_folder / "config.json").write_text(json.dumps(config))
    outline = Outline(write_report(run_folder).read_text())
    assert "from words" in outline.text and "The words" in outline.text
    assert "It has no holes" in outline.text  # measured from the mesh itself
    assert "Finished" in outline.text and "Imagined" not in outline.text


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        write_report(tmp_path)
