"""The parts of the page below its pictures: the picture and its viewpoint, the surface, the making, the small print."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from maquette.meshing.quality import MeshQuality
from maquette.report import words
from maquette.report.additions import METHODS, Part, added, left_out
from maquette.report.drawings import draw_curve, draw_viewpoint, number
from maquette.report.markup import asset_text, flatten, folded, paragraphs, section, table
from maquette.report.record import RunRecord, StageRecord
from maquette.run.memory import gib


def reading_section(run: RunRecord, compared: str) -> str:
    """How the object was cut out, and where the picture seems to have been taken from; empty without a picture.

    `compared` is markup with the picture and the object as seen from there.
    """
    cutout, camera = run.last_event("cutout"), run.last("azimuth", "elevation", "reliable")
    if cutout is None and camera is None:
        return ""
    content = ""
    if camera is not None:
        if camera.get("event") == "elevation":
            content += _height(run, camera)
        else:
            drawing = draw_viewpoint(camera["azimuth"], reliable=camera["reliable"])
            drawing = f"<figure>{drawing}<figcaption>The viewpoint, from above</figcaption></figure>"
            content += f'<div class="trio">{compared}{drawing}</div>' + _viewpoint(run, camera)
            content += _camera_range(run) if camera["reliable"] else ""
    if cutout is not None:
        share = f"It takes {words.percent(cutout['coverage'])} of the picture." if "coverage" in cutout else ""
        content += "<h3>Cutting it out</h3>"
        content += paragraphs(f"{words.CUTOUTS.get(cutout['method'], cutout['method'])} {share}")
        content += paragraphs(*(f"Doubtful: {warning}." for warning in cutout.get("warnings", ())))
    text = paragraphs(
        "A prior sees only the object, so it is cut out of its background first."
        + (" Where the picture was taken from is not known; it is estimated." if camera is not None else "")
    )
    return section("reading", "Reading the picture", text, content)


def _height(run: RunRecord, camera: Mapping[str, Any]) -> str:
    """The elevation that `stages.elevation` found, and whether it was used."""
    degrees = (
        f"{abs(camera['elevation']):.0f}\N{DEGREE SIGN} {'below' if camera['elevation'] < 0 else 'above'} eye level"
    )
    if camera["reliable"]:
        said, tag = f"The picture seems to have been taken from {degrees}.", '<span class="tag good">reliable</span>'
    else:
        assumed = f"{run.setting('default_elevation'):g}\N{DEGREE SIGN}"
        doubt = "others fit nearly as well"
        if camera.get("rise") is not None:
            lift, rise = (f"{camera[name]:+.0f}\N{DEGREE SIGN}" for name in ("lift", "rise"))
            doubt = f"a view that the prior moved by {lift} was found {rise} away, so the picture hardly counted"
        said = f"The best guess of the height is {degrees}, but {doubt}; {assumed} was taken."
        tag = '<span class="tag care">not reliable</span>'
    advice = "If you know it, say so with --elevation."
    return f"<p>{escape(said)} {tag}</p>{paragraphs(advice, kind='quiet')}"


def _viewpoint(run: RunRecord, camera: Mapping[str, Any]) -> str:
    where = words.direction_words(camera["azimuth"], camera["elevation"])
    if "view" in camera:
        differs = words.percent(camera["error"])
        if camera["reliable"]:
            said = (
                f"The prior imagined the picture itself as its view {where}: one of the imagined views is the picture, "
                f"but for {differs} of colour, so it took that view's place and helped to shape the object."
            )
            lean = (
                "So the model is built from there, whatever side of the object the picture shows: taken from a corner "
                "or from above, it leaves the model turned or leaning by as much."
            )
            return f'<p>{escape(said)} <span class="tag good">matched</span></p>{paragraphs(lean, kind="quiet")}'
        said = f"None of the imagined views is the picture; the closest differs by {differs} of colour."
        return f'<p>{escape(said)} <span class="tag care">not reliable</span></p>'
    overlap = 1 - camera["error"]
    needed = run.setting("prompt_view.locate.reliable_overlap")
    found = f"The picture seems to have been taken {where}."
    fit = f"Seen from there, the outlines of the first shape and of the picture overlap by {words.percent(overlap)}"
    bar = f" ({words.percent(needed)} are needed)" if needed is not None else ""
    if camera["reliable"]:
        verdict = f"{fit}{bar}, so this viewpoint was trusted: the picture itself helped to shape and paint the object."
        tag = '<span class="tag good">reliable</span>'
    else:
        verdict = f"{fit}{bar}. That is too little to trust: the picture guided the prior only, and was not painted on."
        tag = '<span class="tag care">not reliable</span>'
    figures = f"azimuth {camera['azimuth']:.1f}\N{DEGREE SIGN}, elevation {camera['elevation']:.1f}\N{DEGREE SIGN}"
    if "scale" in camera:
        figures += f", size {camera['scale']:.2f} of the imagined views'"
    if "colour_error" in camera:
        figures += f", colours differ by {words.percent(camera['colour_error'])}"
    return f"<p>{escape(found)} {tag}</p>{paragraphs(verdict)}{paragraphs(figures + '.', kind='quiet')}"


def _camera_range(run: RunRecord) -> str:
    """From how low and how high the prior looked at the object; empty where the run did not say."""
    line = run.last_event("camera_range")
    if line is None:
        return ""
    low, high, own = (f"{line[name]:.0f}\N{DEGREE SIGN}" for name in ("low", "high", "own"))
    said = f"While the object was shaped, the prior looked at it from {low} to {high} of height"
    if line["low"] <= line["own"] <= line["high"]:
        how = "which was widened to hold" if line["widened"] else "which holds"
        return paragraphs(f"{said}, {how} the picture's own {own}.", kind="quiet")
    how = "was widened as far as it may be" if line["widened"] else "was left as it was (--prompt-view.cover)"
    return paragraphs(f"{said}; the picture's own {own} lie beyond, and the range {how}.", kind="quiet")


def surface_section(quality: MeshQuality, texture: tuple[int, int] | None) -> str:
    """What the numbers about the mesh mean, for people who want to use it."""
    rows = "".join(
        f'<tr><th scope=row>{escape(name)}</th><td class="value">{escape(value)}</td><td class="meaning">'
        f"{escape(meaning)}</td></tr>"
        for name, value, meaning in quality_rows(quality, texture)
    )
    notes = paragraphs(*(f"Note: {note}" for note in quality.notes))
    text = paragraphs("What the object is made of, and what can be done with it.")
    return section("surface", "The surface", text, f'<table class="verdicts"><tbody>{rows}</tbody></table>{notes}')


def quality_rows(quality: MeshQuality, texture: tuple[int, int] | None) -> list[tuple[str, str, str]]:
    """(what, value, meaning) of each quality number, in words."""
    q = quality
    closed = "It has no holes, so it encloses a volume: it can be printed in 3D and used in simulations."
    if not q.watertight:
        closed = f"It has openings ({q.border_edges} open edges). Viewers do not mind; a 3D printer would."
    pieces = "One connected object." if q.components == 1 else "They belong together but do not touch each other."
    rows = [
        ("Triangles", _count(q.faces), f"with {_count(q.vertices)} corners. Phones draw this easily up to 100 000."),
        ("Closed surface", "yes" if q.watertight else "no", closed),
        ("Pieces", _count(q.components), pieces),
    ]
    crumbs = "Nothing floated beside the object."
    if q.floaters_removed:
        share = words.percent(q.floater_area_share)
        crumbs = f"Floating bits beside the object, {share} of the surface, were taken away."
    rows.append(("Crumbs removed", _count(q.floaters_removed), crumbs))
    faults = q.non_manifold_edges + q.degenerate_faces
    clean = "No edge is shared by more than two triangles, and no triangle is without area."
    if faults:
        clean = (
            f"{q.non_manifold_edges} edges are shared by more than two triangles, {q.degenerate_faces} triangles have "
            "no area. Some modelling tools will want to repair them."
        )
    rows.append(("Faults", _count(faults), clean))
    if texture is not None:
        use = f"{words.percent(q.uv_coverage)} of the image carries colour; the rest is space between unfolded pieces."
        rows.append(("Texture", f"{texture[1]} \N{MULTIPLICATION SIGN} {texture[0]}", use))
    if q.silhouette_iou is not None:
        meaning = "How much of the outlines of the cloud the surface keeps, seen from all around."
        rows.append(("Fit to the cloud", words.percent(q.silhouette_iou), meaning))
    return rows


def making_section(run: RunRecord) -> str:
    """Time per stage, what the paper does not have, and the curves."""
    longest = max((stage.seconds or 0 for stage in run.stages), default=0) or 1
    items = "".join(_stage_item(stage, longest) for stage in run.stages)
    total = f"{words.time_words(run.seconds)} in all"
    if run.peak_memory:
        total += f", with at most {gib(run.peak_memory)} of memory"
    content = f'<ul class="times">{items}</ul>{paragraphs(total + ".", kind="quiet")}{_additions(run)}{_curves(run)}'
    text = paragraphs("Each stage hands its result to the next. The bars show how the time was spent.")
    return section("making", "How it was made", text, content)


def _stage_item(stage: StageRecord, longest: float) -> str:
    title, sentence = words.stage_words(stage.name)
    took = "" if stage.seconds is None else words.time_words(stage.seconds)
    width = 100 * (stage.seconds or 0) / longest
    return (
        f'<li><span><b>{escape(title)}</b> <code>{escape(stage.name)}</code></span><span class="took">{took}</span>'
        f'<span class="bar" style="width:{width:.1f}%"></span><span class="what">{escape(sentence)}</span></li>'
    )


def _additions(run: RunRecord) -> str:
    if run.method not in METHODS:
        return ""
    more, less = added(run.method, run.config), left_out(run.method, run.config)
    method = words.METHODS.get(run.method, "the method")
    if not more and not less:
        return f"<h3>Not in the paper</h3>{paragraphs(f'Nothing: this run does what the paper of {method} describes.')}"
    camera = run.last("azimuth", "elevation", "reliable")
    # An elevation that is not reliable is replaced; only a camera that was located decides about this.
    located = camera if camera is not None and camera.get("event") != "elevation" else None
    items = []
    for name, part in more:
        unused = name == "prompt_view" and located is not None and not located["reliable"]
        items.append((name, part, " Switched off in this run: the viewpoint was not reliable." if unused else ""))
    intro = "A small prior needs help. These steps were added to the paper's method; the paper preset has none of them."
    text = f"<h3>Not in the paper</h3>{paragraphs(intro)}{_parts(items)}" if more else ""
    if less:
        text += f"<h3>In the paper, left out here</h3>{_parts([(name, part, '') for name, part in less])}"
    return text


def _parts(items: Sequence[tuple[str, Part, str]]) -> str:
    rows = [
        f"<li><b>{escape(part.title)}</b> <code>{escape(name)}</code><br>{escape(part.sentence + more)}</li>"
        for name, part, more in items
    ]
    return f'<ul class="additions">{"".join(rows)}</ul>'


def _curves(run: RunRecord) -> str:
    shown, rest = "", ""
    for stage in run.stages:
        main = words.headlines(stage.figures)
        drawn: list[list[tuple[int, float]]] = []
        charts: dict[bool, list[str]] = {True: [], False: []}
        # Headlines first, so that of two equal curves the better known one stays.
        for name in [*main, *(name for name in stage.figures if name not in main)]:
            points = stage.figures[name]
            if len(points) > 1 and points not in drawn:
                drawn.append(points)
                charts[name in main].append(draw_curve(points, *words.figure_words(stage.name, name), name))
        heading = f"<h3>{escape(words.stage_words(stage.name)[0])}</h3>"
        if charts[True]:
            shown += f'{heading}<div class="charts">{"".join(charts[True])}</div>'
        if charts[False]:
            rest += f'{heading}<div class="charts">{"".join(charts[False])}</div>'
    if not shown and not rest:
        return ""
    guide = paragraphs(
        "Likeness is measured in decibels (PSNR): 20 is a rough match, 30 a close one. The pale line is single steps, "
        "which jump because each looks at other places and noise levels; the dark line is their running mean.",
        kind="quiet",
    )
    return f"<h3>Curves</h3>{guide}{shown}" + (folded("All other figures", rest) if rest else "")


def print_section(run: RunRecord, viewer: bool) -> str:
    """Settings, provenance, licences, citations; `viewer` says whether the page holds the 3D viewer."""
    content = _origin(run)
    settings = [(escape(name), escape(value)) for name, value in flatten(run.config)]
    if settings:
        content += folded(f"All {len(settings)} settings", table(settings, kind="settings"))
    cards = [_card(card) for card in run.provenance.get("priors", ())]
    content += "".join(cards)
    if viewer:
        about = (
            "The interactive view is drawn by <model-viewer> 4.4.0 by Google (Apache-2.0), which contains three.js "
            "(MIT) and Lit (BSD-3-Clause) among others. It lies inside this page; nothing is loaded from elsewhere."
        )
        licences = escape(asset_text("model-viewer.LICENSE.txt"))
        content += folded("Licences of the 3D viewer in this page", f"{paragraphs(about)}<pre>{licences}</pre>")
    citations = [*run.provenance.get("citations", ()), words.CITE_US]
    content += "<h3>What to cite</h3>" + "".join(f"<blockquote>{escape(entry)}</blockquote>" for entry in citations)
    text = paragraphs("Everything that somebody needs to make the same object again, or to judge what it rests on.")
    return section("print", "The small print", text, content)


def _origin(run: RunRecord) -> str:
    inputs, versions = run.inputs, run.provenance.get("versions", {})
    rows: list[tuple[str, str]] = []
    if "image" in inputs:
        rows.append(("picture", escape(inputs["image"]) + _digest(inputs.get("image_sha256"))))
    if "mask" in inputs:
        rows.append(("mask", escape(inputs["mask"]) + _digest(inputs.get("mask_sha256"))))
    told = ("matting", "subject", "caption", "negative", "elevation")
    rows += [(name, escape(str(inputs[name]))) for name in told if name in inputs]
    chosen = ", ".join(str(inputs[name]) for name in ("preset", "quality") if name in inputs)
    method = words.METHODS.get(run.method, run.method)
    if method:
        rows.append(("method", escape(method + (f" ({chosen})" if chosen else ""))))
    for card in run.provenance.get("priors", ()):
        licence = f", licence {card['licence']}" if card.get("licence") else ""
        rows.append(("prior", escape(str(card["name"]) + licence) + _digest(card.get("sha256"))))
        objects = card.get("training_objects")
        if isinstance(objects, Mapping):
            held = ", ".join(map(str, objects.get("licences", ())))
            rows.append(("trained on", escape(f"{objects.get('count', '?')} objects under {held}")))
    rows.append(("seed", escape(str(run.settings.get("seed", "")))))
    threads = run.provenance.get("threads")
    counted = "" if threads is None else ", 1 thread" if threads == 1 else f", {threads} threads"
    rows.append(("device", escape(f"{run.settings.get('device', '')}{counted}")))
    rows.append(("versions", escape(", ".join(f"{name} {version}" for name, version in versions.items()))))
    return table([(name, value) for name, value in rows if value])


def _card(card: Mapping[str, Any]) -> str:
    text = json.dumps(card, indent=1, ensure_ascii=False)
    return folded(f"The card of the prior {card.get('name', '')}", f"<pre>{escape(text)}</pre>")


def _digest(sha256: Any) -> str:
    """The beginning of a hash, all of it on a hover."""
    if not sha256:
        return ""
    return f' <code title="{escape(str(sha256), quote=True)}">sha256 {escape(str(sha256)[:16])}</code>'


def _count(value: float) -> str:
    return number(value) if value >= 1000 else str(int(value))
