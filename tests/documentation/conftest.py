"""The workshop, in which README.md is followed once and every other page in a copy of it, as many at a time as there are cores."""

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.documentation.pages import README
from tests.documentation.workshop import Workshop, make_workshop, stands_alone


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Models, settings and files, before README.md."""
    shop = tmp_path_factory.mktemp("workshop")
    yield make_workshop(shop)
    shutil.rmtree(shop)


@pytest.fixture(scope="session")
def followed(
    request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Path, Future[None]]]:
    """The pages of the tests that were asked for, being followed: a future's result is None, or it raises Failure."""
    asked = [item.callspec.params["page"] for item in request.session.items if "followed" in getattr(item, "fixturenames", ())]

    def follow_readme() -> None:
        with workshop.session(workshop.readme) as session:
            session.play(README)

    def follow(page: Path) -> None:
        if not stands_alone(page) and readme.exception() is not None:
            pytest.fail("the reader of this page has followed README.md, which fails", pytrace=False)
        directory = workshop.directory_for(page, tmp_path_factory.mktemp(page.stem) / "page")
        try:
            with workshop.session(directory) as session:
                session.play(page)
        finally:
            shutil.rmtree(directory)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        readme = pool.submit(follow_readme)
        others = sorted((page for page in asked if page != README), key=lambda page: not stands_alone(page))
        yield {README: readme, **{page: pool.submit(follow, page) for page in others}}
        pool.shutdown(cancel_futures=True)
