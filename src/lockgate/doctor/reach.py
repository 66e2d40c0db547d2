"""Is the configuration the owner's, and does anybody outside of the container reach a listener?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lockgate.config.model import ListenerConfig, is_local
from lockgate.doctor import docker
from lockgate.doctor.case import Case, port_name
from lockgate.doctor.finding import Finding, good

_IMAGE_CONFIG = Path("/mosquitto/config")
_OUTSIDE = "publish it with `ports:` in the compose file"


def mounted(case: Case) -> Iterator[Finding]:
    """Say in a container whether the configuration comes from outside."""
    conf = case.conf or case.path
    if not case.machine.in_container or not conf.absolute().is_relative_to(_IMAGE_CONFIG):
        return
    mount = case.machine.mount_of(conf)
    if mount is None or mount.is_anonymous or not mount.point.is_relative_to(_IMAGE_CONFIG.parent):
        yield Finding(
            "not-mounted", "warning", os.fspath(conf),
            "nothing is mounted there: this is the configuration that came with the image",
            "what you wrote on your machine is not in use",
            f"volumes: `./config:{_IMAGE_CONFIG}`, or `./mosquitto.conf:{conf}:ro`",
        )  # fmt: skip
    else:
        yield good("mounted", os.fspath(conf), f"is mounted ({mount.point})")


def empty(case: Case) -> Iterator[Finding]:
    """Say if the configuration says nothing at all."""
    if case.setup is not None and case.conf is not None and not case.setup.lines:
        said = "only comments" if case.conf.stat().st_size else "empty"
        yield Finding(
            "empty", "warning", os.fspath(case.conf), f"the configuration is {said}",
            "the broker then serves this machine alone, and lets everybody in who is on it",
            "at least `listener 1883` and `password_file FILE`; made by `lockgate mosquitto_passwd -c FILE USER`",
        )  # fmt: skip


def from_outside(case: Case) -> Iterator[Finding]:
    """Say whether a listener can be reached from elsewhere, which in a container means from anywhere at all."""
    if case.config is None:
        return
    container = case.machine.in_container and not case.machine.has_networks_of_others  # network_mode: host
    listeners = [one for one in case.listeners() if not one.http_api]
    public = [one for one in listeners if is_public(one)]
    lost = "nobody outside of this container reaches it, through published ports neither"
    if not case.config.broker.listeners_said:
        yield Finding(
            "local-only", "error" if container else "warning", os.fspath(case.conf or case.path),
            "there is no `listener` line: the broker listens on port 1883 of 127.0.0.1 and ::1 alone",
            lost if container else "no other machine reaches it",
            f"add `listener 1883`, and `password_file`{'; ' + _OUTSIDE if container else ''}",
        )  # fmt: skip
        return
    for one in listeners:
        if container and one.path is None and not is_public(one):
            yield Finding(
                "local-only", "warning" if public else "error", case.place_of(one),
                f"{port_name(one)} is bound within a container to an address that is the container's own", lost,
                f"`listener {one.port}` without an address; to publish it to this machine alone: "
                f"`ports: 127.0.0.1:{one.port}:{one.port}`",
            )  # fmt: skip
    if public:
        yield good("reach", ", ".join(map(port_name, public)), "can be reached from outside")


def is_public(listener: ListenerConfig) -> bool:
    """Whether others than this machine, or this container, reach a listener."""
    local = listener.address is not None and is_local(listener.address)
    return listener.path is None and not local and listener.interface != "lo"


def published(case: Case) -> Iterator[Finding]:
    """Say which ports a container of this configuration publishes that lead to no listener, where Docker tells."""
    if case.config is None:
        return
    open_ports = {one.port for one in case.listeners() if is_public(one)}
    own = case.machine.text("etc/hostname") if case.machine.in_container else ""
    conf = (case.conf or case.path).absolute()
    running = docker.containers(case.machine.docker_socket) or []
    inside_one = bool(own) and any(_has_id(one, own) for one in running)
    for one in running:
        if inside_one:
            ours = _has_id(one, own)
        else:
            ours = any(_is_config(conf, source, inside) for source, inside in docker.mounted(one))
        if not ours:
            continue
        name = docker.name_of(one)
        for public, inside in docker.published(one):
            if inside not in open_ports:
                yield Finding(
                    "published", "warning", f"port {public} of this machine",
                    f"the container {name} publishes its port {inside}, where no listener is reached",
                    "clients that connect there are refused at once",
                    f"add `listener {inside}` to {conf}, or remove the line from `ports:`",
                )  # fmt: skip
        if not docker.published(one) and open_ports:
            yield good("published", name, "publishes no port: only other containers reach it")


def _has_id(container: dict[str, object], beginning: str) -> bool:
    return str(container.get("Id", "")).startswith(beginning)


def _is_config(conf: Path, source: Path, inside: Path) -> bool:
    return inside.is_relative_to(_IMAGE_CONFIG.parent) and (conf == source or conf.is_relative_to(source))
