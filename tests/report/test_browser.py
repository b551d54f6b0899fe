"""The page in a real browser: from file://, without any request, with the model loaded and facing front."""

from __future__ import annotations

import base64
import io
import math
import time

import numpy as np
import pytest
from browser import Browser, find_browser
from PIL import Image

from maquette.report import write_live

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="needs chromium and chromedriver; install them (Debian: chromium, chromium-driver) to check the page",
)
VIEWER = "document.querySelector('model-viewer')"


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.resize(420, 700)  # small, as everything is drawn without a GPU
        yield browser


def middle_colour(window):
    """Mean colour in the middle of what the viewer shows."""
    data = window.ask(f"{VIEWER}.toDataURL('image/png')").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as file:
        pixels = np.asarray(file.convert("RGB"), float)
    height, width = pixels.shape[:2]
    return pixels[height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4].mean((0, 1))


def eventually(check, seconds=60.0):
    """Whether `check` comes true in time; a picture follows a click a frame or two later."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def severe(window):
    return [entry["message"] for entry in window.log("browser") if entry["level"] == "SEVERE"]


def test_the_report_opens_and_shows_the_object_from_its_front(window, reported):
    window.requests()
    window.open(reported / "report.html")
    window.wait_for(f"{VIEWER}.loaded")
    assert severe(window) == []

    schemes = [address.partition(":")[0] for address in window.requests()]
    assert schemes.count("file") == 1 and set(schemes) <= {"file", "data", "blob"}, schemes

    turn = window.ask(f"{VIEWER}.getCameraOrbit().theta")
    assert turn == pytest.approx(0, abs=1e-3)
    red, green, blue = middle_colour(window)
    assert red > 1.4 * green > 1.4 * blue  # the pawn's front is orange

    window.ask("document.querySelector('[data-orbit^=\"180\"]').click()")
    window.wait_for(f"Math.abs({VIEWER}.getCameraOrbit().theta - {math.pi}) < 0.02")
    assert eventually(lambda: np.argmax(middle_colour(window)) == 1)  # its back is green

    coloured = np.ptp(middle_colour(window))
    window.ask("document.getElementById('bare').click()")
    assert window.ask("document.getElementById('bare').getAttribute('aria-pressed')") == "true"
    assert eventually(lambda: np.ptp(middle_colour(window)) < coloured / 2)  # clay

    size = (reported / "asset.glb").stat().st_size
    fetched = window.ask(
        "fetch(document.getElementById('download').href).then(answer => answer.blob()).then(b => b.size)"
    )
    assert fetched == size
    assert window.ask("document.getElementById('notice').hidden")
    assert severe(window) == []


@pytest.mark.parametrize("width", [360, 420, 900, 1400])
def test_nothing_is_wider_than_the_window(window, reported, width):
    window.resize(width, 700)
    if not window.ask("location.href").endswith("report.html"):
        window.open(reported / "report.html")
    assert window.wait_for("document.documentElement.scrollWidth") <= width
    window.ask("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    assert window.ask("document.documentElement.scrollWidth") <= width
    broken = window.ask("[...document.images].filter(image => image.complete && !image.naturalWidth).length")
    assert broken == 0


def test_the_live_page_reloads_itself_and_asks_for_nothing(window, run_folder):
    path = write_live(run_folder)
    window.requests()
    window.open(path)
    window.ask("window.mark = 1")
    window.wait_for("window.mark === undefined && document.readyState === 'complete'", 60)
    schemes = {address.partition(":")[0] for address in window.requests()}
    assert schemes <= {"file", "data"}
    assert severe(window) == []
    write_live(run_folder, stopped="it was enough.")
    window.wait_for("document.body.textContent.includes('it was enough')", 60)
    assert window.ask("document.querySelector('meta[http-equiv=refresh]') === null")
