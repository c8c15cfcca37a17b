#!/usr/bin/env bash
# pydantic writes `"ge": 1`, which no reader of JSON Schema knows, where `"minimum": 1` belongs.
#
# What one would guess: a bound of a field means the same when a request is read and in the JSON
# schema, and so in FastAPI's OpenAPI document: Field(ge=1) becomes "minimum": 1.
#
# What happens: for a number that has a validator of its own before the bound, such as
# Annotated[int, BeforeValidator(f), Field(ge=1)], the bound is obeyed when a request is read, but
# the schema says "ge": 1. le, gt, lt and multiple_of go the same way, whatever kind of validator it
# is, and with `| None` too. JSON Schema lets a reader skip keywords that it does not know: the
# document is still valid, and has no bound. The lengths of texts and lists come out right, and so
# do all bounds that stand before the validator.
#
# Seen on 2026-11-30 with pydantic 2.14.4 (pydantic-core 2.50.5), jsonschema 4.26.0, Python 3.11.7:
# 0 is refused by all eight types below. By their schemas it is refused for four of them.
#
# Why it matters: requests for recommendations have such numbers (k, a beam width, a time limit in
# ms), often with a validator that refuses 10.0 or "10". Clients and tests that are made from the
# document send 0 or -1 and are refused, and nobody is told that there is a bound.
#
# Instead: put the bound before the validator, Annotated[int, Field(ge=1), BeforeValidator(f)], and
# let a test look for "minimum" in the schema.
#
# Ends with 0 while this is so, with 1 once it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pydantic==2.14.4 jsonschema==4.26.0

cat > "$work/finding.py" <<'PY'
import sys
from importlib.metadata import version
from typing import Annotated, Any

from jsonschema import Draft202012Validator
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError


def whole(value: Any) -> Any:
    if isinstance(value, float | str):
        raise ValueError("send a whole number")
    return value


before, after, bound = BeforeValidator(whole), AfterValidator(whole), Field(ge=1)
TYPES = {  # and whether the bound is found in the schema
    "int, bound": (Annotated[int, bound], True),
    "int, bound; or None": (Annotated[int | None, bound], True),
    "int, bound, BeforeValidator": (Annotated[int, bound, before], True),
    "int, bound, BeforeValidator; or None": (Annotated[int, bound, before] | None, True),
    "int, BeforeValidator, bound": (Annotated[int, before, bound], False),
    "int, AfterValidator, bound": (Annotated[int, after, bound], False),
    "int, BeforeValidator; or None, bound": (Annotated[Annotated[int, before] | None, bound], False),
    "int, AfterValidator; or None, bound": (Annotated[Annotated[int, after] | None, bound], False),
}


def is_read(kind: TypeAdapter, value: object) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


print(*(f"{name} {version(name)}" for name in ("pydantic", "pydantic_core", "jsonschema")), sep=", ")
print("A number of at least 1. Expected: 0 is refused by the type and by its JSON schema.")
as_found = True
for name, (kind, is_right) in TYPES.items():
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    by_schema = Draft202012Validator(schema)
    assert is_read(adapter, 1) and by_schema.is_valid(1)
    refuses = not is_read(adapter, 0), not by_schema.is_valid(0)
    as_found = as_found and refuses == (True, is_right)
    said = ["refuses 0" if it else "takes 0" for it in refuses]
    print(f"  {name:38} type {said[0]}, schema {said[1]:9} {schema.get('anyOf', [schema])[0]}")
print("As found." if as_found else "CHANGED: look at this again.")
sys.exit(not as_found)
PY
"$work/venv/bin/python" "$work/finding.py"
