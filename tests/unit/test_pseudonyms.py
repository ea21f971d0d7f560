import re
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medtransfer.data.pseudonyms import Pseudonyms
from medtransfer.errors import DataError


@pytest.fixture
def names(tmp_path):
    return Pseudonyms(tmp_path / "deep" / "salt")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return Pseudonyms(tmp_path_factory.mktemp("shared") / "salt")


def test_a_name_is_the_start_of_the_keyed_hash(tmp_path):
    # RFC 4231, test case 3, of which the key is made as long as a secret has to be
    (tmp_path / "salt").write_bytes(b"\xaa" * 20 + b"\0" * 12)  # HMAC pads keys with zeros
    name = Pseudonyms(tmp_path / "salt").of("\udcdd" * 50)
    assert name == "773ea91e3680"


def test_names_are_equal_under_one_secret_and_different_under_two(tmp_path):
    first = Pseudonyms(tmp_path / "a").of("Müller^Eva")
    assert len(first) == 12
    assert set(first) <= set("0123456789abcdef")
    assert Pseudonyms(tmp_path / "a").of("Müller^Eva") == first
    assert Pseudonyms(tmp_path / "a").of("Müller^Ewa") != first
    assert Pseudonyms(tmp_path / "b").of("Müller^Eva") != first


def test_without_a_secret_all_stays_as_it_is():
    assert Pseudonyms(None).of("P1") == "P1"
    assert Pseudonyms(None).hide("P1/x.png", ["P1"], [(0, 2)]) == "P1/x.png"


def test_the_secret_is_made_once_a_name_is_asked_for_and_read_by_its_owner_only(names):
    assert names.hide("a/b.png", [""]) == "a/b.png"
    assert not names.salt.exists()
    names.of("P1")
    assert len(names.salt.read_bytes()) == 32
    assert stat.S_IMODE(names.salt.stat().st_mode) == 0o600


def test_those_who_ask_at_one_time_get_one_secret(tmp_path):
    found = set()
    start = threading.Barrier(8)

    def ask():
        start.wait()
        found.add(Pseudonyms(tmp_path / "salt").of("P1"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


def test_a_secret_that_can_be_guessed_is_refused(tmp_path):
    (tmp_path / "salt").write_bytes(b"secret")
    with pytest.raises(DataError, match=r"salt' has 6 bytes, and 32 are the least"):
        Pseudonyms(tmp_path / "salt").of("P1")


def test_a_secret_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/salt', .* cannot be used") as caught:
        Pseudonyms(tmp_path / "file" / "salt").of("P1")
    assert "dataset.salt" in caught.value.remedy


@pytest.mark.parametrize(
    ("path", "identifiers", "hidden"),
    [
        ("P1/x.png", ["P1"], "{P1}/x.png"),
        ("a/P1_CC.png", ["P1"], "a/{P1}_CC.png"),
        ("a/p1-left.P1.png", ["P1"], "a/{p1}-left.{P1}.png"),
        ("P10/P1a/xP1.png", ["P1"], "P10/P1a/xP1.png"),
        ("P1/P1-E2/x.png", ["P1", "P1-E2"], "{P1}/{P1-E2}/x.png"),
        ("a-b-c.png", ["a-b", "b-c"], "{a-b-c}.png"),
        ("É1/e.png", ["é1"], "{É1}/e.png"),
        ("İ/x/p1.png", ["p1"], "İ/x/{p1}.png"),
        ("1/11/1.png", ["1"], "{1}/11/{1}.png"),
        ("x.png", ["", "P1"], "x.png"),
    ],
)
def test_identifiers_are_replaced_where_they_stand_alone(shared, path, identifiers, hidden):
    expected = ""
    for part in hidden.split("{"):
        inner, found, rest = part.partition("}")
        expected += shared.of(inner) + rest if found else part
    assert shared.hide(path, identifiers) == expected


def test_what_a_pattern_has_found_is_replaced_wherever_it_stands(shared):
    path, name = "a/patient12_12.png", shared.of("12")
    assert shared.hide(path, ["12"], [(9, 11)]) == f"a/patient{name}_{name}.png"
    assert shared.hide(path, [], [(0, 0)]) == path


words = st.text("aAbB1/-_.é", max_size=12)


@given(one=words, other=words, identifier=words.filter(lambda text: any(map(str.isalnum, text))))
def test_two_paths_never_become_one_and_no_identifier_is_left(shared, one, other, identifier):
    hidden = shared.hide(one, [identifier])
    assert (hidden == shared.hide(other, [identifier])) == (one == other)
    alone = rf"(?<![^\W_]){re.escape(identifier)}(?![^\W_])"
    assert not re.search(alone, hidden, re.IGNORECASE)
