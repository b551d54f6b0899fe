"""What a run folder says of itself: whose settings it holds, and its log."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maquette.errors import UserError
from maquette.run.files import explain_os_error, sweep, write_json
from maquette.run.settings import differences, printable

OWNED = (
    "asset.glb", "report.html", "turntable.webp", "turntable.mp4", "views.png", "views", "prompt.png", "config.json",
    "provenance.json", "log.jsonl", "stages", "candidates.png",
    "asset.obj", "asset.mtl", "asset.png", "asset.ply", "asset.stl",
)  # fmt: skip
"""What a run may leave in its folder, and therefore what `overwrite` may delete."""


def adopt(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make `folder` one of a run with `settings`, or see that it is one already.

    `settings` has the version under `maquette`, which may differ: the stages' fingerprints take care of it. Raises
    UserError for a folder that holds another run (naming the first setting that differs) or anything else. Another
    run that made nothing yet is replaced.
    """
    path = folder / "config.json"
    before = read_json(path)
    if before is not None and "maquette" not in before:
        raise UserError(f"{folder} holds a config.json that is not of a maquette run; choose another --out.")
    strangers = sorted(item.name for item in folder.iterdir() if not item.name.startswith("."))
    if before is None and strangers:
        raise UserError(
            f"{folder} holds other files ({', '.join(strangers[:3])}) and no run; choose another folder with --out."
        )
    if before is not None and overwrite:
        _empty(folder)
        before = None
    if before is not None:
        changed = [change for change in differences(before, settings) if change[0] != "maquette"]
        if changed and _made_nothing(folder):
            _empty(folder)
        elif changed:
            name, old, new = changed[0]
            more = f" (and {len(changed) - 1} more settings differ)" if len(changed) > 1 else ""
            raise UserError(
                f"{folder} holds a run with {name.removeprefix('config.')} = {_shown(old)}, and this one has "
                f"{_shown(new)}{more}; choose another --out, or replace that run with --overwrite."
            )
    sweep(folder)
    if before != settings:
        write_json(path, settings)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in `path`, or None if there is none; raises UserError when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise explain_os_error(error, path) from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON; delete it, or start anew with --overwrite.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; delete it, or start anew with --overwrite.")
    return value


class Log:
    """A growing log.jsonl: every line is one JSON object, with the seconds since this process opened it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._began = time.monotonic()
        try:
            self._file = open(path, "a+", encoding="utf-8", newline="\n")  # noqa: SIM115 (open until `close`)
            if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
                self._file.write("\n")  # a killed process left half a line
        except OSError as error:
            raise explain_os_error(error, path) from error

    def write(self, stage: str | None, step: int | None, entries: Mapping[str, Any]) -> None:
        """Append one line and hand it to the operating system; raises RunFailed when the disk is full."""
        if self._file.closed:
            raise ValueError("This run is closed; log only inside its `with` block.")
        line = {"seconds": round(time.monotonic() - self._began, 3), "stage": stage, "step": step}
        line.update({key: _loggable(value) for key, value in entries.items() if value is not None})
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        self._file.close()


def read_log(folder: Path | str) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl, without those that a later attempt at the same stage replaced.

    A stage that starts anew replaces all its earlier lines; one that resumes from step k keeps its steps before k.
    Half a line (of a running or killed process) is left out.
    """
    lines: list[dict[str, Any]] = []
    earlier: list[dict[str, Any]] = []
    for text in (Path(folder) / "log.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        stage, event = line.get("stage"), line.get("event")
        if event == "started":
            earlier = [other for other in lines if other["stage"] == stage]
            lines = [other for other in lines if other["stage"] != stage]
        elif event == "resumed":
            lines += [other for other in earlier if other["step"] is not None and other["step"] < line["step"]]
        lines.append(line)
    return lines


def _made_nothing(folder: Path) -> bool:
    """Whether the run in `folder` ended before it finished or saved anything, as one with a misspelt prior does."""
    if any((folder / name).exists() for name in ("asset.glb", "views", "views.png")):
        return False
    return not any(path.is_file() for path in (folder / "stages").rglob("*"))


def _empty(folder: Path) -> None:
    """Delete what a run made in `folder`, and nothing else; config.json last, so that a kill leaves a run's folder."""
    for name in sorted(OWNED, key=lambda name: name == "config.json"):
        item = folder / name
        try:
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink(missing_ok=True)
        except OSError as error:
            raise explain_os_error(error, item) from error


def _loggable(value: Any) -> Any:
    """A plain JSON value; tensors become numbers or lists, and what JSON lacks (NaN, infinities) text."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, (list, tuple)):
        return [_loggable(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _loggable(item) for key, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float)) else printable(str(value))


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
