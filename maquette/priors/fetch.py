"""Published weights from a model hub into the folder of all weights: everything is looked at before the first byte.

Sources are tried in the registry's order, because repositories move and vanish. A plan says which files come from
where and how large they are; it is refused as a whole when one of them is not there, or when the disk is too small.
What came is compared with the size and the sha256 that the hub states, and `source.json` keeps them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from maquette.errors import RunFailed, UserError
from maquette.priors.registry import GB, MODELS, Model, Source, with_needs
from maquette.run.files import DISK_FULL, UNWRITABLE, explain_os_error, write_json
from maquette.run.fingerprints import file_sha256
from maquette.run.memory import gib

SOURCE_FILE = "source.json"
SPARE = 1 << 30
"""Bytes of disk that are left free."""
INCOMPLETE = 6 * GB
"""A checkpoint of ImageDream smaller than this has no CLIP towers: it has 8.0 GB with them, and 4.1 without."""


@dataclass(frozen=True)
class HubFile:
    """A file as the hub describes it now."""

    path: str
    bytes: int
    sha256: str | None = None
    """None for small files, of which the hub states none."""


@dataclass(frozen=True)
class HubListing:
    """Files of a repository at one revision."""

    repo: str
    revision: str
    files: tuple[HubFile, ...]


class SourceUnavailable(Exception):
    """This source cannot give all that is asked for; another one may. The text is the reason."""


@runtime_checkable
class Hub(Protocol):
    """A model hub. Both methods raise SourceUnavailable, or RunFailed where nothing can be reached at all."""

    def inspect(self, repo: str, paths: Sequence[str]) -> HubListing:
        """What the repository has under these paths; no file is transferred."""
        ...

    def download(self, repo: str, revision: str, path: str, folder: Path) -> Path:
        """Bring one file to `folder / path`, going on where an earlier attempt stopped."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a fetch will bring for one model."""

    model: Model
    source: Source
    folder: Path
    listing: HubListing
    passed_over: tuple[str, ...] = ()
    """Sources before this one, each with the reason why it was not taken."""

    @property
    def bytes(self) -> int:
        """Bytes to transfer."""
        return sum(file.bytes for file in self.wanted)

    @property
    def wanted(self) -> tuple[HubFile, ...]:
        """Files that are not here yet, or not whole."""
        return tuple(file for file in self.listing.files if not _whole(self.folder / file.path, file.bytes))


def missing_files(model: Model, folder: Path) -> list[str]:
    """Files that are not in the model's place below `folder`; nothing if those of any one loadable source all are."""
    found = [
        [file.path for file in source.files if not (folder / model.name / file.path).is_file()]
        for source in model.sources
        if source.loadable
    ]
    return [] if [] in found else found[0]


def plan(model: Model, folder: Path, hub: Hub, repo: str | None = None) -> list[Plan]:
    """What has to come for a model and everything that it needs; nothing for what is here already.

    `repo` chooses one of the model's sources. UserError where no source has all files, RunFailed for too small a disk.
    """
    plans = []
    for wanted in with_needs(model):
        chosen = repo if wanted is model else None
        if chosen is None and not missing_files(wanted, folder):
            continue
        plans.append(_plan_one(wanted, folder / wanted.name, hub, chosen))
    known = next((one.listing.files[0].bytes for one in plans if one.source is model.source), None)
    if known is None and any(one.model is model for one in plans):
        known = INCOMPLETE  # another layout, which brings all of its parts
    if (part := completion(model, folder, known)) is not None and missing_files(part, folder):
        plans.append(_plan_one(part, folder / part.name, hub, None))
    needed = sum(one.bytes for one in plans)
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed and needed + SPARE > free:
        raise RunFailed(
            f"{model.name} needs {gib(needed)} and {place} has {gib(free)} free; free some, or choose another "
            "--weights-dir"
        )
    return plans


def completion(model: Model, folder: Path, size: int | None = None) -> Model | None:
    """The entry that completes a checkpoint published without a part of it, told by the checkpoint's size: `size`, or
    that of the file in `folder`. None where nothing lacks, or where another layout is there.
    """
    checkpoint = folder / model.name / model.source.files[0].path
    if size is None and checkpoint.is_file():
        size = checkpoint.stat().st_size
    return MODELS[model.completed_by] if model.completed_by and size is not None and size < INCOMPLETE else None


def _plan_one(model: Model, folder: Path, hub: Hub, repo: str | None) -> Plan:
    sources = [source for source in model.sources if source.repo == repo] if repo else list(model.sources)
    if not sources:
        raise UserError(
            f"--source: {model.name} has no source {repo!r}; it has {', '.join(s.repo for s in model.sources)}"
        )
    if repo is None and model.loadable:
        sources = [source for source in sources if source.loadable]
    reasons: list[str] = []
    for source in sources:
        try:
            listing = hub.inspect(source.repo, [file.path for file in source.files])
        except SourceUnavailable as error:
            reasons.append(f"{source.repo}: {error}")
            continue
        absent = {file.path for file in source.files} - {file.path for file in listing.files}
        if not absent:
            return Plan(model, source, folder, listing, tuple(reasons))
        reasons.append(f"{source.repo}: has no {', '.join(sorted(absent))}")
    raise UserError(
        f"no source of {model.name!r} has all of its files now ({'; '.join(reasons)}); get them elsewhere and put them "
        f"into {folder}"
    )


def carry_out(planned: Plan, hub: Hub, say: Callable[[str], None] = lambda line: None) -> Path:
    """Bring the files of a plan and verify them; the folder. RunFailed naming the file that came out wrong."""
    for file in planned.wanted:
        say(f"{planned.listing.repo}/{file.path}: {gib(file.bytes)}")
        try:
            path = hub.download(planned.listing.repo, planned.listing.revision, file.path, planned.folder)
        except SourceUnavailable as error:
            raise RunFailed(f"{planned.listing.repo}/{file.path} could not be fetched ({error}); try again") from None
        if not _whole(path, file.bytes):
            raise RunFailed(f"{path} has {path.stat().st_size} bytes where {file.bytes} were promised; try again")
    entries = []
    for file in planned.listing.files:
        path = planned.folder / file.path
        found = file_sha256(path)
        if file.sha256 is not None and found != file.sha256:
            path.unlink()
            raise RunFailed(f"{path} was damaged on its way (its sha256 differs) and is deleted; try again")
        entries.append({"file": file.path, "bytes": file.bytes, "sha256": found})
    record = {
        "model": planned.model.name, "repo": planned.listing.repo, "revision": planned.listing.revision,
        "licence": planned.model.licence.name, "files": entries,
    }  # fmt: skip
    write_json(planned.folder / SOURCE_FILE, record)
    return planned.folder


def _whole(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


class HuggingFaceHub:
    """The Hugging Face hub through its own library, from the extra `published`."""

    def __init__(self) -> None:
        try:
            import huggingface_hub
            import huggingface_hub.errors
        except ImportError:
            raise UserError(
                "fetching needs the package huggingface_hub: pip install 'maquette[published]' (or bring the files "
                "yourself; `maquette models list` says which)"
            ) from None
        self._hub: Any = huggingface_hub

    def inspect(self, repo: str, paths: Sequence[str]) -> HubListing:
        """See `Hub.inspect`."""
        api = self._hub.HfApi()
        revision = str(self._asked(lambda: api.model_info(repo)).sha)
        found = self._asked(lambda: api.get_paths_info(repo, list(paths), revision=revision))
        files = (
            HubFile(item.path, int(item.size), item.lfs.sha256 if item.lfs is not None else None)
            for item in found
            if getattr(item, "size", None) is not None
        )
        return HubListing(repo, revision, tuple(files))

    def download(self, repo: str, revision: str, path: str, folder: Path) -> Path:
        """See `Hub.download`."""
        return Path(
            self._asked(lambda: self._hub.hf_hub_download(repo, path, revision=revision, local_dir=folder), folder)
        )

    def _asked(self, question: Callable[[], Any], folder: Path | None = None) -> Any:
        """The answer; an error of the library as one of ours."""
        errors = self._hub.errors
        try:
            return question()
        except errors.GatedRepoError:
            raise SourceUnavailable(
                "wants its licence to be accepted on its page first, then `hf auth login`"
            ) from None
        except errors.RepositoryNotFoundError:
            raise SourceUnavailable("is not there, or not public") from None
        except (errors.EntryNotFoundError, errors.RevisionNotFoundError) as error:
            if not isinstance(error, errors.LocalEntryNotFoundError):
                raise SourceUnavailable("does not have the file any more") from None
            raise _unreachable(error) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (*DISK_FULL, *UNWRITABLE) and folder is not None:
                raise explain_os_error(error, folder) from None
            if isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK:
                raise _unreachable(error) from None
            raise


_NETWORK = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub", "hf_xet")
"""Libraries whose errors mean that the connection failed."""


def _unreachable(error: Exception) -> RunFailed:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return RunFailed(
        f"huggingface.co could not be reached ({said[:200]}); what was fetched is kept, so run the same command again "
        "when there is a connection, or bring the files yourself (--offline says which)"
    )
