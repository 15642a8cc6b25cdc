"""Spells the lines of a made-up export in Ion, as DynamoDB does: text, a line an item, each with its version marker."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from migration_pipeline.demo.sample_faults import Fault

_UNQUOTED = re.compile(r"(?!(?:null|true|false|nan)\Z|\$\d+\Z)[A-Za-z_$][A-Za-z0-9_$]*\Z")


def ion_line(line: bytes) -> bytes:
    """Spell the item of a line of DynamoDB JSON."""
    return f" $ion_1_0 {{Item:{_struct(json.loads(line)['Item'])}}}\n".encode()


def ion_number(text: str) -> str:
    """Spell a number: ``12.``, ``12.5``, and ``12d1`` for 120."""
    sign, digits, exponent = Decimal(text).as_tuple()
    whole = "".join(map(str, digits)) or "0"
    assert isinstance(exponent, int)  # noqa: S101  # DynamoDB has neither NaN nor infinity
    while whole != "0" and whole.endswith("0"):
        whole, exponent = whole[:-1], exponent + 1
    minus = "-" * sign
    if whole == "0" or exponent == 0:
        return f"{minus}{whole}."
    if exponent > 0 or exponent < -6 - len(whole):
        return f"{minus}{whole}d{exponent}"
    padded = whole.rjust(1 - exponent, "0")
    return f"{minus}{padded[:exponent]}.{padded[exponent:]}"


def _struct(members: Mapping[str, Any]) -> str:
    return "{" + ",".join(f"{_name(name)}:{_value(value)}" for name, value in members.items()) + "}"


def _name(name: str) -> str:
    if _UNQUOTED.match(name):
        return name
    inner = json.dumps(name, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{inner}'"


def _value(value: Mapping[str, Any]) -> str:
    ((kind, content),) = value.items()
    if kind in ("SS", "NS", "BS"):
        return f"$dynamodb_{kind}::[{','.join(_value({kind[0]: each}) for each in content)}]"
    if kind == "S":
        return json.dumps(content, ensure_ascii=False)
    if kind == "N":
        return ion_number(content)
    if kind == "B":
        return f"{{{{{content}}}}}"
    if kind == "M":
        return _struct(content)
    if kind == "L":
        return f"[{','.join(map(_value, content))}]"
    return "null" if kind == "NULL" else str(content).lower()


_GOOD_LINE = (
    ' $ion_1_0 {Item:{PK:"CUSTOMER#broken",SK:"PROFILE",name:"Mallory",createdAt:"2023-02-28T12:00:00Z",newsletter:true,'
    "balance:12.5,loyaltyPoints:7.,fingerprint:{{q83vEjRWeJA=}}}}"
)

_CHANGES = {
    "malformed_json": (",SK", "SK"),
    "truncated_line": ("createdAt.*", "crea"),
    "not_an_object": (r"\{Item.*", "[&]"),
    "no_item": ("Item", "item"),
    "invalid_utf8": ("Mallory", "Mallor\udcfd"),
    "lone_surrogate": ("Mallory", "& \\ud83d"),
    "duplicate_attribute": ('name:"Mallory"', '&,name:"M."'),
    "wrong_type": ('"Mallory"', "42."),
    "not_a_number": ("12.5", "12_5"),
    "missing_required": ('name:"Mallory",', ""),
    "bad_base64": ("q83vEjRWeJA=", "not*base64!"),
    "bad_datetime": ("02-28", "02-30"),
    "null_required": ('"Mallory"', "null"),
    "nul_character": ("Mallory", "&\\u0000"),
    "integer_out_of_range": (":7.", f":{2**63}."),
}
"""For each kind of fault what of a good line becomes what, as in `Fault`."""


def broken_line(fault: Fault, position: int) -> bytes:
    """Spell what `Fault.line` gives."""
    pattern, replacement = _CHANGES[fault.kind]
    good = _GOOD_LINE.replace("#broken", f"#broken-{position}")
    bad = re.sub(pattern, lambda match: replacement.replace("&", match[0]), good, count=1)
    return bad.encode("utf-8", "surrogateescape") + b"\n"
