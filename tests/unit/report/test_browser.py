"""The report in a real browser: nothing on the console, sorting and filtering work, hostile text stays text."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from tests.helpers.made_runs import HOSTILE, N_LAYERS, heads_run, layers_run

mpl.use("agg")
pytestmark = pytest.mark.slow

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no headless browser: install chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1250,900"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        # Chromium's sandbox refuses to work for root, as in a container.
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        # No network at all: whatever the page asked for would show on the console.
        opened.execute_cdp_cmd("Network.enable", {})
        opened.execute_cdp_cmd(
            "Network.emulateNetworkConditions",
            {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
        )
        yield opened
    finally:
        opened.quit()


def texts(browser: Any, selector: str) -> list[str]:
    script = (
        "return Array.from(document.querySelectorAll(arguments[0])).filter(e => e.offsetParent).map(e => e.textContent)"
    )
    return list(browser.execute_script(script, selector))


def count(browser: Any) -> str:
    return browser.execute_script("return document.getElementById('browser-count').textContent")


def choose(browser: Any, form: str, name: str, value: str) -> None:
    browser.execute_script(
        "const f = document.querySelector(arguments[0]).elements[arguments[1]]; f.value = arguments[2];"
        "f.dispatchEvent(new Event('input', {bubbles: true}))",
        form,
        name,
        value,
    )


def afresh(browser: Any) -> None:
    """The page again, without the filters that stand in its address."""
    browser.execute_script("history.replaceState(null, '', location.href.split('#')[0])")
    browser.refresh()


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = layers_run(tmp_path_factory.mktemp("report") / "run", text=HOSTILE)
    browser.get(run.report().as_uri())
    return browser


@pytest.mark.slow
def test_nothing_is_on_the_console_and_hostile_text_did_not_run(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.hit") is None
    assert opened.execute_script("return document.querySelectorAll('img:not([src^=\"data:image/svg\"])').length") == 0
    shown = texts(opened, "#browser td:nth-child(6) .answer")[0]
    assert shown == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b")


@pytest.mark.slow
def test_every_picture_is_drawn(opened: Any) -> None:
    sizes = opened.execute_script(
        "return Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.alt.length])"
    )
    assert len(sizes) == 4
    assert all(complete and width > 100 and alt > 20 for complete, width, alt in sizes)


@pytest.mark.slow
def test_the_table_sorts_by_number_and_filters(opened: Any) -> None:
    opened.execute_script(
        "Array.from(document.querySelectorAll('#summary-table th button')).find(b => b.textContent === 'Δμ').click()"
    )
    ordered = [float(text.replace("−", "-")) for text in texts(opened, "#summary-table td:nth-child(7)")]
    assert ordered == sorted(ordered)
    assert len(ordered) == 4 * N_LAYERS
    opened.execute_script(
        "Array.from(document.querySelectorAll('#summary-table th button')).find(b => b.textContent === 'Δμ').click()"
    )
    ordered = [float(text.replace("−", "-")) for text in texts(opened, "#summary-table td:nth-child(7)")]
    assert ordered == sorted(ordered, reverse=True)
    choose(opened, "form[data-table]", "task", "facts")
    choose(opened, "form[data-table]", "contains", "L3.skip")
    assert texts(opened, "#summary-table td:nth-child(2)") == ["facts"] * 2
    assert texts(opened, "form[data-table] output") == ["2 rows"]


def test_the_browser_of_items_filters_sorts_and_turns_pages(opened: Any) -> None:
    total = 40 * 4 * N_LAYERS
    assert count(opened) == f"{total} records, page 1 of {total // 50}"
    opened.execute_script("document.getElementById('browser-next').click()")
    assert "page 2 of" in count(opened)
    choose(opened, "#browser-filters", "outcome", "lost")
    lost = 2 * (2 * 40 + 9 * 20)
    assert count(opened).startswith(f"{lost} records, page 1")
    choose(opened, "#browser-filters", "layer", "0")
    choose(opened, "#browser-filters", "protocol", "1")
    assert count(opened) == "80 records, page 1 of 2"
    assert set(texts(opened, "#browser td:nth-child(3)")) == {"L0.skip"}
    choose(opened, "#browser-filters", "text", "item 39")
    assert texts(opened, "#browser td:nth-child(1)") == ["item 39", "item 39"]
    opened.execute_script("document.querySelector('#browser-filters button[type=reset]').click()")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert count(opened).startswith(f"{total} records")
    opened.execute_script("document.querySelector('#browser th button').click()")
    assert texts(opened, "#browser td:nth-child(1)") == ["item 0"] * 40 + ["item 1"] * 10


@pytest.mark.slow
def test_an_items_name_opens_its_question(opened: Any) -> None:
    afresh(opened)
    choose(opened, "#browser-filters", "protocol", "0")
    buttons = "#browser .opener"
    assert texts(opened, "#browser tr.question") == []
    opened.execute_script(f"document.querySelector('{buttons}').click()")
    hostile = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\u001b")
    assert texts(opened, "#browser tr.question > td > .answer") == [f"0: {hostile}"]
    cells = texts(opened, "#browser tr.question table td")
    assert cells == [" A", "right", "−1.00", "−1.00", " B", "", "−1.50", "−1.50"]
    assert opened.execute_script("return window.hit") is None
    assert opened.execute_script(f"return document.querySelector('{buttons}').getAttribute('aria-expanded')") == "true"
    opened.execute_script(f"document.querySelector('{buttons}').click()")
    assert texts(opened, "#browser tr.question") == []
    choose(opened, "#browser-filters", "text", "39: </SCRIPT")
    assert set(texts(opened, "#browser td:nth-child(1)")) == {"item 39"}
    assert opened.get_log("browser") == []


def test_the_keyboard_reaches_and_works_the_page(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    afresh(opened)
    opened.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    opened.switch_to.active_element.send_keys(Keys.TAB)
    assert opened.switch_to.active_element.text == "Skip to the content"
    button = opened.execute_script("return document.querySelector('#browser th button')")
    button.send_keys(Keys.ENTER)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    unnamed = opened.execute_script(
        "return Array.from(document.querySelectorAll('select, input, button, a'))"
        ".filter(e => !(e.labels && e.labels.length) && !e.textContent.trim()).length"
    )
    assert unnamed == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_follow_both_colour_schemes(opened: Any, scheme: str) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    ratio = opened.execute_script("""
      const light = (c) => { const [r, g, b] = c.match(/\\d+/g).map(v => { v /= 255;
        return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return ['body', 'caption', 'nav a', '.wrong', '.right', 'figcaption'].map(s => document.querySelector(s))
        .filter(e => e).map(e => { const ink = light(getComputedStyle(e).color);
          return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05); });
    """)
    # WCAG 2.2, level AA
    assert min(ratio) >= 4.5
    assert len(ratio) >= 5
    picture = opened.find_element("css selector", "figure img").screenshot_as_png
    brightness = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
    # Most of a figure is its ground.
    assert np.median(brightness) == 255 if scheme == "light" else 25 < np.median(brightness) < 50


@pytest.mark.slow
def test_the_map_leads_to_items_and_the_address_keeps_what_is_chosen(opened: Any) -> None:
    afresh(opened)
    press = "document.querySelector('table.map button[title=\"L3.skip\"]').click()"
    choose(opened, "#map-filters", "condition", "arithmetic, generate")
    opened.execute_script(press)
    assert count(opened) == "40 records, page 1 of 1"
    assert set(texts(opened, "#browser td:nth-child(2)")) == {"arithmetic, generate"}
    assert opened.execute_script("return document.activeElement.className") == "opener"
    choose(opened, "#summary-filters", "contains", "L3.skip")
    address = opened.execute_script("return location.href")
    opened.execute_script("document.querySelector('nav a[href=\"#critical\"]').click()")
    assert opened.execute_script("return location.href") == address
    opened.get("about:blank")
    opened.get(address)
    assert count(opened) == "40 records, page 1 of 1"
    assert opened.execute_script("return document.querySelector('#map-filters select').value") == "arithmetic, generate"
    assert texts(opened, "#summary-filters output") == ["4 rows"]
    opened.execute_script("document.querySelector('#browser-filters button[type=reset]').click()")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert "browser-filters" not in opened.execute_script("return location.hash")
    opened.execute_script("document.querySelectorAll('table.map tbody th button')[2].click()")
    assert set(texts(opened, "#browser td:nth-child(3)")) == {"L2.skip"}
    assert opened.get_log("browser") == []


def test_arrow_keys_move_over_the_map(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    afresh(opened)
    assert opened.execute_script("return document.querySelectorAll('table.map button[tabindex=\"0\"]').length") == 1
    opened.execute_script("document.querySelector('table.map button').focus()")
    opened.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert opened.switch_to.active_element.get_attribute("title") == "L2.skip"


def test_a_difference_is_that_of_the_words(opened: Any) -> None:
    parts = opened.execute_script(
        "return difference(arguments[0], arguments[1])", "two plus 2 is 4", "two plus 3 is  4 !"
    )
    assert parts == [[0, "two plus "], [-1, "2"], [1, "3"], [0, " is"], [-1, " "], [1, "  "], [0, "4"], [1, " !"]]
    assert "".join(text for kind, text in parts if kind <= 0) == "two plus 2 is 4"


@pytest.mark.slow
def test_a_pattern_is_shown_token_by_token_and_two_runs_side_by_side(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    import lensprune as lp
    from tests.helpers.tiny_models import folder, tiny

    a, b = (
        lp.sweep(
            folder(family), "facts", "generate", lp.each_head(tiny(family), "zero", [0]),
            limit=3, shots=0, out=tmp_path / family, progress=False,
        )
        for family in ("llama", "qwen2")
    )  # fmt: skip
    browser.get(a.explore(b, patterns=1).save(tmp_path / "page.html").as_uri())
    assert len(texts(browser, "table.map")) == 2
    assert "changed model, B" in texts(browser, "#browser th")
    [stored] = browser.execute_script(
        "return JSON.parse(document.getElementById('records').textContent).patterns.items"
    )
    [variant] = stored["heads"]
    browser.execute_script(f"document.querySelector('table.map button[title=\"{variant}\"]').click()")
    browser.execute_script(
        "[...document.querySelectorAll('#browser .opener')].find(e => e.textContent === arguments[0]).click()",
        stored["item"],
    )
    assert len(texts(browser, ".token")) == len(stored["tokens"]) > 3
    browser.execute_script("document.querySelector('.token').focus()")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.token')].map(e => +e.style.getPropertyValue('--share'))"
    )
    assert sum(shown[:2]) == pytest.approx(1, abs=0.01)
    assert not any(shown[2:])
    assert "attends to" in texts(browser, "tr.question output")[0]
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_a_notebooks_frame_keeps_to_itself(browser: Any, tmp_path: Path) -> None:
    run = layers_run(n=8, tasks=("facts",), text=HOSTILE)
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><title>n</title>{run.explore()._repr_html_()}")
    browser.get((tmp_path / "notebook.html").as_uri())
    browser.switch_to.frame(0)
    try:
        browser.execute_script("document.querySelector('nav a[href=\"#items\"]').click()")
        choose(browser, "#browser-filters", "outcome", "lost")
        assert count(browser) == f"{8 + 8 + 9 * 4} records, page 1 of 2"
        assert browser.execute_script("return location.hash") == "#browser-filters.outcome=lost+by+the+change"
        assert browser.execute_script("return window.hit") is None
    finally:
        browser.switch_to.default_content()
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_other_pages_are_quiet_too(browser: Any, tmp_path: Path) -> None:
    from lensprune.results.compare import write_comparison

    a, b = heads_run(folder=tmp_path / "a"), heads_run(folder=tmp_path / "b")
    for page in (a.report(), write_comparison(a, b)):
        browser.get(page.as_uri())
        assert browser.get_log("browser") == []
        assert len(texts(browser, "table")) >= 2


@pytest.mark.slow
def test_pages_fit_a_telephone_and_names_stand_in_two_lines(browser: Any, tmp_path: Path) -> None:
    from lensprune.results.compare import write_comparison

    long = "kv_retrieval[ending=reopened,answer=text,pairs=40]"
    a, b = (layers_run(tmp_path / name, tasks=(long, "facts"), n=8) for name in ("a" * 60, "b"))
    try:
        for page in (a.report(), write_comparison(a, b)):
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.get(page.as_uri())
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
        browser.get(a.report().as_uri())
        lines = browser.execute_script("""
          return Array.from(document.querySelectorAll('#summary-table td.long')).filter(e => e.offsetParent).map(e =>
            e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).fontSize) / 1.5);
        """)
        assert len(lines) == 2 * N_LAYERS
        # Two lines and the padding of the cell.
        assert max(lines) < 3
        box = browser.execute_script("return document.querySelector('#summary .scroll').clientHeight")
        assert box > 576
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
