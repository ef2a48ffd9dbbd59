"""What a flow run says of its results: the closing lines and the command that they suggest."""

import logging
import shlex
from pathlib import Path
from typing import Any

import pytest

from flows import artifacts, vae_train
from tasks import overlay, workspace

REMEDY = {"model.widths": [16, 32], "kl.max_weight": 0.00066, "kl.annealing_steps": None, "objective.sigma": "optimal"}
SETTINGS = [
    "",
    "kl.max_weight=100 train.epochs=7",
    "data.path='my photos/été' train.batch_size=8",
    "data.path='a \"b\" $c `d` \\ !e' model.widths='[1, 2]'",
    'data.path="it\'s here"',
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("remedy", [REMEDY, {"train.epochs": 240}])
def test_the_suggested_command_keeps_the_settings_and_sets_the_remedy(settings: str, remedy: dict[str, Any]) -> None:
    make, run, experiment, assignment = shlex.split(artifacts.command("leaves", settings, remedy))
    assert (make, run, experiment) == ("make", "run", "EXPERIMENT=leaves")
    name, _, value = assignment.partition("=")
    assert name == "SET"
    assert overlay.parse_settings(value) == overlay.parse_settings(settings) | remedy
    assert "EXPERIMENT" not in artifacts.command("", settings, remedy)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Reports of a collapsed model; returns monitor.json, to change and to write anew."""
    monkeypatch.chdir(tmp_path)
    monitor = {
        "verdict": "collapsed", "summary": "KL of 0.01 nats.", "reasons": ["r"], "warnings": ["few images"],
        "recommendations": ["set model.widths to [16, 32]"], "remedy": {"model.widths": [16, 32]},
        "remedies": [], "kept_epoch": 3, "elbo": 1.5, "predicted_kl": None, "prior": "N(0, I)", "stopped": None,
    }  # fmt: skip
    test = {number.key: 1.0 for number in artifacts.KEY_NUMBERS}
    workspace.write_json(workspace.MONITOR, monitor)
    workspace.write_json(workspace.METRICS, {"test": test})
    return monitor


def test_the_closing_lines_end_with_what_to_do(results: dict[str, Any]) -> None:
    lines = artifacts.closing([("MLflow run x", "http://m/1")], "", "seed=3", "http://p/2").splitlines()
    assert lines[1:5] == [
        "verdict    collapsed: KL of 0.01 nats.",
        "           set model.widths to [16, 32]",
        "           try: make run SET=\"seed=3 'model.widths=[16, 32]'\"",
        "warning    few images",
    ]
    assert lines[5].startswith("test       ELBO 1   KL 1   active units 1")
    assert lines[6] == f"report     {Path('reports/report.html').absolute()}"
    assert "http://m/1 (MLflow)" in lines[7] and "http://p/2 (Prefect)" in lines[7]

    results |= {"remedy": {}, "recommendations": [], "remedies": ["attempt 0", "attempt 1"]}
    workspace.write_json(workspace.MONITOR, results)
    text = artifacts.closing([], "", "", None)
    assert "remedied   attempt 0\nremedied   attempt 1\n" in text and "try:" not in text


def test_the_tables_hold_verdict_numbers_and_broken_rules(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda rows, key, description: tables.update({key: rows}))
    artifacts.verdict()
    rows = [(row["what"], row["value"]) for row in tables["monitor"]]
    assert ("recommendation", "set model.widths to [16, 32]") in rows
    assert rows[-2:] == [("kept epoch", "3"), ("elbo", "1.5")]

    artifacts.validation()
    workspace.VALIDATION_FAILURES.write_text("rule,path\n")
    artifacts.validation()
    assert "validation" not in tables
    workspace.VALIDATION_FAILURES.write_text("rule,path\n" + "r,p\n" * 300)
    artifacts.validation()
    assert len(tables["validation"]) == artifacts.MOST_ROWS


def test_pictures_are_embedded_only_while_they_are_small(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "![" not in artifacts.summary([])
    artifacts.RECONSTRUCTIONS.parent.mkdir()
    artifacts.RECONSTRUCTIONS.write_bytes(b"abc")
    assert "](data:image/png;base64,YWJj)" in artifacts.summary([])
    monkeypatch.setattr(artifacts, "MOST_BYTES", 2)
    assert "![" not in artifacts.summary([])


def test_the_prediction_is_shown_with_its_curve_and_the_weight_of_a_wish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    workspace.PARAMS.write_text("kl: {max_weight: {rate: 20}}\n")
    found = {
        "predicted_by": "the pilot", "predicted_kl": 20.0, "predicted_mse": 0.01, "kl_weight": 5.5,
        "asked_kl_weight": "{rate: 20}", "collapse_kl_weight": 26.5, "calibrated_kl_weight": 1.0,
        "warnings": ["close to the edge"], "latent_dims": {"advice": "12 would do"},
        "pilot": {"pictures": [
            {"kl_weight": 7.9, "rate": 17.1, "distortion": 0.09, "sample_recall": 0.31, "sample_frechet": None},
        ]},
    }  # fmt: skip
    workspace.write_json(workspace.PREFLIGHT, found)
    for picture in workspace.PICTURES:
        picture.write_bytes(b"abc")
    pages: dict[str, str] = {}
    monkeypatch.setattr(artifacts, "create_markdown_artifact", lambda text, key, description: pages.update({key: text}))
    artifacts.curve()
    text = pages["curve"]
    assert "{rate: 20\\} has become 5.5." in text
    assert "the pilot predicts a KL of 20 nats per image and a root mean squared error of 0.1 a pixel." in text
    assert "begins at a KL weight of 26.5" in text and "KL weight of 1 the loss is the ELBO" in text
    assert (
        "- How many latents: 12 would do.\n- close to the edge" in text
        and "| 1 | 7.9 | 17.1 | 0.09 | 0.31 | – |" in text
    )
    assert text.count("](data:image/png;base64,YWJj)") == 2

    workspace.PARAMS.write_text("kl: {max_weight: 0.0}\n")
    linear = {"predicted_kl": None, "predicted_mse": None, "kl_weight": 0.0, "asked_kl_weight": "0", "pilot": None}
    workspace.write_json(workspace.PREFLIGHT, found | linear | {"collapse_kl_weight": 0.0})
    text = artifacts.prediction()
    assert "an unbounded KL per image." in text and "No KL weight leaves more than 1 nat" in text
    assert "has become" not in text and text.count("](data:") == 1 and "| row |" not in text


def test_a_stage_s_line_is_logged_at_the_level_that_it_begins_with(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for line in ("warning: a: b", "error: c", "verdict: healthy", "warning", ""):
        vae_train.logged(logging.getLogger("x"), line)
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [
        ("WARNING", "a: b"), ("ERROR", "c"), ("INFO", "verdict: healthy"), ("INFO", "warning"), ("INFO", ""),
    ]  # fmt: skip
