"""The command line of mosquitto_pub, mosquitto_sub and mosquitto_rr, with the default options in a file of the user.

Not argparse: `-h` is the host, values may begin with a dash, and the texts of errors are those that scripts know.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from lockgate.cli.mosquitto_wire import VERSIONS
from lockgate.mqtt.errors import MqttError
from lockgate.mqtt.packets import V3_1, V3_1_1, V5, Connect, Will
from lockgate.mqtt.topics import check_topic_filter, check_topic_name
from lockgate.transport.endpoint import Endpoint, Proxy

if TYPE_CHECKING:
    from lockgate.cli.mosquitto_format import Piece
    from lockgate.cli.mosquitto_properties import PropertyList
    from lockgate.mqtt.properties import Properties
    from lockgate.transport.tls_client import ClientTls

PUB: Final = "mosquitto_pub"
SUB: Final = "mosquitto_sub"
RR: Final = "mosquitto_rr"

NEVER: Final = 0xFFFF_FFFF  # a session that does not expire
_MESSAGE_BYTES: Final = 268_435_455


class UsageError(Exception):
    """A command line that cannot be meant. `hint` says where help is, `usage` prints it."""

    def __init__(self, text: str, *, hint: bool = True, usage: bool = False) -> None:
        super().__init__(text)
        self.hint = hint
        self.usage = usage


class Done(Exception):
    """`--help` and `--version` were answered."""


class Options:
    """What the command line says, with the defaults."""

    def __init__(self, program: str) -> None:
        self.program = program
        # connection
        self.host = "localhost"
        self.port: int | None = None
        self.unix: str | None = None
        self.bind: str | None = None
        self.proxy: Proxy | None = None
        self.nodelay = False
        self.websocket = False
        self.srv = False
        # TLS
        self.tls = False  # asked for by the scheme of an URL
        self.no_tls = False
        self.cafile: str | None = None
        self.capath: str | None = None
        self.certfile: str | None = None
        self.keyfile: str | None = None
        self.keyform: str | None = None
        self.engine: str | None = None
        self.engine_password: str | None = None
        self.ciphers: str | None = None
        self.tls_version: str | None = None
        self.alpn: str | None = None
        self.os_certs = False
        self.insecure = False
        self.keylog: str | None = None
        self.psk: str | None = None
        self.psk_identity: str | None = None
        # MQTT
        self.version = V5 if program == RR else V3_1_1
        self.client_id: str | None = None
        self.id_prefix: str | None = None
        self.clean = True
        self.session_expiry: int | None = None
        self.keep_alive = 60
        self.username: str | None = None
        self.password: str | None = None
        self.qos = 0
        self.retain = False
        self.max_inflight = 20
        self.will_topic: str | None = None
        self.will_payload: bytes | None = None
        self.will_qos = 0
        self.will_retain = False
        self.properties: dict[str, PropertyList] = {}
        # what to send
        self.topic: str | None = None
        self.response_topic: str | None = None
        self.message: bytes | None = None
        self.file: str | None = None
        self.stdin_lines = False
        self.stdin_file = False
        self.null_message = False
        self.repeat = 1
        self.repeat_delay = 0.0
        # what to receive
        self.topics: list[str] = []
        self.unsubscribe: list[str] = []
        self.filter_out: list[str] = []
        self.count = 0
        self.exit_after_subscribe = False
        self.no_retain = False
        self.retained_only = False
        self.remove_retained = False
        self.retain_as_published = False
        self.retain_handling = 0
        self.random_filter = 100.0
        self.timeout = 0
        # what to say
        self.debug = False
        self.quiet = False
        self.verbose = False
        self.eol = True
        self.pretty = False
        self.format: list[Piece] | None = None
        self.message_rate = False
        self.watch = False
        self.latency = False

    @property
    def message_given(self) -> bool:
        """Whether there is something to send."""
        return self.message is not None or self.file is not None or self.stdin_lines or self.null_message

    # --- what a program needs of them --------------------------------------------------------------------------------

    def endpoint(self) -> Endpoint:
        """How to reach the server. Raises UsageError for TLS options that do not go together."""
        tls = self._tls()
        port = self.port if self.port is not None else 8883 if tls is not None else 1883
        return Endpoint(
            host=self.host,
            port=port,
            unix=self.unix,
            tls=tls,
            websocket_path="/mqtt" if self.websocket else None,
            bind=self.bind,
            proxy=self.proxy,
            nodelay=self.nodelay or self.latency,
        )

    def _tls(self) -> ClientTls | None:
        if self.no_tls:
            return None
        if self.psk is not None:
            raise UsageError(
                "Error: TLS-PSK is not available in this version of Python, use certificates.\n", hint=False
            )
        use_os_certs = self.os_certs
        if self.cafile is None and self.capath is None and (self.tls or self.port == 8883):
            use_os_certs = True
        if not (self.cafile or self.capath or use_os_certs):
            return None
        if self.engine is not None:
            text = (
                f"Error: Problem setting TLS engine, is {self.engine} a valid engine? Engines are not available here."
            )
            raise UsageError(text, hint=False)
        if self.tls_version not in (None, "tlsv1.1", "tlsv1.2", "tlsv1.3"):
            raise UsageError("Error: Problem setting TLS options, check the options are valid.", hint=False)
        for path in (self.cafile, self.capath, self.certfile, self.keyfile):
            if path is not None and not os.path.exists(path):
                raise UsageError("Error: Problem setting TLS options: File not found.", hint=False)
        from lockgate.transport.tls_client import ClientTls

        return ClientTls(
            cafile=self.cafile,
            capath=self.capath,
            use_os_certs=use_os_certs,
            certfile=self.certfile,
            keyfile=self.keyfile,
            insecure=self.insecure,
            minimum_version=self.tls_version or "tlsv1.2",  # type: ignore[arg-type]  # one of them, see above
            ciphers=self.ciphers,
            alpn=(self.alpn,) if self.alpn is not None else (),
            keylog=self.keylog,
        )

    def connect_packet(self) -> Connect:
        """The CONNECT they describe. Raises UsageError."""
        if self.password is not None and self.username is None and self.version != V5:
            raise UsageError("Error: Problem setting username and/or password.", hint=False)
        if self.client_id == "":
            raise UsageError("Error: Invalid id.", hint=False)
        client_id = self.client_id or ""
        if self.id_prefix is not None:
            client_id = f"{self.id_prefix}{os.getpid()}"
        elif not client_id and self.version == V3_1:
            import secrets
            import string

            client_id = "mosq-" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(18))
        will = None
        if self.will_topic is not None:
            properties = self.of("will") if self.version == V5 else None
            will = Will(self.will_topic, self.will_payload or b"", self.will_qos, self.will_retain, properties)
        properties = self.of("connect") if self.version == V5 else None
        return Connect(
            client_id,
            self.version,
            self.clean,
            self.keep_alive,
            self.username,
            self.password.encode("utf-8", "surrogateescape") if self.password is not None else None,
            will,
            properties,
        )

    def of(self, command: str) -> Properties | None:
        """The properties given for a command, None when there are none."""
        given = self.properties.get(command)
        return given.properties if given is not None else None


# --- reading values --------------------------------------------------------------------------------------------------


def number(text: str) -> int:
    """Read as C does: the digits it begins with, 0 when there are none."""
    text = text.strip()
    sign = text[:1] if text[:1] in ("-", "+") else ""
    digits = ""
    for letter in text[len(sign) :]:
        if letter not in "0123456789":
            break
        digits += letter
    return int(sign + digits) if digits else 0


def _float(text: str) -> float:
    while text:
        try:
            return float(text)
        except ValueError:
            text = text[:-1]
    return 0.0


def _text(text: str, name: str) -> str:
    if not text.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"Error: Malformed UTF-8 in {name} argument.\n\n")
    return text


def _bytes(text: str) -> bytes:
    return os.fsencode(text)


def _port(options: Options, value: str) -> None:
    port = number(value)
    if not 0 <= port <= 65_535:
        raise UsageError(f"Error: Invalid port given: {port}\n")
    options.port = port


def _keep_alive(options: Options, value: str) -> None:
    seconds = number(value)
    if not 5 <= seconds <= 65_535:
        raise UsageError("Error: Invalid keepalive given, it must be between 5 and 65535 inclusive.\n\n")
    options.keep_alive = seconds


def _qos(options: Options, value: str) -> None:
    qos = number(value)
    if not 0 <= qos <= 2:
        raise UsageError(f"Error: Invalid QoS given: {qos}\n")
    options.qos = qos


def _version(options: Options, value: str) -> None:
    if value not in VERSIONS:
        raise UsageError("Error: Invalid protocol version argument given.\n\n")
    options.version = VERSIONS[value]


def _session_expiry(options: Options, value: str) -> None:
    if value == "∞":
        options.session_expiry = NEVER
        return
    digits = value.strip().removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit()):
        raise UsageError("Error: session-expiry-interval not a number.\n\n")
    seconds = number(value)
    if not -1 <= seconds <= NEVER:
        raise UsageError("Error: session-expiry-interval out of range.\n\n")
    options.session_expiry = NEVER if seconds == -1 else seconds


def _client_id(options: Options, value: str) -> None:
    if options.id_prefix is not None:
        raise UsageError("Error: -i and -I argument cannot be used together.\n\n")
    options.client_id = _text(value, "-i")


def _id_prefix(options: Options, value: str) -> None:
    if options.client_id is not None:
        raise UsageError("Error: -i and -I argument cannot be used together.\n\n")
    options.id_prefix = _text(value, "-I")


def _add_topic(options: Options, topic: str) -> None:
    if options.program == SUB:
        try:
            check_topic_filter(_text(topic, "-t"))
        except MqttError:
            text = f"Error: Invalid subscription topic '{topic}', are all '+' and '#' wildcards correct?\n"
            raise UsageError(text) from None
        options.topics.append(topic)
        return
    if "+" in topic or "#" in topic:
        raise UsageError(f"Error: Invalid publish topic '{topic}', does it contain '+' or '#'?\n")
    options.topic = _text(topic, "-t")


def _response_topic(options: Options, topic: str) -> None:
    if "+" in topic or "#" in topic:
        raise UsageError(f"Error: Invalid response topic '{topic}', does it contain '+' or '#'?\n")
    options.response_topic = _text(topic, "-e")


def _filter_out(options: Options, topic_filter: str) -> None:
    try:
        check_topic_filter(_text(topic_filter, "-T"))
    except MqttError:
        text = f"Error: Invalid filter topic '{topic_filter}', are all '+' and '#' wildcards correct?\n"
        raise UsageError(text) from None
    options.filter_out.append(topic_filter)


def _unsubscribe(options: Options, topic_filter: str) -> None:
    try:
        check_topic_filter(_text(topic_filter, "-U"))
    except MqttError:
        text = f"Error: Invalid unsubscribe topic '{topic_filter}', are all '+' and '#' wildcards correct?\n"
        raise UsageError(text) from None
    options.unsubscribe.append(topic_filter)


def _will_topic(options: Options, topic: str) -> None:
    try:
        check_topic_name(_text(topic, "--will-topic"))
    except MqttError:
        raise UsageError(f"Error: Invalid will topic '{topic}', does it contain '+' or '#'?\n") from None
    options.will_topic = topic


def _will_qos(options: Options, value: str) -> None:
    qos = number(value)
    if not 0 <= qos <= 2:
        raise UsageError(f"Error: Invalid will QoS {qos}.\n\n")
    options.will_qos = qos


def _will_payload(options: Options, value: str) -> None:
    options.will_payload = _bytes(value)


def _one_message(options: Options) -> None:
    if options.message_given:
        raise UsageError("Error: Only one type of message can be sent at once.\n\n")


def _message(options: Options, value: str) -> None:
    _one_message(options)
    options.message = _bytes(value)


def _file(options: Options, value: str) -> None:
    _one_message(options)
    options.file = value


def _null_message(options: Options, _value: str) -> None:
    _one_message(options)
    options.null_message = True


def _stdin_lines(options: Options, _value: str) -> None:
    _one_message(options)
    options.stdin_lines = True


def _stdin_file(options: Options, _value: str) -> None:
    _one_message(options)
    options.message = read_message(sys.stdin.fileno(), None)


def read_message(descriptor: int | None, path: str | None) -> bytes:
    """Read a message from a file, by name or number. Raises UsageError."""
    try:
        with open(path if path is not None else descriptor or 0, "rb", closefd=path is not None) as stream:
            data = stream.read(_MESSAGE_BYTES + 1)
    except OSError:
        raise UsageError(
            f'Error: Unable to open file "{path}".\nError loading input file "{path}".', hint=False
        ) from None
    if path is None and not data:
        raise UsageError("Error: Zero length input.\nError loading input from stdin.", hint=False)
    if len(data) > _MESSAGE_BYTES:
        raise UsageError(f"Error: File must be less than {_MESSAGE_BYTES} bytes.\n", hint=False)
    return data


def _repeat(options: Options, value: str) -> None:
    options.repeat = number(value)
    if options.repeat < 1:
        raise UsageError("Error: --repeat argument must be >0.\n\n")


def _repeat_delay(options: Options, value: str) -> None:
    options.repeat_delay = _float(value)
    if options.repeat_delay < 0:
        raise UsageError("Error: --repeat-delay argument must be >=0.0.\n\n")


def _max_inflight(options: Options, value: str) -> None:
    options.max_inflight = number(value)
    if options.max_inflight < 1:
        raise UsageError("Error: Maximum inflight messages must be greater than 0.\n\n")


def _count(options: Options, value: str) -> None:
    options.count = number(value)
    if options.count < 1:
        raise UsageError(f'Error: Invalid message count "{options.count}".\n\n')


def _timeout(options: Options, value: str) -> None:
    options.timeout = number(value)
    if options.timeout < 1:
        raise UsageError(f'Error: Invalid timeout "{options.timeout}".\n\n')


def _random_filter(options: Options, value: str) -> None:
    options.random_filter = _float(value)
    if not 0.1 <= options.random_filter <= 100.0:
        raise UsageError("Error: --random-filter chance must be between 0.1-100.0\n\n")


def _retain_handling(options: Options, value: str) -> None:
    handling = {"always": 0, "new": 1, "never": 2}
    if value not in handling:
        raise UsageError(f"Error: Unknown value '{value}' for --retain-handling, it must be always, new or never.\n\n")
    options.retain_handling = handling[value]


def _format(options: Options, value: str) -> None:
    from lockgate.cli.mosquitto_format import FormatError, parse_format

    try:
        options.format = parse_format(value)
    except FormatError as error:
        raise UsageError(f"Error: {error}\n") from None


def _proxy(options: Options, url: str) -> None:
    if not url.startswith("socks5h://"):
        raise UsageError(f"Error: Unsupported proxy protocol: {url}\n")
    login, _, place = url.removeprefix("socks5h://").rpartition("@")
    host, colon, port = place.partition(":")
    if not host or (colon and not 1 <= number(port) <= 65_535):
        raise UsageError("Error: Invalid proxy.\n")
    username = password = None
    if login:
        from urllib.parse import unquote

        name, colon, secret = login.partition(":")
        username, password = unquote(name), unquote(secret) if colon else None
    options.proxy = Proxy(host, number(port) if port else 1080, username, password)


_SCHEMES: Final = {"mqtt": (False, False), "mqtts": (True, False), "ws": (False, True), "wss": (True, True)}


def _url(options: Options, url: str) -> None:
    scheme, found, rest = url.partition("://")
    if not found or scheme not in _SCHEMES:
        raise UsageError("Error: unsupported URL scheme.\n\n")
    options.tls, options.websocket = _SCHEMES[scheme]
    place, slash, topic = rest.partition("/")
    if not slash:
        raise UsageError("Error: Invalid URL for -L argument specified - topic missing.\n")
    login, at, place = place.rpartition("@")
    if at:
        username, colon, password = login.partition(":")
        options.username = username
        options.password = password if colon else options.password
    bracketed, closed, behind = place.partition("]")
    if bracketed.startswith("[") and closed:
        options.host, port = bracketed[1:], behind.removeprefix(":")
    else:
        options.host, _, port = place.partition(":")
    if port:
        _port(options, port)
    else:
        options.port = 8883 if options.tls else 1883
    _add_topic(options, topic)


def _srv(options: Options, _value: str) -> None:
    raise UsageError("Error: -S needs a resolver for SRV records, which is not available here; use -h and -p.\n\n")


def _help(options: Options, _value: str) -> None:
    print(usage(options.program))
    raise Done


def _show_version(options: Options, _value: str) -> None:
    from lockgate import __version__

    print(f"{options.program} version {__version__} running on lockgate {__version__}.")
    raise Done


# --- the table -------------------------------------------------------------------------------------------------------


class Option(NamedTuple):
    """One option. `take` is the attribute it sets or what handles it; `noun` is what its value is called."""

    names: tuple[str, ...]
    noun: str | None  # None: it takes no value
    take: str | Callable[[Options, str], None]
    help: str
    programs: str


def _row(
    names: str, noun: str | None, take: str | Callable[[Options, str], None], help_text: str, programs: str = "psr"
) -> Option:
    return Option(tuple(names.split()), noun, take, help_text, programs)


TABLE: Final = (
    _row("-h --host", "host", "host", "the server (default: localhost)"),
    _row("-p --port", "port", _port, "its port (default: 1883, with TLS 8883)"),
    _row("--unix", "socket path", "unix", "a Unix socket, in place of host and port"),
    _row("-L --url", "URL", _url, "mqtt(s)://[user[:password]@]host[:port]/topic, also ws(s)://"),
    _row("-A", "address", "bind", "our own address"),
    _row("--proxy", "proxy url", _proxy, "socks5h://[user[:password]@]host[:port]"),
    _row("--ws", None, "websocket", "MQTT over WebSocket"),
    _row("--nodelay", None, "nodelay", "send small packets at once"),
    _row("-S", None, _srv, "look the server up by SRV records (not available)"),
    _row("-u --username", "username", "username", "user name"),
    _row("-P --pw", "password", "password", "password; others on this machine can see it, the options file is safer"),
    _row("-i --id", "id", _client_id, "client id"),
    _row("-I --id-prefix", "id prefix", _id_prefix, "client id: this and the process id"),
    _row("-V --protocol-version", "version", _version, "mqttv5, mqttv311 or mqttv31"),
    _row("-c --disable-clean-session", None, "clean", "keep the session; needs -i"),
    _row("-x", "session expiry interval", _session_expiry, "seconds the server keeps the session (5.0), -1: for ever"),
    _row("-k --keepalive", "keepalive", _keep_alive, "seconds (default: 60)"),
    _row("-q --qos", "QoS", _qos, "0 (default), 1 or 2"),
    _row("-D --property", "property", "", "COMMAND NAME VALUE: a property of version 5; see the manual"),
    _row("-t --topic", "topic", _add_topic, "where to publish", "pr"),
    _row("-t --topic", "topic", _add_topic, "what to subscribe to; may be repeated", "s"),
    _row("-e", "response topic", _response_topic, "where the response is expected", "r"),
    _row("-m --message", "message", _message, "the message", "pr"),
    _row("-f --file", "file", _file, "a file that holds the message", "pr"),
    _row("-n --null-message", None, _null_message, "an empty message", "pr"),
    _row("-s --stdin-file", None, _stdin_file, "all of standard input is the message", "pr"),
    _row("-l --stdin-line", None, _stdin_lines, "each line of standard input is a message", "p"),
    _row("-r --retain", None, "retain", "the server keeps it for later subscribers", "p"),
    _row("-M", "max_inflight", _max_inflight, "unacknowledged messages of QoS 1 and 2 at once (default: 20)"),
    _row("--repeat", "count", _repeat, "publish so many times", "p"),
    _row("--repeat-delay", "time", _repeat_delay, "seconds between them", "p"),
    _row("-C", "count", _count, "end after so many messages", "s"),
    _row("-E", None, "exit_after_subscribe", "end when the server has confirmed the subscriptions", "s"),
    _row("-W", "timeout", _timeout, "end after so many seconds, with exit status 27", "sr"),
    _row("-U --unsubscribe", "unsubscribe topic", _unsubscribe, "end a subscription; may be repeated", "s"),
    _row("-T --filter-out", "topic filter", _filter_out, "do not print what matches; may be repeated", "s"),
    _row("-R", None, "no_retain", "do not print retained messages", "sr"),
    _row("--retained-only", None, "retained_only", "only retained messages; the first other one ends it", "s"),
    _row("--remove-retained", None, "remove_retained", "remove the retained messages it receives", "s"),
    _row("--retain-as-published", None, "retain_as_published", "leave the retain flag as it was published (5.0)", "sr"),
    _row("--retain-handling", "retain handling", _retain_handling, "always, new or never (5.0)", "sr"),
    _row("--random-filter", "chance", _random_filter, "print this percentage of the messages, 0.1 to 100", "s"),
    _row("--message-rate", None, "message_rate", "print how many messages came in each second", "s"),
    _row("-w --watch", None, "watch", "print each topic in a line of its own, always the same", "s"),
    _row("--latency", None, "latency", "print how long the response took", "r"),
    _row("-v --verbose", None, "verbose", "print the topic before the message", "sr"),
    _row("-F", "format", _format, "how to print a message; see the manual", "sr"),
    _row("-N", None, "eol", "no line end after a message", "sr"),
    _row("--pretty", None, "pretty", "JSON of %j and %J over several lines", "sr"),
    _row("-d --debug", None, "debug", "say what happens"),
    _row("--quiet", None, "quiet", "say nothing of errors while it runs"),
    _row("--will-topic", "will topic", _will_topic, "of the message the server publishes if the connection breaks"),
    _row("--will-payload", "will payload", _will_payload, "that message (default: empty)"),
    _row("--will-qos", "will QoS", _will_qos, "its QoS"),
    _row("--will-retain", None, "will_retain", "retain it"),
    _row("--cafile", "file", "cafile", "trust these certificates, in PEM; turns TLS on"),
    _row("--capath", "directory", "capath", "trust the certificates of this folder (openssl rehash); turns TLS on"),
    _row("--tls-use-os-certs", None, "os_certs", "trust what the system trusts; turns TLS on"),
    _row("--cert", "file", "certfile", "our certificate"),
    _row("--key", "file", "keyfile", "its key"),
    _row("--keyform", "keyform", "keyform", "pem"),
    _row("--ciphers", "ciphers", "ciphers", "OpenSSL's list, for TLS 1.2"),
    _row("--tls-version", "version", "tls_version", "at least tlsv1.2 (default), tlsv1.3 or tlsv1.1"),
    _row("--tls-alpn", "protocol", "alpn", "protocol for servers with several on one port"),
    _row("--tls-keylog", "file", "keylog", "append the secrets of the connection, for Wireshark"),
    _row("--insecure", None, "insecure", "do not compare the host name with the certificate: for tests only"),
    _row("--no-tls", None, "no_tls", "no TLS, whatever the options file says"),
    _row("--tls-engine", "engine_id", "engine", "not available"),
    _row("--tls-engine-kpass-sha1", "kpass sha1", "engine_password", "not available"),
    _row("--psk", "key", "psk", "not available before Python 3.13"),
    _row("--psk-identity", "identity", "psk_identity", "not available before Python 3.13"),
    _row("-o", "config file", "", "read options from this file, not from the default one"),
    _row("--version", None, _show_version, "print the version"),
    _row("--help", None, _help, "print this"),
)
_SETS_FALSE: Final = frozenset({"clean", "eol"})
_SHOWN: Final = {"-V": "--protocol-version", "-D": "--property"}  # as errors name them
_LETTERS: Final = {PUB: "p", SUB: "s", RR: "r"}


def parse(program: str, words: list[str]) -> Options:
    """Read the user's options file and the command line. Raises UsageError and Done."""
    options = Options(program)
    table = {name: option for option in TABLE if _LETTERS[program] in option.programs for name in option.names}
    path = _named_file(words) or _default_file(program)
    if path is not None:
        _read_file(options, table, path, _named_file(words) is not None)
    _take(options, table, words)
    _check(options)
    return options


def parse_leading(program: str, words: list[str]) -> tuple[Options, list[str]]:
    """Read the user's options file and the options of a connection in front of other words; gives those words too.

    Raises UsageError and Done.
    """
    options = Options(program)
    options.version = V5
    table = {name: option for option in TABLE if option.programs == "psr" for name in option.names}
    path = _named_file(words) or _default_file(program)
    if path is not None:
        _read_file(options, table, path, _named_file(words) is not None)
    at = 0
    while at < len(words) and words[at].startswith("-"):
        option = table.get(words[at])
        at += 4 if option is not None and option.names[0] == "-D" else 2 if option is not None and option.noun else 1
    _take(options, table, words[:at])
    return options, words[at:]


def _take(options: Options, table: dict[str, Option], words: list[str]) -> None:
    at = 0
    while at < len(words):
        name = words[at]
        option = table.get(name)
        if option is None:
            raise UsageError(f"Error: Unknown option '{name}'.\n")
        at += 1
        if option.names[0] == "-D":
            from lockgate.cli.mosquitto_properties import take_property

            at += take_property(options.properties, words[at:])
            options.version = V5
            continue
        value = ""
        if option.noun is not None:
            if at == len(words):
                shown = _SHOWN.get(option.names[0], option.names[0])
                what = "max_inflight not" if option.noun == "max_inflight" else f"no {option.noun}"
                raise UsageError(f"Error: {shown} argument given but {what} specified.\n\n")
            value = words[at]
            at += 1
        if callable(option.take):
            option.take(options, value)
        elif option.take:
            given = _text(value, option.names[0]) if option.noun is not None else option.take not in _SETS_FALSE
            setattr(options, option.take, given)


def _named_file(words: list[str]) -> str | None:
    for at, word in enumerate(words[:-1]):
        if word == "-o":
            return words[at + 1]
    return None


def _default_file(program: str) -> str | None:
    folder = os.environ.get("XDG_CONFIG_HOME")
    if folder:
        return os.path.join(folder, program)
    home = os.environ.get("HOME")
    return os.path.join(home, ".config", program) if home else None


def _read_file(options: Options, table: dict[str, Option], path: str, required: bool) -> None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            lines = stream.read().splitlines()
    except OSError as error:
        if required:
            raise UsageError(f"Error: Unable to open options file {path}: {error.strerror}.", hint=False) from None
        return
    for number_of_line, line in enumerate(lines, 1):
        name, _, value = line.strip("\r\n").partition(" ")
        if not name or line.startswith("#"):
            continue
        words = [name, *([value] if value else [])]
        if name in ("-D", "--property"):
            words = [name, *value.split(" ", 3 if " user-property " in f" {value} " else 2)]
        try:
            _take(options, table, words)
        except UsageError as error:
            text = str(error).rstrip("\n")
            raise UsageError(f"{text}\nError in {path}:{number_of_line}.\n") from None


def _check(options: Options) -> None:
    """Raise UsageError for what does not go together."""
    if options.will_topic is None:
        for given, what in ((options.will_payload is not None, "payload"), (options.will_retain, "retain")):
            if given:
                raise UsageError(f"Error: Will {what} given, but no will topic given.\n")
    if not options.clean and options.session_expiry is None:
        options.session_expiry = NEVER
    if options.version == V5:
        if options.session_expiry == NEVER and options.client_id is None and options.id_prefix is None:
            raise UsageError(
                "Error: You must provide a client id if you are using an infinite session expiry interval.\n"
            )
    elif not options.clean and options.client_id is None and options.id_prefix is None:
        raise UsageError("Error: You must provide a client id if you are using the -c option.\n")
    _check_tls(options)
    if options.version == V5:
        from lockgate.cli.mosquitto_properties import check_properties

        check_properties(options.properties, options.session_expiry)
    if options.retained_only and options.no_retain:
        raise UsageError("\nError: Combining '-R' and '--retained-only' makes no sense.", hint=False)
    if options.program == SUB and not options.topics:
        raise UsageError("Error: You must specify a topic to subscribe to.\n")
    if options.file is not None:
        options.message = read_message(None, options.file)
    if options.program == PUB and (options.topic is None or not options.message_given):
        raise UsageError("Error: Both topic and message must be supplied.", usage=True)
    if options.program == RR and not (options.topic is not None and options.message_given and options.response_topic):
        raise UsageError("Error: All of topic, message, and response topic must be supplied.\n")


def _check_tls(options: Options) -> None:
    if (options.certfile is None) != (options.keyfile is None):
        raise UsageError("Error: Both certfile and keyfile must be provided if one of them is set.\n")
    if options.keyform is not None:
        if options.keyfile is None:
            raise UsageError("Error: If keyform is set, keyfile must be also specified.\n")
        if options.keyform != "pem":
            raise UsageError(
                "Error: Problem setting key form, it must be 'pem': engines are not available.", hint=False
            )
    if options.engine_password is not None and options.engine is None:
        raise UsageError(
            "Error: when using tls-engine-kpass-sha1, both tls-engine and keyform must also be provided.\n"
        )
    if (options.cafile or options.capath) and options.psk is not None:
        raise UsageError("Error: Only one of --psk or --cafile/--capath may be used at once.\n")
    if options.psk is not None and options.psk_identity is None:
        raise UsageError("Error: --psk-identity required if --psk used.\n")


_WHAT: Final = {
    PUB: "publishes messages to an MQTT server",
    SUB: "subscribes at an MQTT server and prints messages",
    RR: "publishes a request to an MQTT server and prints the response",
}


def usage(program: str) -> str:
    """The help of a program."""
    from lockgate import __version__

    rows = [option for option in TABLE if _LETTERS[program] in option.programs]
    heads = [", ".join(row.names) + (f" <{row.noun}>" if row.noun else "") for row in rows]
    width = min(34, max(map(len, heads)))
    lines = [f"{program} {_WHAT[program]}.", f"{program} version {__version__} running on lockgate {__version__}.", ""]
    for head, row in zip(heads, rows, strict=True):
        lines.append(f" {head:<{width}} {row.help}")
    return "\n".join(lines) + "\n"


def report(program: str, error: UsageError) -> int:
    """Say on standard error what is wrong with the command line; gives the exit status."""
    if error.usage:
        print(usage(program))
        sys.stdout.flush()
    print(error, file=sys.stderr)
    if error.hint and not error.usage:
        print(f"Use '{program} --help' to see usage.", file=sys.stderr)
    return 1
