"""Find the cases of a folder, run each, say how it went."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.parity.golden import Golden, Kind
from tests.parity.imagedream import KINDS as IMAGEDREAM
from tests.parity.metrics import KINDS as METRICS
from tests.parity.usd import KINDS as USD

KINDS: list[Kind] = [*IMAGEDREAM, *METRICS, *USD]
"""Every kind of case we know. A new goldens folder is a new package beside `imagedream` and its list here."""


@dataclass(frozen=True)
class Outcome:
    """One line of the report."""

    case: str
    error: float
    verdict: str
    """ok, FAIL or unknown."""
    why: str = ""
    """What failed or was not compared."""

    def line(self) -> str:
        """`case  max_rel_err  verdict`."""
        error = "-" if self.verdict == "unknown" and self.error != self.error else f"{self.error:.2e}"
        return f"{self.case:<44} {error:>10}  {self.verdict}"


def find_cases(folder: Path) -> list[Path]:
    """Data files of the folder, without companions: READMEs, configs, noise floors, weight stores.

    A JSON file beside a data file of its name belongs to it, and so does WORD_metrics.json beside WORD or WORD_*; any
    other is a case of its own.
    """
    data = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", ".npz") and p.is_file()]
    stores = {store for p in folder.glob("*.config.json") for store in _weight_files(p)}
    cases = [p for p in data if p.name not in stores and not p.stem.endswith("weights")]
    names = {p.stem for p in data} | {f"{p.stem.split('_')[0]}_metrics" for p in data}
    alone = [
        p
        for p in sorted(folder.glob("*.json"))
        if p.stem not in names and not p.name.endswith(".config.json") and not p.stem.startswith("noise_floor")
    ]
    return sorted(cases + alone)


def _weight_files(config: Path) -> list[str]:
    content = json.loads(config.read_text())
    weights = content.get("weights", []) if isinstance(content, dict) else []
    return [weights] if isinstance(weights, str) else list(weights)


@contextmanager
def one_thread() -> Iterator[None]:
    """In networks this small threads mostly wait for one another; one also fixes the order of every sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(path: Path) -> Outcome:
    """Recompute one case; an exception on the way is a FAIL, never a skip."""
    golden = Golden(path)
    try:
        kind = next((kind for kind in KINDS if kind.recognises(golden)), None)
        if kind is None:
            return Outcome(golden.name, float("nan"), "unknown", "no kind of case that we know")
        checks = kind.expects(golden)
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.manual_seed(0)
            kind.run(golden, checks)
    except Exception as error:  # the report must go on to the other cases
        return Outcome(golden.name, float("nan"), "FAIL", f"{type(error).__name__}: {error}")
    if checks.failed:
        worst = ", ".join(f"{name} {checks.errors[name]:.2e} > {checks.limits[name]:.0e}" for name in checks.failed[:4])
        return Outcome(golden.name, checks.max_error, "FAIL", worst)
    if checks.uncompared or not checks.errors:
        names = ", ".join(checks.uncompared[:4]) or "nothing expected in it"
        return Outcome(golden.name, checks.max_error, "unknown", f"not compared: {names}")
    return Outcome(golden.name, checks.max_error, "ok")


def main(arguments: list[str]) -> int:
    """The command: 0 when there are cases and all are ok, 1 when any is not, 2 for a wrong folder."""
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        print("usage: python -m tests.parity FOLDER    (a folder of recorded reference numbers)", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    folder = Path(arguments[0])
    if not folder.is_dir():
        print(f"{folder} is not a folder", file=sys.stderr)
        return 2
    outcomes = []
    for path in find_cases(folder):
        outcome = run_case(path)
        outcomes.append(outcome)
        print(outcome.line(), flush=True)
        if outcome.why:
            print(f"    {outcome.case}: {outcome.why}", file=sys.stderr, flush=True)
    count = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("ok", "FAIL", "unknown")}
    print(f"{len(outcomes)} cases: {count['ok']} ok, {count['FAIL']} FAIL, {count['unknown']} unknown")
    return 0 if outcomes and count["ok"] == len(outcomes) else 1
