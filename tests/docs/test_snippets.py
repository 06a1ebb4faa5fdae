"""Every snippet of the documentation does what it says (snippets.py tells how each kind is run)."""
import pytest

import snippets
from page_runner import Failed, PageRunner, Skipped

PAGES = {page: snippets.parse(page) for page in snippets.pages()}
OLDER_GUIDE = "tests/docs/older_guide.md"  # its snippets as they were
CASES = [pytest.param(page, i, id=snippet.id)
         for page, found in [*PAGES.items(), (OLDER_GUIDE, snippets.parse(OLDER_GUIDE))] for i, snippet in enumerate(found)]


@pytest.fixture(scope="module")
def runners(place, tmp_path_factory):
    """The runner of a page; the one of the page before is closed."""
    current = {}

    def runner(page):
        if page not in current:
            for other in current.values():
                other.close()
            current.clear()
            current[page] = PageRunner(place, tmp_path_factory.mktemp(page.replace("/", "_")))
        return current[page]

    yield runner
    for last in current.values():
        last.close()


@pytest.mark.parametrize("page, index", CASES)
def test_snippet(runners, page, index):
    found = PAGES.get(page) or snippets.parse(page)
    outcome = runners(page).run_up_to(found, index)
    if isinstance(outcome, Skipped):
        pytest.skip(str(outcome))
    if isinstance(outcome, Failed):
        pytest.fail(f"{found[index].id}: {outcome}", pytrace=False)
