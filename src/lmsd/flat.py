"""Records that hold records, and their values under one level of names.

    Edit(sampling=Sampling(steps=4), seed=0)     ↔     {"steps": 4, "seed": 0}

The options of a verb are typed, listed and written to files by the flat names; the code that uses them holds
a noun for each group.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def flat(record: "DataclassInstance") -> dict[str, Any]:
    """The values of a record by name, those of the records that it holds in their place."""
    found: dict[str, Any] = {}
    for field in fields(record):
        value = vars(record)[field.name]
        found |= flat(value) if is_dataclass(field.type) else {field.name: value}
    return found


def nested(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """The reverse of `flat`; a value that is not given is its field's default. Raises TypeError without one.

    A name that no field has is not looked at.
    """
    given = dict[str, Any]()
    for field in fields(kind):
        if is_dataclass(field.type):
            given[field.name] = nested(field.type, values)  # type: ignore[type-var, arg-type]
        elif field.name in values:
            given[field.name] = values[field.name]
    return kind(**given)
