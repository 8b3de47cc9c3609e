"""Signatures: what is read, and that an error points at the character it is about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stowplan.errors import SignatureError
from stowplan.signature import parse_signature

names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
cores = st.lists(st.one_of(names, st.integers(1, 10**6)), max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "inputs", "outputs"),
    [
        ("()->()", [()], [()]),
        ("(n)->(n)", [("n",)], [("n",)]),
        ("(atoms,3),(k,3)->()", [("atoms", 3), ("k", 3)], [()]),
        (" ( atoms , 3 ) , (k,3)  ->  ( ) ", [("atoms", 3), ("k", 3)], [()]),
        ("(n,),(m,3,),->(n,),(),", [("n",), ("m", 3)], [("n",), ()]),
        ("(n,n)->()", [("n", "n")], [()]),
        ("(_a1,B)->(03)", [("_a1", "B")], [(3,)]),
        ("(a)\n->\t(b)", [("a",)], [("b",)]),
        ("(größe)->()", [("größe",)], [()]),
    ],
)
def test_a_signature_is_read_as_written(text, inputs, outputs):
    signature = parse_signature(text)
    assert signature.inputs == tuple(inputs)
    assert signature.outputs == tuple(outputs)
    assert signature.text == text


def test_dims_are_listed_once_in_order_of_appearance():
    signature = parse_signature("(b,a,3),(a,c)->(c,new),(b,other,new)")
    assert signature.dims == ("b", "a", "c")
    assert signature.new_dims == ("new", "other")


@given(st.lists(cores, min_size=1, max_size=4), st.lists(cores, min_size=1, max_size=3), st.data())
def test_spaces_and_trailing_commas_never_change_the_meaning(inputs, outputs, data):
    def write(shapes):
        tokens = []
        for shape in shapes:
            tokens += ["(", *(part for dim in shape for part in (str(dim), ",")), ")", ","]
            if shape and data.draw(st.booleans()):
                del tokens[-3]  # the comma after the last dim
        return tokens if data.draw(st.booleans()) else tokens[:-1]

    space = st.sampled_from(["", " ", "  "])
    tokens = [*write(inputs), "->", *write(outputs)]
    signature = parse_signature("".join(data.draw(space) + token for token in tokens))
    assert signature.inputs == tuple(inputs)
    assert signature.outputs == tuple(outputs)


@pytest.mark.parametrize(
    ("text", "character", "reason"),
    [
        ("", 0, "at least one input"),
        ("   ", 0, "at least one input"),
        ("->()", 0, "at least one input"),
        ("n->()", 0, "at least one input"),
        (",(n)->()", 0, "at least one input"),
        ("(n)", 3, "expected '->'"),
        ("(n),(m)", 7, "expected '->'"),
        ("(n)(m)->()", 3, "expected '->'"),
        ("(n),,(m)->()", 4, "expected '->'"),
        ("(n) - >()", 4, "expected '->'"),
        ("(n)->", 5, "at least one output"),
        ("(n)->(),x", 8, "end of the signature"),
        ("(n)->()->()", 7, "end of the signature"),
        ("(n)->() (m)", 8, "end of the signature"),
        ("(n))->()", 3, "expected '->'"),
        ("(2n)->()", 1, "a dim is a name"),
        ("(k, 2n)->()", 4, "a dim is a name"),
        ("(3_)->()", 1, "a dim is a name"),
        ("(0)->()", 1, "a dim is a name"),
        ("(n, 00)->()", 4, "a dim is a name"),
        ("(-1)->()", 1, "a dim is a name"),
        ("(n?)->()", 2, "expected ')'"),
        ("(?)->()", 1, "a dim is a name"),
        ("(,n)->()", 1, "a dim is a name"),
        ("(n,,m)->()", 3, "a dim is a name"),
        ("(n m)->()", 3, "expected ')'"),
        ("(1.5)->()", 2, "expected ')'"),
        ("(n*m)->()", 2, "expected ')'"),
        ("((n))->()", 1, "a dim is a name"),
        ("(n,3->()", 4, "expected ')'"),
        ("(", 1, "a dim is a name"),
        ("(n", 2, "expected ')'"),
        ("(n)->(", 6, "a dim is a name"),
    ],
)
def test_an_error_points_at_the_character(text, character, reason):
    with pytest.raises(SignatureError) as caught:
        parse_signature(text)
    message = str(caught.value)
    assert reason in message
    shown = character + len(text[character:]) - len(text[character:].lstrip())
    assert f"at character {shown}:" in message
    _, shown_text, caret, cure = message.split("\n")
    assert shown_text == "  " + text
    assert caret == "  " + " " * shown + "^"
    assert "(atoms,3),(k,3)->(),(atoms,3)" in cure


@given(st.text("(n3),->? ", max_size=12))
def test_any_text_is_a_signature_or_a_signature_error(text):
    try:
        signature = parse_signature(text)
    except SignatureError:
        return
    canonical = "->".join(
        ",".join(f"({','.join(map(str, shape))})" for shape in shapes)
        for shapes in (signature.inputs, signature.outputs)
    )
    plain = text.replace(" ", "").replace(",)", ")").replace(",->", "->").removesuffix(",")
    assert canonical == plain
