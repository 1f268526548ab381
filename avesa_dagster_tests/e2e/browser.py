"""Dagster's UI as a person works it: by what is written on it, never by its CSS classes."""

from __future__ import annotations

import re
import time
from pathlib import Path

from playwright.sync_api import Locator, Page, TimeoutError, ViewportSize, expect

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SIZE = ViewportSize(width=1400, height=900)
README_SIZE = ViewportSize(width=1400, height=1040)  # four tables fit in
_PATIENCE = 45_000
_STATUS = re.compile(r"Status\s+(Succeeded|Failed|Completed|Canceled)\b")


class DagsterUI:
    """One tab on one webserver.

    Args:
        url: Of the webserver.
        location: The code location's name.
        pictures: Folder for pictures.
    """

    def __init__(self, page: Page, url: str, location: str, pictures: Path) -> None:
        page.set_default_timeout(_PATIENCE)
        expect.set_options(timeout=_PATIENCE)
        self.page = page
        self._url = url
        self._location = location
        self._pictures = pictures

    def picture(self, name: str) -> Path:
        """Takes the window as it is."""
        self.page.mouse.move(SIZE["width"] - 2, SIZE["height"] - 2)
        self.page.wait_for_timeout(400)  # whatever glides has come to rest
        path = self._pictures / f"{name}.png"
        self.page.screenshot(path=path)
        return path

    def text(self) -> str:
        return self.page.inner_text("body")

    def see(self, text: str | re.Pattern[str]) -> Locator:
        """Waits for a text that a person can see."""
        found = self.page.get_by_text(text).locator("visible=true").first
        found.wait_for()
        return found

    def open_group(self, group: str) -> None:
        self.page.goto(f"{self._url}/locations/{self._location}/asset-groups/{group}/lineage")
        self.page.get_by_role("button", name="Materialize all").wait_for()
        self.see(group)

    def open_lineage(self, selection: str) -> None:
        """The global lineage of what a selection query names, typed into its search field."""
        self.page.goto(f"{self._url}/asset-groups")
        self.page.get_by_role("button", name="Materialize all").wait_for()
        self.page.locator(".CodeMirror").first.click()  # an editor, which has no role
        self.page.keyboard.type(selection)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(lambda url: "connectwise" in url)
        self.page.keyboard.press("Escape")  # closes the suggestions

    def open_asset(self, asset: str, view: str = "overview") -> None:
        self.page.goto(f"{self._url}/assets/{asset}?view={view}")

    def partition_counts(self) -> dict[str, int]:
        """On the partitions page of an asset: {"Materialized": 3, "Missing": 4, …}."""
        self.see(re.compile(r"^Missing \(\d+\)$"))
        pairs = re.findall(r"(Failed|Materialized|Materializing|Missing) \((\d+)\)", self.text())
        return {name: int(count) for name, count in pairs}

    def await_materialized(self, count: int, within: float = 60) -> None:
        """Watches the partitions page, as it is, until so many partitions are green."""
        deadline = time.monotonic() + within
        while self.partition_counts()["Materialized"] != count:
            assert time.monotonic() < deadline, self.partition_counts()
            self.page.wait_for_timeout(500)

    def choose_partition(self, key: str) -> str:
        """Clicks a partition in the list; returns what its page says."""
        self.page.get_by_text(key, exact=True).locator("visible=true").last.click()
        self.page.wait_for_url(f"**partition={key}**")
        self.see("Latest materialization")
        self.page.wait_for_function("() => document.body.innerText.includes('Show schema')")
        return self.text()

    def launch(self, assets: int, first: str, last: str, partitions: int) -> str:
        """Materialize all → a range, typed → Launch backfill; returns the backfill's id."""
        self.page.get_by_role("button", name="Materialize all").click()
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(f"materialize {assets} assets").wait_for()
        older = dialog.get_by_role("button", name="Show all partitions")
        try:  # the dialog hides what is older than 90 days until it is asked
            older.click(timeout=5_000)
        except TimeoutError:
            assert not older.count()
        field = dialog.locator("input[type=text]").first
        field.fill(f"[{first}...{last}]")
        field.press("Enter")
        field.blur()
        dialog.get_by_text(f"{partitions} partitions", exact=True).first.wait_for()
        self.picture(f"dialog-{assets}-assets")
        dialog.get_by_role("button", name="Launch backfill").click()
        created = self.see(re.compile(r"Created backfill \w+"))
        match = re.search(r"Created backfill (\w+)", created.inner_text())
        assert match, created.inner_text()
        return match[1]

    def open_backfill(self, id_: str, tab: str = "overview") -> None:
        self.page.goto(f"{self._url}/runs/b/{id_}?tab={tab}")
        self.see(id_)

    def await_backfill(self, id_: str, within: float = 150) -> str:
        """Watches a backfill's page until it says how it ended."""
        self.open_backfill(id_)
        deadline = time.monotonic() + within
        while not (found := _STATUS.search(self.text())):
            assert time.monotonic() < deadline, self.text()
            self.page.wait_for_timeout(500)
        return found[1]

    def cancel_backfill(self) -> None:
        """On a backfill's page: the menu, Cancel, and whatever asks once more."""
        cancel = self.page.get_by_text(re.compile("cancel", re.IGNORECASE)).locator("visible=true")
        for _ in range(10):  # the page draws itself anew now and then, which closes the menu
            self.page.get_by_role("button").locator("visible=true").last.click()
            self.page.wait_for_timeout(1000)
            if cancel.count():
                break
            self.page.keyboard.press("Escape")
        cancel.first.click()
        self.page.wait_for_timeout(800)
        self.picture("cancelling")
        dialog = self.page.get_by_role("dialog")
        if dialog.count():
            dialog.get_by_role("button", name=re.compile("cancel", re.IGNORECASE)).last.click()

    def open_run(self, id_: str) -> None:
        self.page.goto(f"{self._url}/runs/{id_}")
        self.see("EVENT TYPE")

    def filter_log(self, words: str) -> None:
        """Types into the filter over a run's log."""
        self.page.get_by_placeholder("Filter…").fill(words)
        self.page.wait_for_timeout(800)  # it filters a moment after the last key
