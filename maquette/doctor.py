"""What this machine offers and lacks for maquette, and what to do about it; looks, and changes nothing.

Works on a broken installation too: every library is looked up, and PyTorch imported, inside a guard.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maquette import __version__
from maquette.run.memory import GIB, LIBRARIES, available_memory, gib

NEEDED_MEMORY = 4 * GIB
"""Peak of a default run with the nano priors."""
NEEDED_DISK = 1 * GIB
"""A run folder takes tens of MB; the rest is room for checkpoints and for several runs."""

EXTRAS = {
    "published": (("huggingface_hub", "diffusers", "transformers"), "published weights, their samplers and encoders"),
    "train": (("accelerate",), "training on several devices: accelerate launch -m maquette train nano"),
    "video": (("imageio_ffmpeg",), "turntables as MP4 too"),
    "matting": (("rembg",), "cutting out with --matting rembg"),
}
"""Extra -> the modules that it brings and the package uses, and what for."""


@dataclass
class Report:
    """Findings by topic, and advice: what is wrong or missing (`faults`), and what might be worth doing (`hints`)."""

    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether a default run will work here."""
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        """The whole report as plain data."""
        return {**self.findings, "faults": self.faults, "hints": self.hints, "healthy": self.healthy}

    def as_text(self) -> str:
        """The whole report for people."""
        lines = []
        for topic, entries in self.findings.items():
            lines.append(topic)
            width = max(map(len, entries), default=0)
            lines += [f"  {key:<{width}}  {_shown(value)}" for key, value in entries.items()]
        for title, advice in (("to do", self.faults), ("worth knowing", self.hints)):
            if advice:
                lines += [title, *(f"  - {line}" for line in advice)]
        lines.append("all is well: `maquette imagedream IMAGE` will run" if self.healthy else "not ready: see 'to do'")
        return "\n".join(lines)


def examine(folder: Path | str = ".") -> Report:
    """Look at the installation, the machine, and the disk that `folder` is on."""
    report = Report()
    _versions(report)
    _machine(report, Path(folder))
    memory = available_memory()
    if memory is None or memory >= LIBRARIES:
        _torch(report)
        _torchvision(report)
        _weights(report)
    else:
        report.faults.append(f"PyTorch does not load in less than {gib(LIBRARIES)} of memory; it was not looked at")
    _extras(report)
    return report


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions(report: Report) -> None:
    versions: dict[str, Any] = {"maquette": __version__, "python": platform.python_version()}
    for line in _requirements():
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        versions[name] = _installed(name)
        if versions[name] is None:
            report.faults.append(f"{name} is not installed: pip install {name}")
        else:
            least = re.search(r">=([0-9.]+)", line)
            if least and _key(versions[name]) < _key(least[1]):
                report.faults.append(f"{name} {versions[name]} is too old: pip install '{name}>={least[1]}'")
    report.findings["versions"] = versions


def _requirements() -> list[str]:
    """The core dependencies as the installed package declares them; torch alone where it runs from a source tree."""
    try:
        declared = importlib.metadata.requires("maquette") or []
    except importlib.metadata.PackageNotFoundError:
        declared = _declared_in_source()
    return [line for line in declared if "extra ==" not in line]


def _declared_in_source() -> list[str]:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"([^"]+)"', block[1]) if block else []


def _machine(report: Report, folder: Path) -> None:
    memory = available_memory()
    place = next(p for p in (folder.resolve(), *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _cpu_flags()
    report.findings["machine"] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable,
        "memory": f"{gib(memory)} available" if memory is not None else "unknown",
        "disk": f"{gib(free)} free at {place}",
        "bf16 units": any(flag in flags for flag in ("avx512_bf16", "amx_bf16")),
        "AMX": "amx_tile" in flags,
    }
    if memory is not None and memory < NEEDED_MEMORY:
        report.faults.append(
            f"a default run takes up to {gib(NEEDED_MEMORY)} of memory and {gib(memory)} is available: close other "
            f"programs, or use --quality draft"
        )
    if free < NEEDED_DISK:
        report.faults.append(f"only {gib(free)} of disk is free at {place}: free some, or choose another --out")


def _cpu_flags() -> set[str]:
    """Instruction sets of the CPU as Linux names them; empty elsewhere."""
    with suppress(OSError):
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return set(found[1].split()) if found else set()
    return set()


def _torch(report: Report) -> None:
    try:
        import torch
    except Exception as error:
        report.findings["torch"] = {"imports": False}
        report.faults.append(f"PyTorch does not import ({error}): reinstall it, see pytorch.org for your system")
        return
    cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {
        "build": torch.__version__,
        "device": "cuda" if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "vector units": torch.backends.cpu.get_cpu_capability(),
    }
    if cuda:
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu memory"] = "{} free of {}".format(*map(gib, torch.cuda.mem_get_info()))
    report.findings["torch"] = facts
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    if threads < min(cores, 2) and not cuda:
        report.hints.append(f"PyTorch uses {threads} of {cores} cores: unset OMP_NUM_THREADS to use all of them")
    if not cuda and any(name.startswith("nvidia-") for name in _distributions()):
        report.hints.append(
            "this PyTorch was built for CUDA and finds no GPU: it works, but a CPU build is some 4 GB smaller "
            "(see pytorch.org), and with a GPU the driver may be missing"
        )


def _distributions() -> list[str]:
    return [(dist.metadata["Name"] or "").lower() for dist in importlib.metadata.distributions()]


def _torchvision(report: Report) -> None:
    """torchvision is not needed, but a wrong one breaks diffusers and transformers when they import it."""
    version = _installed("torchvision")
    if version is None:
        return
    code = "import torchvision, torchvision.ops; torchvision.ops.nms"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    report.findings.setdefault("torch", {})["torchvision"] = version if done.returncode == 0 else f"{version}, broken"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
        report.faults.append(
            f"torchvision {version} does not fit this PyTorch ({last}), which breaks diffusers and transformers: "
            f"pip uninstall torchvision (maquette does not use it)"
        )


def _weights(report: Report) -> None:
    """The networks inside the package, all read, and the published ones by their files' names."""
    present: dict[str, Any] = {}
    try:
        from maquette.commands.model_files import state_of
        from maquette.evaluation.judge import SHIPPED as JUDGE
        from maquette.evaluation.judge import NanoJudge
        from maquette.priors.cards import read_card, read_tensors
        from maquette.priors.hub import NANO, SHIPPED
        from maquette.priors.registry import MODELS
        from maquette.priors.weights_folder import weights_folder
    except Exception as error:
        report.faults.append(f"the priors cannot be examined, because their code does not import ({error})")
        return
    packages = {name: NANO / folder for name, folder in SHIPPED.items()} | {NanoJudge.name: JUDGE}
    for name, package in packages.items():
        try:
            card = read_card(package)
            read_tensors(card)
        except (ValueError, OSError) as error:
            present[name] = "missing or damaged"
            # No run asks the judge; only figures of `maquette evaluate` do.
            advice = report.hints if name == NanoJudge.name else report.faults
            advice.append(f"the weights of {name!r} cannot be used ({error}): reinstall maquette")
        else:
            present[name] = f"present and intact, {card.values.get('licence', 'licence unknown')}"
    report.findings["weights"] = present
    folder = weights_folder()
    published = {model.name: state_of(model, folder) for model in MODELS.values()}
    report.findings["published weights"] = {"looked for in": str(folder), **published}


def _extras(report: Report) -> None:
    """Only what can be imported by name is looked for; nothing is imported."""
    have = {}
    for extra, (modules, purpose) in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = f"not installed: pip install 'maquette[{extra}]'" if missing else "installed"
        have[extra] = f"{state} ({purpose})"
    report.findings["optional extras"] = have


def _key(version: str) -> tuple[int, ...]:
    """'2.13.0+cpu' -> (2, 13, 0); enough to compare releases."""
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "missing" if value is None else str(value)
