"""The report on two runs that should be the same."""

import json
from pathlib import Path

import pytest

from tasks.cli import differences
from tasks.cli.differences import Difference

HISTORY, METRICS = Path("reports/history.csv"), Path("reports/metrics.json")
TABLE = b"epoch,train/loss,valid/kl\n1,42.25,3.5\n2,40.0,4.5\n"


def metrics(**test: object) -> bytes:
    return json.dumps({"valid": {"elbo": 1.0}, "test": test}).encode()


@pytest.mark.parametrize(
    ("before", "after", "detail"),
    [
        (b"2,40.0,4.5", b"2,40.0,4.500000001", "1 of 4 numbers differ, first epoch 2, valid/kl: 4.5, here 4.500000001"),
        (b"2,40.0,4.5\n", b"", "2 of 4 numbers differ, first epoch 2, train/loss: 40.0, here None"),
        (b"valid/kl", b"valid/rate", "4 of 4 numbers differ, first epoch 1, valid/kl: 3.5, here None"),
        (b"\n", b"\r\n", "the same numbers, formatted differently"),
        (b"epoch", b"\xff", "damaged: "),
    ],
)
def test_the_first_epoch_and_column_that_differ_are_named(before: bytes, after: bytes, detail: str) -> None:
    found = differences.of_files(HISTORY, TABLE, TABLE.replace(before, after))
    assert not found.same and found.detail.startswith(detail)


@pytest.mark.parametrize(
    ("here", "detail"),
    [
        (metrics(elbo=101.0, kl=3.0, nll=None), "2 of 4 numbers differ, first test.elbo: 100.0, here 101.0"),
        (metrics(elbo=100.0, kl=2.0, nll=5.0), "1 of 4 numbers differ, first test.nll: None, here 5.0"),
        (metrics(elbo=100.0, kl=2.0, nll=None) + b"\n", "the same numbers, formatted differently"),
        (b"{", "damaged: "),
        (b"[]", "damaged: "),
    ],
)
def test_the_first_metric_that_differs_is_named(here: bytes, detail: str) -> None:
    found = differences.of_files(METRICS, metrics(elbo=100.0, kl=2.0, nll=None), here)
    assert not found.same and found.detail.startswith(detail)


def test_conditions_are_of_machine_and_code_and_only_those_that_differ() -> None:
    then = {"compute.threads": "2", "machine.cpu": "A", "version.numpy": "2.0", "verdict": "healthy"}
    here = {"compute.threads": "1", "machine.cpu": "A", "version.torch": "3", "verdict": "collapsed"}
    assert differences.of_conditions(then, here) == [
        Difference("compute.threads", "2", "1"),
        Difference("version.numpy", "2.0", "not recorded"),
        Difference("version.torch", "not recorded", "3"),
    ]


def test_an_evaluation_by_other_code_is_a_condition() -> None:
    same = {"git.commit": "a", "git.changed": "", "evaluated.git.commit": "a", "evaluated.git.changed": ""}
    assert differences.of_conditions(same, {}) == []
    other = {**same, "evaluated.git.commit": "b", "evaluated.git.changed": "params.yaml\nvae/report.py"}
    assert differences.of_conditions(other, {}) == [
        Difference("commit of the evaluation", "b", "a"),
        Difference("not committed at the evaluation", "params.yaml, vae/report.py", "nothing"),
    ]
    assert differences.of_conditions({"git.commit": "a"}, {}) == [], "it was never evaluated"


SAME, OTHER, UNKNOWN = Difference("a", "1", "1"), Difference("b", "1", "2", "why"), Difference("c", None, "3")


def test_identical_names_what_was_compared_and_what_was_not() -> None:
    assert list(differences.report([SAME], [])) == ["identical  bit for bit: a"]
    assert list(differences.report([SAME, UNKNOWN], [OTHER])) == [
        "not compared: the run did not record c",
        "identical  bit for bit: a",
    ]


def test_what_differs_is_a_table_with_the_reasons_that_it_may_have() -> None:
    lines = differences.report([SAME, OTHER], [Difference("compute.threads", "2", "1")])
    assert [line.split() for line in lines] == [
        ["differs", "the", "run", "here"],
        ["b", "1", "2", "why"],
        ["identical", "a"],
        ["possible", "reason", "the", "run", "here"],
        ["compute.threads", "2", "1"],
    ]
    assert list(differences.report([OTHER], []))[-1].endswith("the cause is unknown")
