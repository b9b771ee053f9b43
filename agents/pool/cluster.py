"""The connection of this process to Ray: made once, and kept off the network where nobody needs that.

Ray's settings are partly arguments, partly environment variables that it reads when it is imported, or when
it starts processes. All of them are in here.
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import os
import socket
import sys
from collections.abc import Generator, Mapping
from typing import Any

from ...retrieval import InputError
from ..engines.reasons import root_reason

__all__ = ["connect", "on_loopback"]

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints the death of a worker on our standard output; who is concerned says it in a reply.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
_OBJECT_STORE_BYTES = 100 << 20  # replies are small, and weights never go through it
_KNOCK_SECONDS = 5.0


def connect(address: str | None) -> bool:
    """Connect this process to Ray, unless it is connected already. Blocks for seconds.

    Args:
        address: Of a cluster, as `ray.init` takes it. None stands for the variable `RAY_ADDRESS`, and
            without that for a cluster on this machine alone, which only this machine can reach.

    Returns:
        Whether there is now a connection that was not there before.

    Raises:
        InputError: Ray is not installed, or nothing answers at the address.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith("ray://"):
        raise InputError(
            f"Ray's client protocol ({address}) cannot stream replies; run the program on a node of the "
            'cluster, with the address "auto"'
        )
    if address == "local" and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as Ray does by itself from 2.60 on
    with _environment(_QUIET):
        ray = _import_ray()
        if ray.is_initialized():
            return False
        try:
            _init(ray, address)
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            raise InputError(f'Ray cannot be used at "{address}": {root_reason(error)}') from None
        except ValueError as error:
            raise InputError(str(error)) from None
    return True


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError('Ray is not installed here; run: pip install "expertmix[ray]"') from None
    return ray


def _init(ray: Any, address: str) -> None:
    how: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "error"}
    if address == "local":
        with on_loopback():
            ray.init(
                **how,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address="127.0.0.1",
            )
    elif _is_hidden(ray, address):
        with on_loopback():
            ray.init(**how)
    else:
        ray.init(**how)


def _is_hidden(ray: Any, address: str) -> bool:
    """Whether a cluster answers on the loopback interface alone; Ray takes that for any other.

    Raises:
        OSError: nothing listens at the address. Ray would try for minutes.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and port.isdigit()):
        return False
    _knock(host.strip("[]"), int(port))
    try:
        if ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            _knock(ray.util.get_node_ip_address(), int(port))
    except OSError:
        return True
    return False


def _knock(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=_KNOCK_SECONDS).close()


@contextlib.contextmanager
def on_loopback() -> Generator[None]:
    """What Ray starts or joins meanwhile uses the loopback interface only.

    Ray turns 127.0.0.1 into the machine's own address and listens on every interface, except where it
    is told that it runs on a desktop. It reads that when it is imported, perhaps long ago, so that the
    variable is for the processes that it starts and the constant for this one.

    Raises:
        InputError: this version of Ray cannot be kept from it.
    """
    constants: Any = importlib.import_module("ray._private.ray_constants")
    address: Any = importlib.import_module("ray.util").get_node_ip_address
    usual = getattr(constants, "ENABLE_RAY_CLUSTER", None)
    constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
            if not ipaddress.ip_address(address()).is_loopback:
                raise InputError(
                    "This version of Ray cannot be kept from listening on all interfaces; install Ray "
                    "2.60, or start a cluster yourself and give its address"
                )
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = usual


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Generator[None]:
    """Environment variables for a while; what the user has set stays."""
    added = [key for key in values if key not in os.environ]
    os.environ.update({key: values[key] for key in added})
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)
