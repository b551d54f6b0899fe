"""How much memory there is, how much was used, and a sentence instead of a crash when it is too little."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from maquette.errors import RunFailed

GIB = 1 << 30
LIBRARIES = 1 * GIB
"""Bytes below which PyTorch and its neighbours crash while they are loaded, with words that help nobody."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next tensors, and whether that could be arranged.

    A step of a fit allocates and frees the same hundreds of megabytes. The GNU C library hands such blocks back to the
    system at once and asks for new ones, which the system fills with zeros page by page: up to a third of a run
    (docs/results.md). Blocks of 256 MiB and more still come and go, so that the weights of a large prior leave nothing
    behind. For the whole process and for good, so a command decides it and no import; other C libraries are left as
    they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # <malloc.h>
    wanted = {mmap_threshold: 256 << 20, trim_threshold: (2 << 30) - 1, top_pad: 64 << 20}
    refused = [option for option, value in wanted.items() if mallopt(option, value) != 1]
    return not refused


def available_memory() -> int | None:
    """Bytes that this process may still take: the least of free memory, container limit and process limit.

    None where the system tells nothing.
    """
    limits: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    with suppress(OSError, ValueError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limits.append(soft - mapped)
    if not limits:
        with suppress(OSError, ValueError, AttributeError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(limits)) if limits else None


def peak_memory() -> int | None:
    """The largest resident size of this process so far, in bytes; None where the system tells nothing."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def require_memory(needed: int, purpose: str) -> None:
    """Raise RunFailed when fewer than `needed` bytes are available for `purpose` (which starts the sentence)."""
    available = available_memory()
    if available is not None and available < needed:
        raise RunFailed(
            f"{purpose} needs about {gib(needed)} of memory, and {gib(available)} is available; close other programs, "
            f"raise the limit, or use --quality draft."
        )


def gib(size: float) -> str:
    """`size` bytes as text.

    >>> gib(3.25 * 2**30)
    '3.2 GiB'
    """
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / (1 << 20):.0f} MiB"


def explain_out_of_memory(error: BaseException, purpose: str, needed: int = 0) -> RunFailed | None:
    """The one sentence for `error` if it says that memory ran out (Python's, PyTorch's on CPU or GPU), else None."""
    text = str(error)
    marks = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory", "bad allocation")
    if not isinstance(error, MemoryError) and not any(mark in text for mark in marks):
        return None
    tried = re.search(r"(?:allocate|allocation of size|buy new memory:|tried to allocate) (\d+) bytes", text)
    asked = f" when it asked for another {gib(int(tried[1]))}" if tried else ""
    peak = peak_memory()
    used = f" after using {gib(peak)}" if peak else ""
    need = f"; about {gib(needed)} are needed" if needed else ""
    return RunFailed(
        f"{purpose} ran out of memory{asked}{used}{need}. What was finished is kept: raise the limit or close other "
        f"programs and run the same command again, or use --quality draft in another folder."
    )
