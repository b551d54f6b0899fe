"""Where the object benchmark keeps its answers: one folder an object, owned by one process at a time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from maquette.errors import UserError
from maquette.images import read_image, save_image, sheet
from maquette.run.files import FolderLock, explain_os_error, sweep, write_json
from maquette.run.record import read_json
from maquette.run.settings import differences, plain


class Record:
    """The folder beside a benchmark's JSON file; a context manager that holds its lock."""

    def __init__(self, out: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        if out.suffix.lower() != ".json":
            raise UserError(f"figures are written to a .json file, got {out}")
        self.out, self.folder, self.overwrite = out, out.with_suffix(""), overwrite
        self.settings: dict[str, Any] = plain(settings)

    @classmethod
    def open(cls, out: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> Record:
        """The record for `out`; entering it checks and creates the folder."""
        return cls(out, settings, overwrite)

    def __enter__(self) -> Record:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, self.folder) from error
        self._lock = FolderLock(self.folder)
        self._lock.acquire()
        try:
            self._adopt()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _adopt(self) -> None:
        path = self.folder / "config.json"
        before = read_json(path)
        if before is None and any(not item.name.startswith(".") for item in self.folder.iterdir()):
            raise UserError(f"{self.folder} holds other files and no benchmark; choose another --out")
        if before is not None and self.overwrite:
            for item in self.folder.iterdir():
                if item.is_dir() and (item / "prompt.png").exists():
                    shutil.rmtree(item)
            before = None
        changed = differences(before, self.settings) if before is not None else []
        if changed:
            name, old, new = changed[0]
            raise UserError(
                f"{self.folder} holds results with {name} = {old!r}, and this call has {new!r}; choose another "
                "--out, or replace them with --overwrite"
            )
        sweep(self.folder)
        write_json(path, self.settings)

    def object(self, id: str, baseline: str | None) -> ObjectRecord:
        """The place of the method's answer for an object, or of a baseline's."""
        if not re.fullmatch(r"[^/\\:\x00-\x1f]{1,150}", id) or id.startswith("."):
            raise UserError(f"an id becomes a folder's name: no slash, no colon, no dot in front; got {id!r}")
        return ObjectRecord(self.folder / id, baseline)

    def read(self, id: str, baseline: str | None) -> dict[str, Any]:
        """Figures that are there, without the mark of how they were measured."""
        figures = self.object(id, baseline).figures
        assert figures is not None, f"{id} was finished before"
        return {name: value for name, value in figures.items() if name != "measured_by"}

    def write_sheet(self, ids: Sequence[str]) -> None:
        """All objects in one picture beside the JSON file, two a row."""
        pictures = [read_image(self.folder / id / "sides.png") for id in ids]
        height, width = (max(picture.shape[axis] for picture in pictures) for axis in (1, 2))
        padded = [
            torch.nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]), value=1.0) for p in pictures
        ]
        save_image(self.out.with_suffix(".png"), sheet(torch.stack(padded), columns=2, gap=max(2, height // 16)))


@dataclass(frozen=True)
class ObjectRecord:
    """What is kept of one answer."""

    object_folder: Path
    baseline: str | None

    @property
    def folder(self) -> Path:
        """Where the answer itself lies."""
        folder = self.object_folder if self.baseline is None else self.object_folder / self.baseline
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def run(self) -> Path:
        """The folder that the method may use as it likes."""
        folder = self.folder / "run"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def figures(self) -> dict[str, Any] | None:
        """What was measured, once everything else of the answer is on the disk."""
        return read_json(self.folder / "figures.json")

    def finish(self, figures: Mapping[str, Any]) -> None:
        """Write the figures, last of all; drops the run folder if nothing was put into it."""
        write_json(self.folder / "figures.json", dict(figures))
        if not any(self.run.iterdir()):
            self.run.rmdir()
