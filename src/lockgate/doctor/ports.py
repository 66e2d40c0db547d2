"""Can the listeners open their ports, or who holds them?"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

from lockgate.config.model import ListenerConfig
from lockgate.doctor import docker
from lockgate.doctor.case import Case, port_name
from lockgate.doctor.finding import Finding, good
from lockgate.doctor.machine import Machine
from lockgate.telemetry.port_owner import Holder, holders

_EVERYWHERE = ("0.0.0.0", "::")
_UNREACHED = "clients that connect there do not reach this broker"


def in_use(case: Case) -> Iterator[Finding]:
    """Say who holds a port that a listener wants; the broker's own sockets are as they should be."""
    opened = case.figures.get("ports")
    seen: set[int] = set()
    for listener in case.listeners():
        if listener.path is not None or listener.port in seen:
            continue
        held = [one for one in holders(listener.port, case.machine.proc) if _collides(listener, one)]
        others = [one for one in held if one.pid is None or one.pid != case.pid]
        open_here = isinstance(opened, list) and listener.port in opened
        if case.status is not None and open_here and all(one.pid is None for one in others):
            yield good("port", port_name(listener), "open, by this broker")  # others' sockets cannot be seen from here
        elif others:
            yield _held(case, listener, others[0])
        elif case.status is not None and not open_here and not held:
            yield Finding(
                "port", "warning", case.place_of(listener),
                f"the broker runs (pid {case.pid}) and has not opened {port_name(listener)}",
                f"{_UNREACHED}; it opened {_list(opened)}",
                "reload it (SIGHUP) or start it again: the file has changed since",
            )  # fmt: skip
        else:
            yield good("port", port_name(listener), "free" if not held else "open, by this broker")
        seen.add(listener.port)


def _held(case: Case, listener: ListenerConfig, holder: Holder) -> Finding:
    container = _publisher(case.machine, listener.port, holder)
    if container is not None:
        who, advice = container, "stop that container, or publish another port of it (`ports:` in its compose file)"
    elif holder.pid is not None:
        who = f"{holder}: {' '.join(holder.command[:4])}" if holder.command else str(holder)
        advice = f"stop it (`kill {holder.pid}`, or its service), or give `listener` another port"
        if holder.name == "mosquitto":
            advice = "stop it (`systemctl disable --now mosquitto`), or give `listener` another port"
    else:
        who, advice = "a program that cannot be seen from here", "run this as root, and on the machine itself"
    if case.status is not None:
        why = f"{_UNREACHED}, but that program"
    else:
        why = "the broker cannot start while another program has its port"
    problem = f"{port_name(listener)} is held by {who}"
    return Finding("port", "error", case.place_of(listener), problem, why, advice)


def _publisher(machine: Machine, port: int, holder: Holder) -> str | None:
    """Give the container that published a port, as far as that can be told."""
    for one in docker.containers(machine.docker_socket) or ():
        for public, own in docker.published(one):
            if public == port and holder.name in ("docker-proxy", "dockerd", "a program"):
                return f"the container {docker.name_of(one)}, which publishes its port {own} there"
    if holder.name == "docker-proxy":
        words = dict(zip(holder.command[1::2], holder.command[2::2], strict=False))
        inside = f" at {words['-container-ip']}" if "-container-ip" in words else ""
        return f"a container{inside} that published it (docker-proxy, pid {holder.pid}; `docker ps` names it)"
    if holder.name in ("rootlessport", "conmon", "slirp4netns"):
        return f"a container that published it ({holder}; `podman ps` names it)"
    return None


def _collides(listener: ListenerConfig, holder: Holder) -> bool:
    address = listener.address
    if address is None or address in _EVERYWHERE or holder.address in _EVERYWHERE:
        return True
    try:
        found = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return holder.address in {entry[4][0] for entry in found}


def addresses(case: Case) -> Iterator[Finding]:
    """Say of a listener's address whether this machine has it, and of a low port whether the user may open it."""
    first = case.machine.number("proc/sys/net/ipv4/ip_unprivileged_port_start") or 0
    user = case.user()
    for listener in case.listeners():
        if listener.path is not None:
            continue
        if 0 < listener.port < first and user.uid != 0:
            yield Finding(
                "port", "error", case.place_of(listener), f"{user} may not open port {listener.port}",
                f"ports below {first} are for root alone, and the broker gives up root's rights before it opens them",
                f"a port from {first} up, or `sysctl net.ipv4.ip_unprivileged_port_start={listener.port}`",
            )  # fmt: skip
        problem = _unbindable(listener) if listener.address is not None else None
        if problem is not None and case.config is not None and case.config.broker.listeners_said:
            yield Finding(
                "address", "error", case.place_of(listener), f"{listener.address} {problem}",
                "the broker cannot open the listener", "remove the address, or write one that `ip address` shows",
            )  # fmt: skip


def _unbindable(listener: ListenerConfig) -> str | None:
    try:
        found = socket.getaddrinfo(listener.address, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return "is a name that cannot be resolved here"
    for family, kind, _, _, place in found:
        try:
            with socket.socket(family, kind) as probe:
                probe.bind(place)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return "is no address of this machine"
    return None


def _list(opened: object) -> str:
    numbers = [str(one) for one in opened if one] if isinstance(opened, list) else []
    return f"port {', '.join(dict.fromkeys(numbers))}" if numbers else "no port"
