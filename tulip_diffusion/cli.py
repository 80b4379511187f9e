"""`tulip-diffusion`: the command line. Each command is a thin door to a function of the library.

Reading the arguments is light: whatever is heavy is imported by the command that needs it. The commands themselves
are imported where an interrupt is met.
"""

import _thread
import os
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from argparse import ArgumentParser

REFUSALS = (ValueError, TypeError, OSError, ImportError, MemoryError)
NAMED_REFUSALS = ("SafetensorError", "OutOfMemoryError", "UnpicklingError")  # by name: their modules load slowly
INTERRUPTED, BROKEN_PIPE = 130, 141  # as shells count: 128 and the number of the signal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 2 for wrong input (one line on stderr), 130 when interrupted."""
    command = "tulip-diffusion"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a prompt may hold letters that this terminal lacks
    try:
        try:
            options = build_parser().parse_args(arguments)
            command = f"{command} {options.command}"
            options.run(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _leave_output_alone()
        return BROKEN_PIPE
    except Exception as error:
        if not isinstance(error, REFUSALS) and type(error).__name__ not in NAMED_REFUSALS:
            raise
        from tulip_diffusion.arguments import one_line

        print(f"{command}: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _leave_output_alone() -> None:
    """Python writes what is left in its buffer once more when it ends, and would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Python drops what is raised in a finaliser or a weak reference's callback: repeat an interrupt outside."""
    if dropped.exc_type is not None and issubclass(dropped.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(dropped)


def build_parser() -> "ArgumentParser":
    """The parser of `tulip-diffusion` with all its commands."""
    from tulip_diffusion import __version__, convert, describe, evaluate, generate, share
    from tulip_diffusion.arguments import Parser
    from tulip_diffusion.demo import commands as demo
    from tulip_diffusion.training import commands as training
    from tulip_diffusion.training.ablations import commands as ablations

    parser = Parser(
        prog="tulip-diffusion",
        description="Prompts of 248 tokens and more for Stable Diffusion XL.",
        epilog="example:\n  tulip-diffusion compare",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for door in (generate, describe, convert, share, training, ablations, demo):
        door.register(commands)
    evaluations = commands.add_parser(
        "evaluate",
        help="measure how much of a prompt encoders and pictures hold",
        description="Measure encoders and the pictures that are drawn with them.",
        epilog="example:\n  tulip-diffusion evaluate all --size quick",
    )
    evaluate.register(evaluations.add_subparsers(dest="evaluation", required=True, metavar="EVALUATION"))
    return parser


def run() -> NoReturn:
    """[`main`] as a process. Interrupted in an import, Python would end by a signal whatever `main` says."""
    sys.unraisablehook = _interrupt_again
    status = main()
    if status == INTERRUPTED:
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
