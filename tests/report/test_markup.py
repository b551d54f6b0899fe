"""What goes into the page stays whole and does no harm."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files

import numpy as np
import pytest

from maquette.report.markup import asset_text, document, flatten, image_uri, inline_script, table

VIEWER_SHA256 = "d785423b1d046ea84a9f59ef6cf15f3077603e1bf938b01ced9b0240691884a2"
"""Of dist/model-viewer-umd.min.js in the npm package @google/model-viewer 4.4.0."""


class Scripts(HTMLParser):
    """The text of every script element, as a browser would find it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.texts = False, []

    def handle_starttag(self, tag, attributes):
        if tag == "script":
            self.inside = True
            self.texts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.texts[-1] += data


@pytest.mark.parametrize("end", ["</script>", "</SCRIPT >", "</scriPt\n"])
def test_a_closing_tag_inside_a_script_does_not_close_it(end):
    code = f'const text = "{end}"; done();'
    parser = Scripts()
    parser.feed(inline_script(code) + "<p>after</p>")
    assert len(parser.texts) == 1
    assert parser.texts[0].strip() == code.replace("</", "<\\/")


def test_a_script_that_would_hide_its_end_is_refused():
    with pytest.raises(ValueError, match="<script"):
        inline_script('document.write("<!-- <script>")')


def test_the_viewer_is_the_published_file_and_can_be_inlined():
    data = files("maquette.report").joinpath("assets", "model-viewer-umd.min.js").read_bytes()
    assert hashlib.sha256(data).hexdigest() == VIEWER_SHA256
    script = inline_script(data.decode())
    assert "sourceMappingURL" not in script and len(script) > 0.99 * len(data)
    licences = asset_text("model-viewer.LICENSE.txt")
    for name in ("Apache License", "three.js authors", "MIT License", "BSD 3-Clause", "Arseny Kapoulkine", "fflate"):
        assert name in licences


def test_the_policy_lets_nothing_out():
    page = document("a <b> & c", ["<p>x</p>"])
    assert "<title>a &lt;b&gt; &amp; c</title>" in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    rules = {words[0]: words[1:] for rule in policy.split(";") if (words := rule.split())}
    assert rules["default-src"] == ["'none'"]
    allowed = {source for sources in rules.values() for source in sources}
    assert allowed <= {"'none'", "'unsafe-inline'", "'wasm-unsafe-eval'", "data:", "blob:"}
    assert page.index("Content-Security-Policy") < page.index("<style") and "http:" not in page and "https:" not in page


def test_settings_are_flat_and_schedules_are_readable():
    settings = {
        "prior": "nano",
        "weights": None,
        "rates": [0.5, 1.0],
        "on": True,
        "encoding": {"kind": "TriPlanes", "features": 8},
        "weight": {"kind": "Constant", "value": 0.0001},
        "low": {"kind": "Linear", "first": 0.3, "last": 0.02, "end": 0.8, "begin": 0.0, "unit": "fraction"},
        "high": {"kind": "Cosine", "first": 1, "last": 0, "end": 90, "begin": 10, "unit": "steps"},
        "size": {"kind": "Piecewise", "values": [64, 192], "milestones": [0.4], "unit": "fraction"},
    }
    assert dict(flatten(settings)) == {
        "prior": "nano",
        "weights": "none",
        "rates": "0.5, 1",
        "on": "yes",
        "encoding": "TriPlanes",
        "encoding.features": "8",
        "weight": "0.0001",
        "low": "0.3 to 0.02, from 0% to 80% of the steps",
        "high": "1 to 0, from step 10 to 90",
        "size": "64, 192 from 40% of the steps",
    }


def test_pictures_and_tables():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 4), np.uint8)
    assert image_uri(pixels, lossless=True) == image_uri(pixels, lossless=True)
    assert image_uri(pixels).startswith("data:image/webp;base64,")
    assert table([("a", "<b>1</b>")]).count("<tr>") == 1
