"""What a field is: its type, what may be done with it, and how `describe` tells it."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

ADDRESS_PARTS = {
    "Street": "street",
    "City": "city",
    "State": "state",
    "StateCode": "stateCode",
    "PostalCode": "postalCode",
    "Country": "country",
    "CountryCode": "countryCode",
    "Latitude": "latitude",
    "Longitude": "longitude",
    "GeocodeAccuracy": "geocodeAccuracy",
}
"""The end of a part's name to its key in the compound object."""

_LENGTHS = {"id": 18, "reference": 18, "picklist": 255, "multipicklist": 4099, "textarea": 32000}
_LENGTHS |= {"phone": 40, "email": 80, "url": 255, "string": 255}
_NUMBERS = {"int": (0, 8), "double": (18, 0), "currency": (18, 0), "percent": (18, 0)}
_SOAP = {"id": "tns:ID", "reference": "tns:ID", "boolean": "xsd:boolean", "int": "xsd:int"}
_SOAP |= {"date": "xsd:date", "datetime": "xsd:dateTime", "base64": "xsd:base64Binary"}
_SOAP |= dict.fromkeys(("double", "currency", "percent"), "xsd:double")
_SOAP |= {"address": "urn:address", "location": "urn:location"}
_NEVER_NULL = {"Id", "CreatedDate", "CreatedById", "LastModifiedDate", "SystemModstamp", "LastName"}
TYPES = frozenset([*_LENGTHS, *_NUMBERS, *_SOAP])
COMPOUND = frozenset(["address", "location"])
NUMERIC = frozenset(_NUMBERS)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an object.

    Attributes:
        refers: objects that a reference may lead to; the first is the one that it does lead to.
        compound: name of the compound field that this is a part of.
        parts: of a compound field: (name of the part, key in the object).
        long: text that can neither be filtered nor sorted by.
    """

    name: str
    type: str = "string"
    calculated: bool = False
    refers: tuple[str, ...] = ()
    compound: str | None = None
    parts: tuple[tuple[str, str], ...] = ()
    long: bool = False
    filterable: bool = True

    @property
    def custom(self) -> bool:
        return self.name.endswith("__c")

    @property
    def sortable(self) -> bool:
        return self.filterable and self.type not in COMPOUND and self.type != "multipicklist"

    @property
    def relationship(self) -> str | None:
        """The name that leads to the other object in SOQL: `Account`, `Account__r`."""
        if not self.refers:
            return None
        if self.custom:
            return re.sub("__c$", "__r", self.name)
        return self.name.removesuffix("Id")

    @property
    def nillable(self) -> bool:
        return self.type != "boolean" and self.name not in _NEVER_NULL

    def describe(self) -> dict[str, Any]:
        """The field as `/sobjects/X/describe` tells it, with the keys that matter to a reader."""
        precision, digits = _NUMBERS.get(self.type, (0, 0))
        length = _LENGTHS.get(self.type, 0)
        if self.type == "textarea" and not self.long:
            length = 255
        writable = not self.calculated and self.name not in _NEVER_NULL - {"LastName"}
        return {
            "aggregatable": self.sortable,
            "autoNumber": self.name == "CaseNumber",
            "byteLength": length * 3,
            "calculated": self.calculated,
            "calculatedFormula": "IF(ISBLANK(Name), 0, 1)" if self.calculated else None,
            "compoundFieldName": self.compound,
            "createable": writable,
            "custom": self.custom,
            "deprecatedAndHidden": False,
            "digits": digits,
            "filterable": self.filterable,
            "groupable": self.sortable and self.type not in (*_NUMBERS, "datetime"),
            "label": self.name.removesuffix("__c"),
            "length": length,
            "name": self.name,
            "nillable": self.nillable,
            "permissionable": self.nillable,
            "picklistValues": [],
            "precision": precision,
            "referenceTo": list(self.refers),
            "relationshipName": self.relationship,
            "scale": 2 if self.type in ("currency", "percent") else 0,
            "soapType": _SOAP.get(self.type, "xsd:string"),
            "sortable": self.sortable,
            "type": self.type,
            "updateable": writable,
        }


def parse_fields(text: str) -> dict[str, Field]:
    """Fields from tokens `Name`, `Name:type`, `Name:>Object|Object`; `=` first means calculated.

    A textarea is long, unless it is a street. Parts of an address or a geolocation are found by
    their names.
    """
    fields: dict[str, Field] = {}
    for token in text.split():
        name, _, kind = token.lstrip("=").partition(":")
        refers = tuple(kind[1:].split("|")) if kind.startswith(">") else ()
        kind = "reference" if refers else kind or "string"
        assert kind in TYPES, token
        long = kind == "textarea" and not name.endswith("Street")
        fields[name] = Field(
            name,
            kind,
            calculated=token.startswith("="),
            refers=refers,
            long=long,
            filterable=not long and kind != "base64" and kind not in COMPOUND,
        )
    for name in [field.name for field in fields.values() if field.type in COMPOUND]:
        _join_parts(fields, name)
    return fields


def _join_parts(fields: dict[str, Field], name: str) -> None:
    whole = fields[name]
    if whole.type == "address":
        stem = name.removesuffix("Address")
        known = [(stem + end, key) for end, key in ADDRESS_PARTS.items() if stem + end in fields]
    else:
        stem = name.removesuffix("__c")
        known = [(f"{stem}__{end}__s", end.lower()) for end in ("Latitude", "Longitude")]
    fields[name] = replace(whole, parts=tuple(known))
    for part, _ in known:
        fields[part] = replace(fields[part], compound=name)
