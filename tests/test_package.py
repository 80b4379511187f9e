"""The package as it installs: what is in it, what may import what, and that importing does nothing else."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAPPED = ("pipelines", "training", "demo")
# Lower floors never import from higher ones, and no floor from itself except inside one package.
FLOORS = (
    {"arguments", "devices", "files", "progress", "provenance"},
    {"models"},
    {"tokenization"},
    {"weighting", "windows"},
    {"prompt_tokens"},
    {"prompt_description"},
    {"data", "scenes", "pipelines"},
    {"embedded", "model_card", "other_models"},
    {"evaluation"},
    {"training"},
    {"convert", "describe", "generate"},
    {"share"},
    {"evaluate"},
    {"demo"},
    {"cli"},
    {"registration"},
)


def modules():
    for path in sorted((ROOT / "tulip_diffusion").rglob("*.py")):  # rglob does not follow the links
        yield path.relative_to(ROOT).with_suffix(""), path
    for folder in MAPPED:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield Path("tulip_diffusion") / path.relative_to(ROOT).with_suffix(""), path


def imports(name, path):
    """What a module imports, anywhere in it and for type checkers too, as the parts of dotted names."""
    package = list(name.parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            targets = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        else:
            continue
        yield from ([part for part in target if part] for target in targets)


def imported(name, path):
    """First-level parts of `tulip_diffusion` that a module imports."""
    for parts in imports(name, path):
        if parts[0] == "tulip_diffusion" and len(parts) > 1:
            yield parts[1]


def test_no_two_modules_need_each_other():
    paths = {".".join(name.parts).removesuffix(".__init__"): (name, path) for name, path in modules()}
    needs = {}
    for module, (name, path) in paths.items():
        # `from package import module` names a module, `from module import function` a function in one
        found = (".".join(parts) for parts in imports(name, path))
        needs[module] = {target if target in paths else target.rpartition(".")[0] for target in found} & set(paths)
        needs[module].discard(module)
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


def test_imports_point_down():
    floor_of = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
    wrong = []
    for name, path in modules():
        part = name.parts[1]
        if part not in floor_of:
            assert part == "__init__", f"{name} stands on no floor: add it to FLOORS"
            continue
        for target in imported(name, path):
            if target != part and floor_of.get(target, -1) >= floor_of[part]:
                wrong.append(f"{name} -> {target}")
    assert not wrong


def test_every_package_is_listed_for_installation():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {".".join(name.parent.parts) for name, path in modules() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == on_disk
    for folder in MAPPED:
        assert setuptools["package-dir"][f"tulip_diffusion.{folder}"] == folder
        assert (ROOT / "tulip_diffusion" / folder).readlink() == Path("..") / folder


def test_importing_prints_nothing_seeds_nothing_and_touches_no_device():
    program = """
import random, socket, torch
from diffusers import StableDiffusionXLPipeline  # some releases of what it imports draw from `random`
state, random_state = torch.random.get_rng_state(), random.getstate()
def refuse(*args): raise AssertionError("importing opened a connection")
socket.socket.connect = refuse
import tulip_diffusion
for name in tulip_diffusion.__all__:
    getattr(tulip_diffusion, name)
assert torch.equal(torch.random.get_rng_state(), state) and random.getstate() == random_state
assert not torch.cuda.is_initialized()
"""
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_importing_is_light():
    """Nothing heavy before a public name is used, and then nothing that only a vocabulary file would need."""
    program = """
import sys
import tulip_diffusion
heavy = ("torch", "transformers", "diffusers", "numpy", "PIL")
assert not [name for name in heavy if name in sys.modules]
tulip_diffusion.load_tokenizer(), tulip_diffusion.StableDiffusionXLTulipPipeline, tulip_diffusion.load_clip
unused = ("open_clip", "timm", "scipy", "ftfy")
assert not [name for name in unused if name in sys.modules]
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_exist_and_editors_know_them():
    import tulip_diffusion

    for name in tulip_diffusion.__all__:
        assert hasattr(tulip_diffusion, name), name
    assert tulip_diffusion.__all__ == sorted(tulip_diffusion.__all__)
    assert set(dir(tulip_diffusion)) >= {*tulip_diffusion.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'StableDiffusionXL'"):
        _ = tulip_diffusion.StableDiffusionXL
    source = ast.parse((ROOT / "tulip_diffusion" / "__init__.py").read_text(encoding="utf-8"))
    typed = next(node for node in source.body if isinstance(node, ast.If))
    assert sorted(alias.name for line in typed.body for alias in line.names) == tulip_diffusion.__all__


@pytest.mark.parametrize("name", [*MAPPED])
def test_mapped_folders_do_not_shadow_top_level_packages(name):
    """Nobody's `import training` may find ours."""
    probe = f"import importlib.util; raise SystemExit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-I", "-c", probe], cwd=Path(sys.prefix)).returncode == 0
