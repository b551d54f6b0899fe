"""The command `maquette`: one word for what to do, then its options; every ending has its exit code.

0: the result exists and is valid. 1: it could not finish (memory, disk, NaN); what was done is kept. 2: an input or an
option is wrong. 130: interrupted; the same command goes on. Errors are one sentence on standard error. Nothing heavy is
imported before it is known what to do, so that `maquette --help` answers at once.
"""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from maquette.errors import RunFailed, UserError
from maquette.run.memory import LIBRARIES, explain_out_of_memory, keep_freed_memory, require_memory

COMMANDS = {
    "imagedream": ("maquette.commands.imagedream", "one picture to a textured 3D object (ImageDream)"),
    "usd": ("maquette.commands.usd", "one picture, seen from any height, to a textured 3D object (USD)"),
    "text": ("maquette.commands.text", "a sentence to a textured 3D object (MVDream, DreamFusion)"),
    "dreambooth3d": ("maquette.commands.dreambooth3d", "photos of one's own thing and a sentence to 3D (DreamBooth3D)"),
    "views": ("maquette.commands.views", "one picture to four consistent views of the object, in seconds"),
    "render": ("maquette.commands.render", "GLB and OBJ objects to posed pictures, for training and evaluation"),
    "train": ("maquette.commands.train", "train the embedded priors"),
    "evaluate": ("maquette.commands.evaluate", "measure how good results are"),
    "models": ("maquette.commands.models", "which priors and weights are there"),
    "doctor": ("maquette.commands.doctor", "versions, device, memory, weights, and what to do about what is missing"),
}
"""Command -> (module with a function `run(arguments) -> int`, what it is for)."""


FROM_PICTURES = ("imagedream", "usd", "views")
"""Commands whose input is a picture: one that is too large is refused before seconds go into importing anything."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `maquette` with `arguments` (the process's own by default) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _print_anything()
    try:
        return _dispatch(given)
    except UserError as error:
        return _say(error, 2)
    except RunFailed as error:
        return _say(error, 1)
    except KeyboardInterrupt:
        return _say("interrupted; the same command goes on from here.", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; Python would complain about it at exit
        return 1
    except Exception as error:
        return _explain(error)


def _print_anything() -> None:
    """Let names be printed that the terminal's encoding lacks, escaped, where Python would raise an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version", "version"):
        from maquette import __version__

        print(f"maquette {__version__}")
        return 0
    name = given[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "`maquette --help` lists them all."
        raise UserError(f"there is no command {name!r}; {hint}")
    if name != "doctor":
        require_memory(LIBRARIES, f"`maquette {name}`")
        keep_freed_memory()
    if name in FROM_PICTURES:
        _refuse_huge_pictures(given[1:])
    return int(import_module(COMMANDS[name][0]).run(given[1:]))


def _refuse_huge_pictures(words: Sequence[str]) -> None:
    """UserError for a huge picture among the words; what is no picture is left to the command itself."""
    from pathlib import Path

    from maquette.imagesizes import check_header

    for word in words:
        path = Path(word.partition("=")[2] if word.startswith("-") else word)
        if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"):
            check_header(path)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: maquette COMMAND [OPTIONS]",
            "",
            "From one picture to a textured 3D object.",
            "",
            *lines,
            "",
            "`maquette COMMAND --help` lists the options of a command. A first try:",
            '  maquette imagedream photo.png --caption "a toy dragon"',
            "Exit codes: 0 done, 1 could not finish, 2 wrong input or option, 130 interrupted (run it again to go on).",
        ]
    )


def _say(message: object, code: int) -> int:
    """One sentence on standard error, and the exit code."""
    print(f"maquette: {' '.join(str(message).split())}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """An error that no room turned into a sentence: memory, disk, a refused value; anything else is a bug and shows."""
    from maquette.run.files import DISK_FULL, explain_os_error

    explained = explain_out_of_memory(error, "This command")
    if explained is not None:
        return _say(explained, 1)
    if isinstance(error, OSError) and (error.errno in DISK_FULL or isinstance(error, PermissionError)):
        told = explain_os_error(error, error.filename or "the output folder")
        return _say(told, 1 if isinstance(told, RunFailed) else 2)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("maquette"):
        return _say(f"the Python package {error.name!r} is missing; `maquette doctor` says how to install it.", 1)
    if isinstance(error, ValueError) and _raised_by_us(error):
        return _say(error, 2)
    traceback.print_exception(error)
    return _say("this is a bug in maquette: please report it with the lines above. What was finished is kept.", 1)


def _raised_by_us(error: BaseException) -> bool:
    """Whether `error` was raised by a line of this package, and not somewhere inside a library that it called."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and str(last.tb_frame.f_globals.get("__name__", "")).split(".")[0] == "maquette"
