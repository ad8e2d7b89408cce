"""What is no JSON schema is refused by its place; what a schema may be, JSON Schema's own rules agree."""

import pytest
from jsonschema import Draft202012Validator, SchemaError

from seodang.data.errors import UserError
from seodang.infer.parsing.tool_schema import MOST_DEEP, check_schema

NESTED = {"type": ["string", "null"]}
for _ in range(MOST_DEEP - 1):
    NESTED = {"anyOf": [NESTED]}
GOOD = {
    "type": "object", "required": ["a"], "$defs": {"x": {"enum": [1, None, {}]}}, "additionalProperties": False,
    "properties": {"a": {"$ref": "#/$defs/x"}, "type": {"type": "string"}, "items": True, "b": {"type": "array", "items": {"type": "integer"}}},
}  # fmt: skip


@pytest.mark.parametrize("schema", [{}, True, GOOD, NESTED], ids=lambda value: None)
def test_schemas_pass(schema):
    Draft202012Validator.check_schema(schema)
    check_schema(schema, "parameters")


@pytest.mark.parametrize(
    "schema, message",
    [
        (5, "parameters must be a JSON schema, got 5"), ({"properties": [1]}, "parameters.properties must be an object, got [1]"),
        ({"properties": {"a": None}}, "parameters.properties.a must be a JSON schema, got None"), ({"enum": 5}, "parameters.enum must be a list, got 5"),
        ({"required": "a"}, "parameters.required must be a list, got 'a'"), ({"required": [[1]]}, "parameters.required must be a list of texts"),
        ({"type": 5}, "parameters.type must be a text or a list, got 5"), ({"type": [["a"]]}, "parameters.type must be a list of texts"),
        ({"anyOf": [{"oneOf": {}}]}, "parameters.anyOf[0].oneOf must be a list, got {}"), ({"items": 5}, "parameters.items must be a JSON schema"),
        ({"additionalProperties": "no"}, "parameters.additionalProperties must be a JSON schema"), ({"$ref": 5}, "parameters.$ref must be a text, got 5"),
        ({"$defs": {"x": {"allOf": [5]}}}, "parameters.$defs.x.allOf[0] must be a JSON schema, got 5"),
    ],
    ids=lambda value: None,
)  # fmt: skip
def test_what_is_none_is_named_with_its_place(schema, message):
    with pytest.raises(SchemaError):
        Draft202012Validator.check_schema(schema)
    with pytest.raises(UserError) as error:
        check_schema(schema, "parameters")
    assert str(error.value).startswith(message)


def test_too_many_in_one_another():
    with pytest.raises(UserError, match="more than 64 schemas in one another"):
        check_schema({"anyOf": [NESTED]}, "parameters")
