from __future__ import annotations

import re
from pathlib import Path

import pytest

import rayjobs.serve.page
from rayjobs.labels.events import PERSON_RULE, check_person

PAGE = (Path(rayjobs.serve.page.__file__).parent / "static" / "person.js").read_text()
NAMES = {"anna": True, "3rd ben": True, "Ängström": True, "李 @x": True, "a'b-c.d_e": True, "a" * 64: True}
OTHERS = {"": False, "_anna": False, " anna": False, "<b>": False, "@x": False, "a" * 65: False}


@pytest.mark.parametrize(("name", "may_be"), [*NAMES.items(), *OTHERS.items()])
def test_pages_and_service_have_one_rule_for_names(name, may_be):
    """A page takes the blanks from the ends itself."""
    pattern = re.search(r"pattern: String\.raw` \*([^`]*)`", PAGE)[1].replace(r"[\p{L}\p{N}]", r"[^\W_]").replace(r"\p{L}\p{N}_", r"\w")
    assert bool(re.fullmatch(pattern, name)) is may_be
    if may_be:
        assert check_person(name) == name
    else:
        with pytest.raises(ValueError, match=re.escape(PERSON_RULE)):
            check_person(name)


def test_pages_and_service_say_the_rule_alike():
    assert f'title: "{PERSON_RULE}"' in PAGE
