import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from medtransfer import secrets
from medtransfer.secrets import HIDDEN, printable, redact, redacted, remember, watch_environment


@pytest.fixture(autouse=True)
def remembered(monkeypatch):
    found = set()
    monkeypatch.setattr(secrets, "_remembered", found)
    watch_environment()
    return found


def resolved(text, **variables):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        return OmegaConf.to_container(OmegaConf.create({"a": text}), resolve=True)["a"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:a/b@c:d@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:it's@host/db", "postgresql://me:***@host/db"),
        ("https://TOKEN@host/x", "https://***@host/x"),
        ("https://ghp_0123456789abcdefghij:x@host", "https://***:***@host"),
        ("http://host/x?token=abc&y=1", "http://host/x?token=***&y=1"),
        ("mysql://host/db?user=me&password=abc#f", "mysql://host/db?user=me&password=***#f"),
        ("mssql+pyodbc:///?odbc_connect=PWD%3Dabc", "mssql+pyodbc:///?odbc_connect=***"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("{'uri': 'http://host:50', 'mail': 'a@b'}", "{'uri': 'http://host:50', 'mail': 'a@b'}"),
        ("sqlite:////a:b/c@d.db", "sqlite:////a:b/c@d.db"),
    ],
)
def test_secrets_of_uris_are_hidden_and_nothing_else(text, expected):
    assert redact(text) == expected


def test_what_a_configuration_takes_from_the_environment_is_hidden_from_then_on():
    assert redact("the value is hunter22") == "the value is hunter22"
    assert resolved("${oc.env:VAULT}", VAULT="hunter22") == "hunter22"
    assert redact("the value is hunter22!") == f"the value is {HIDDEN}!"


@pytest.mark.parametrize("name", ["MEDTRANSFER_HOME", "HOME", "SLURM_JOB_ID"])
def test_variables_that_are_places_are_shown(name, remembered):
    resolved(f"${{oc.env:{name}}}", **{name: "somewhere"})
    assert not remembered


def test_a_path_that_is_there_is_a_place(tmp_path, remembered):
    resolved("${oc.env:DATA}", DATA=str(tmp_path))
    assert not remembered


def test_short_values_are_shown_and_words_are_hidden_as_a_whole_only():
    resolved("${oc.env:A} ${oc.env:B}", A="yes", B="auto")
    assert redact("yes auto automatic") == f"yes {HIDDEN} automatic"


def test_each_line_of_a_value_is_hidden():
    remember("-----BEGIN KEY-----\nabcdefghijk\n")
    assert redact("he said abcdefghijk") == f"he said {HIDDEN}"


@given(st.text(min_size=8), st.text(max_size=5))
def test_a_remembered_value_is_nowhere_in_what_is_written_of_it(value, around):
    remember(value)
    values = {"x": [around + value], value: (value, 1, None)}
    for text in (redact(value), json.dumps(redacted(values)), repr(redacted(values))):
        assert value not in text.replace(HIDDEN, "\0")
    assert redact(json.dumps(value)) == f'"{HIDDEN}"' or value.strip() != value


@pytest.mark.parametrize("variables", [{}, {"VAULT": "x"}, {"VAULT": ""}])
@pytest.mark.parametrize("default", ["", ",null", ",'a b'", ",3", ",${b}"])
def test_the_resolver_does_what_the_one_of_omegaconf_does(variables, default):
    def outcome(text):
        try:
            return resolved(text, **variables)
        except OmegaConfBaseException as error:
            return str(error).replace("usual.env", "oc.env")

    OmegaConf.register_new_resolver("usual.env", oc.env, replace=True)
    assert outcome(f"${{oc.env:VAULT{default}}}") == outcome(f"${{usual.env:VAULT{default}}}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, and ünïcode 漢\n\tx", "plain, and ünïcode 漢\n\tx"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\x9b31m\x07\r\x00", "\\x9b31m\\x07\\r\\x00"),
        ("a\u202eb\u2066c\u2028d", "a\\u202eb\\u2066c\\u2028d"),
        ("\udc80", "\\udc80"),
    ],
)
def test_a_text_cannot_act_on_a_terminal(text, expected):
    assert printable(text) == expected
