from __future__ import annotations

import pytest

from rayjobs.errors import ConfigError
from rayjobs.serve.tokens import ADMIN, LABEL, READ, WRITE, tokens_of


def scopes(environment, token):
    holder = tokens_of(environment, required=True).holder(b"Bearer " + token)
    return holder and holder.scopes


def test_each_variable_grants_its_scopes():
    environment = {"RAYJOBS_TOKEN": "a", "RAYJOBS_READ_TOKENS": "b,c", "RAYJOBS_WRITE_TOKENS": "d", "RAYJOBS_ADMIN_TOKENS": " e , f"}
    assert scopes(environment, b"a") == scopes(environment, b"e") == scopes(environment, b"f") == {READ, LABEL, WRITE, ADMIN}
    assert scopes(environment, b"b") == scopes(environment, b"c") == {READ}
    assert scopes(environment, b"d") == {READ, LABEL, WRITE}


@pytest.mark.parametrize("shown", [b"Bearer x", b"Bearer ", b"", b"a", b"bearer a", b"Basic a", b"Bearer a ", b"Bearer  a", b"\xff\x00"])
def test_nothing_else_opens(shown):
    assert tokens_of({"RAYJOBS_TOKEN": "a"}, required=True).holder(shown) is None


def test_who_it_was_can_be_told_without_telling_the_token():
    holder = tokens_of({"RAYJOBS_TOKEN": "s3cret"}, required=True).holder(b"Bearer s3cret")
    assert len(holder.name) == 8
    assert "s3cret" not in repr(holder)
    assert "s3cret" not in repr(vars(tokens_of({"RAYJOBS_TOKEN": "s3cret"}, required=True)))


def test_a_required_token_must_be_there():
    assert tokens_of({}, required=False) is None
    with pytest.raises(ConfigError, match="none is set where it runs"):
        tokens_of({}, required=True)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("text", ["", " ", "a,,b", "a,"])
@pytest.mark.parametrize("variable", ["RAYJOBS_TOKEN", "RAYJOBS_READ_TOKENS"])
def test_an_empty_token_lets_nobody_in_by_accident(variable, text, required):
    with pytest.raises(ConfigError, match=f"{variable} is empty"):
        tokens_of({variable: text}, required=required)


def test_one_token_has_one_scope():
    with pytest.raises(ConfigError, match="stands in another variable"):
        tokens_of({"RAYJOBS_TOKEN": "a", "RAYJOBS_READ_TOKENS": "a"}, required=True)


def test_a_token_to_label_with_is_somebodys():
    environment = {"RAYJOBS_LABEL_TOKENS": "anna:t1, Ben O'Neill:t2:with:colons, anna:t3"}
    people = [tokens_of(environment, required=True).holder(b"Bearer " + token).person for token in (b"t1", b"t2:with:colons", b"t3")]
    assert people == ["anna", "Ben O'Neill", "anna"]
    assert scopes(environment, b"t1") == {READ, LABEL}
    assert scopes(environment, b"anna:t1") is None


@pytest.mark.parametrize("text", ["t1", "anna:", ":t1", "<b>:t1", "anna:t1,ben"])
def test_a_token_to_label_with_has_a_name(text):
    with pytest.raises(ConfigError, match="NAME:TOKEN") as refusal:
        tokens_of({"RAYJOBS_LABEL_TOKENS": text}, required=True)
    assert "t1" not in str(refusal.value)
