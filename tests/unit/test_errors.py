import pickle

import pytest

from medtransfer.errors import (
    CertificateError,
    ConfigError,
    DivergedError,
    ExportError,
    LaunchError,
    LeakageError,
    MedtransferError,
    ParallelError,
    StoreError,
    TooLargeError,
    UndeliveredError,
    nearest,
)

FAMILY = [MedtransferError, *MedtransferError.__subclasses__(), *StoreError.__subclasses__()]


def test_a_message_holds_problem_nearest_choices_and_remedy():
    error = ConfigError(
        "backbone 'resnt18' is unknown",
        value="resnt18",
        choices=("resnet18", "vit"),
        remedy="medtransfer list backbone",
    )
    assert str(error) == (
        "backbone 'resnt18' is unknown; did you mean 'resnet18'?\n"
        "  choices: resnet18, vit\n"
        "  remedy:  medtransfer list backbone"
    )


def test_a_message_leaves_out_what_it_does_not_know():
    assert str(ConfigError("no")) == "no"
    assert str(ConfigError("no", value="zzz", choices=["abc"])) == "no\n  choices: abc"


@pytest.mark.parametrize("cls", FAMILY)
def test_every_error_of_the_family_survives_the_way_between_processes(cls):
    error = cls("problem", value="a", choices=("ab",), remedy="do it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert (copy.problem, copy.choices, copy.remedy) == ("problem", ("ab",), "do it")


@pytest.mark.parametrize("cls", FAMILY)
def test_only_leakage_and_what_a_trial_runs_into_have_exit_codes_of_their_own(cls):
    assert issubclass(cls, MedtransferError)
    ran_into = {CertificateError, DivergedError, LaunchError, ParallelError, TooLargeError}
    own = {LeakageError: 3} | dict.fromkeys({*ran_into, UndeliveredError, ExportError}, 1)
    assert cls("x").exit_code == own.get(cls, 2)


@pytest.mark.parametrize(
    ("value", "expected"), [("resnt18", "resnet18"), ("RESNET", None), ("", None)]
)
def test_the_nearest_choice_is_near(value, expected):
    assert nearest(value, ["resnet18", "vit_small"]) == expected
