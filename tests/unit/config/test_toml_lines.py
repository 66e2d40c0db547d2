from __future__ import annotations

import tomllib

from lockgate.config.toml_lines import key_lines, line_of

TEXT = """\
top = 1 # [not.a.table]
[a]
text = '''
[b]
key = 1
''' # '''
"quoted.key" = "a # no comment"
list = [
  "x = 1", # y = 2
  { z = 3 },
]
dotted.name = "]"
[ c . "d e" ]
after = true
"""


def test_each_key_has_its_line() -> None:
    tomllib.loads(TEXT)
    assert key_lines(TEXT) == {
        ("top",): 1,
        ("a",): 2,
        ("a", "text"): 3,
        ("a", "quoted.key"): 7,
        ("a", "list"): 8,
        ("a", "dotted"): 12,
        ("a", "dotted", "name"): 12,
        ("c", "d e"): 13,
        ("c", "d e", "after"): 14,
    }


def test_a_key_without_a_line_of_its_own_stands_where_its_value_does() -> None:
    lines = key_lines(TEXT)
    assert line_of(lines, ("a", "list", "z")) == 8
    assert line_of(lines, ("a", "missing")) == 2
    assert line_of(lines, ("missing",)) is None
