"""What is played: configurations with the scenarios below each, and configurations that are wrong.

`{p}`, `{p2}`, `{p3}` are ports, `{dir}` is the folder of the configuration. Scenarios of one configuration share its
broker and run one after the other, so each has topics and client ids of its own; those that stop or reload it are last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

OPEN = "listener {p} 127.0.0.1\nallow_anonymous true\n"
PASSWORDS = "ann:secret\nbob:hunter2\n"


@dataclass(frozen=True)
class Setup:
    """One configuration, what lies beside it, and what is played with it."""

    name: str
    conf: str
    scenarios: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


# --- defaults, and what surprises on the wire ------------------------------------------------------------------------

_WIRE = {
    "connack-v5": "a connect v=5",
    "connack-v5-limits": "a connect v=5 rm=5 mps=1000 tam=3 expiry=100",
    "connack-v31": "a connect v=3",
    "connack-v5-no-keepalive": "a connect v=5 keep=0",
    "empty-id-v31": "a connect v=3 id=",
    "empty-id-v311": "a connect id=",
    "empty-id-v311-keeps": "a connect id= clean=0",
    "empty-id-v5": "a connect v=5 id=",
    "unknown-protocol-name": "a open 10 0c 00 04 4d 51 58 58 04 02 00 3c 00 00",
    "mqtt-level-2": "a open 10 0c 00 04 4d 51 54 54 02 02 00 00 00 00",
    "mqtt-level-6": "a open v=5 10 0d 00 04 4d 51 54 54 06 02 00 00 00 00 00",
    "mqtt-level-3": "a open 10 0c 00 04 4d 51 54 54 03 02 00 00 00 00",
    "mqisdp-level-4": "a open 10 0f 00 06 4d 51 49 73 64 70 04 02 00 00 00 01 61",
    "connect-reserved-flag": "a open 10 0d 00 04 4d 51 54 54 04 03 00 00 00 01 61",
    "first-packet-not-connect": "a open c0 00",
    "second-connect": "a connect\na raw 10 0d 00 04 4d 51 54 54 04 02 00 00 00 01 61",
    "will-qos-3": "a open 10 13 00 04 4d 51 54 54 04 1e 00 00 00 01 61 00 01 77 00 01 78",
    "publish-wildcard-v5": "a connect v=5\na publish t/# x 0",
    "publish-wildcard-v311": "a connect\na publish t/+ x 1",
    "publish-sys-v5": "a connect v=5\na publish $SYS/x x 1",
    "publish-sys-v311": "a connect\na publish $SYS/x x 1",
    "publish-dollar": "a connect\na subscribe $x/y 1\na publish $x/y here 1",
    "publish-nobody-v5": "a connect v=5\na publish wire/nobody x 1\na publish wire/nobody x 2",
    "publish-nobody-retained-v5": "a connect v=5\na publish wire/nobody/r x 1 retain",
    "publish-empty-topic-v5": "a connect v=5\na publish '' x 0",
    "publish-qos-3": "a connect\na raw 36 06 00 01 74 00 01 78",
    "puback-of-nothing": "a connect\na raw 40 02 00 09",
    "pubrel-of-nothing-v5": "a connect v=5\na raw 62 02 00 09",
    "pubrel-bad-flags": "a connect\na raw 60 02 00 09",
    "subscribe-bad-flags": "a connect\na raw 80 06 00 01 00 01 74 00",
    "subscribe-nothing": "a connect\na raw 82 02 00 01",
    "subscribe-bad-filter-v311": "a connect\na subscribe t/#/x 0",
    "subscribe-bad-filter-v5": "a connect v=5\na subscribe t/#/x 0",
    "subscribe-bad-qos": "a connect\na raw 82 06 00 01 00 01 74 03",
    "unsubscribe-unknown-v5": "a connect v=5\na unsubscribe never",
    "no-local": "a connect v=5\na subscribe wire/nl 1 nl\na publish wire/nl x 1",
    "no-local-shared": "a connect v=5\na subscribe $share/g/wire 1 nl",
    "shared-bad-name": "a connect v=5\na subscribe $share/g 1",
    "subscription-ids": "a connect v=5\na subscribe wire/id 1 id=7\na subscribe wire/+ 1 id=8\na publish wire/id x 1",
    "retain-handling-1": """
        a connect v=5
        a publish wire/rh kept 1 retain
        a subscribe wire/rh 1 rh=1
        a subscribe wire/rh 1 rh=1
    """,
    "retain-handling-2": "a connect v=5\na publish wire/rh2 kept 1 retain\na subscribe wire/rh2 1 rh=2",
    "retain-as-published": """
        a connect v=5
        a subscribe wire/rap 1 rap
        b connect v=5
        b publish wire/rap x 1 retain
    """,
    "retained-cleared": """
        a connect
        a publish wire/clear x 1 retain
        a publish wire/clear '' 1 retain
        b connect
        b subscribe wire/clear 1
    """,
    "shared-no-retained": "a connect v=5\na publish wire/sr x 1 retain\na subscribe $share/g/wire/sr 1",
    "topic-alias": "a connect v=5\na subscribe wire/al 0\na publish wire/al x 0 alias=1\na publish '' y 0 alias=1",
    "topic-alias-0": "a connect v=5\na publish wire/al x 0 alias=0",
    "topic-alias-too-high": "a connect v=5\na publish wire/al x 0 alias=11",
    "topic-alias-unknown": "a connect v=5\na publish '' x 0 alias=5",
    "properties-travel": "a connect v=5\na subscribe wire/p 1\na publish wire/p x 1 type=t/p response=r expiry=60",
    "overlapping-v311": "a connect\na subscribe wire/o 1\na subscribe wire/+ 2\na publish wire/o x 2",
    "takeover-v311": "a connect id=tk\nb connect id=tk\na gone",
    "takeover-v5": "a connect v=5 id=tk5\nb connect v=5 id=tk5\na gone",
    "session-present": "a connect id=sp clean=0\na disconnect\na connect id=sp clean=0",
    "session-ends": "a connect id=se clean=0\na disconnect\na connect id=se\na disconnect\na connect id=se clean=0",
    "queue-for-absent": """
        a connect id=q clean=0
        a subscribe wire/q 2
        a disconnect
        b connect
        b publish wire/q zero 0
        b publish wire/q one 1
        b publish wire/q two 2
        a connect id=q clean=0
    """,
    "disconnect-with-will-v5": """
        b connect
        b subscribe wire/will 1
        a connect v=5 will=wire/will wqos=1
        a disconnect 0x04
    """,
    "disconnect-without-will-v5": "b connect\nb subscribe wire/will2 1\na connect v=5 will=wire/will2\na disconnect",
    "will-when-lost": "b connect\nb subscribe wire/will3 1\na connect will=wire/will3 wqos=1 wretain=1\na lose",
    "will-on-takeover-v5": """
        b connect
        b subscribe wire/will4 1
        a connect v=5 id=tw will=wire/will4
        c connect v=5 id=tw
    """,
    "will-in-sys": "a connect v=5 will=$SYS/x",
    "disconnect-raises-expiry": "a connect v=5\na disconnect expiry=10",
    "connack-receive-maximum-0": "a open v=5 10 11 00 04 4d 51 54 54 05 02 00 00 03 21 00 00 00 01 61",
    "connect-unknown-property": "a open v=5 10 10 00 04 4d 51 54 54 05 02 00 00 02 7e 00 00 01 61",
    "auth-method-unknown": "a open v=5 10 12 00 04 4d 51 54 54 05 02 00 00 04 15 00 01 78 00 01 61",
    "ping": "a connect\na raw c0 00",
}

_LOG = {
    "log-start": "broker log 'Opening ipv4 listen socket'",
    "log-running": "broker log 'running$'",
    "log-new-connection": "a connect\nbroker log 'New connection from'",
    "log-connect": """
        a connect id=logged
        broker log 'New client connected from .* as logged'
        a disconnect
        broker log 'Client logged.*disconnected'
    """,
    "log-connect-user": "a connect id=loguser user=somebody\nbroker log 'New client connected from .* as loguser'",
    "log-lost": "a connect id=loglost\na lose\nbroker log 'loglost.*(disconnected|closed)'",
    "log-takeover": "a connect id=logtk\nb connect id=logtk\nbroker log 'logtk.*already connected'",
    "log-v5": "a connect v=5 id=logv5\nbroker log 'New client connected from .* as logv5'",
    "log-bad-name": "a open 10 0c 00 04 4d 51 58 58 04 02 00 3c 00 00\nbroker log '[Pp]rotocol'",
    "stop-log": "broker stop\nbroker log 'terminating'",
}

# --- limits ----------------------------------------------------------------------------------------------------------

_PACKETS = {
    "connack": "a connect v=5",
    "publish-small": "a connect\na subscribe t 1\na publish t x 1",
    "publish-large-v5": "a connect v=5\na publish t x 1 size=1000",
    "publish-large-v311": "a connect\na publish t x 1 size=1000",
    "publish-large-qos0": "a connect\na publish t x 0 size=1000",
}
_MESSAGES = {
    "in-the-limit": "a connect v=5\na subscribe t 1\na publish t x 1 size=100",
    "above-v5-qos1": "a connect v=5\na subscribe t5 1\na publish t5 x 1 size=101",
    "above-v5-qos2": "a connect v=5\na subscribe t5 1\na publish t5 x 2 size=101",
    "above-v311-qos1": "a connect\na subscribe t4 1\na publish t4 x 1 size=101",
    "above-v311-qos0": "a connect\na subscribe t4 1\na publish t4 x 0 size=101",
    "above-retained": "a connect\na publish tr x 1 retain size=101\na subscribe tr 1",
}
_KEEPALIVE = {
    "v5-longer": "a connect v=5 keep=200",
    "v5-none": "a connect v=5 keep=0",
    "v5-shorter": "a connect v=5 keep=50",
    "v311-longer": "a connect keep=200",
    "v311-none": "a connect keep=0",
    "v311-shorter": "a connect keep=50",
}
_QOS = {
    "connack": "a connect v=5",
    "publish-v5": "a connect v=5\na publish t x 2",
    "publish-v311": "a connect\na publish t x 2",
    "publish-in-the-limit": "a connect\na publish t x 1",
    "subscribe": "a connect\na subscribe t 2",
    "will-v5": "a connect v=5 will=w wqos=2",
    "will-v311": "a connect will=w wqos=2",
}
_RETAIN = {
    "connack": "a connect v=5",
    "publish-v5": "a connect v=5\na publish t x 0 retain",
    "publish-v311": "a connect\na publish t x 0 retain",
    "will-v5": "a connect v=5 will=w wretain=1",
    "will-v311": "a connect will=w wretain=1",
}
_QUEUE = {
    "newest-is-dropped": """
        a connect id=qa clean=0
        a subscribe q 1
        a disconnect
        b connect
        b publish q 1 1
        b publish q 2 1
        b publish q 3 1
        b publish q 4 1
        b publish q 5 1
        a connect id=qa clean=0
    """,
    "qos-0-is-queued": """
        a connect id=q0 clean=0
        a subscribe q0 1
        a disconnect
        b connect
        b publish q0 zero 0
        a connect id=q0 clean=0
    """,
    "connack": "a connect v=5",
}
_CONNECTIONS = {
    "third-is-turned-away": "a connect\nb connect\nc connect",
}
_ALIASES = {
    "connack": "a connect v=5",
    "any-alias": "a connect v=5\na publish t x 0 alias=1",
}

# --- who may ---------------------------------------------------------------------------------------------------------

_LOGIN = {
    "anonymous-v311": "a connect",
    "anonymous-v5": "a connect v=5",
    "anonymous-v31": "a connect v=3",
    "right": "a connect user=ann password=secret",
    "right-v5": "a connect v=5 user=ann password=secret",
    "wrong-password": "a connect user=ann password=wrong",
    "wrong-password-v5": "a connect v=5 user=ann password=wrong",
    "unknown-user": "a connect user=eve password=secret",
    "unknown-user-v5": "a connect v=5 user=eve password=secret",
    "no-password": "a connect user=ann",
    "no-password-v5": "a connect v=5 user=ann",
    "empty-password": "a connect user=ann password=",
    "password-without-user-v5": "a connect v=5 password=secret",
    "log-refused": "a connect id=refused user=ann password=no\nbroker log 'Sending CONNACK to refused'",
    "log-user": "a connect id=loguser user=ann password=secret\nbroker log 'as loguser'",
    "password-changes": """
        broker write passwords ann:changed bob:hunter2
        broker hup
        a connect user=ann password=secret
        a connect user=ann password=changed
    """,
    "user-goes": """
        a connect user=bob password=hunter2
        broker write passwords ann:changed
        broker hup
        b connect user=bob password=hunter2
        c connect user=ann password=changed
    """,
    "password-file-damaged-on-reload": """
        broker append passwords nonsense
        broker hup
        a connect user=ann password=changed
    """,
}
_BOTH = {
    "anonymous": "a connect",
    "right": "a connect user=ann password=secret",
    "wrong": "a connect user=ann password=wrong",
    "unknown": "a connect user=eve password=x",
}
_ACL_FILE = """
# for those without a name
topic read public/#
topic readwrite open/#
topic deny open/closed
user ann
topic readwrite ann/#
topic write drop/+
topic read $SYS/#
user bob
topic bob/#
pattern read mail/%u/in
pattern write from/%c/#
"""
_ACL = {
    "anonymous-write-refused-v311": "a connect\na publish public/x x 1\na publish public/x x 0",
    "anonymous-write-refused-v5": "a connect v=5\na publish public/x x 1\na publish public/x x 2",
    "anonymous-open": "a connect v=5\na subscribe open/# 1\na publish open/x x 1",
    "deny-wins": "a connect v=5\na subscribe open/# 1\na publish open/closed x 1",
    "subscribe-is-granted": "a connect v=5\na subscribe nothing/here 1\na subscribe # 2",
    "subscribe-is-granted-v311": "a connect\na subscribe nothing/here 1",
    "read-is-asked-on-delivery": """
        a connect
        a subscribe ann/# 1
        b connect user=ann password=secret
        b subscribe ann/# 1
        b publish ann/x x 1
    """,
    "write-only": """
        a connect user=ann password=secret
        a subscribe drop/+ 1
        a publish drop/x x 1
    """,
    "a-named-user": "a connect v=5 user=bob password=hunter2\na publish open/x x 1\na publish bob/x x 1",
    "pattern-user": """
        a connect user=ann password=secret
        a subscribe mail/# 1
        b connect id=post user=bob password=hunter2
        b publish mail/ann/in x 1
    """,
    "pattern-client": "a connect v=5 id=me user=ann password=secret\na publish from/me/x x 1\na publish from/you/x x 1",
    "pattern-wildcard-in-id": "a connect v=5 id=a+b user=ann password=secret\na publish ann/x x 1",
    "retained-is-asked": """
        b connect user=ann password=secret
        b publish ann/kept x 1 retain
        a connect
        a subscribe ann/# 1
        c connect user=ann password=secret
        c subscribe ann/kept 1
    """,
    "will-is-asked": """
        b connect user=ann password=secret
        b subscribe # 1
        a connect will=ann/will
        a lose
        c connect will=open/will
        c lose
    """,
    "shared": "a connect v=5 user=ann password=secret\na subscribe $share/g/ann/# 1\na publish ann/x x 1",
    "wildcard-subscription": """
        a connect
        a subscribe # 1
        b connect user=ann password=secret
        b publish ann/x no 1
        b publish drop/x no 1
        c connect
        c publish open/x yes 1
    """,
    "log-denied": "a connect id=denied\na publish public/x x 0\nbroker log 'Denied PUBLISH from denied'",
    "acl-changes": """
        a connect
        a subscribe new/# 1
        broker write acl 'topic readwrite new/#'
        broker hup
        a publish new/x x 1
    """,
    "acl-empties": """
        broker write acl
        broker hup
        a connect v=5
        a publish new/x x 1
    """,
}

# --- listeners, mount points, options of one listener ----------------------------------------------------------------

_LISTENERS = {
    "first": "a connect",
    "second-is-closed-to-anonymous": "a connect port={p2}",
    "second-has-a-qos": "a connect v=5 port={p3}",
    "messages-pass-between": "a connect\na subscribe t 2\nb connect port={p3}\nb publish t x 1",
    "log-port": "a connect id=second port={p3}\nbroker log 'New connection from .* on port .p3.'",
    "log-as": "a connect id=third port={p3}\nbroker log 'as third'",
}
_MOUNT = {
    "publish-goes-below": """
        a connect
        a subscribe # 1
        b connect port={p2}
        b publish t x 1
    """,
    "delivery-comes-without": "a connect\nb connect port={p2}\nb subscribe t 1\na publish mounted/t x 1",
    "wildcard": "a connect\nb connect port={p2}\nb subscribe # 1\na publish mounted/t x 1\na publish other/t x 1",
    "will": "a connect\na subscribe mounted/# 1\nb connect port={p2} will=w\nb lose",
    "shared": "a connect\nb connect v=5 port={p2}\nb subscribe $share/g/t 1\na publish mounted/t x 1",
    "retained": "b connect port={p2}\nb publish r x 1 retain\nb subscribe r 1\na connect\na subscribe mounted/r 1",
    "response-topic": "a connect v=5\na subscribe mounted/q 1\nb connect v=5 port={p2}\nb publish q x 1 response=r",
}
_PREFIX = {
    "right": "a connect id=ok-1",
    "wrong": "a connect id=no",
    "wrong-v5": "a connect v=5 id=no",
}
_ZERO = {
    "v311": "a connect id=",
    "v5": "a connect v=5 id=",
    "with-one": "a connect id=x",
}
_INVENTED = {
    "v5": "a connect v=5 id=",
    "v311": "a connect id=\nbroker log 'New client connected from .* as'",
}
_USERNAME_ID = {
    "is-the-name": "a connect id=x user=dora\nbroker log 'New client connected from .* as'",
    "without-a-name": "a connect id=x",
    "without-a-name-v5": "a connect v=5 id=x",
    "takes-over": "a connect id=x user=emil\nb connect id=y user=emil\na gone",
}
_UPGRADE = {
    "published-lower": "a connect\na subscribe up 2\na publish up x 0\na publish up x 1",
    "subscribed-lower": "a connect\na subscribe up/l 0\na publish up/l x 2",
}
_DUPLICATES = {
    "v311-once": "a connect\na subscribe d/x 1\na subscribe d/+ 0\na publish d/x x 1",
    "v5-twice": "a connect v=5\na subscribe d/y 1\na subscribe d/+ 0\na publish d/y x 1",
}
_INFLIGHT = {
    "connack": "a connect v=5",
    "messages": "a connect\na subscribe i 1\na publish i 1 1\na publish i 2 1",
}

# --- the store, reload -----------------------------------------------------------------------------------------------

_STORE = {
    "session-and-queue-survive-a-restart": """
        a connect id=kept clean=0
        a subscribe s/# 1
        a disconnect
        b connect
        b publish s/x one 1
        broker restart
        a connect id=kept clean=0
    """,
    "retained-survives-a-restart": """
        b connect
        b publish keep/r r 1 retain
        broker restart
        a connect
        a subscribe keep/# 1
    """,
    "v5-session-survives": """
        a connect v=5 id=five clean=0 expiry=1000
        a subscribe five 2
        a disconnect
        b connect
        b publish five x 2
        broker restart
        a connect v=5 id=five clean=0 expiry=1000
    """,
    "v5-session-without-expiry-does-not": """
        a connect v=5 id=short clean=0
        a subscribe short 1
        broker restart
        a connect v=5 id=short clean=0
    """,
    "clean-session-does-not": "a connect id=cl\na subscribe cl 1\nbroker restart\na connect id=cl clean=0",
    "unacknowledged-comes-again": "a connect id=un clean=0\na subscribe un 1\nbroker restart\na connect id=un clean=0",
    "removed-retained-stays-removed": """
        b connect
        b publish gone/r r 1 retain
        b publish gone/r '' 1 retain
        broker restart
        a connect
        a subscribe gone/# 1
    """,
    "will-at-stop": """
        b connect id=heir clean=0
        b subscribe lastwill 1
        b disconnect
        a connect will=lastwill wqos=1
        broker restart
        b connect id=heir clean=0
    """,
}
_NO_STORE = {
    "nothing-survives": """
        a connect id=kept clean=0
        a subscribe s 1
        a publish s/r r 1 retain
        broker restart
        a connect id=kept clean=0
        a subscribe s/# 1
    """,
    "pid-file": "broker exists broker.pid\nbroker stop\nbroker exists broker.pid",
}
_RELOAD = {
    "log-reload": "broker hup",
    "clients-stay": "a connect\na subscribe r 1\nbroker hup\na publish r x 1",
    "bad-line-keeps-the-old": """
        broker write mosquitto.conf 'listener {p} 127.0.0.1' 'allow_anonymous true' 'no_such_option 1'
        broker hup
        broker log 'no_such_option'
        a connect
    """,
    "anonymous-goes": """
        a connect
        broker write mosquitto.conf 'listener {p} 127.0.0.1' 'allow_anonymous false'
        broker hup
        b connect
    """,
    "anonymous-comes-back": """
        broker write mosquitto.conf 'listener {p} 127.0.0.1' 'allow_anonymous true'
        broker hup
        b connect
    """,
    "include-is-read": """
        broker write mosquitto.conf 'listener {p} 127.0.0.1' 'include_dir {dir}/conf.d'
        broker hup
        b connect
    """,
}
_SYS = {
    "version": "a connect\na subscribe $SYS/broker/version 0",
    "wildcard-has-no-sys": "a connect\na subscribe # 0",
    "shape": "a shape $SYS/#",
    "shape-clients": "a connect\na shape $SYS/broker/clients/#",
    "shape-load": "a shape $SYS/broker/load/#",
}

_QUIET = {
    "connects-are-not-logged": "a connect id=quiet\na disconnect\nbroker log 'as quiet'",
    "refusals-are-logged": "a connect v=3 id=\nbroker log 'Sending CONNACK|refused'",
}
_BYTES = {
    "first-of-many": """
        a connect id=qb clean=0
        a subscribe b 1
        a disconnect
        b connect
        b publish b 1111111111 1
        b publish b 2222222222 1
        b publish b 3333333333 1
        a connect id=qb clean=0
    """,
}
_INCLUDED = {
    "limits-of-both-files": "a connect v=5",
    "later-file-wins": "a connect v=5 keep=200",
}
_RETAIN_SOURCE = {
    "revoked-author-default": """
        a connect user=ann password=secret
        a publish kept/x x 1 retain
        broker write acl 'topic read kept/#' 'user ann' 'topic other/#'
        broker hup
        b connect
        b subscribe kept/# 1
    """,
}
_SESSIONS = {
    "v5-expires-at-once": "a connect v=5 id=e0 clean=0\na disconnect\na connect v=5 id=e0 clean=0",
    "v5-kept": "a connect v=5 id=e1 clean=0 expiry=100\na disconnect\na connect v=5 id=e1 clean=0 expiry=100",
    "v5-clean-start-ends-it": "a connect v=5 id=e2 clean=0 expiry=100\na disconnect\na connect v=5 id=e2",
    "v5-given-up-at-disconnect": """
        a connect v=5 id=e3 clean=0 expiry=100
        a disconnect expiry=0
        a connect v=5 id=e3 clean=0
    """,
    "v311-then-v5": "a connect id=m clean=0\na disconnect\na connect v=5 id=m clean=0",
    "v5-then-v311": "a connect v=5 id=n clean=0 expiry=100\na disconnect\na connect id=n clean=0",
    "subscription-survives": """
        a connect id=sub clean=0
        a subscribe ses/x 1
        a disconnect
        a connect id=sub clean=0
        a publish ses/x x 1
    """,
    "unsubscribe-survives": """
        a connect id=uns clean=0
        a subscribe ses/y 1
        a unsubscribe ses/y
        a disconnect
        a connect id=uns clean=0
        a publish ses/y x 1
    """,
    "downgraded-delivery": "a connect id=dg\na subscribe ses/d 0\na publish ses/d x 2\na publish ses/d x 1",
    "will-delayed-not-on-return": """
        b connect
        b subscribe ses/will 1
        a connect v=5 id=wd clean=0 expiry=100 will=ses/will delay=100
        a lose
        a connect v=5 id=wd clean=0 expiry=100
    """,
    "message-expiry-0-is-gone": """
        a connect v=5 id=me clean=0 expiry=100
        a subscribe ses/me 1
        b connect v=5
        b publish ses/me x 1 expiry=100
    """,
}

SETUPS = (
    Setup("wire", OPEN, _WIRE),
    Setup("log", OPEN, _LOG),
    Setup("max_packet_size", OPEN + "max_packet_size 500\n", _PACKETS),
    Setup("message_size_limit", OPEN + "message_size_limit 100\n", _MESSAGES),
    Setup("max_keepalive", OPEN + "max_keepalive 100\n", _KEEPALIVE),
    Setup("max_qos", OPEN + "max_qos 1\n", _QOS),
    Setup("retain_available", OPEN + "retain_available false\n", _RETAIN),
    Setup("max_queued_messages",
          OPEN + "max_queued_messages 3\nmax_inflight_messages 1\nqueue_qos0_messages true\n", _QUEUE),
    Setup("max_connections", OPEN + "max_connections 2\n", _CONNECTIONS),
    Setup("max_topic_alias", OPEN + "max_topic_alias 0\n", _ALIASES),
    Setup("max_inflight_messages", OPEN + "max_inflight_messages 5\n", _INFLIGHT),
    Setup("upgrade_outgoing_qos", OPEN + "upgrade_outgoing_qos true\n", _UPGRADE),
    Setup("allow_duplicate_messages", OPEN + "allow_duplicate_messages false\n", _DUPLICATES),
    Setup("password_file", "listener {p} 127.0.0.1\npassword_file {dir}/passwords\n", _LOGIN, {"passwords": PASSWORDS}),
    Setup("password_file-anonymous", OPEN + "password_file {dir}/passwords\n", _BOTH, {"passwords": PASSWORDS}),
    Setup("no-anonymous", "listener {p} 127.0.0.1\n", {
        "anonymous": "a connect", "anonymous-v5": "a connect v=5", "user": "a connect user=x password=y"}),
    Setup("acl_file", OPEN + "password_file {dir}/passwords\nacl_file {dir}/acl\n", _ACL,
          {"passwords": PASSWORDS, "acl": _ACL_FILE}),
    Setup("listeners",
          "per_listener_settings true\nlistener {p} 127.0.0.1\nallow_anonymous true\nlistener {p2} 127.0.0.1\n"
          "listener {p3} 127.0.0.1\nallow_anonymous true\nmax_qos 1\n", _LISTENERS),
    Setup("mount_point",
          "allow_anonymous true\nlistener {p} 127.0.0.1\nlistener {p2} 127.0.0.1\nmount_point mounted/\n",
          _MOUNT),
    Setup("clientid_prefixes", OPEN + "clientid_prefixes ok-\n", _PREFIX),
    Setup("allow_zero_length_clientid", OPEN + "allow_zero_length_clientid false\n", _ZERO),
    Setup("auto_id_prefix", OPEN + "auto_id_prefix made-\n", _INVENTED),
    Setup("use_username_as_clientid", OPEN + "use_username_as_clientid true\n", _USERNAME_ID),
    Setup("persistence", OPEN + "persistence true\npersistence_location {dir}/\n", _STORE),
    Setup("no-persistence", OPEN + "pid_file {dir}/broker.pid\n", _NO_STORE),
    Setup("reload", OPEN, _RELOAD, {}),
    Setup("sessions", OPEN, _SESSIONS),
    Setup("connection_messages", OPEN + "connection_messages false\n", _QUIET),
    Setup("max_queued_bytes", OPEN + "max_inflight_messages 1\nmax_queued_bytes 15\n", _BYTES),
    Setup("include_dir", OPEN + "include_dir {dir}/conf.d\n", _INCLUDED,
          {"conf.d/a.conf": "max_keepalive 100\nmax_inflight_messages 3\n", "conf.d/b.conf": "max_keepalive 50\n",
           "conf.d/not.read": "no_such_option 1\n"}),
    Setup("check_retain_source",
          OPEN + "password_file {dir}/passwords\nacl_file {dir}/acl\n", _RETAIN_SOURCE,
          {"passwords": PASSWORDS, "acl": "topic read kept/#\nuser ann\ntopic kept/#\n"}),
    Setup("sys_interval", OPEN + "sys_interval 1\n", _SYS),
)  # fmt: skip


# --- configurations that are wrong, or only look so ------------------------------------------------------------------

BASE = "listener {p} 127.0.0.1\nallow_anonymous true\n"
STARTS = {
    "unknown option": BASE + "no_such_option 1\n",
    "a tab after the name": BASE + "max_qos\t1\n",
    "a comment with a blank before it": BASE + " # no comment\n",
    "an empty value": BASE + "persistence_file\n",
    "a string twice": BASE + "persistence_file a\npersistence_file b\n",
    "a boolean that is none": BASE + "persistence maybe\n",
    "a boolean as number": BASE + "persistence 0\n",
    "a boolean in capitals": BASE + "persistence FALSE\n",
    "a number that is none": BASE + "max_inflight_messages many\n",
    "a hexadecimal number": BASE + "max_inflight_messages 0x10\n",
    "a number out of range": BASE + "max_inflight_messages -1\n",
    "max_qos 3": BASE + "max_qos 3\n",
    "max_packet_size too small": BASE + "max_packet_size 10\n",
    "max_keepalive too large": BASE + "max_keepalive 65536\n",
    "sys_interval too large": BASE + "sys_interval 65536\n",
    "sys_interval negative": BASE + "sys_interval -1\n",
    "message_size_limit negative": BASE + "message_size_limit -5\n",
    "memory_limit negative": BASE + "memory_limit -1\n",
    "persistent_client_expiration wrong": BASE + "persistent_client_expiration 5x\n",
    "persistent_client_expiration": BASE + "persistent_client_expiration 5d\n",
    "autosave_interval negative": BASE + "autosave_interval -5\n",
    "log_type wrong": BASE + "log_type wrong\n",
    "log_dest wrong": BASE + "log_dest nowhere\n",
    "log_facility wrong": BASE + "log_facility 9\n",
    "listener without a port": "listener\n",
    "listener port 70000": "listener 70000\n",
    "listener port 0": "listener 0\n",
    "listener that is no number": "listener abc\n",
    "two listeners on one port": "listener {p} 127.0.0.1\nlistener {p} 127.0.0.1\n",
    "protocol wrong": BASE + "protocol smoke\n",
    "socket_domain wrong": BASE + "socket_domain ipv5\n",
    "accept_protocol_versions wrong": BASE + "accept_protocol_versions 9\n",
    "max_topic_alias too large": BASE + "max_topic_alias 70000\n",
    "certfile without keyfile": BASE + "certfile {dir}/none\n",
    "a certificate that is not there": BASE + "certfile {dir}/none\nkeyfile {dir}/none\n",
    "require_certificate alone": BASE + "require_certificate true\n",
    "tls_version wrong": BASE + "tls_version ssl3\n",
    "include_dir that is not there": BASE + "include_dir {dir}/none\n",
    "password_file that is not there": BASE + "password_file {dir}/none\n",
    "acl_file that is not there": BASE + "acl_file {dir}/none\n",
    "password_file that is damaged": BASE + "password_file {dir}/broken-passwords\n",
    "acl_file that is damaged": BASE + "acl_file {dir}/broken-acl\n",
    "per_listener_settings too late": BASE + "per_listener_settings true\n",
    "pid_file that cannot be written": BASE + "pid_file {dir}/no/folder\n",
    "a plugin that is not there": BASE + "plugin {dir}/none.so\n",
    "plugin_opt without a plugin": BASE + "plugin_opt_x y\n",
    "persistence_location that is not there": BASE + "persistence true\npersistence_location {dir}/none/\n",
    "connection without an address": BASE + "connection b\ntopic #\n",
    "connection without a topic": BASE + "connection b\naddress 127.0.0.1:1\n",
    "bridge option before a connection": BASE + "address 127.0.0.1\n",
    "bridge topic with a wrong direction": BASE + "connection b\naddress 127.0.0.1:1\ntopic # sideways\n",
    "bridge topic with a wrong QoS": BASE + "connection b\naddress 127.0.0.1:1\ntopic # both 3\n",
    "two connections of one name": BASE + "connection b\naddress 127.0.0.1:1\ntopic #\nconnection b\n",
    "bridge keepalive too short": BASE + "connection b\naddress 127.0.0.1:1\ntopic #\nkeepalive_interval 2\n",
    "bridge start_type manual": BASE + "connection b\naddress 127.0.0.1:1\ntopic #\nstart_type manual\n",
    "bridge protocol version wrong": BASE + "connection b\naddress 127.0.0.1:1\ntopic #\nbridge_protocol_version 9\n",
    "carriage returns": BASE.replace("\n", "\r\n"),
    "blanks before a name": "  listener {p} 127.0.0.1\nallow_anonymous true\n",
    "blanks around a value": "listener   {p} 127.0.0.1\nallow_anonymous   true  \n",
    "queue limits off": BASE + "max_queued_messages 0\nmax_inflight_messages 0\n",
    "retry_interval": BASE + "retry_interval 20\n",
    "port and bind_address": "port {p}\nbind_address 127.0.0.1\nallow_anonymous true\n",
}
START_FILES = {"broken-passwords": "ann\nbob:\n", "broken-acl": "topic sometimes a\n"}
