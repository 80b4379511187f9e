"""What `pip install` gives: declared dependencies, locks that fit them, and a wheel and an sdist that are whole."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import tulip_diffusion

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Which extra a part of the package may lean on beyond the core, by the beginning of its files' names.
EXTRA_OF = {
    "demo/": "demo",
    "training/": "train",
    "tulip_diffusion/data": "train",
    "tulip_diffusion/evaluation/": "eval",
    "tests/benchmarks/": "bench",
    "tests/": "dev",
}
NOT_IMPORTED = {
    "clip-benchmark": "imports us: its table of models is filled by an adapter",
    "torchvision": "transformers' image processors are built on it",
    "tensorboard": "accelerate logs to it",
    "mypy": "run by make check",
    "ruff": "run by make check",
    "pytest-xdist": "run by make test",
    "setuptools": "builds the package",
}


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Direct dependencies by name, those of `extra` or of the core, with what an extra takes from other extras."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    found = {canonicalize_name(line.name): line for line in map(Requirement, lines)}
    own = found.pop("tulip-diffusion", None)
    for other in own.extras if own else ():
        found |= requirements(other)
    return found


def imported() -> dict[str, set[str]]:
    """Distributions of other people that our files import, with the extras of those files; "" is the core."""
    distributions = packages_distributions()
    found: dict[str, set[str]] = {}
    for folder in ("tulip_diffusion", "pipelines", "training", "demo", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):  # rglob does not follow the links in tulip_diffusion/
            name = path.relative_to(ROOT).as_posix()
            extra = next((extra for start, extra in EXTRA_OF.items() if name.startswith(start)), "")
            for module in imports(path) - {"tulip_diffusion", "tests"} - sys.stdlib_module_names:
                (distribution, *_) = distributions.get(module, [module])
                found.setdefault(canonicalize_name(distribution), set()).add(extra)
    return found


def imports(path: Path) -> set[str]:
    """Top-level modules that a file imports anywhere, also by `pytest.importorskip` and `importlib.import_module`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("importorskip", "import_module")):
            found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return {name.partition(".")[0] for name in found}


def test_what_is_imported_is_declared_where_it_is_imported():
    core = requirements()
    for distribution, extras in imported().items():
        for extra in extras:
            # What has an extra of its own is imported by those who ask for it; its tests skip without it.
            optional = requirements("clip-benchmark") | requirements("bench")
            declared = core if extra == "" else core | requirements(extra) | optional
            assert distribution in declared, f"declare {distribution} in {extra or 'dependencies'}"


def test_what_is_declared_is_imported_there_or_says_why_not():
    found = imported()
    for extra in ("", *PROJECT["optional-dependencies"]):
        lines = PROJECT["dependencies"] if extra == "" else PROJECT["optional-dependencies"][extra]
        for name in {canonicalize_name(Requirement(line).name) for line in lines} - {"tulip-diffusion", *NOT_IMPORTED}:
            used_by = found.get(name, set())
            assert extra in used_by or (extra == "" and used_by), f"{extra or 'dependencies'}: nothing imports {name}"


def test_every_dependency_of_the_package_has_both_bounds():
    for extra in (None, "train", "eval", "demo"):
        for name, requirement in requirements(extra).items():
            operators = {specifier.operator for specifier in requirement.specifier}
            assert ">=" in operators and operators & {"<", "<="}, name


def test_the_page_of_versions_has_every_bound_as_it_was_tested():
    """The oldest column holds the lower bounds, and the newest one what the lock installs."""
    page = (ROOT / "docs" / "versions.md").read_text()
    rows = {
        canonicalize_name(name): (Version(oldest), newest)
        for name, oldest, newest in re.findall(r"^\| ([\w-]+) \| ([\d.]+) \| ([\d., ]+) \|$", page, re.MULTILINE)
    }
    declared = requirements() | requirements("train") | requirements("eval") | requirements("demo")
    assert set(rows) - {"python"} == set(declared)
    locked = pins("dev.lock")
    for name, requirement in declared.items():
        lowest = next(Version(bound.version) for bound in requirement.specifier if bound.operator == ">=")
        assert rows[name][0] == lowest and rows[name][1] in locked[name], name


def pins(lock: str) -> dict[str, set[str]]:
    """Versions of each distribution in a lock; there are several where markers tell Pythons apart."""
    found: dict[str, set[str]] = {}
    for name, release in re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements" / lock).read_text(), re.MULTILINE):
        found.setdefault(canonicalize_name(name), set()).add(release)
    return found


@pytest.mark.parametrize(("lock", "extra"), [("run.lock", None), ("demo.lock", "demo"), ("dev.lock", "dev")])
def test_locks_fit_the_declared_ranges_and_each_other(lock, extra):
    pinned, everything = pins(lock), pins("dev.lock")
    for name, requirement in (requirements() | (requirements(extra) if extra else {})).items():
        assert pinned[name] and all(requirement.specifier.contains(release) for release in pinned[name]), name
    assert all(releases <= everything[name] for name, releases in pinned.items())
    assert "setuptools" in pinned  # `pip install --no-build-isolation` builds with it


@pytest.mark.parametrize("lock", ["run.lock", "demo.lock", "dev.lock"])
def test_locks_hold_hashes_and_no_addresses(lock):
    text = (ROOT / "requirements" / lock).read_text()
    entries = [entry for entry in re.split(r"\n(?=\w)", text.replace("\\\n", "")) if not entry.startswith("#")]
    assert entries and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in text and "--index" not in text and "--find-links" not in text


BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, folder: Path) -> Path:
    """What `pip` makes of `source`: kind "sdist" or "wheel"."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, f"build_{kind}", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the sdist of a copy of this checkout, so that it holds only what the sdist holds."""
    folder = tmp_path_factory.mktemp("dist")
    kept_out = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, folder / "checkout", symlinks=True, ignore=kept_out)
    with tarfile.open(build("sdist", folder / "checkout", folder)) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder)


def test_the_wheel_holds_every_module_and_every_asset_and_nothing_else(wheel):
    own = ROOT / "tulip_diffusion"
    expected = {path.relative_to(ROOT).as_posix() for path in own.rglob("*.py")}  # does not follow the links
    expected |= {path.relative_to(ROOT).as_posix() for path in (own / "assets").rglob("*") if path.is_file()}
    for mapped in ("pipelines", "training", "demo"):
        expected |= {f"tulip_diffusion/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / mapped).rglob("*.py")}
    # A Space's entry file and scripts that are run by hand are no modules.
    expected -= {name for name in expected if "/space/" in name or "/training/runs/" in name}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected | {"tulip_diffusion/py.typed"}


def test_the_metadata_is_valid_and_says_what_pyproject_says(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = next(name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name)
        metadata = Metadata.from_email(archive.read(f"{folder}/METADATA"), validate=True)
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
        assert "tulip-diffusion = tulip_diffusion.cli:run" in archive.read(f"{folder}/entry_points.txt").decode()
    assert (metadata.name, str(metadata.version)) == ("tulip-diffusion", tulip_diffusion.__version__)
    assert metadata.requires_python == PROJECT["requires-python"]
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(metadata.provides_extra) == set(PROJECT["optional-dependencies"])
    core = {str(line) for line in metadata.requires_dist if line.marker is None}
    assert core == {str(Requirement(line)) for line in PROJECT["dependencies"]}


INSTALLED = """
import importlib.metadata, tulip_diffusion
import tulip_diffusion.demo.settings, tulip_diffusion.training.config
print(importlib.metadata.version("tulip-diffusion"), tulip_diffusion.__version__, tulip_diffusion.__file__)
print(type(tulip_diffusion.load_embedded_pipeline()).__module__)
"""


def test_the_wheel_works_in_an_environment_of_its_own(wheel, tmp_path):
    """The environment sees this one's dependencies, but neither the checkout nor an editable install of it."""
    venv.create(tmp_path / "env", symlinks=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    python = tmp_path / "env" / "bin" / "python"

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    own = tulip_diffusion.__version__
    assert run(tmp_path / "env" / "bin" / "tulip-diffusion", "--version") == f"{own}\n"
    module = "tulip_diffusion.pipelines.tasks"
    assert run(python, "-c", INSTALLED) == f"{own} {own} {site / 'tulip_diffusion' / '__init__.py'}\n{module}\n"
