"""The report of a run: one HTML file that needs nothing else, neither network nor the files beside it."""

from __future__ import annotations

import base64
from dataclasses import fields
from html import escape
from pathlib import Path

import torch

from maquette.asset import EXPORTS, Mesh, load_mesh
from maquette.cameras import Cameras, orbit
from maquette.images import Views
from maquette.meshing.quality import MeshQuality, measure_mesh
from maquette.report import words
from maquette.report.markup import (
    asset_text,
    data_uri,
    document,
    image_uri,
    inline_script,
    paragraphs,
    picture,
    section,
)
from maquette.report.pictures import look_at_sides
from maquette.report.record import RunRecord
from maquette.report.sections import making_section, print_section, reading_section, surface_section
from maquette.report.subject import subject_sections
from maquette.report.turntable import to_bytes, write_turntable
from maquette.run.files import write_text
from maquette.stages.look import view_names

ORBITS = {side: f"{turn}deg 80deg 118%" for side, turn in (("Front", 0), ("Left", 90), ("Back", 180), ("Right", -90))}
"""Side -> where the viewer's camera stands. glTF's front is +Z, which the viewer calls 0; the object's left is +X."""
VIEWS_CLASS = "maquette.images:Views"
TRANSLATED_CLASS = "maquette.stages.translate:Translated"
MESH_CLASS = "maquette.asset:Mesh"
LOCATED_CLASS = "maquette.stages.locate:Located"


def write_report(run_folder: Path | str) -> Path:
    """Make the turntable and report.html of a run folder from what is in it; the page's path.

    A run without asset.glb (views only) gets a page of pictures. Nothing but the folder decides the bytes of the page.
    The live page's preview.webp is taken away.
    Raises UserError for a folder that holds no run, RunFailed when the disk is full.
    """
    run = RunRecord.read(run_folder)
    asset = run.folder / "asset.glb"
    mesh = load_mesh(asset) if asset.is_file() else None
    if mesh is not None:
        write_turntable(run.folder, mesh)
    path = run.folder / "report.html"
    write_text(path, build_page(run, mesh))
    (run.folder / "preview.webp").unlink(missing_ok=True)
    return path


def build_page(run: RunRecord, mesh: Mesh | None) -> str:
    """The page as text; with a mesh, turntable.webp and asset.glb are read from the run's folder."""
    views = run.views()
    body = ["<main>", masthead(run, "Made by {}, in " + words.time_words(run.seconds))]
    if mesh is None:
        body += [_prompt_only(run), _views_section(run, views, None), reading_section(run, "")]
    else:
        texture = None if mesh.texture is None else (mesh.texture.shape[0], mesh.texture.shape[1])
        body += [
            _hero(run, mesh),
            *(about_subject := subject_sections(run)),
            # Pseudo views are shown there, beside what they were painted over.
            _views_section(run, None if about_subject else views, mesh),
            reading_section(run, _compared(run, mesh)),
            surface_section(_quality(run, mesh), texture),
        ]
    body += [making_section(run), print_section(run, viewer=mesh is not None), "</main>"]
    if mesh is not None:
        data = base64.b64encode((run.folder / "asset.glb").read_bytes()).decode("ascii")
        body += [
            f'<script type="text/plain" id="asset">{data}</script>',
            inline_script(asset_text("model-viewer-umd.min.js")),
            inline_script(asset_text("page.js")),
        ]
    return document(page_title(run), [part for part in body if part])


def page_title(run: RunRecord) -> str:
    """What the picture shows, in the words of the person or of the file's name."""
    words_ = str(run.inputs.get("caption") or Path(str(run.inputs.get("image", ""))).stem or run.folder.name)
    text = " ".join(words_.replace("_", " ").split()) if not run.inputs.get("caption") else words_.strip()
    return text[:1].upper() + text[1:]


def masthead(run: RunRecord, telling: str) -> str:
    """Title, and one sentence: `telling`, with a place for what made it, where it was made, and the seed."""
    method = words.METHODS.get(run.method, run.method or "maquette")
    source = "from one picture" if "image" in run.inputs else "from words"
    source = "from photos and words" if "subject" in run.inputs else source
    prior = run.config.get("prior")
    chosen = f" with the {prior} prior" if prior else ""
    machine = "a GPU" if run.settings.get("device") == "cuda" else "a CPU"
    made = telling.format(f"{method} {source}{chosen}")
    sentence = f"{made} on {machine}, seed {run.settings.get('seed', 0)}."
    return (
        f'<header><p class="brand">maquette</p><h1>{escape(page_title(run))}</h1>'
        f'<p class="lede">{escape(sentence)}</p></header>'
    )


def prompt_uri(run: RunRecord) -> str | None:
    """The crop that the prior saw, as an address that holds it."""
    path = run.folder / "prompt.png"
    return data_uri(path.read_bytes(), "image/png") if path.is_file() else None


def views_grid(rows: list[tuple[str, str, list[str]]], names: list[str]) -> str:
    """Rows of pictures of the same sides: (title, note, addresses)."""
    cells = ""
    for title, note, uris in rows:
        cells += f'<p class="row">{escape(title)} <small>{escape(note)}</small></p>'
        for uri, name in zip(uris, names, strict=True):
            image = f'<img src="{uri}" alt="{escape(f"the object from its {name}: {title.lower()}")}">'
            cells += f'<figure class="plate">{image}<figcaption>{escape(name)}</figcaption></figure>'
    return f'<div class="sides" style="--columns:{len(names)}">{cells}</div>'


def view_uris(views: Views) -> list[str]:
    """Each view as an address that holds it, with its mask where there is one."""
    pictures = views.images if views.masks is None else torch.cat([views.images, views.masks], dim=1)
    return [image_uri(to_bytes(item.movedim(0, -1)), lossless=True) for item in pictures]


def _hero(run: RunRecord, mesh: Mesh) -> str:
    prompt = prompt_uri(run)
    words_ = run.inputs.get("caption")
    name = "The photos" if "subject" in run.inputs else "The picture"
    given = picture(prompt, "the picture that was given", name, kind="prompt") if prompt else ""
    if not prompt:
        given = f'<figure class="prompt"><div class="plate"><p class="waiting">{escape(str(words_ or ""))}</p></div>'
        given += "<figcaption>The words</figcaption></figure>"
    turning = data_uri((run.folder / "turntable.webp").read_bytes(), "image/webp")
    still = image_uri(to_bytes(look_at_sides(mesh.normalized(), orbit(1, elevation=10.0), 384).colour)[0])
    buttons = "".join(f'<button type="button" data-orbit="{place}">{side}</button>' for side, place in ORBITS.items())
    viewer = (
        f'<model-viewer alt="the object in 3D: {escape(page_title(run))}" camera-controls touch-action="pan-y" '
        f'camera-orbit="{ORBITS["Front"]}" min-camera-orbit="auto 0deg auto" max-camera-orbit="auto 180deg auto" '
        'interaction-prompt="none" environment-image="neutral" tone-mapping="neutral" exposure="0.85" '
        'shadow-intensity="0.45" shadow-softness="1" loading="eager">'
        f'<img slot="poster" src="{still}" alt="the object from its front">'
        '</model-viewer><p class="notice" id="notice" hidden>This browser cannot draw 3D here, so you see a still '
        "picture. Any 3D viewer opens the file asset.glb.</p>"
    )
    return (
        f'<div class="hero">{given}<figure class="object"><div class="plate">{viewer}</div><figcaption><span>The '
        f'object <small>drag to turn it</small></span><span class="tools" id="tools" hidden>{buttons}'
        '<button type="button" id="bare" aria-pressed="false">Shape only</button></span></figcaption></figure>'
        '<figure class="turn"><div class="plate"><picture><source media="(prefers-reduced-motion: reduce)" '
        f'srcset="{still}"><img src="{turning}" alt="the object turning"></picture></div>'
        "<figcaption>Turning</figcaption></figure></div>" + _aside(run)
    )


def _aside(run: RunRecord) -> str:
    note = words.NANO if str(run.config.get("prior")).startswith("nano") else ""
    name = f"{run.folder.resolve().name}.glb"
    links = [f'<a class="button" id="download" href="asset.glb" download="{escape(name)}">Save the object (GLB)</a>']
    for suffix, parts in EXPORTS.items():
        if (run.folder / f"asset.{suffix}").is_file():
            beside = [f"asset.{part}" for part in parts[1:] if (run.folder / f"asset.{part}").is_file()]
            about = f"it needs {' and '.join(beside)} beside it" if beside else f"the same object as {suffix.upper()}"
            links.append(f'<a class="button" href="asset.{suffix}" title="{about}">{suffix.upper()}</a>')
    return f'<div class="aside">{paragraphs(note)}<span>{" ".join(links)}</span></div>'


def _prompt_only(run: RunRecord) -> str:
    prompt = prompt_uri(run)
    shown = picture(prompt, "the picture that was given", "The picture") if prompt else ""
    return f'<div class="hero">{shown}</div>' if shown else ""


def _views_section(run: RunRecord, views: Views | None, mesh: Mesh | None) -> str:
    """What the prior imagined, above what became of it."""
    cameras = orbit(4, elevation=5.0) if views is None else views.cameras
    if views is None and mesh is None:
        return ""
    rows: list[tuple[str, str, list[str]]] = []
    if views is not None:
        source = "the words" if run.method in ("text", "views") and "image" not in run.inputs else "the picture"
        rows.append(("Imagined", f"by the prior, from {source}", view_uris(views)))
        rows += _same_sides(run, len(views))
    rows += _unpainted(run, cameras)
    if mesh is not None:
        sides = look_at_sides(mesh, cameras)
        for title, note, pictures in (
            ("Finished", "the object from the same sides", sides.colour),
            ("Shape", "the direction that each place faces, as a colour (normals)", sides.normals),
        ):
            rows.append((title, note, [image_uri(pixels) for pixels in to_bytes(pictures)]))
    content = views_grid(rows, view_names(cameras))
    for name, folder in run.results(VIEWS_CLASS):
        if name not in ("views", *words.VIEW_ROWS):
            more = Views.load(folder)
            turned = float(more.cameras.azimuth[0])
            note = f"the same again, turned by {turned:.0f}\N{DEGREE SIGN}" if abs(turned) > 1 else f"stage {name}"
            row = ("Also imagined", note, view_uris(more))
            content += views_grid([row], view_names(more.cameras))
    text = "The method's first idea: a prior that paints one object from several sides at once, so that they agree."
    if any(stage.name in words.VIEW_ROWS for stage in run.stages):
        text = "Views that are painted one by one disagree; one cloud in space cannot disagree with itself."
    compare = "Compare the rows: the object rests on what was imagined, and may lose or mend some of it."
    explained = paragraphs(text if views is not None else "", compare if len(rows) > 2 else "")
    return section("views", "From all sides", explained, content)


def _same_sides(run: RunRecord, count: int) -> list[tuple[str, str, list[str]]]:
    """Rows of what later stages show of the imagined views' sides."""
    rows = []
    for name, folder in [*run.results(VIEWS_CLASS), *run.results(TRANSLATED_CLASS)]:
        if name in words.VIEW_ROWS:
            shown = Views.load(folder if (folder / "transforms.json").is_file() else folder / "views")
            if len(shown) >= count:
                rows.append((*words.VIEW_ROWS[name], view_uris(shown[:count])))
    return rows


def _unpainted(run: RunRecord, cameras: Cameras) -> list[tuple[str, str, list[str]]]:
    """The row of the mesh as it was before a stage of its own painted it, if one did."""
    meshes = dict(run.results(MESH_CLASS))
    if not {"mesh", "painted"} <= meshes.keys():
        return []
    sides = look_at_sides(Mesh.load(meshes["mesh"]), cameras)
    return [(*words.BARE, [image_uri(pixels) for pixels in to_bytes(sides.colour)])]


def _compared(run: RunRecord, mesh: Mesh) -> str:
    """The picture in the frame of its estimated camera, beside the object as seen from there."""
    # A search follows where none of the views was the picture, so the last one counts.
    for _, folder in run.results(LOCATED_CLASS)[-1:]:
        view = Views.load(folder / "view")
        seen = to_bytes(look_at_sides(mesh, view.cameras).colour)
        return picture(view_uris(view)[0], "the picture", "The picture") + picture(
            image_uri(seen[0]), "the object from the estimated viewpoint", "The object from there"
        )
    return ""


def _quality(run: RunRecord, mesh: Mesh) -> MeshQuality:
    """The numbers that the run logged, else those that the mesh itself can tell."""
    line = run.last_event("mesh_quality")
    if line is None:
        return measure_mesh(mesh)
    values = {field.name: line[field.name] for field in fields(MeshQuality) if field.name in line}
    return MeshQuality(**{**values, "notes": tuple(values.get("notes", ()))})
