"""The commands `evaluate …`: one module of `tulip_diffusion.evaluation` each, with a `run`; their options in one.

A module's docstring is its command's help. Modules are imported when their command runs, since most bring torch.
"""

import argparse
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from . import arguments
from .arguments import Help, add_family, docstring_of, fill_when_used
from .embedded import ASSETS, checked

EVALUATIONS = {
    "generation": "details drawn right, by token position and by the distance of references",
    "reading": "what can be read off the text states, by position and by distance",
    "prompts": "published sets of long prompts, drawn and laid out for their own scorers; their scores as tables",
    "retrieval": "captions to images and back: R@1, R@5, R@10 beside the papers' figures",
    "fidelity": "how closely encoders match CLIP, within 77 tokens and beyond",
    "positions": "needles, hard negatives and changed words, by their place in the text",
    "attention": "how far the pooled state's attention spreads over long captions",
    "relevance": "how windows of a long caption relate to its image",
    "attribution": "which words of one prompt the UNet looks at under each encoder",
    "strips": "the same prompts under several encoders, side by side",
}
MODULES = {"prompts": "public"}  # where a command and its module have different names
OF_THE_FAMILY = ("generation", "reading", "fidelity", "strips")  # whose encoders are the family's alone
SIZES = ("quick", "standard", "thorough")
# How many times as long as drawing all else takes, which is texts and pictures read: quick ran for 8 min 41 s on one
# core, of which drawing was about 2.
READING = 3


def register(subparsers: Any) -> None:
    """Add every `evaluate …`, `all` and `report`."""
    for name, summary in EVALUATIONS.items():
        parser = subparsers.add_parser(name, help=summary, formatter_class=Help, epilog=example(name))
        fill_when_used(parser, fill, name)
    register_all(subparsers)
    register_report(subparsers)


def example(line: str) -> str:
    """The last lines of a help page."""
    return f"example:\n  tulip-diffusion evaluate {line}"


def fill(parser: argparse.ArgumentParser, name: str) -> None:
    """Give `evaluate NAME` its options and its run."""
    from .evaluation.options import OPTIONS

    module = f"{__package__}.evaluation.{MODULES.get(name, name)}"
    parser.description = docstring_of(module)
    OPTIONS[name](parser)
    add_family(parser, ASSETS)

    def run(options: argparse.Namespace) -> None:
        from .evaluation.options import PEERS

        encoders = options.encoders if name in OF_THE_FAMILY else ()
        peers = [encoder for encoder in encoders if name == "generation" and encoder in PEERS]
        for encoder in encoders:
            if encoder not in peers:
                checked(encoder, options.assets)

        from .evaluation.plots import check_installed
        from .evaluation.processes import is_first, silent_unless_first
        from .evaluation.provenance import write_provenance
        from .progress import hide_loading_bars
        from .provenance import commit

        hide_loading_bars()
        check_installed(*peers, extra="bench")
        check_installed("matplotlib")
        commit()  # of the code that runs, whatever is committed meanwhile
        start = time.perf_counter()
        with silent_unless_first():
            import_module(module).run(options)
        if is_first():
            write_provenance(parser, options, time.perf_counter() - start)

    parser.set_defaults(run=run)


def register_all(subparsers: Any) -> None:
    """Add `evaluate all`."""
    parser = subparsers.add_parser(
        "all",
        help="every evaluation, and a report of all of them",
        description="Run every evaluation on the embedded family and write one page about them, report.html. What is "
        "already there from the same command and weights is kept, so an interrupted run goes on where it stopped.",
        epilog=example("all --size quick"),
    )
    parser.add_argument("--size", choices=SIZES, default="standard", help="how many prompts (default standard)")
    parser.add_argument("--encoders", nargs="+", help="of the family (default: all that are there)")
    add_family(parser, ASSETS)
    parser.add_argument(
        "--out", type=arguments.new_folder, default=Path("outputs/evaluation"), help="folder for all results"
    )
    parser.add_argument("--results", type=arguments.new_file, help="also write the tables as Markdown to this file")
    parser.set_defaults(run=lambda options: run_all(options, subparsers.choices))


def run_all(options: argparse.Namespace, parsers: dict[str, argparse.ArgumentParser]) -> None:
    """Run every evaluation that is not there yet, then write the report."""
    from .embedded import slots_of
    from .evaluation import plan
    from .evaluation.plots import check_installed
    from .evaluation.provenance import command_line, read_provenance
    from .provenance import files_hash

    check_installed("matplotlib", "markdown")
    root = options.assets / "encoders"
    there = [name for name in plan.ENCODERS if all(slot.is_dir() for slot in slots_of(root, name))]
    chosen = options.encoders or there
    if unknown := [name for name in chosen if name not in plan.ENCODERS]:
        raise ValueError(f"--encoders must be among {', '.join(plan.ENCODERS)}, got {unknown[0]!r}.")
    shared = ["--assets", str(options.assets), *(["--device", options.device] if options.device else [])]
    commands = {
        folder: (name, parsers[name].parse_args([*line, *shared, "--out", str(options.out / folder)]))
        for folder, (name, *line) in plan.evaluations(options.size, chosen).items()
    }
    print(announcement(options, commands, chosen[0]), flush=True)
    weights = files_hash(options.assets)
    for folder, (name, one) in commands.items():
        kept = read_provenance(one.out)
        if (kept.get("command"), kept.get("weights")) == (command_line(parsers[name], one), weights):
            print(f"{folder} is there already")
            continue
        print(f"\n{folder}", flush=True)
        one.run(one)
    run_report(argparse.Namespace(folder=options.out, out=options.out / "report.html", results=options.results))


def announcement(options: argparse.Namespace, commands: dict[str, tuple[str, Any]], encoder: str) -> str:
    """How much is drawn, and how long everything takes here, as one small batch tells."""
    from .evaluation.drawing import draw_captions, open_pipeline
    from .evaluation.plan import denoisings
    from .evaluation.prompts import prompts_of

    pipeline, captions = open_pipeline(encoder, options), prompts_of("full", 8)
    draw_captions(pipeline, captions[:1], steps=1)  # the first one is slower
    start = time.perf_counter()
    draw_captions(pipeline, captions, steps=2)
    steps = sum(denoisings(name, one) for name, one in commands.values())
    drawing = steps * (time.perf_counter() - start) / (2 * len(captions)) / 60
    return (
        f"{options.size}: {len(commands)} evaluations, about {(1 + READING) * drawing:.0f} minutes here: "
        f"{steps:,} denoising steps, and texts and pictures to read."
    )


def register_report(subparsers: Any) -> None:
    """Add `evaluate report`."""
    parser = subparsers.add_parser(
        "report",
        help="one page about all results in a folder",
        description="Collect the records below a folder into one self-contained HTML page.",
        epilog=example("report --folder outputs/evaluation"),
    )
    parser.add_argument(
        "--folder", type=arguments.existing_folder, default=Path("outputs/evaluation"), help="where the results lie"
    )
    parser.add_argument("--out", type=arguments.new_file, help="the page (default: report.html in that folder)")
    parser.add_argument("--results", type=arguments.new_file, help="also write the tables as Markdown to this file")
    parser.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> None:
    """Write the page about all records below a folder."""
    from .evaluation.plots import check_installed
    from .evaluation.report import write_report

    check_installed("markdown")
    page = options.out or options.folder / "report.html"
    found = write_report(options.folder, page, options.results)
    print(f"{page}: {len(found)} records")
