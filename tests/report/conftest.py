"""A page in a real browser, for the tests of pages."""

import pytest
from browser import chromium


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def opened(browser):
    """A function that opens a page with a hash; at the end nothing may stand in the console or have been fetched."""
    pages = []

    def open_page(path, hash_="", **options):
        pages.append(browser.open(path.as_uri() + (f"#{hash_}" if hash_ else ""), **options))
        pages[-1].settle()
        return pages[-1]

    yield open_page
    for page in pages:
        assert page.errors() == []
        assert {address.split(":")[0] for address in page.requests()} <= {"file", "data"}
        page.close()
