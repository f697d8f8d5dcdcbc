"""Templates are data: plain fields only, and clear words about everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.template import Template


def test_fields_are_replaced_and_doubled_braces_are_braces() -> None:
    template = Template.parse('{{"text": "{text}", "by": "{the author}"}} {text}')
    assert template.columns == ("text", "the author")
    assert template.fill({"text": "a{b}c", "the author": "{text}"}) == (
        '{"text": "a{b}c", "by": "{text}"} a{b}c'
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a { b", "single '{' at character 3"),
        ("{a} }", "single '}' at character 5"),
        ("{a{b}}", "single '{' at character 1"),
        ("x {} y", "empty field at character 3"),
        ("no fields", "no {column} field"),
        ("{{a}}", "no {column} field"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, part: str) -> None:
    with pytest.raises(ValueError, match=r"template has") as caught:
        Template.parse(text)
    assert part in str(caught.value)


@pytest.mark.parametrize("text", ["{a.__class__}", "{0}", "{a[0]}", "{a!r}", "{a:>10}"])
def test_nothing_is_evaluated(text: str) -> None:
    """What a format string would evaluate is the name of a column, however odd."""
    assert Template.parse(text).columns == (text[1:-1],)


@given(st.text(alphabet="{}ab.!:[]0\n ", max_size=30))
def test_any_text_is_a_template_or_a_clear_error(text: str) -> None:
    try:
        template = Template.parse(text)
    except ValueError as error:
        assert str(error).startswith("the template has")
        assert "\n" not in str(error)
    else:
        filled = template.fill(dict.fromkeys(template.columns, "{x}"))
        assert filled.count("{x}") >= len(template.fields)


@given(st.text(), st.text())
def test_literal_text_survives_doubling(text: str, value: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert Template.parse(doubled + "{v}").fill({"v": value}) == text + value
