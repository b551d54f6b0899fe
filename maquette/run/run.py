"""The workbench of a run: its folder, seed, device, log, and the memory of finished stages.

A run folder holds `config.json`, `provenance.json`, `log.jsonl`, one folder per stage under `stages/`, and whatever
files the method puts beside them. `Run.stage` is the whole workflow engine: a stage whose inputs have not changed is
loaded instead of run, so a run that was killed goes on where it was, and ends with the same bytes.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from maquette import __version__
from maquette.errors import RunFailed, UserError
from maquette.run.files import FolderLock, atomic_folder, explain_os_error, write_json
from maquette.run.fingerprints import fingerprint, qualified_name
from maquette.run.interrupts import Interrupts
from maquette.run.memory import explain_out_of_memory, peak_memory, require_memory
from maquette.run.record import Log, adopt, read_json
from maquette.run.results import load_result, save_result
from maquette.run.settings import plain
from maquette.run.stage import Stage, derive_seed
from maquette.run.terms import Terms, effective_terms

_LIBRARIES = (
    "torch", "numpy", "scipy", "pillow", "scikit-image", "trimesh", "embreex", "xatlas", "fast-simplification",
)  # fmt: skip
"""Libraries whose version can change a result."""


@dataclass(frozen=True)
class StageTime:
    """How long a stage took (seconds, all attempts together), and whether its saved result was used this time."""

    name: str
    seconds: float
    reused: bool


class Run:
    """One run in one folder; made by `Run.open`, closed by leaving its `with` block."""

    def __init__(self, folder: Path, seed: int, device: torch.device, settings: dict[str, Any], quiet: bool) -> None:
        self.folder, self.seed, self.device, self.quiet = folder, seed, device, quiet
        self.settings = settings
        self.interrupts = Interrupts()
        self.watchers: list[Callable[[str, int | None, Any], None]] = []
        self.times: list[StageTime] = []
        self._cards: dict[str, dict[str, Any]] = {}
        self._citations: dict[str, None] = {}
        self._lock = FolderLock(folder)
        self._exit = ExitStack()
        self._log: Log | None = None
        self._needed = 0

    @classmethod
    def open(
        cls,
        folder: Path | str,
        *,
        config: Any = None,
        seed: int = 0,
        device: torch.device | str = "auto",
        method: str = "",
        inputs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        quiet: bool = False,
    ) -> Run:
        """Open `folder` for a run of `method` with `config` (a frozen dataclass), or go on with the run that is in it.

        `inputs` names what goes in (a file's name and hash, a caption); it counts as a setting. A folder that holds a
        run with other settings is refused with the first differing one named, and so is one that holds other things;
        `overwrite` deletes the run that is there (and only files that a run makes). Raises UserError, or RunFailed
        when the disk is full.
        """
        folder = Path(folder)
        if not 0 <= seed < 1 << 63:  # what all generators take
            raise UserError(f"a seed is a whole number from 0 to 2^63 - 1, got {seed}")
        chosen = resolve_device(device)
        settings = {
            "maquette": __version__,
            "method": method,
            "seed": seed,
            "device": chosen.type,
            "inputs": plain(dict(inputs or {})),
            "config": plain(config) if config is not None else {},
        }
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, folder) from error
        run = cls(folder, seed, chosen, settings, quiet)
        run._lock.acquire()
        try:
            adopt(folder, settings, overwrite)
            run._log = Log(folder / "log.jsonl")
            run.log(event="opened", version=__version__, threads=torch.get_num_threads())
        except BaseException:
            run.close()
            raise
        return run

    def __enter__(self) -> Run:
        self.interrupts.install()
        self._exit.enter_context(_deterministic(self.device))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interrupts.restore()
        self._exit.close()
        try:
            if error is None:
                self.write_provenance()
                self.log(event="finished")
            elif self._log is not None:
                self.log(event="interrupted" if isinstance(error, KeyboardInterrupt) else "failed", reason=str(error))
        except RunFailed:
            if error is None:
                raise
        finally:
            self.close()

    def close(self) -> None:
        """Close the log and give the folder's lock back."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._lock.release()

    def stage(self, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`function(*args, **options, run=Stage)`, or its saved result if it ran before with the same inputs.

        The same inputs: package version, seed, stage name, function name, and the fingerprints of all arguments. What
        is handed on is always the result as loaded from the disk, so a run that was interrupted continues from exactly
        what an uninterrupted one had. Raises RunFailed when memory or disk run out.
        """
        folder = self.folder / "stages" / name
        source = _plain_function(function)
        key = fingerprint((__version__, self.seed, self.device.type, name, function, args, options))
        record = read_json(folder / "stage.json")
        if record is not None and record.get("fingerprint") == key:
            self.log(stage=name, event="reused")
            self.times.append(StageTime(name, record["seconds"], True))
            return self._handed_on(name, _saved(record["result"], folder / "result", source.__module__))
        (folder / "stage.json").unlink(missing_ok=True)
        stage = Stage(self, name, key)
        self.log(stage=name, event="started")
        try:
            with _seeded(derive_seed(self.seed, name, 0, "library defaults")):
                result = function(*args, **options, run=stage)
            stage.close()
        except BaseException as error:
            stage.close(error)
            explained = self._explain(error, name)
            if explained is None:
                raise
            raise explained from error
        with atomic_folder(folder / "result") as partial:
            description = save_result(result, partial)
        seconds = stage.seconds
        write_json(
            folder / "stage.json",
            {
                "stage": name,
                "function": qualified_name(source),
                "version": __version__,
                "fingerprint": key,
                "result": description,
                "seconds": round(seconds, 3),
            },
        )
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
        self.times.append(StageTime(name, seconds, False))
        self.log(
            stage=name, event="finished", took=round(seconds, 3), processor=round(stage.processor_seconds, 3),
            peak_memory=peak_memory(),
        )  # fmt: skip
        if self.interrupts.requested:
            raise KeyboardInterrupt
        del result
        return self._handed_on(name, _saved(description, folder / "result", source.__module__))

    def generator(self, step: int = 0, purpose: str = "") -> torch.Generator:
        """A generator for work outside the stages: a function of (seed, step, purpose), on the run's device."""
        return torch.Generator(device=self.device).manual_seed(derive_seed(self.seed, "", step, purpose))

    def log(self, *, stage: str | None = None, step: int | None = None, **entries: Any) -> None:
        """Append one object to log.jsonl: seconds since the start, stage, step, and `entries` as plain values."""
        if self._log is None:
            raise ValueError("This run is closed; log only inside its `with` block.")
        self._log.write(stage, step, entries)

    def watch(self, watcher: Callable[[str, int | None, Any], None]) -> None:
        """Call `watcher(stage, step, what)` with every preview that a stage offers (see `Stage.preview`), and with
        every stage's result, then without a step (None).
        """
        self.watchers.append(watcher)

    def require_memory(self, needed: int, purpose: str = "This run") -> None:
        """Raise RunFailed when fewer than `needed` bytes are available; remembered for the message if they run out."""
        self._needed = max(self._needed, needed)
        require_memory(needed, purpose)

    def record_prior(self, card: Mapping[str, Any]) -> None:
        """Note a prior that this run uses (its card: name, sha256, licence, ...) for the provenance."""
        self._cards[str(card["name"])] = plain(dict(card))

    def terms(self) -> Terms:
        """What may be done with the result, by the licences of all priors noted so far."""
        return effective_terms([self._cards[name] for name in sorted(self._cards)])

    def cite(self, *entries: str) -> None:
        """Note what people should cite when they use this run's result (BibTeX, or one line each)."""
        self._citations.update(dict.fromkeys(entries))

    def provenance(self) -> dict[str, Any]:
        """Where the result comes from: settings, seed, versions, priors, citations; no time, place or duration."""
        versions = {"python": platform.python_version(), "maquette": __version__}
        for library in _LIBRARIES:
            try:
                versions[library] = importlib.metadata.version(library)
            except importlib.metadata.PackageNotFoundError:
                continue
        return {
            **{key: value for key, value in self.settings.items() if key != "maquette"},
            "threads": torch.get_num_threads(),
            "versions": versions,
            "priors": [self._cards[name] for name in sorted(self._cards)],
            "terms": str(self.terms()),
            "citations": list(self._citations),
        }

    def write_provenance(self) -> None:
        """Write provenance.json: `provenance()`, with the stages' fingerprints and times and the peak memory."""
        stages = {}
        for time_ in self.times:
            record = read_json(self.folder / "stages" / time_.name / "stage.json") or {}
            stages[time_.name] = {"fingerprint": record.get("fingerprint"), "seconds": round(time_.seconds, 3)}
        write_json(
            self.folder / "provenance.json", {**self.provenance(), "stages": stages, "peak_memory": peak_memory()}
        )

    def _explain(self, error: BaseException, name: str) -> UserError | RunFailed | None:
        """The sentence for memory or disk that ran out in a stage; None for every other error."""
        if isinstance(error, (MemoryError, RuntimeError)) and not isinstance(error, RunFailed):
            return explain_out_of_memory(error, f"Stage {name!r}", self._needed)
        if isinstance(error, OSError) and error.errno is not None:
            about = self.folder / "stages" / name if error.filename is None else Path(error.filename)
            if self.folder in about.parents:
                return explain_os_error(error, about)
        return None

    def _handed_on(self, name: str, result: Any) -> Any:
        """A stage's result on the run's device, shown to whoever watches."""
        for watcher in self.watchers:
            watcher(name, None, result)
        return result.to(self.device) if isinstance(result, torch.nn.Module) else result


def resolve_device(device: torch.device | str) -> torch.device:
    """`auto` is the GPU if PyTorch can use one, else the CPU. Raises UserError for a device that is not there."""
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device is auto, cpu or cuda, got {device!r}.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda was asked for, but this PyTorch finds no GPU; use --device cpu, or see `maquette doctor`."
        )
    return chosen


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Give libraries that draw from the global generators (trimesh, initialisers) a fixed start, and undo it after."""
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % (1 << 32))
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Make PyTorch's CPU operations independent of the order in which threads finish.

    Without it the gradient of an indexed read adds up atomically, in any order, as soon as there are two threads. On a
    GPU some operations that are needed (grid_sample's gradient) have no such form, so nothing is changed there.
    """
    if device.type != "cpu":
        yield
        return
    options: Any = torch.utils.deterministic
    before, filling = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # it helps to find bugs, and costs time
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        options.fill_uninitialized_memory = filling


def _saved(description: dict[str, Any], folder: Path, trusted: str) -> Any:
    """A saved result; UserError naming its folder when something has damaged it since."""
    try:
        return load_result(description, folder, trusted)
    except (UserError, RunFailed, MemoryError):
        raise
    except Exception as error:
        raise UserError(
            f"{folder} is damaged ({type(error).__name__}: {error}); delete {folder.parent} to make it again."
        ) from error


def _plain_function(function: Any) -> Any:
    """The function behind a `functools.partial` or a bound method."""
    while hasattr(function, "func"):
        function = function.func
    return getattr(function, "__func__", function)
