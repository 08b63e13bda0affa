"""The page at /, in headless Chromium: it draws, edits, votes, and fits wide and narrow windows."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Page, browser
from tiny_server import Running, running

from lmsd.data.votes import Pair, votes_in

WIDTHS = [1280, 390]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here to open the page with")
    with running("shapes", votes=tmp_path_factory.mktemp("votes")) as found:
        yield found


@pytest.fixture(scope="module")
def page(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def opened(page: Page, server: Running, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="window.broken=[];addEventListener('securitypolicyviolation',(e)=>broken.push(e.blockedURI));"
        "addEventListener('error',(e)=>broken.push(e.message))",
    )
    page.call("Page.navigate", url=server.url)
    page.ask(
        "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
    )
    page.ask("ready")


def fits(page: Page, name: str, width: int) -> None:
    """Nothing sticks out of the window; a picture of it where LMSD_PICTURES names a folder."""
    assert page.ask("document.documentElement.scrollWidth") <= width
    assert page.ask("broken") == []
    if os.environ.get("LMSD_PICTURES"):
        page.picture(Path(os.environ["LMSD_PICTURES"]) / f"serve-{name}-{width}.png")


def told(page: Page, section: str) -> str:
    """What the section says once it is done."""
    waiting = f"document.querySelector('#{section} .said').textContent"
    page.ask(
        f"new Promise((done) => {{ const look = () => {waiting} === '…' ? setTimeout(look, 10) : done(); "
        "setTimeout(look, 20); })"
    )
    return str(page.ask(waiting))


def levels(page: Page, selector: str) -> list[list[int]]:
    """RGBA of the pictures that a selector finds."""
    script = """Promise.all([...document.querySelectorAll(SELECTOR)].map(async (image) => {
      await image.decode();
      const made = document.createElement("canvas");
      [made.width, made.height] = [image.naturalWidth, image.naturalHeight];
      const place = made.getContext("2d");
      place.drawImage(image, 0, 0);
      return [...place.getImageData(0, 0, made.width, made.height).data];
    }))"""
    return page.ask(script.replace("SELECTOR", repr(selector)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("width", WIDTHS)
def test_it_draws_what_is_asked_for(page: Page, server: Running, width: int) -> None:
    opened(page, server, width)
    page.ask("document.querySelector('#drawing [name=prompt]').value = 'a red circle'")
    page.ask("document.querySelector('#drawing [name=seed]').value = 5")
    page.ask("document.querySelector('#drawing button').click()")
    assert told(page, "draw") == "shapes, seed 5, 4 steps, guidance 1"
    shown = levels(page, "#draw .pictures img")
    wanted = [picture.reshape(-1, 3) for picture in server.draw(seed=5, n=4).pixels()]
    assert [each[::4] for each in shown] == [picture[:, 0].tolist() for picture in wanted]
    fits(page, "draw", width)
    page.ask("document.querySelector('#drawing [name=steps]').value = 10_000")
    page.ask("document.querySelector('#drawing').requestSubmit = null")
    page.ask("document.querySelector('#drawing').dispatchEvent(new Event('submit', {cancelable: true}))")
    assert told(page, "draw") == "steps=10000 is more than 100"


@pytest.mark.parametrize("width", WIDTHS)
def test_it_edits_where_it_is_painted(page: Page, server: Running, width: int) -> None:
    opened(page, server, width)
    page.ask("document.querySelector('#drawing [name=seed]').value = 5")
    page.ask("document.querySelector('#drawing button').click()")
    told(page, "draw")
    before = levels(page, "#draw .pictures img")[0]
    page.ask("document.querySelector('#draw figcaption button').click()")
    page.ask("document.querySelector('#editing [name=prompt]').value = 'a blue star'")
    place = "document.querySelector('#board canvas').getBoundingClientRect()"
    box = page.ask(f"(({{x, y, width}}) => ({{x, y, width}}))({place})")
    for kind in ("mousePressed", "mouseReleased"):
        spot = {"x": box["x"] + box["width"] / 4, "y": box["y"] + box["width"] / 4}
        page.call("Input.dispatchMouseEvent", type=kind, **spot, button="left", buttons=1, clickCount=1)
    page.ask("document.querySelector('#editing button').click()")
    assert told(page, "edit").startswith("shapes, seed ")
    after = levels(page, "#edit .pictures img")
    changed = [place // 4 for place in range(len(before)) if before[place] != after[0][place]]
    assert changed
    assert all(place % 16 < 8 and place // 16 < 8 for place in changed)  # the painted quarter
    fits(page, "edit", width)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_vote_is_for_the_picture_on_that_side(page: Page, server: Running, width: int) -> None:
    opened(page, server, width)
    page.ask("document.querySelector('[data-tab=vote]').click()")
    page.ask("document.querySelector('#pairing [name=prompt]').value = 'a red circle'")
    page.ask("document.querySelector('#pairing button').click()")
    assert told(page, "vote").startswith("Which one")
    ballots = server.service.ballots
    assert ballots is not None
    for side in ("left", "right", "left", "right"):
        key = page.ask("state.pair.key")
        pair = Pair.of((ballots.folder / "pairs" / f"{key}.json").read_text())
        page.ask(f"document.querySelector('[data-side={side}]').click()")
        assert told(page, "vote").startswith("Thank you")
        other = "b" if pair.left == "a" else "a"
        assert votes_in(ballots.folder)[key] == (pair.left if side == "left" else other)
    assert server.service.served.name not in str(page.ask("document.body.innerText"))
    fits(page, "vote", width)
