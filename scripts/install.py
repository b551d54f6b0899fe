"""Make `.venv` and install maquette into it, once; needs only a bare Python, and does nothing when all is in place.

    python3 scripts/install.py          # the library and the command
    python3 scripts/install.py --dev    # and the tools that `make test` uses

PyTorch comes first and pinned, so that nothing that is installed later can bring another build of it. On Linux pip's
default index may serve PyTorch's CUDA build, which takes 4 GB more; that one is installed only where there is an NVIDIA
GPU. Otherwise name the index of PyTorch's CPU builds (pytorch.org shows it) in TORCH_INDEX.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".venv"
PYTHON = HOME / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
TORCH = "torch==2.13.0"


def main() -> int:
    """Install what the arguments ask for; the exit code says whether it is there now."""
    dev = "--dev" in sys.argv[1:]
    stamp = HOME / ("installed-dev" if dev else "installed")
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return 0
    if sys.version_info < (3, 10):  # noqa: UP036 (this file is what an older Python would be given)
        return complain(f"maquette needs Python 3.10 or newer, this is {sys.version.split()[0]}; try PYTHON=python3.12")
    print(
        f"Installing maquette{' and its test tools' if dev else ''} into {HOME.name}: about 1.5 GB on disk, most of it "
        f"PyTorch; two to five minutes with a fast connection. Later runs need neither time nor network.",
        flush=True,
    )
    try:
        if not PYTHON.exists():
            venv.create(HOME, with_pip=True)
        if not has_torch():
            index = torch_index()
            pip(TORCH, *index)
        pip("--editable", f"{ROOT}[dev]" if dev else str(ROOT))
    except subprocess.CalledProcessError as error:
        return complain(
            f"installing failed (exit code {error.returncode}; pip's own words are above); then run it again"
        )
    except RuntimeError as error:
        return complain(str(error))
    if (came := nvidia_packages()) and not gpu():
        return complain(f"a CUDA build came along ({', '.join(came[:2])}, ...); remove {HOME.name} and set TORCH_INDEX")
    stamp.write_text(wanted)
    if dev:
        (HOME / "installed").write_text(wanted)
    return 0


def fingerprint() -> str:
    """What an installation was made from: when it changes, pip looks again."""
    digest = hashlib.sha256(sys.version.encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def torch_index() -> list[str]:
    """pip's options for PyTorch: none where the default index serves a build that fits this machine."""
    if chosen := os.environ.get("TORCH_INDEX"):
        return ["--index-url", chosen]
    if not sys.platform.startswith("linux") or gpu():
        return []
    plan = pip("--dry-run", "--quiet", "--report", "-", TORCH, capture=True)
    names = [item["metadata"]["name"] for item in json.loads(plan)["install"]]
    if any(name.startswith("nvidia") for name in names):
        raise RuntimeError(
            "pip would install PyTorch's CUDA build (some 4 GB more) and this machine has no NVIDIA GPU; pytorch.org "
            "shows the index of CPU builds: make demo TORCH_INDEX=URL"
        )
    return []


def pip(*arguments: str, capture: bool = False) -> str:
    """Run pip inside `.venv` under the constraints; its output when `capture` is set."""
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += [] if capture else ["--quiet"]
    command += ["--constraint", str(ROOT / "constraints.txt"), *arguments]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE if capture else None)
    return done.stdout or ""


def has_torch() -> bool:
    """Whether PyTorch is in `.venv` already, of whatever build."""
    return subprocess.run([str(PYTHON), "-c", "import torch"], capture_output=True).returncode == 0


def nvidia_packages() -> list[str]:
    """Names of installed packages that belong to a CUDA build."""
    code = "import importlib.metadata as m; print(*(d.metadata['Name'] for d in m.distributions()))"
    done = subprocess.run([str(PYTHON), "-c", code], check=True, text=True, stdout=subprocess.PIPE)
    return sorted(name for name in done.stdout.split() if name.lower().startswith("nvidia-"))


def gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


def complain(sentence: str) -> int:
    """One sentence on standard error."""
    print(f"install: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
