"""The chart and the manifests of packaging/kubernetes, as far as they can be tried without a cluster.

`make kubernetes-tools` installs what is asked here. What runs of them is in tests/containers/test_kubernetes.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

import lockgate
from tests.support.kubernetes import CHART, CI, find, helm, objects, pods, render, tool

MANIFESTS = CHART.parents[1]
KINDS = sorted(path.name.removesuffix("-values.yaml") for path in CI.glob("*-values.yaml"))
USERS = ("--set", "auth.existingSecret=s")


def refusal(*words: str) -> str:
    """Give why the chart is not rendered with some values."""
    done = helm("template", "lockgate", str(CHART), *words)
    assert done.returncode != 0, f"{words} was taken"
    return done.stderr


def test_it_is_the_version_of_the_package() -> None:
    said = dict(re.findall(r'^(version|appVersion): "?([^"\n]+)', (CHART / "Chart.yaml").read_text(), re.MULTILINE))
    assert said == {"version": lockgate.__version__, "appVersion": lockgate.__version__}


@pytest.mark.parametrize("kind", KINDS)
def test_helm_finds_nothing(kind: str) -> None:
    done = helm("lint", "--strict", str(CHART), "-f", str(CI / f"{kind}-values.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("version", ["1.27", "1.33", "1.37"])
@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_understands_it(kind: str, version: str, tmp_path: Path) -> None:
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(render(kind))
    count = len(re.findall(r"^kind: (?!ServiceMonitor)", rendered.read_text(), re.MULTILINE))
    validate = tool("validate/bin/kubernetes-validate")
    done = subprocess.run([validate, "--strict", "-k", version, rendered], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("passed for resource") == count > 3


def test_the_check_of_kubernetes_does_find_mistakes(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(render("broker").replace("readOnlyRootFilesystem", "readOnlyRoot"))
    validate = tool("validate/bin/kubernetes-validate")
    done = subprocess.run([validate, "--strict", "-k", "1.33", wrong], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "readOnlyRoot" in done.stdout + done.stderr


@pytest.mark.parametrize(("name", "kind"), [("lockgate", "broker"), ("lockgate-gateway", "gateway")])
def test_the_plain_manifests_are_what_the_chart_gives(name: str, kind: str) -> None:
    _comment, _, written = (MANIFESTS / f"{name}.yaml").read_text().partition("\n")
    assert written == render(kind, "--skip-tests"), "run `make manifests`"


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_check_takes_what_it_configures(kind: str, tmp_path: Path) -> None:
    (config,) = find(objects(kind), "ConfigMap")
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text.replace("/mosquitto/", f"{tmp_path}/"))
    (tmp_path / "auth").mkdir()
    (tmp_path / "auth" / "passwd").write_text("")
    (tmp_path / "auth" / "acl").write_text("user anna\ntopic readwrite #\n")
    (tmp_path / "tls").mkdir()
    ca = trustme.CA()
    issued = ca.issue_cert("mqtt.example")
    issued.private_key_pem.write_to_path(tmp_path / "tls" / "tls.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls" / "tls.crt")
    ca.cert_pem.write_to_path(tmp_path / "tls" / "ca.crt")
    command = [sys.executable, "-m", "lockgate", "check", str(tmp_path / "lockgate.toml")]
    env = {**os.environ, "LOCKGATE_BROKER_MOSQUITTO_CONF": str(tmp_path / "mosquitto.conf")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "auth: nobody could log in. Set exactly one: auth.existingSecret"),
        ((*USERS, "--set", "auth.anonymous=true"), "auth: more than one way to log in is given"),
        (("--set", "auth.existingSecret=s,auth.aclFile=x"), "auth.aclFile goes with auth.passwordFile"),
        (("--set", "auth.anonymous=true,auth.acl=true"), "there is no auth.existingSecret"),
        ((*USERS, "--set", "listeners.mqtt.enabled=false"), "listeners: none is enabled"),
        ((*USERS, "--set", "listeners.mqtts.enabled=true"), "no Secret has its certificate"),
        ((*USERS, "--set", "tls.existingSecret=t"), "tls.existingSecret: no listener would use it"),
        (
            (*USERS, "--set", "listeners.websockets.enabled=true,listeners.websockets.port=1883"),
            "listeners.websockets.port: 1883 is mqtt's already",
        ),
        ((*USERS, "--set", "metrics.enabled=true,metrics.port=1883"), "listeners.mqtt.port: 1883 is metrics's already"),
        ((*USERS, "--set", "gateway.enabled=true"), "needs at least one section [sinks.NAME]"),
        (
            (*USERS, "--set", "gateway.enabled=true", "--set-string", "lockgateToml=[sinks.cloud]"),
            "gateway.processorSecret: the processor needs an account",
        ),
        ((*USERS, "--set", "metrics.serviceMonitor.enabled=true"), "nothing to read without metrics.enabled=true"),
        ((*USERS, "--set", "service.nodePorts.mqtt=31883"), "service.type is ClusterIP"),
        (
            (*USERS, "--set", "listeners.mqtts.enabled=true,tls.existingSecret=t,tls.requireCertificate=true"),
            "needs tls.ca=true",
        ),
        ((*USERS, "--set", "listner.mqtt.port=1"), "additional properties 'listner' not allowed"),
        ((*USERS, "--set", "listeners.mqtt.port=883"), "at '/listeners/mqtt/port': minimum: got 883, want 1,024"),
        ((*USERS, "--set-string", "listeners.mqtt.port=1883"), "at '/listeners/mqtt/port': got string, want integer"),
        ((*USERS, "--set", "image.tag=latest"), "at '/image/tag'"),
        ((*USERS, "--set", "persistence.size=big"), "at '/persistence/size': 'big' does not match pattern"),
        ((*USERS, "--set", "service.type=Ingress"), "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
        ((*USERS, "--set-string", "mosquittoConf=listener 1884"), "at '/mosquittoConf'"),
        (("--set", "auth.passwordFile=anna:secret"), "at '/auth/passwordFile'"),
    ],
)
def test_a_mistake_is_refused_and_named(words: tuple[str, ...], said: str) -> None:
    assert said in refusal(*words)


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_has_what_restricted_namespaces_ask_for(kind: str) -> None:
    """The Pod Security Standard `restricted`, and a root that cannot be written."""
    for pod in pods(objects(kind)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1883
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}


def test_the_whole_gateway_stays_below_256_megabytes_and_one_core() -> None:
    (pod,) = pods(objects("gateway"))
    limits = [container["resources"]["limits"] for container in pod["containers"]]
    assert [container["name"] for container in pod["containers"]] == ["broker", "processor", "forwarder"]
    assert sum(int(one["memory"].removesuffix("Mi")) for one in limits) <= 256
    assert sum(int(one["cpu"].removesuffix("m")) for one in limits) <= 1000


def test_only_the_broker_says_whether_the_pod_is_ready() -> None:
    """A probe of the start would hold the pod back, too, as long as it has not passed."""
    (pod,) = pods(objects("gateway"))
    for container in pod["containers"]:
        probes = {name for name in container if name.endswith("Probe")}
        is_broker = container["name"] == "broker"
        assert probes == ({"startupProbe", "livenessProbe", "readinessProbe"} if is_broker else {"livenessProbe"})
        assert container["livenessProbe"]["exec"]["command"][-1] == "--alive"


def test_containers_of_a_pod_do_not_share_the_folder_of_their_sockets() -> None:
    (pod,) = pods(objects("gateway"))
    folders = {
        variable["value"]
        for container in pod["containers"]
        for variable in container["env"]
        if variable["name"] == "LOCKGATE_GATEWAY_RUN_DIR"
    }
    assert len(folders) == len(pod["containers"])


def test_a_changed_configuration_is_a_new_pod() -> None:
    before = re.findall(r"checksum/\w+: \w+", render("everything"))
    assert len(before) == 2
    after = re.findall(r"checksum/\w+: \w+", render("everything", "--set", "listeners.mqtt.port=1884"))
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)
    after = re.findall(r"checksum/\w+: \w+", render("everything", "--set", "auth.aclFile=topic read x"))
    assert (after[0] == before[0], after[1] != before[1]) == (True, True)


def test_a_network_policy_opens_the_listeners_and_nothing_else() -> None:
    (policy,) = find(objects("everything"), "NetworkPolicy")
    mqtt, metrics = policy["spec"]["ingress"]
    assert [one["port"] for one in mqtt["ports"]] == ["mqtt", "mqtts", "websockets"]
    assert [one["port"] for one in metrics["ports"]] == ["metrics"]
    clients, verify = mqtt["from"]
    assert clients == {"ipBlock": {"cidr": "192.0.2.0/24"}}
    (tester,) = find(objects("everything"), "Pod")
    assert verify["podSelector"]["matchLabels"].items() <= tester["metadata"]["labels"].items()
    assert {one["port"] for rule in policy["spec"]["egress"] for one in rule["ports"]} == {53, 8883}
    (closed,) = find(objects("broker"), "NetworkPolicy")
    assert closed["spec"]["egress"] == []
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert find(objects("open"), "NetworkPolicy") == []


def test_what_selects_pods_selects_the_gateways_alone() -> None:
    made = objects("everything")
    (gateway,) = find(made, "StatefulSet")
    (tester,) = find(made, "Pod")
    labels = gateway["spec"]["template"]["metadata"]["labels"].items()
    selectors = [one["spec"]["selector"] for one in find(made, "Service")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in find(made, "PodDisruptionBudget")]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in find(made, "NetworkPolicy")]
    assert len(selectors) == 4
    for selector in selectors:
        assert selector.items() <= labels
        assert not selector.items() <= tester["metadata"]["labels"].items()
    (monitor,) = find(made, "ServiceMonitor")
    headless = [one for one in find(made, "Service") if one["spec"].get("clusterIP") == "None"]
    assert (
        [
            one["metadata"]["name"]
            for one in find(made, "Service")
            if monitor["spec"]["selector"]["matchLabels"].items() <= one["metadata"]["labels"].items()
        ]
        == [gateway["spec"]["serviceName"]]
        == [one["metadata"]["name"] for one in headless]
    )
    assert find(objects("open"), "ServiceMonitor") == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_lies_in_a_config_map_or_a_pod(kind: str) -> None:
    for one in objects(kind):
        if one["kind"] != "Secret":
            assert "$7$" not in str(one)
    for pod in pods(objects(kind)):
        for volume in pod.get("volumes", []):
            if "secret" in volume and volume["name"] != "ca":
                assert volume["secret"]["defaultMode"] == 0o440


def test_what_to_do_next_is_said() -> None:
    done = helm("install", "lockgate", str(CHART), "--dry-run=client", "-f", str(CI / "open-values.yaml"))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "rollout status statefulset/lockgate" in notes
    assert "WARNING: auth.anonymous lets in everybody" in notes
    assert "WARNING: port 1883 is reached from outside without TLS" in notes
    assert "helm -n default test lockgate" in notes
