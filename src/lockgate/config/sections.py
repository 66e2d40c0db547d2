"""What lockgate.toml may say: sections and their keys. The parser reads them, the reference page is made from them."""

from __future__ import annotations

from dataclasses import dataclass

from lockgate.config import values
from lockgate.config.values import Kind


@dataclass(frozen=True, slots=True)
class Key:
    """One key: its values, and the field of the model it fills, whose default counts where the file is silent."""

    name: str
    kind: Kind
    help: str
    field: str = ""
    required: bool = False
    default: str = ""  # for the reference, where the model's default does not tell

    @property
    def target(self) -> str:
        return self.field or self.name


@dataclass(frozen=True, slots=True)
class Section:
    """`[name]`, or `[name.NAME]` when `named`: there may be many of those."""

    name: str
    help: str
    keys: tuple[Key, ...]
    model: type
    named: bool = False
    variant: str = ""  # the value of `type` that selects this one of several sections with the same name
    inner: tuple[Section, ...] = ()  # named tables within it, each a field of the model under the last part of its name

    @property
    def key(self) -> str:
        """What an inner section is called in the table around it."""
        return self.name.rpartition(".")[2]


CONNECTION = (
    Key(
        "password_file",
        values.PATH,
        "file whose first line is the password, for a URL that has only the user",
        default="none: the password is in the URL, if there is one",
    ),
    Key("client_id", values.TEXT, "Client Identifier; keep it unique at that server"),
    Key("mqtt_version", values.one_of("3.1.1", "5"), "version of MQTT to speak", field="version"),
    Key("keep_alive", values.whole_number(1, 65535), "Keep Alive in seconds", field="keep_alive_seconds"),
)
