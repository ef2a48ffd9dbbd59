"""The report and its pictures, from a workspace of tiny files to one page."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.reports import CPU, LATENTS, NASTY_CLASS, NASTY_FILE, facts_of, make_workspace

from tasks import evaluate, workspace
from vae.config import parameters
from vae.config.errors import InputError
from vae.models import mixture_prior, saved
from vae.report import page as report
from vae.report.facts import Origin


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
    prior = mixture_prior.fit(mu, np.zeros_like(mu), seed=0)
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
    facts, table = evaluate.gather(
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
