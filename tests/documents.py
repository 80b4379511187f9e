"""The pages of this project and the code blocks in them, for the tests that run these."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of `README.md` or of a page in docs/, in their order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def code(page: str, replacements: dict[str, str]) -> str:
    """All Python of a page, with `replacements` of names, as a program to run from top to bottom."""
    program = "\n".join(blocks(page, "python"))
    for name, replacement in replacements.items():
        assert name in program, f"{page} does not speak of {name}"
        program = program.replace(name, replacement)
    return program


def commands(page: str) -> list[list[str]]:
    """The words of each `tulip-diffusion` command of a page, without the program's name and the comments."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["tulip-diffusion"]]
