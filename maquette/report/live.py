"""The report while the run works: what is there already, in a page that reloads itself until the run is done.

It has the name of the report that replaces it, so whoever opened it in the beginning ends up before the finished one.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

import torch

from maquette.images import Views
from maquette.report import words
from maquette.report.drawings import draw_curve
from maquette.report.markup import data_uri, document, inline_script, paragraphs, picture
from maquette.report.page import masthead, page_title, prompt_uri, view_uris, views_grid
from maquette.report.record import RunRecord, StageRecord
from maquette.report.turntable import save_webp, to_bytes
from maquette.run.files import atomic_path, write_text
from maquette.stages.look import view_names

PREVIEW = "preview.webp"
"""The newest state of the object, turning; `write_report` takes it away."""
REFRESH = 4
"""Seconds between two looks at the file."""
SILENCE = 300
"""Seconds without news after which the page says that the run may have stopped; a stage may be silent for a while."""
TURN_SECONDS = 3.0


def write_live(folder: Path | str, turn: Views | None = None, *, stopped: str = "") -> Path:
    """Write report.html of a run that is still working, or `stopped` for that reason; the page's path.

    `turn` is the newest state of the object seen from all around; it is kept as preview.webp until a newer one comes.
    Raises UserError for a folder that holds no run, RunFailed when the disk is full.
    """
    folder = Path(folder)
    if turn is not None:
        pixels = turn.images if turn.masks is None else torch.cat([turn.images, turn.masks], dim=1)
        with atomic_path(folder / PREVIEW) as temporary:
            save_webp(temporary, to_bytes(pixels.movedim(1, -1)), TURN_SECONDS)
    path = folder / "report.html"
    write_text(path, build_live_page(RunRecord.read(folder), stopped=stopped))
    return path


def build_live_page(run: RunRecord, *, stopped: str = "") -> str:
    """The page as text; pictures are read from the run's folder."""
    preview = run.folder / PREVIEW
    prompt, views = prompt_uri(run), run.views()
    waiting = '<figure><div class="plate"><p class="waiting">The first shape will turn here.</p></div>'
    shown = (
        picture(data_uri(preview.read_bytes(), "image/webp"), "the object so far, turning", "So far")
        if preview.is_file()
        else f"{waiting}<figcaption>So far</figcaption></figure>"
    )
    pictures = (picture(prompt, "the picture that was given", "The picture") if prompt else "") + shown
    if views is not None:
        pictures += views_grid([("Imagined", "by the prior", view_uris(views))], view_names(views.cameras))
    news = (
        paragraphs(f"Stopped: {' '.join(stopped.split())}", "The same command goes on from here.")
        if stopped
        else f'<p class="working" id="working">{escape(_doing(run))}</p>'
    )
    lines = [_line(run, stage, "stopped" if stopped else "at work") for stage in run.stages]
    body = [
        "<main>",
        masthead(run, "Begun by {}" if stopped else "Being made by {}"),
        news,
        f'<div class="live">{pictures}</div><div class="live">',
        f'<ul class="times">{"".join(lines)}</ul>',
        f"{_curves(run)}</div>",
        "</main>",
    ]
    head = ""
    if not stopped:
        head = f'<meta http-equiv="refresh" content="{REFRESH}">'
        body.append(inline_script(_SILENCE_SCRIPT))
    return document(page_title(run), [part for part in body if part], head=head)


_SILENCE_SCRIPT = f"""
if (Date.now() - Date.parse(document.lastModified) > {SILENCE * 1000}) {{
  const line = document.getElementById("working");
  line.className = "";
  line.textContent = "No news for {SILENCE // 60} minutes. If the run was stopped, the same command goes on from here.";
}}
"""


def _doing(run: RunRecord) -> str:
    """What is going on, in a few words."""
    if not run.stages:
        return "Getting ready"
    stage = run.stages[-1]
    title = words.stage_words(stage.name)[0]
    if stage.done:
        return f"{title}: done. The next stage is at work"
    return f"{title}{_progress(run, stage)}"


def _progress(run: RunRecord, stage: StageRecord) -> str:
    total = run.setting(words.STAGE_STEPS.get(stage.name, ""))
    if not stage.steps:
        return ""
    return f", step {stage.steps} of {total}" if isinstance(total, int) else f", step {stage.steps}"


def _line(run: RunRecord, stage: StageRecord, unfinished: str) -> str:
    title, sentence = words.stage_words(stage.name)
    state = words.time_words(stage.seconds or 0) if stage.done else f"{unfinished}{_progress(run, stage)}"
    return (
        f'<li><span><b>{escape(title)}</b></span><span class="took">{escape(state)}</span>'
        f'<span class="what">{escape(sentence)}</span></li>'
    )


def _curves(run: RunRecord) -> str:
    """The main figures of the newest stage that has any."""
    for stage in reversed(run.stages):
        charts = [
            draw_curve(stage.figures[name], *words.figure_words(stage.name, name), name)
            for name in words.headlines(stage.figures)
            if len(stage.figures[name]) > 1
        ]
        if charts:
            return f'<div class="charts">{"".join(charts)}</div>'
    return ""
