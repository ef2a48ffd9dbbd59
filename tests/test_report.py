"""The report and its pictures, from a workspace of tiny files to one page."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from tasks import evaluate, workspace
from vae import mixture, parameters, report, saved
from vae.devices import Compute
from vae.errors import InputError
from vae.facts import Facts, Origin
from vae.history import HISTORY
from vae.model import VAE
from vae.objective import Likelihood

CPU = Compute(torch.device("cpu"), "fp32")
COUNTS = {"train": 40, "valid": 12, "test": 13}
NASTY_CLASS, NASTY_FILE = "<script>alert(1)</script>", '<img src=x onerror="alert(2)">\n.png'
LATENTS = 5


def parameters_of(path: str = "photos") -> dict:
    return {
        "seed": 0,
        "data": {
            "source": "folder", "path": path, "image_size": [8, 12], "channels": 3,
            "valid_fraction": 0.1, "test_fraction": 0.1, "max_bad_fraction": 0.5,
        },
        "model": {"architecture": "conv", "latent_dim": LATENTS, "widths": [4], "batch_norm": True},
        "objective": {"likelihood": "gaussian", "sigma": "optimal", "reduction": "sum"},
        "kl": {"schedule": "linear", "max_weight": 1.0, "annealing_epochs": 2},
        "train": {"epochs": 6, "batch_size": 8, "learning_rate": 0.001},
        "monitor": {},
        "evaluate": {"importance_samples": 3, "register_as": "vae"},
    }  # fmt: skip


def make_workspace(
    folder: Path, labelled: bool = True, epochs: int = 6, verdict: str = "healthy", path: str = "photos"
) -> None:
    """Every file that evaluate reads."""
    random = np.random.default_rng(0)
    (folder / "data/images").mkdir(parents=True)
    (folder / "reports").mkdir()
    YAML().dump(parameters_of(path), folder / "params.yaml")
    rows = []
    for split, count in COUNTS.items():
        np.save(
            folder / f"data/images/{split}.npy", random.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
        )
        rows += [
            {"path": f"{split}/{i}.png", "split": split, "label": (NASTY_CLASS, "$x^ _b")[i % 2] if labelled else None,
             "index": i, "status": "ok", "reason": None}
            for i in range(count)
        ]  # fmt: skip
    rows += [{"path": f"{i}{NASTY_FILE}", "status": "quarantined", "reason": "no image"} for i in range(60)]
    pd.DataFrame(rows).astype({"index": "Int64"}).to_parquet(folder / "data/manifest.parquet")

    torch.manual_seed(0)
    p = parameters.load(folder / "params.yaml")
    model = VAE(p.data.image_shape, "conv", LATENTS, [4], True)
    if verdict == "collapsed":
        with torch.no_grad():
            model.posterior.weight.zero_()
    if verdict == "diverged":
        with torch.no_grad():
            model.posterior.weight.fill_(math.nan)
    saved.save(
        folder / "models/vae", model, p.model.model_dump(), p.data.image_shape,
        Likelihood("gaussian", 0.2), {}, "fp32", epochs, None, {},
    )  # fmt: skip
    values = 100 / np.arange(1, epochs + 1)
    history = pd.DataFrame(dict.fromkeys(HISTORY, values))
    history["epoch"] = np.arange(1, epochs + 1)
    if verdict == "diverged":
        history.loc[epochs - 1, history.columns[3:]] = math.nan
    history.to_csv(folder / "reports/history.csv", index=False)
    latents = pd.DataFrame(random.exponential(size=(epochs, LATENTS))).add_prefix("z")
    if verdict == "diverged":
        latents.iloc[-1] = math.nan
    latents.insert(0, "epoch", history["epoch"])
    latents.to_csv(folder / "reports/kl_per_latent.csv", index=False)
    advice = [] if verdict == "healthy" else ["set kl.max_weight to 0.01"]
    monitor = {
        "verdict": verdict,
        "summary": "All of it & more.",
        "reasons": ["a < b"],
        "recommendations": advice,
    }
    for name, content in (
        ("monitor", monitor),
        ("preflight", {"predicted_kl": 3.5, "predicted_active_units": 2, "critical_kl_weight": 32.0,
                       "collapse_kl_weight": 20.0, "eigenvalues": [3.0, 2.0, 1.0, 0.5, 0.2],
                       "eigenvalue_sum": 9.0, "images": 40, "kl_per_latent": [2.5, 1.0, 0, 0, 0],
                       "warnings": ["close to the edge"]}),
        ("validation", {"passed": True, "rules": [
            {"name": "bad_file", "severity": "warning", "count": 60, "checks": "none",
             "examples": [{"file": NASTY_FILE, "split": "", "value": "no image"}]},
            {"name": "leakage", "severity": "error", "count": 0}]}),
    ):  # fmt: skip
        (folder / f"reports/{name}.json").write_text(json.dumps(content))


def facts_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.chdir(folder)
    p = parameters.load(workspace.PARAMS)
    model = saved.load(workspace.MODEL)
    facts, _ = evaluate.evaluate(p, model, CPU, workspace.read_json(workspace.MONITOR))
    return facts


class Page(HTMLParser):
    """What a browser would make of it: tags, where they point, and the text."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.script = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.script += data
        elif self._open and self._open[-1] != "style":
            self.text += data


def test_the_report_tells_all_and_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    facts = facts_of(tmp_path, monkeypatch)
    html = report.html(facts)
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if name in {"src", "srcset", "data"}]
    assert len(sources) == 5  # three grids of reconstructions, samples, traversals
    for source in sources:
        assert source and source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1], validate=True).startswith(b"\x89PNG")
    for tag, name, value in page.attributes:
        if name.split(":")[-1] == "href" and tag != "image":
            assert value and value.startswith("#"), (tag, value)
    assert html.count("url(") == html.count("url(#") + html.count("url(data:image/jpeg;base64,")
    addresses = set(re.findall(r"https?://[^\s\"'<]+", html))
    assert addresses == {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, not places
    assert not {"link", "iframe", "object", "base", "form"} & set(page.tags)
    assert page.tags.count("svg") == 5  # curves, heat map, expected KL, KL per latent, and the latent map
    assert page.text.index("Healthy") < page.text.index("Key numbers") < page.text.index("kl.max_weight")
    for expected in (
        "All of it & more.",
        "a < b",
        "close to the edge",
        "kl.max_weight",
        facts.hashes["test images"],
    ):
        assert expected in page.text
    for name in parameters.KL.model_fields:
        assert f"kl.{name}" in page.text
    assert "… and 10 more" in page.text  # of 60 quarantined files, 50 are named


def test_what_remedies_did_is_told_with_the_fitted_prior_before_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(tmp_path)
    plain = Page(report.html(facts_of(tmp_path, monkeypatch)))
    assert "Remedies" not in plain.text and "fitted prior" not in plain.text

    read = saved.load(Path("models/vae"))
    mu = np.random.default_rng(0).normal(size=(60, LATENTS)).astype(np.float32)
    prior = mixture.fit(mu, np.zeros_like(mu), seed=0)
    p = parameters.load(workspace.PARAMS)
    changes = {"kl.max_weight": 0.123}
    saved.save(
        Path("models/vae"), read.model, p.model.model_dump(), p.data.image_shape, read.likelihood, {},
        "fp32", 6, None, {}, changes=changes, prior=prior,
    )  # fmt: skip
    path = workspace.MONITOR
    told = {
        "remedies": ["attempt 0 was <collapsed>: a & b. Then: kl.max_weight = 0.123"],
        "fitted_prior": True,
    }
    path.write_text(json.dumps(workspace.read_json(path) | told | {"changes": changes}))
    facts = facts_of(tmp_path, monkeypatch)
    test = facts.metrics["test"]
    text = Page(report.html(facts)).text
    assert "Remedies" in text and "attempt 0 was <collapsed>: a & b." in text
    for name in ("kl", "fitted_prior_kl", "elbo", "fitted_prior_elbo", "mmd", "fitted_prior_mmd"):
        assert test[name] is not None and report.number(test[name]) in text, name
    assert test["fitted_prior_elbo"] == pytest.approx(
        -test["reconstruction"] - test["fitted_prior_kl"], rel=1e-5
    )
    assert "the mixture fitted to the latents" in text


def test_what_a_user_named_is_shown_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    page = Page(report.html(facts_of(tmp_path, monkeypatch)))
    assert NASTY_CLASS in page.text
    assert NASTY_FILE.replace("\n", r"\n") in page.text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    policy = next(
        v for t, n, v in page.attributes if (t, n) == ("meta", "content") and v and "default-src" in v
    )
    assert page.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_report_repeats_to_the_bit_and_names_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = []
    for name in ("here", "elsewhere"):
        make_workspace(tmp_path / name, path=str(tmp_path / "photos"))
        pages.append(report.html(facts_of(tmp_path / name, monkeypatch)))
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0] and "…/photos" in pages[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("verdict", ["healthy", "collapsed", "diverged"])
@pytest.mark.parametrize(("labelled", "epochs"), [(True, 30), (False, 1)])
def test_every_case_has_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, labelled: bool, epochs: int
) -> None:
    make_workspace(tmp_path, labelled=labelled, epochs=epochs, verdict=verdict)
    facts = facts_of(tmp_path, monkeypatch)
    page = Page(report.html(facts))
    json.dumps(facts.metrics, allow_nan=False)
    assert ("nan" in page.text) is False
    assert ("No classes." in page.text) is not labelled
    assert ("set kl.max_weight to 0.01" in page.text) is (verdict != "healthy")
    level = {"healthy": "good", "collapsed": "bad", "diverged": "bad"}[verdict]
    assert ("div", "class", f"verdict {level}") in page.attributes
    assert (facts.metrics["test"]["kl"] is None) is (verdict == "diverged")
    if verdict == "collapsed":
        assert facts.metrics["test"]["active_units"] == 0


def test_only_the_copy_of_a_run_tells_of_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    facts = facts_of(tmp_path, monkeypatch)
    test = facts.metrics["test"]
    address = "http://127.0.0.1:5000/#/x?a=1&b=2"
    theirs = {"elbo": test["elbo"] - 2, "mse": test["mse"] / 2, "kl": test["kl"] + 1, "psnr": None}
    origin = Origin(
        [("MLflow run", "grave-<b>", address), ("Git commit", "abc123", None)],
        "would be promoted: it is better",
        ("the champion, version 3", theirs),
    )
    html = report.html(facts, origin)
    page = Page(html)
    assert ("a", "href", address) in page.attributes
    for expected in (
        "grave-<b>",
        "abc123",
        "would be promoted: it is better.",
        "the champion, version 3",
        "+2 better",
        "worse",
    ):
        assert expected in page.text
    assert "PSNR, dB" not in page.text  # the champion has none
    plain = Page(report.html(facts))
    assert "Against the champion" not in plain.text and "the champion" in plain.text  # where it is found
    assert address not in plain.text
    alone = Page(report.html(facts, Origin([])))
    assert "There is no other champion to compare with." in alone.text


def test_the_summary_is_the_verdict_and_few_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path, labelled=False)
    facts = facts_of(tmp_path, monkeypatch)
    summary = evaluate.summary(facts)
    assert summary["verdict"] == "healthy" and len(summary) <= 10
    assert summary["probe_accuracy"] is None and summary["kl"] == facts.metrics["test"]["kl"]


def test_latents_are_ranked_for_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    p = parameters.load(workspace.PARAMS)
    facts, table = evaluate.evaluate(
        p, saved.load(workspace.MODEL), CPU, workspace.read_json(workspace.MONITOR)
    )
    assert sorted(table["latent"]) == list(range(LATENTS))
    assert table["kl"].is_monotonic_decreasing
    assert table["kl"].sum() == pytest.approx(facts.metrics["test"]["kl"], rel=1e-4)


def test_a_manifest_of_other_images_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    np.save(tmp_path / "data/images/test.npy", np.zeros((3, 8, 12, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"13 test images, data/images/test\.npy has 3"):
        facts_of(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (math.nan, "–"),
        (12345, "12,345"),
        (-39338.4, "−39,338"),
        (0.0033319, "0.003332"),
        (0.0, "0"),
    ],
)
def test_numbers_are_written_for_reading(value: float | None, text: str) -> None:
    assert report.number(value) == text
