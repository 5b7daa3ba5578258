#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0
"""Usage: schema.py SCHEMA DEFINITION FILE
Checks JSON documents, one in all or one a line, against a definition of a JSON Schema. Knows the
few keywords that ours has, and refuses others."""
import json
import re
import sys

KNOWN = {"$ref", "type", "properties", "required", "additionalProperties", "items", "enum",
         "pattern", "minimum", "description", "const"}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def is_type(value, name):
    if name in ("integer", "number"):
        kinds = int if name == "integer" else (int, float)
        return isinstance(value, kinds) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def check(root, schema, value, where):
    unknown = set(schema) - KNOWN
    if unknown:
        raise SystemExit(f"schema.py does not know {unknown}")
    if "$ref" in schema:
        yield from check(root, root["$defs"][schema["$ref"].rsplit("/", 1)[1]], value, where)
    types = schema.get("type")
    if types is not None:
        types = types if isinstance(types, list) else [types]
        if not any(is_type(value, name) for name in types):
            yield f"{where}: {value!r} is no {' or '.join(types)}"
            return
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} is not like {schema['pattern']}"
    if "minimum" in schema and is_type(value, "number") and value < schema["minimum"]:
        yield f"{where}: {value} is less than {schema['minimum']}"
    if isinstance(value, dict):
        for name in schema.get("required", []):
            if name not in value:
                yield f"{where}: there is no {name}"
        for name, inner in value.items():
            own = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            if own is False:
                yield f"{where}: {name} is not known"
            elif own is not True:
                yield from check(root, own, inner, f"{where}.{name}")
    if isinstance(value, list) and "items" in schema:
        for i, inner in enumerate(value):
            yield from check(root, schema["items"], inner, f"{where}[{i}]")


def main():
    schema_file, definition, file = sys.argv[1:]
    with open(schema_file, encoding="utf-8") as f:
        root = json.load(f)
    with open(file, encoding="utf-8") as f:
        text = f.read()
    try:
        documents = [json.loads(text)]
    except json.JSONDecodeError:
        documents = [json.loads(line) for line in text.splitlines()]
    wrong = [w for i, d in enumerate(documents)
             for w in check(root, root["$defs"][definition], d, f"document {i}")]
    print("\n".join(wrong) or f"{len(documents)} documents are valid")
    sys.exit(1 if wrong or not documents else 0)


main()
