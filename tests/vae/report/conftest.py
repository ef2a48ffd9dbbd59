import pytest
from helpers.reports import facts_of, make_workspace

from vae.report.facts import Facts


@pytest.fixture(scope="session")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Of a healthy run, which had a pilot."""
    folder = tmp_path_factory.mktemp("healthy")
    make_workspace(folder, pilot=True)
    with pytest.MonkeyPatch.context() as patch:
        return facts_of(folder, patch)
