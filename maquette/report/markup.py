"""Pieces of HTML, and how files get into a page that must need nothing else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from jaxtyping import UInt8

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'wasm-unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; connect-src blob: data:; worker-src blob:; base-uri 'none'; form-action 'none'"
)
"""What the browser lets the page do: nothing that would leave the file."""


def asset_text(name: str) -> str:
    """A text file of the package's report/assets."""
    return files("maquette.report").joinpath("assets", name).read_text(encoding="utf-8")


def document(title: str, body: Iterable[str], *, head: str = "") -> str:
    """A whole HTML page with the house's style; `head` is further markup for the head."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>',
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>{escape(title)}</title>",
            head,
            f"<style>\n{asset_text('page.css')}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        ]
    )


def section(name: str, title: str, text: str, content: str) -> str:
    """A titled part of the page: heading and explanation (markup) in the margin, content beside it."""
    return (
        f'<section id="{name}"><div class="margin"><h2>{escape(title)}</h2>{text}</div>'
        f'<div class="content">{content}</div></section>'
    )


def paragraphs(*texts: str, kind: str = "") -> str:
    """Plain texts as paragraphs, empty ones left out."""
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{escape(text)}</p>" for text in texts if text)


def picture(uri: str, alt: str, caption: str = "", *, kind: str = "", note: str = "") -> str:
    """A picture on its plate with a caption, and a smaller note (both plain text)."""
    words = escape(caption) + (f" <small>{escape(note)}</small>" if note else "")
    below = f"<figcaption>{words}</figcaption>" if words else ""
    image = f'<img src="{uri}" alt="{escape(alt)}">'
    return f'<figure class="{kind}"><div class="plate">{image}</div>{below}</figure>'


def table(rows: Iterable[tuple[str, str]], *, kind: str = "facts") -> str:
    """Names and values (markup) in two columns."""
    lines = "".join(f"<tr><th scope=row>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return f'<table class="{kind}"><tbody>{lines}</tbody></table>'


def folded(summary: str, content: str) -> str:
    """Content (markup) that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary><div>{content}</div></details>"


def data_uri(data: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def image_uri(pixels: UInt8[np.ndarray, "h w c"], *, lossless: bool = False) -> str:
    """A picture (RGB or RGBA) as an address that holds it, in WebP; equal pixels give equal text."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=100 if lossless else 88, lossless=lossless, method=4)
    return data_uri(buffer.getvalue(), "image/webp")


def inline_script(code: str) -> str:
    """A script element with `code` in it, which runs as it would from a file.

    HTML ends a script at the first `</script`, wherever it stands in the code; in strings, where it can occur, `<\\/`
    means the same. ValueError for code with `<script`, which together with `<!--` would hide that end and cannot be
    mended alike everywhere.
    """
    if re.search(r"<script", code, re.IGNORECASE):
        raise ValueError("a script with '<script' in it cannot be put into a page; write '<' + 'script' there")
    code = re.sub(r"^//# sourceMappingURL=.*$", "", code, flags=re.MULTILINE)  # a file that is not there
    code = re.sub(r"</(script)", r"<\\/\1", code, flags=re.IGNORECASE)
    return f"<script>{code.rstrip()}\n</script>"


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted name, value as text), schedules on one line.

    >>> flatten({"fit": {"steps": 60, "rate": {"kind": "Linear", "first": 0.5, "last": 0.05, "end": 1.0}}})
    [('fit.steps', '60'), ('fit.rate', '0.5 to 0.05')]
    """
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        here = f"{prefix}{name}"
        schedule = _schedule(value) if isinstance(value, Mapping) else None
        if schedule is not None:
            rows.append((here, schedule))
        elif isinstance(value, Mapping):
            kind = value.get("kind")
            if kind is not None:
                rows.append((here, str(kind)))
            rows += flatten({key: item for key, item in value.items() if key != "kind"}, f"{here}.")
        else:
            rows.append((here, _text(value)))
    return rows


def _schedule(value: Mapping[str, Any]) -> str | None:
    """A schedule in words; None for other settings."""
    kind = value.get("kind")
    if kind == "Constant":
        return _text(value["value"])
    if kind == "Piecewise":
        values, milestones = value["values"], value.get("milestones", ())
        fraction = value.get("unit", "fraction") == "fraction"
        begins = [f"{at:.0%} of the steps" if fraction else f"step {_text(at)}" for at in milestones]
        later = [f"{_text(item)} from {begin}" for item, begin in zip(values[1:], begins, strict=True)]
        return ", ".join([_text(values[0]), *later])
    if kind in ("Linear", "Cosine"):
        text = f"{_text(value['first'])} to {_text(value['last'])}"
        begin, end = value.get("begin", 0.0), value.get("end", 1.0)
        if value.get("unit", "fraction") != "fraction":
            return f"{text}, from step {_text(begin)} to {_text(end)}"
        return text if (begin, end) == (0.0, 1.0) else f"{text}, from {begin:.0%} to {end:.0%} of the steps"
    return None


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    return str(value)
