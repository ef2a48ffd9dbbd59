"""The report and its pictures, from a workspace of tiny files to one page."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers.priors import gaussian
from helpers.reports import LATENTS, NASTY_CLASS, NASTY_FILE, facts_of, make_workspace

from tasks import workspace
from vae.config.sections import KL
from vae.config.text import number
from vae.evaluation.detail import Decoded, Distance
from vae.evaluation.probe import ClassRead
from vae.evaluation.yardstick import METHODS, Reading, Yardstick
from vae.models import saved
from vae.models.saved import PriorFit
from vae.report import page as report
from vae.report.facts import Facts, Origin
from vae.report.numbers import key_numbers


class Page(HTMLParser):
    """What a browser would make of it: tags, where they point, and the text."""

    VOID = frozenset({"meta", "br", "img", "input"})

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


def test_the_report_holds_all_and_asks_for_nothing(facts: Facts) -> None:
    html = report.html(facts)
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if name in {"src", "srcset", "data"}]
    assert len(sources) == 8  # three grids of reconstructions, samples, traversals, three rows along the curve
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
    # Detail, curves, heat map, distortion, expected KL, KL per latent, and the latent map.
    assert page.tags.count("svg") == 7
    assert page.text.index("Healthy") < page.text.index("Key numbers") < page.text.index("kl.max_weight")
    expected = ["All of it & more.", "a < b", "close to the edge", facts.hashes["test images"]]
    expected += ["… and 10 more"]  # of 60 quarantined files, 50 are named
    assert "Remedies" not in page.text and "fitted to the latents" not in page.text
    for text in (*expected, *(f"kl.{name}" for name in KL.model_fields)):
        assert text in page.text


def test_remedies_and_a_fitted_prior_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    read = saved.load(tmp_path / workspace.MODEL)
    changes = {"kl.max_weight": 0.123}
    fitted = PriorFit(name="mixture of 3 Gaussians", log_likelihood={"mixture of 3 Gaussians": -4.0})
    remedied = read.config.model_copy(update={"changes": changes, "prior": fitted})
    saved.save(tmp_path / workspace.MODEL, read.model, remedied, gaussian(LATENTS))
    path, words = tmp_path / workspace.MONITOR, "attempt 0 was <collapsed>: a & b."
    monitor = workspace.read_json(path) | {"remedies": [words], "prior": fitted.name, "changes": changes}
    path.write_text(json.dumps(monitor))
    facts = facts_of(tmp_path, monkeypatch)
    test = facts.metrics["test"]
    text = Page(report.html(facts)).text
    assert "Remedies" in text and words in text
    for name in ("kl", "fitted_prior_kl", "elbo", "fitted_prior_elbo", "mmd", "fitted_prior_mmd"):
        assert test[name] is not None and number(test[name]) in text, name
    assert "the prior fitted to the latents after training (a mixture of 3 Gaussians)" in text
    assert text.count("images decoded from z drawn from") == 1
    assert "samples of the fitted prior; samples of N(0, I), which the training assumed" in text
    one, other = (picture.png for picture in facts.pictures if picture.file.startswith("samples"))
    assert one != other


def test_a_learned_prior_is_not_called_a_standard_normal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for prior in ("standard", "mixture"):
        make_workspace(tmp_path / prior, prior=prior)
        text = Page(report.html(facts_of(tmp_path / prior, monkeypatch))).text
        samples = text[text.index("Pictures of each kind") : text.rindex("Traversals")]
        assert ("N(0, I)" in samples) is (prior == "standard")
        assert ("samples, the learned prior" in samples) is (prior == "mixture")


def test_two_levels_have_a_kl_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lower in (None, 2):
        make_workspace(tmp_path / str(lower), lower=lower)
        facts = facts_of(tmp_path / str(lower), monkeypatch)
        test, text = facts.metrics["test"], Page(report.html(facts)).text
        keys = {number.key for number in key_numbers(test)}
        assert ("upper level" in text) is ("kl_top" in text) is ({"kl_top", "kl_lower"} <= keys) is (lower == 2)
        assert ("fitted prior" in text) is (lower is None)
        assert ("no pilot" in text, "one level of latents" in text) == (True, lower == 2)
    top, below = (number(test[name]) for name in ("kl_top", "kl_lower"))
    assert top != below and f"Of the upper level: {top}; of the lower: {below}." in text
    assert "5 latents (3 in the upper level, 2 in the lower)" in text
    compared = Page(report.html(facts, Origin([], champion=("version 1", test)))).text
    assert "KL of the lower level of latents, nats" in compared


def test_the_elbo_is_shown_with_its_standard_error(facts: Facts) -> None:
    error = facts.metrics["test"]["elbo_se"]
    assert error > 0 and f"± {number(error)} (standard error" in Page(report.html(facts)).text


def test_what_a_user_named_is_shown_and_not_run(facts: Facts) -> None:
    page = Page(report.html(facts))
    assert NASTY_CLASS in page.text and NASTY_FILE.replace("\n", r"\n") in page.text
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    policy = " ".join(value for tag, _, value in page.attributes if tag == "meta" and value)
    assert page.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_the_report_repeats_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for name in ("here", "elsewhere"):
        make_workspace(tmp_path / name, path=str(tmp_path / "photos"))
        pages.append(report.html(facts_of(tmp_path / name, monkeypatch)))
    assert pages[0] == pages[1]
    assert str(tmp_path) not in pages[0] and "…/photos" in pages[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("verdict", "labelled", "epochs"),
    [("healthy", False, 1), ("collapsed", True, 30), ("diverged", True, 30), ("diverged", False, 1)],
)
def test_every_case_has_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, labelled: bool, epochs: int
) -> None:
    make_workspace(tmp_path, labelled=labelled, epochs=epochs, verdict=verdict)
    facts = facts_of(tmp_path, monkeypatch)
    page = Page(report.html(facts))
    json.dumps(facts.metrics, allow_nan=False)
    assert ("nan" in page.text) is False
    assert ("No classes." in page.text) is not labelled
    assert labelled or facts.metrics["test"]["probe_accuracy"] is facts.metrics["test"]["probe_majority"] is None
    assert ("set kl.max_weight to 0.01" in page.text) is (verdict != "healthy")
    level = "good" if verdict == "healthy" else "bad"
    assert ("div", "class", f"verdict {level}") in page.attributes
    assert (facts.metrics["test"]["kl"] is None) is (verdict == "diverged")
    if verdict == "collapsed":
        assert facts.metrics["test"]["active_units"] == 0


def test_what_latents_are_worth_and_what_is_lost_comes_before_its_numbers(facts: Facts) -> None:
    assert facts.yardstick and facts.detail and len(facts.findings) >= 2
    text = " ".join(Page(report.html(facts)).text.split())
    (worth,) = facts.yardstick.findings()
    assert text.index(worth) < text.index("A linear classifier of the latents, fitted on the training split")
    for lost in facts.detail.findings():
        assert text.index("Images with the median error") < text.index(lost) < text.index("power kept")
    test = facts.metrics["test"]
    assert f"From as many principal components of the pixels: {test['probe_pixels']:.1%}" in text
    half, full = (Reading(right, np.empty(0)) for right in (np.array([1.0, 0.0] * 50), np.ones(100)))
    readings = {(method, kind): half for method in METHODS for kind in ("latents", "frozen")}
    readings["probe", "frozen"] = full
    lost = {"frozen": Decoded(originals=full, copies=half)}
    detail = replace(facts.detail, distance=Distance(0.34, 0.38, 0.45), decoded=lost)
    other = replace(facts, yardstick=Yardstick(readings, 100), detail=detail)
    text = " ".join(Page(report.html(other)).text.split())
    assert "Frozen features of EfficientNet-Lite0 classify better than the latents: 100.0% against 50.0%" in text
    assert "is right for 50% of the reconstructions, 100% of the originals." in text
    assert "is 0.34 from its image, another image of its class 0.38, any other 0.45." in text


def test_a_class_that_was_not_trained_on_is_called_that(facts: Facts) -> None:
    assert "not trained on" not in report.html(facts)
    read = [*facts.classes_read, ClassRead("scratched", 3, 0, "a", 3, unseen=True)]
    text = Page(report.html(replace(facts, classes_read=read))).text
    assert "not trained on" in text and "Classes without training images are left out" in text


def test_only_the_copy_of_a_run_shows_its_origin(facts: Facts) -> None:
    test = facts.metrics["test"]
    address = "http://127.0.0.1:5000/#/x?a=1&b=2"
    theirs = {"elbo": test["elbo"] - 2, "mse": test["mse"] / 2, "kl": test["kl"] + 1, "nll": None}
    origin = Origin(
        [("MLflow run", "grave-<b>", address), ("Git commit", "abc123", None)],
        "would be promoted: it is better",
        ("the champion, version 3", theirs),
    )
    page = Page(report.html(facts, origin))
    assert ("a", "href", address) in page.attributes
    for expected in ("grave-<b>", "abc123", "would be promoted: it is better.", "version 3", "+2 better", "worse"):
        assert expected in page.text
    assert "negative log-likelihood, nats" not in page.text  # the champion has none
    plain = Page(report.html(facts))
    assert "Against the champion" not in plain.text and "the champion" in plain.text  # where it is found
    assert address not in plain.text
    alone = Page(report.html(facts, Origin([])))
    assert "There is no other champion to compare with." in alone.text


def test_numbers_of_latents_are_compared_with_those_that_there_are(facts: Facts) -> None:
    assert "How many latents" not in Page(report.html(facts)).text
    rows = [
        {"latent_dim": n, "rate": 1.5 * n, "distortion": 0.5 / n, "gain": gain, "operations": n / LATENTS}
        for n, gain in ((LATENTS - 1, 30.25), (LATENTS, 40.0), (2 * LATENTS, 52.5))
    ]
    dims = {"recommended": 2 * LATENTS, "advice": "more <b>", "compared": rows}
    text = " ".join(Page(report.html(replace(facts, preflight={**facts.preflight, "latent_dims": dims}))).text.split())
    assert "How many latents: more <b>." in text and f"nats gained over {LATENTS}" in text
    assert f"{2 * LATENTS} (recommended)" in text and "12.5" in text and "−9.75" in text
