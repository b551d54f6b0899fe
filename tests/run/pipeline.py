"""A small run with one quick and one long stage, as a command to be killed, starved and interrupted by the tests.

python pipeline.py FOLDER [--steps N] [--pause SECONDS] [--big] [--nan STEP] [--fat] [--deaf]
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from maquette import cli
from maquette.errors import RunFailed
from maquette.run import Run
from maquette.run.files import write_bytes


def make_start(size, run):
    return torch.randn(size, generator=run.generator(purpose="start"))


def anneal(start, steps, pause, nan, deaf, run):
    """A random walk with momentum: every step depends on all before it and on its own noise."""
    begin, state = run.load_checkpoint() or (0, {"x": start, "v": torch.zeros_like(start)})
    for step in run.progress(steps, start=begin):
        noise = torch.randn(start.shape, generator=run.generator(step))
        velocity = 0.9 * state["v"] + 0.1 * noise
        state = {"x": state["x"] + velocity, "v": velocity}
        if step == nan:
            state["x"][0] = float("nan")
        if not bool(torch.isfinite(state["x"]).all()):
            raise RunFailed(f"the walk became NaN at step {step}; its last checkpoint is kept")
        run.log(step, size=state["x"].abs().mean())
        if deaf:
            run.save_checkpoint(step + 1, state)
        else:
            run.checkpoint(step + 1, lambda: state, every=0.02)
        time.sleep(pause)
    return state["x"]


def overeat(run):
    run.require_memory(1 << 20)
    return torch.ones(1 << 40, dtype=torch.uint8)


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--pause", type=float, default=0.02)
    parser.add_argument("--nan", type=int, default=-1)
    parser.add_argument("--fat", action="store_true")
    parser.add_argument("--deaf", action="store_true")
    options = parser.parse_args(arguments)
    with Run.open(options.folder, device="cpu", config={"steps": options.steps}, method="walk") as run:
        print("open", flush=True)
        start = run.stage("start", make_start, options.size)
        if options.fat:
            run.stage("overeat", overeat)
        end = run.stage("anneal", anneal, start, options.steps, options.pause, options.nan, options.deaf)
        write_bytes(run.folder / "asset.glb", end.numpy().tobytes())
    return 0


class Command:
    run = staticmethod(main)


if __name__ == "__main__":
    sys.modules["pipeline_command"] = Command
    cli.COMMANDS["walk"] = ("pipeline_command", "a test")
    sys.exit(cli.main(["walk", *sys.argv[1:]]))
