"""The report and its pictures, from a workspace of tiny files to one page."""

import base64
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from tasks import evaluate, workspace
from vae import grids, mixture, parameters, plots, report, saved
from vae.devices import Compute
from vae.errors import InputError
from vae.history import HISTORY
from vae.model import VAE
from vae.objective import Likelihood
from vae.report import Facts

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
        ("preflight", {"predicted_kl": 3.5, "predicted_active_units": 2, "critical_kl_weight": None,
                       "kl_per_latent": [2.5, 1.0, 0, 0, 0], "warnings": ["close to the edge"]}),
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
        self.text += data


def test_the_report_tells_all_and_asks_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    facts = facts_of(tmp_path, monkeypatch)
    html = report.html(facts)
    page = Page(html)
    sources = [value for tag, name, value in page.attributes if name in {"src", "href"}]
    assert len(sources) == len(facts.pictures) == 9
    for source in sources:
        assert source and source.startswith("data:image/png;base64,")
        assert base64.b64decode(source.split(",")[1], validate=True).startswith(b"\x89PNG")
    assert "http://" not in html and "https://" not in html and "url(" not in html
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.text.index("healthy") < page.text.index("Key numbers") < page.text.index("Parameters")
    for expected in (
        "All of it & more.",
        "a < b",
        "close to the edge",
        "kl.max_weight",
        facts.hashes["test images"],
    ):
        assert expected in page.text
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
    spectrum = {"eigenvalues": [3.0, 2.0, 1.0, 0.5, 0.2], "eigenvalue_sum": 9.0, "images": 60}
    before = workspace.read_json(workspace.PREFLIGHT)
    workspace.PREFLIGHT.write_text(json.dumps(before | spectrum))
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
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


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
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("epochs", [1, 30])
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


def test_only_the_copy_with_links_has_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    facts = facts_of(tmp_path, monkeypatch)
    page = Page(report.html(facts, [("the run", "http://127.0.0.1:5000/#/x?a=1&b=2")]))
    assert ("a", "href", "http://127.0.0.1:5000/#/x?a=1&b=2") in page.attributes
    assert "a" not in Page(report.html(facts)).tags


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


def test_reconstruction_grid_puts_each_original_above_its_reconstruction() -> None:
    originals = np.stack([np.full((8, 8, 1), 20 * i, dtype=np.uint8) for i in range(10)])
    picture = grids.reconstruction_grid(originals, originals / 255 / 2, columns=8)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    factor = picture.shape[1] // (8 * 9 - 1)
    assert factor == 11  # the whole number that brings 71 pixels nearest to 800
    small = picture[::factor, ::factor, 0]
    assert (small[:8, 9:17] == 20).all() and (small[9:17, 9:17] == 10).all()
    second_pair = 17 + 3
    assert (small[second_pair : second_pair + 8, 9:17] == 180).all()
    assert (small[second_pair:, 18:] == 255).all()  # no ninth column of images


def test_grid_takes_floats_beyond_the_range_and_colour() -> None:
    images = np.array([[[[-1.0, 0.5, 2.0]]], [[[math.nan, 0.0, 1.0]]]])
    picture = grids.grid(images, columns=2)
    assert picture[0, 0].tolist() == [0, 128, 255]
    assert picture[0, -1].tolist() == [0, 0, 255]


def test_principal_components_find_the_direction_that_varies_most() -> None:
    random = np.random.default_rng(0)
    mu = random.normal(size=(500, 3)) * [1.0, 10.0, 0.1]
    points, shares = plots.principal_components(mu)
    assert shares == pytest.approx(np.array([100, 1]) / 101, rel=0.2)
    assert abs(np.corrcoef(points[:, 0], mu[:, 1])[0, 1]) > 0.999
    one, share_of_one = plots.principal_components(mu[:, 1:2])
    assert one.shape == (500, 2) and share_of_one.tolist() == [1.0, 0.0]


def test_the_heat_map_of_latents_is_sorted_by_the_last_epoch() -> None:
    epochs = pd.DataFrame({"epoch": [1, 2, 3], "z0": [5, 1, 0.1], "z1": [0, 1, 2], "z2": [0.2, math.nan, 1]})
    figure = plots.kl_over_time(epochs, kept_epoch=3)
    drawn = figure.axes[0].images[0]
    np.testing.assert_array_equal(drawn.get_array(), [[0, 1, 2], [0.2, 0, 1], [5, 1, 0.1]])
    assert list(drawn.get_extent()) == [0.5, 3.5, 3.5, 0.5] and drawn.get_clim() == (0, 5)
    assert plots.png(figure) == plots.png(plots.kl_over_time(epochs, kept_epoch=3))


def test_a_map_of_many_classes_names_the_most_frequent() -> None:
    labels = np.array(
        [f"class {i % 38:02}" for i in range(380)] + ["_$\\alpha^ frequent"] * 30 + [None], dtype=object
    )
    figure = plots.latent_map(np.random.default_rng(0).normal(size=(len(labels), 4)), labels)
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(names) == 11 and "30 other classes" in names and "no class" in names
    assert " _$\\alpha^ frequent" in names
    assert plots.png(figure) == plots.png(figure)


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
