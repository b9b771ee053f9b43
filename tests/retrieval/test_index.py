from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expertmix.retrieval import InputError, VectorIndex

pytest.importorskip("faiss", reason="needs faiss: pip install 'expertmix[embed]'")
pytest.importorskip("safetensors", reason="needs safetensors: pip install 'expertmix[embed]'")


def random_vectors(n: int, dimension: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def build(vectors: npt.ArrayLike) -> VectorIndex:
    n = len(np.asarray(vectors))
    return VectorIndex.build(vectors, [{"id": f"r{at}"} for at in range(n)], "test", "1")


@settings(deadline=10_000, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 16), st.integers(1, 70), st.integers(0, 1000))
def test_search_agrees_with_brute_force(n: int, dimension: int, k: int, seed: int) -> None:
    vectors_ND, queries_QD = (
        random_vectors(n, dimension, seed),
        random_vectors(5, dimension, seed + 1),
    )
    hits = build(vectors_ND).search(queries_QD, k)
    units_ND = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    unit_queries_QD = queries_QD / np.linalg.norm(queries_QD, axis=1, keepdims=True)
    expected_QN = np.sort(unit_queries_QD @ units_ND.T, axis=1)[:, ::-1][:, :k]
    assert [len(row) for row in hits] == [min(n, k)] * 5
    found_QK = np.array([[hit.similarity for hit in row] for row in hits])
    np.testing.assert_allclose(found_QK, expected_QN, atol=1e-5)
    for row, query_D in zip(hits, unit_queries_QD, strict=True):
        for hit in row:
            assert hit.similarity == pytest.approx(float(units_ND[hit.row] @ query_D), abs=1e-5)


def test_equal_rows_come_in_row_order_however_many_there_are() -> None:
    vectors_ND = np.tile(random_vectors(3, 24), (100, 1))
    hits = build(vectors_ND).search(vectors_ND[:1], 20)[0]
    assert [hit.row for hit in hits] == list(range(0, 60, 3))
    assert len({hit.similarity for hit in hits}) == 1


def test_batch_and_single_queries_find_the_same() -> None:
    index, queries_QD = build(random_vectors(200, 32)), random_vectors(300, 32, 1)
    singly = [index.search(query_D, 4)[0] for query_D in queries_QD]
    assert index.search(queries_QD, 4) == singly


def clustered_vectors(n: int, dimension: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Forty bunches, as texts form; the bunches are the same for every seed."""
    rng = np.random.default_rng(seed)
    bunches = random_vectors(40, dimension, 99)[rng.integers(0, 40, n)]
    return bunches + rng.normal(size=(n, dimension)).astype(np.float32)


@pytest.fixture
def small_flat_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("expertmix.retrieval.index.FLAT_ROWS", 1000)


@pytest.mark.usefixtures("small_flat_size")
@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_a_large_index_finds_nearly_what_brute_force_finds_and_always_the_same(
    shift: float,
) -> None:
    # Shifted, all vectors point nearly the same way, as a model's hidden states do.
    vectors_ND = clustered_vectors(5000, 48) + np.float32(shift)
    queries_QD = clustered_vectors(50, 48, 1) + np.float32(shift)
    index = build(vectors_ND)
    hits = index.search(queries_QD, 10)
    exact_QK = np.argsort(-(index.vectors_ND @ queries_QD.T).T, axis=1)[:, :10]
    shared = [
        len({hit.row for hit in row} & set(near.tolist()))
        for row, near in zip(hits, exact_QK, strict=True)
    ]
    assert sum(shared) / 500 > 0.95
    assert build(vectors_ND).search(queries_QD, 10) == hits
    assert [index.search(query_D, 10)[0] for query_D in queries_QD] == hits
    assert index.nbytes < 5000 * (48 * 4 + 48 // 2 + 8) + 200 * 48 * 4


@pytest.mark.usefixtures("small_flat_size")
def test_a_large_index_gives_equal_rows_in_row_order() -> None:
    vectors_ND = np.concatenate(
        [clustered_vectors(1500, 24), np.tile(random_vectors(1, 24), (900, 1))]
    )
    hits = build(vectors_ND).search(vectors_ND[-1], 20)[0]
    assert [hit.row for hit in hits] == list(range(1500, 1520))


@pytest.mark.usefixtures("small_flat_size")
@pytest.mark.parametrize("dimension", [1, 3, 130, 257])
def test_a_large_index_takes_vectors_of_any_length(dimension: int) -> None:
    vectors_ND = random_vectors(1200, dimension)
    hits = build(vectors_ND).search(vectors_ND[700:710], 1)
    assert [row[0].similarity for row in hits] == pytest.approx([1.0] * 10, abs=1e-6)


@pytest.mark.usefixtures("small_flat_size")
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_only_some_rows_are_searched(share: float) -> None:
    index, queries_QD = build(clustered_vectors(3000, 16)), clustered_vectors(40, 16, 1)
    among_N = np.random.default_rng(0).random(3000) < share
    rows_QK, similarities_QK = index.nearest(queries_QD, 5, among_N=among_N)
    assert among_N[rows_QK].all()
    alike_QN = np.where(among_N, queries_QD @ index.vectors_ND.T, -np.inf)
    exact_QK = np.argsort(-alike_QN, axis=1)[:, :5]
    shared = [
        len(set(a) & set(b)) for a, b in zip(rows_QK.tolist(), exact_QK.tolist(), strict=True)
    ]
    assert sum(shared) / 200 >= (0.95 if among_N.sum() > 1000 else 1.0)
    assert (np.diff(similarities_QK, axis=1) <= 0).all()
    again, _ = index.nearest(queries_QD, 5, among_N=among_N)
    assert np.array_equal(again, rows_QK)
    other, _ = index.nearest(queries_QD, 5, among_N=~among_N)
    assert not among_N[other].any()


def test_similarities_are_those_that_the_search_gives() -> None:
    index, queries_QD = build(random_vectors(300, 20)), random_vectors(9, 20, 1)
    rows_QK, similarities_QK = index.nearest(queries_QD, 7)
    assert np.array_equal(index.similarities(queries_QD, rows_QK), similarities_QK)


def test_an_empty_index_and_an_empty_query_find_nothing() -> None:
    assert VectorIndex.build(np.zeros((0, 8)), [], "test", "1").search(np.ones((2, 8)), 3) == [
        [],
        [],
    ]
    assert build(random_vectors(4, 8)).search(np.zeros((0, 8)), 3) == []


@pytest.mark.parametrize(
    ("vectors", "rows", "message"),
    [
        ([[1.0, 0.0]], 2, "2 rows"),
        ([[0.0, 0.0]], 1, "vector 0 is zero"),
        ([[1.0, 0.0], [float("nan"), 1.0]], 2, "vector 1"),
    ],
)
def test_unusable_vectors_are_refused(vectors: list[list[float]], rows: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VectorIndex.build(vectors, [{}] * rows, "test", "1")


def test_a_query_of_another_dimension_is_refused() -> None:
    with pytest.raises(InputError, match="dimension 8"):
        build(random_vectors(4, 8)).search(random_vectors(1, 9), 1)


def test_a_saved_index_comes_back_the_same(tmp_path: Path) -> None:
    index = build(random_vectors(50, 8))
    index.save(tmp_path / "deep" / "index")
    loaded = VectorIndex.load(
        tmp_path / "deep" / "index", encoder_name="test", encoder_revision="1"
    )
    queries_QD = random_vectors(5, 8, 1)
    assert loaded.rows == index.rows
    assert loaded.search(queries_QD, 7) == index.search(queries_QD, 7)
    names = {path.name for path in (tmp_path / "deep" / "index").iterdir()}
    assert names == {"vectors.safetensors", "rows.jsonl", "manifest.json"}


def test_saving_replaces_an_index_whole_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    build(random_vectors(50, 8)).save(folder)
    build(random_vectors(7, 8)).save(folder)
    assert len(VectorIndex.load(folder)) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="something else"):
        build(random_vectors(7, 8)).save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_a_row_that_is_not_json_leaves_the_old_index_alone(tmp_path: Path) -> None:
    build(random_vectors(3, 4)).save(tmp_path / "index")
    bad = VectorIndex.build(random_vectors(1, 4), [{"x": {1, 2}}], "test", "1")
    with pytest.raises(InputError, match="not plain JSON"):
        bad.save(tmp_path / "index")
    assert len(VectorIndex.load(tmp_path / "index")) == 3


@pytest.mark.parametrize("name", ["vectors.safetensors", "rows.jsonl"])
@pytest.mark.parametrize("change", ["flip", "cut", "grow", "delete"])
def test_a_file_that_was_changed_is_refused(tmp_path: Path, name: str, change: str) -> None:
    build(random_vectors(10, 8)).save(tmp_path / "index")
    path = tmp_path / "index" / name
    content = path.read_bytes()
    flipped = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    if change == "delete":
        path.unlink()
    else:
        path.write_bytes({"flip": flipped, "cut": content[:-1], "grow": content + b"{}\n"}[change])
    with pytest.raises(InputError, match="build it again"):
        VectorIndex.load(tmp_path / "index")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("n", 11),
        ("n", 10**12),
        ("n", -1),
        ("n", 10.0),
        ("dimension", 9),
        ("dimension", 10**9),
        ("encoder", None),
        ("files", {}),
        ("files", []),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path: Path, key: str, value: object) -> None:
    build(random_vectors(10, 8)).save(tmp_path / "index")
    path = tmp_path / "index" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {key: value}))
    with pytest.raises(InputError):
        VectorIndex.load(tmp_path / "index")


@pytest.mark.parametrize("content", ["", "[]", "not json", '{"format": 1}', "[" * 100_000])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError):
        VectorIndex.load(tmp_path)


def test_another_encoder_or_revision_is_refused(tmp_path: Path) -> None:
    build(random_vectors(3, 4)).save(tmp_path / "index")
    with pytest.raises(InputError, match="was made with encoder 'test'"):
        VectorIndex.load(tmp_path / "index", encoder_name="other")
    with pytest.raises(InputError, match="encoder_revision '1'"):
        VectorIndex.load(tmp_path / "index", encoder_revision="2")
    with pytest.raises(InputError, match="no index at"):
        VectorIndex.load(tmp_path / "nowhere")
