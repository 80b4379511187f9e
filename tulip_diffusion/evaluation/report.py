"""All results below a folder as one page to read and share, and as `docs/results.md`.

Every section is made from an evaluation's JSON record, with its tables, its pictures, and the command, commit and seed
that made it. The page is self-contained, records included, and asks no other host for anything.
"""

import base64
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from PIL import Image

from tulip_diffusion.embedded import ENCODERS
from tulip_diffusion.files import write_text

from .options import PEERS
from .plan import ENCODERS as PLANNED
from .plan import evaluations
from .provenance import FILE, read_provenance
from .summary import summary

# Name of a record -> title and how to read it, in the order of the report.
TITLES = {
    "generation": (
        "What pictures show of their prompts",
        "Share of a prompt's things that the picture shows in their place and colour, by the token position at which "
        "the prompt has named them, or by the token distance of a reference. The judge is exact, and no model.",
    ),
    "strips": (
        "Pictures side by side",
        "The same prompt and noise under each encoder. The prompts are the first of their set, not the best.",
    ),
    "attribution": (
        "Which words the UNet looks at",
        "Its cross-attention on every token of one prompt, over layers, heads, pixels and steps.",
    ),
    "prompts": ("Published prompts", "Pictures laid out for the sets' own scorers, and how long the prompts are."),
    "scores": ("Scores of published prompts", "As the sets' own scorers have written them."),
    "reading": (
        "What text states hold",
        "Colour as heads fitted to CLIP's own states read it off the states at the end of every sentence, by its "
        "position and by the distance of references; l and g are the two encoders.",
    ),
    "retrieval": (
        "Retrieval",
        "Captions to images and back. The sets named hard hold captions that differ in one detail alone.",
    ),
    "positions": ("Does it matter where in a text something is said?", "Needles, hard negatives and changed words."),
    "fidelity": ("How closely encoders match CLIP", "In what retrieval reads and in what SDXL reads."),
    "attention": ("Attention of the pooled state", "Where the EOS query looks in the last block."),
    "relevance": ("Relevance of a caption's windows", "Similarity of the image with windows of its long caption."),
    "ablation": ("What one choice is worth", "Encoders trained with one thing varied, judged on the same texts."),
    "finelip": ("What each part of FineLIP adds", "Stretched CLIP and TULIP, trained and ranked by each score."),
}


@dataclass(frozen=True)
class Section:
    """One record: its name and folder, where it comes from, tables in Markdown and pictures."""

    name: str
    label: str
    record: dict[str, Any]
    provenance: dict[str, Any]
    tables: str
    pictures: Sequence[Path]

    @property
    def title(self) -> str:
        """The section's heading."""
        return TITLES.get(self.name, (self.name.capitalize(), ""))[0]

    @property
    def explanation(self) -> str:
        """What the section measures, in a sentence or two."""
        return TITLES.get(self.name, ("", ""))[1]


def sections(folder: Path) -> list[Section]:
    """One section for each JSON record below `folder`, in the order of `TITLES` and of the plan.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [section for file in sorted(folder.rglob("*.json")) for section in section_of(file, folder)]
    if not found:
        raise FileNotFoundError(f"{folder} holds no results. Run an evaluation with its --out below it first.")
    names = [*TITLES, *sorted({section.name for section in found} - set(TITLES))]
    folders = [*evaluations("standard", ["clip"]), *(section.label for section in found)]
    return sorted(found, key=lambda section: (names.index(section.name), folders.index(section.label)))


def section_of(file: Path, root: Path) -> Iterator[Section]:
    """The section of one record, none where `file` is something else."""
    if file.name == FILE:
        return
    record = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(record, dict) or not {"command", "results"} <= record.keys():
        return
    written = file.with_suffix(".md")
    tables = written.read_text(encoding="utf-8") if written.is_file() else ""
    label = str(file.parent.relative_to(root))
    pictures = sorted(file.parent.glob("*.png"))
    yield Section(file.stem, label, record, read_provenance(file.parent), tables.strip(), pictures)


def origin(section: Section) -> dict[str, str]:
    """Command, commit and seed of a section, as far as they are known, and what was measured again since."""
    command = section.provenance.get("command") or json.dumps(section.record["command"], default=str)
    known = {"command": command} | {name: section.provenance.get(name) for name in ("commit", "seed", "again")}
    return {name: str(value) for name, value in known.items() if value is not None}


def markdown_report(found: Sequence[Section], folder: Path) -> str:
    """The tables and plots with where they come from, for a page in `folder` such as `docs/results.md`."""
    parts = ["# Results", "Written by `tulip-diffusion evaluate report` from the records of the evaluations."]
    parts += ["## Summary", summary_of(found)] if summary_of(found) else []
    last = None
    for section in found:
        if section.name != last:
            parts += [f"## {section.title}", section.explanation]
        last = section.name
        source = "; ".join(f"{name} `{value}`" for name, value in origin(section).items())
        parts += [f"### {section.label}", deepened(section.tables, 2), linked(plots_of(section), folder), source]
    return "\n\n".join(part for part in parts if part) + "\n"


def linked(files: Sequence[Path], folder: Path) -> str:
    """`files` as pictures of a Markdown page in `folder`."""
    return "\n\n".join(
        f"![{file.stem.replace('_', ' ')}]({quote(Path(os.path.relpath(file, folder)).as_posix())})" for file in files
    )


def deepened(text: str, levels: int) -> str:
    """Markdown with its headings `levels` deeper."""
    return "\n".join("#" * levels + line if line.startswith("#") else line for line in text.splitlines())


def html_report(found: Sequence[Section]) -> str:
    """The page, with everything in it."""
    contents, body, last = [], [], None
    for number, section in enumerate(found):
        if section.name != last:
            contents.append(f'<li><a href="#s{number}">{html.escape(section.title)}</a></li>')
            body.append(
                f'<h2 id="s{number}">{html.escape(section.title)}</h2><p>{html.escape(section.explanation)}</p>'
            )
        last = section.name
        body.append(section_html(section))
    overview = to_html(summary_of(found))
    return PAGE.substitute(summary=overview, contents="\n".join(contents), body="\n".join(body))


def summary_of(found: Sequence[Section]) -> str:
    """The overview of all records, as Markdown."""
    names = {name: ENCODERS[name].description for name in PLANNED}
    names = {"clip": names.pop("clip"), "clip-windows": names.pop("clip-windows"), **PEERS, **names}
    return summary({section.label: section.record["results"] for section in found}, names)


def to_html(text: str) -> str:
    """Markdown as HTML, tables in a box that scrolls."""
    import markdown

    page = markdown.markdown(text, extensions=["tables"])
    return page.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")


def section_html(section: Section) -> str:
    """Tables and plots; pictures, and the record itself, folded in."""
    rows = "".join(
        f"<dt>{name}</dt><dd><code>{html.escape(value)}</code></dd>" for name, value in origin(section).items()
    )
    plots = plots_of(section)
    pictures = [file for file in section.pictures if file not in plots]
    shown = pictures_html(plots, "plot")
    folded = f"<details><summary>Pictures</summary>{pictures_html(pictures, 'wide')}</details>" if pictures else ""
    record = html.escape(json.dumps(section.record))
    return (
        f"<section><h3>{html.escape(section.label)}</h3>{to_html(deepened(section.tables, 2))}{shown}{folded}"
        f"<dl>{rows}</dl><details><summary>Record (JSON)</summary><pre>{record}</pre></details></section>"
    )


def plots_of(section: Section) -> list[Path]:
    """What of a section's files are plots."""
    return [file for file in section.pictures if not is_picture(section, file)]


def is_picture(section: Section, file: Path) -> bool:
    """Whether a file shows pictures, rather than a plot, whose colours the page may turn round."""
    return section.name == "strips" or file.stem in ("contact_sheet", "strip") or file.name.startswith("examples-")


def pictures_html(files: Sequence[Path], kind: str) -> str:
    """`files` as figures, of a CSS class `kind`."""
    figures = []
    for file in files:
        name = html.escape(file.stem.replace("_", " "))
        picture = f'<img alt="{name}" loading="lazy" src="data:image/webp;base64,{compressed(file)}">'
        wide = " wide" * is_wide(file)
        figures.append(f'<figure class="{kind}{wide}">{picture}<figcaption>{name}</figcaption></figure>')
    return f'<div class="figures">{"".join(figures)}</div>' if figures else ""


def is_wide(file: Path) -> bool:
    """Whether a figure has several panels side by side, which would be too small in half a page."""
    with Image.open(file) as image:
        return image.width > 2 * image.height


def compressed(file: Path) -> str:
    """A picture as WebP in base64: few colours without loss or all with some, whichever is smaller."""
    image = Image.open(file).convert("RGB")
    few = webp(image.quantize(64).convert("RGB"), lossless=True)
    return base64.b64encode(min(few, webp(image, quality=60), key=len)).decode()


def webp(image: Image.Image, **how: Any) -> bytes:
    """The bytes of a WebP file."""
    data = io.BytesIO()
    image.save(data, "WEBP", **how)
    return data.getvalue()


def write_report(folder: Path, page: Path, results: Path | None = None) -> list[Section]:
    """Write the page, and `results` in Markdown where asked for, from what lies below `folder`."""
    found = sections(folder)
    write_text(page, html_report(found))
    if results is not None:
        write_text(results, markdown_report(found, results.parent))
    return found


PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>TULIP: evaluation</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --quiet: #5c636a; --paper: #fdfcf9; --line: #dcd9d2; --card: #fff; }
body { background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; margin: 0 auto;
       max-width: 72rem; padding: 2rem 1.25rem 5rem; }
h1 { font-size: 2rem; margin: 0 0 .5rem; } h2 { margin: 3.5rem 0 .25rem; } h3 { margin: 0 0 .75rem; }
a { color: inherit; } p { max-width: 46rem; } code { font-size: .85em; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 1.25rem 0;
          padding: 1.25rem; }
.table { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem; text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } td em { color: var(--quiet); }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; max-width: min(100%, 32rem); }
figure.wide { max-width: 100%; }
img { border-radius: .4rem; display: block; height: auto; max-width: 100%; }
.plot img { mix-blend-mode: multiply; }
figcaption, dl, summary { color: var(--quiet); font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; margin: 1rem 0 .5rem; }
dd { margin: 0; }
summary { cursor: pointer; margin: .5rem 0; }
pre { font-size: .75rem; max-height: 26rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e3dc; --quiet: #9aa0a6; --paper: #17181a; --line: #35373b; --card: #1f2123; }
  .plot img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
}
</style>
</head>
<body>
<h1>TULIP: evaluation</h1>
<p>Every figure on this page was measured by the command below it; its record is folded in behind it. What papers have
published is in italics and says so.</p>
$summary
<nav><ul>
$contents
</ul></nav>
$body
</body>
</html>
""")
