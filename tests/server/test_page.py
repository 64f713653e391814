"""The page at /ui in a real browser, against a real server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium
from served import Served, until

KEY = "a key for tests"
LONG = 3000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def server(demo_artifact: Path) -> Iterator[Served]:
    with Served(demo_artifact, settings={"model_name": "demo"}, kv_cache_bytes=60 << 20) as served:
        # The demo model ends by itself after a few words; here it goes on, so that there is time to stop it.
        served.llm.model.eos_token_ids = frozenset()
        yield served


@pytest.fixture
def page(browser: Any, server: Served) -> Iterator[Any]:
    with opened(browser, server) as one:
        yield one
    server.idle()
    until(lambda: server.service.live.watchers == 0)


class opened:  # noqa: N801 (used like a function)
    """A page in a context of its own; what its console says is an error of the test."""

    def __init__(self, browser: Any, server: Served, **options: Any) -> None:
        self._context = browser.new_context(viewport={"width": 1280, "height": 800}, **options)
        self._url = f"{server.url}/ui"
        self.said: list[str] = []

    def __enter__(self) -> Any:
        page = self._context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(self._url)
        return page

    def __exit__(self, *_: object) -> None:
        self._context.close()
        # Chromium itself says so for every answer of 400 and above, which some tests are about.
        said = [text for text in self.said if not text.startswith("Failed to load resource")]
        assert said == []


def settings(page: Any, **values: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for name, value in values.items():
        page.locator(f"#s-{name}").fill(value)
    page.get_by_role("button", name="Done").click()


def say(page: Any, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def finished(page: Any) -> None:
    page.locator(".assistant.open").wait_for(state="detached")


def test_a_conversation_is_the_one_of_the_api(page: Any, server: Served) -> None:
    settings(page, temperature="0", max_tokens="12", system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    for question in ("What is the capital of France?", "Where is Tokyo?"):
        say(page, question)
        finished(page)
        messages.append({"role": "user", "content": question})
        body = {"model": "demo", "messages": messages, "temperature": 0, "max_tokens": 12}
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        expected = answer["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": expected})
        assert page.locator(".assistant p").last.text_content() == expected
    assert page.locator(".user p").all_text_contents() == [
        "What is the capital of France?",
        "Where is Tokyo?",
    ]
    assert "12 tokens" in page.locator(".meta").last.text_content()
    assert "max tokens reached" in page.locator(".meta").last.text_content()
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0


@pytest.mark.parametrize("how", ["escape", "button", "enter_on_button", "leaving"])
def test_an_answer_streams_until_it_is_stopped(page: Any, server: Served, how: str) -> None:
    settings(page, temperature="0", max_tokens=str(LONG))
    say(page, "Where is Tokyo?")
    answer = page.locator(".assistant p")
    texts = set()

    def streams() -> bool:
        texts.add(answer.text_content())
        return len(texts) > 3

    until(streams)
    held = server.stats()
    assert held["requests"]["running"] == 1
    assert held["pages"]["used"] > 0
    aborted = held["requests"]["ended"].get("abort", 0)
    if how == "escape":
        page.keyboard.press("Escape")
    elif how == "button":
        page.get_by_role("button", name="Stop").click()
    elif how == "enter_on_button":
        page.get_by_role("button", name="Stop").focus()
        page.keyboard.press("Enter")
    else:
        page.goto("about:blank")
    until(lambda: server.stats()["pages"]["used"] == 0)
    after = server.stats()
    assert after["requests"]["ended"]["abort"] == aborted + 1
    assert after["requests"]["running"] == 0
    if how != "leaving":
        finished(page)
        assert "stopped" in page.locator(".meta").text_content()
        assert page.get_by_role("button", name="Send").is_visible()


def test_the_picture_shows_the_request_while_it_runs(page: Any, server: Served) -> None:
    settings(page, temperature="0", max_tokens=str(LONG))
    page.locator("#state.on").wait_for()
    assert page.locator("#n-running").text_content() == "0"
    say(page, "Where is Tokyo?")
    page.locator("#running li b", has_text="you").wait_for()
    assert page.locator("#n-running").text_content() == "1"
    until(lambda: "1 decode + 0 prefill" in page.locator("#t-batch").text_content())
    until(lambda: float(page.locator("#n-rate").text_content().replace(",", "")) > 0)
    until(lambda: int(re.findall(r"\d+", page.locator("#t-pages").text_content())[0]) > 1)
    # A shape is drawn, and has the colour of our own request in it.
    accent = "rgb(47, 98, 224)"
    assert accent == page.locator("#k-you").evaluate("node => getComputedStyle(node).backgroundColor")
    until(lambda: [47, 98, 224] in page.locator("#pages").evaluate(PIXELS))
    page.keyboard.press("Escape")
    until(lambda: page.locator("#n-running").text_content() == "0")
    pages = server.stats()["pages"]
    expected = f"0 used, {pages['cached']} cached, {pages['free']} free"
    until(lambda: page.locator("#t-pages").text_content() == expected)
    until(lambda: page.locator("#n-rate").text_content() == "0")


PIXELS = """node => {
  const data = node.getContext("2d").getImageData(0, 0, node.width, node.height).data;
  const seen = new Set();
  for (let at = 0; at < data.length; at += 4) seen.add(data.slice(at, at + 3).join());
  return [...seen].map(text => text.split(",").map(Number));
}"""


def test_words_of_the_model_and_of_the_user_are_never_html(page: Any) -> None:
    settings(page, temperature="0", max_tokens="4")
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    say(page, evil)
    finished(page)
    assert page.locator(".user p").text_content() == evil
    assert page.locator("#log img, #log b").count() == 0


def test_enter_sends_and_shift_enter_does_not(page: Any) -> None:
    settings(page, temperature="0", max_tokens="2")
    box = page.get_by_label("Message")
    box.fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert box.input_value() == "one\ntwo"
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    finished(page)
    assert page.locator(".user p").text_content() == "one\ntwo"
    assert box.input_value() == ""
    assert box.evaluate("node => node === document.activeElement")


def test_everything_is_reached_with_the_keyboard(page: Any) -> None:
    page.locator("#state.on").wait_for()
    box = page.get_by_label("Message")
    box.fill("a question")
    reached = []
    for _ in range(10):
        page.keyboard.press("Tab")
        reached.append(page.evaluate_handle("document.activeElement").evaluate(NAME))
    assert {"Send", "New chat", "Settings", "Switch between light and dark"} <= set(reached)
    page.get_by_role("button", name="Settings").focus()
    page.keyboard.press("Enter")
    assert page.locator("#settings").evaluate("node => node.open")
    page.keyboard.press("Escape")
    assert not page.locator("#settings").evaluate("node => node.open")
    for field in page.locator("input, textarea").all():
        assert field.evaluate("node => node.labels.length") == 1
    assert page.get_by_role("status").count() == 1


NAME = "node => node.getAttribute('aria-label') || node.textContent.trim() || node.tagName"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1600])
def test_nothing_is_wider_than_the_screen(browser: Any, server: Served, width: int, scheme: str) -> None:
    with opened(browser, server, color_scheme=scheme) as page:
        page.set_viewport_size({"width": width, "height": 740})
        settings(page, temperature="0", max_tokens="2")
        say(page, "w" * 400)
        finished(page)
        page.locator("#state.on").wait_for()
        wide = page.locator("html").evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert wide[0] == wide[1]
        chat, machine = page.locator("#chat").bounding_box(), page.locator("#machine").bounding_box()
        if width < 880:
            assert machine["y"] >= chat["y"] + chat["height"] - 1
        else:
            assert machine["x"] >= chat["x"] + chat["width"] - 1
        background = page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
        assert background == ("rgb(252, 252, 250)" if scheme == "light" else "rgb(19, 20, 22)")


def test_the_theme_that_is_chosen_stays(browser: Any, server: Served) -> None:
    with opened(browser, server, color_scheme="light") as page:
        page.get_by_role("button", name="Switch between light and dark").click()
        page.reload()
        page.locator("#state.on").wait_for()
        background = page.locator("body").evaluate("node => getComputedStyle(node).backgroundColor")
        assert background == "rgb(19, 20, 22)"


def test_errors_are_said_in_the_page(page: Any, server: Served) -> None:
    settings(page, temperature="0", max_tokens="2")
    say(page, "word " * 6000)
    finished(page)
    assert "4096" in page.locator(".meta.wrong").text_content()
    # The question that was refused is no part of what is asked next.
    say(page, "Where is Tokyo?")
    finished(page)
    assert page.locator(".meta").last.text_content().startswith(("max tokens", "2 tokens"))


def test_the_page_asks_for_the_key_and_keeps_it(browser: Any, demo_artifact: Path) -> None:
    with (
        Served(demo_artifact, settings={"model_name": "demo", "api_key": KEY}) as server,
        opened(browser, server) as page,
    ):
        dialog = page.locator("#key")
        dialog.wait_for()
        page.get_by_label("API key").fill("not the key")
        page.keyboard.press("Enter")
        page.locator("#key-why.wrong").wait_for()
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        page.locator("#state.on").wait_for()
        settings(page, temperature="0")
        say(page, "What is the capital of France?")
        finished(page)
        assert page.locator(".assistant p").text_content() == "The capital of France is Paris."
        page.reload()
        page.locator("#state.on").wait_for()
        assert not dialog.is_visible()
        assert page.evaluate_handle("sessionStorage").evaluate("node => node['cleave-key']") == KEY
        assert KEY not in page.content()


def test_a_checkpoint_without_a_template_continues_text(
    browser: Any, artifact: Callable[[str], Path]
) -> None:
    with Served(artifact("one_layer")) as server, opened(browser, server) as page:
        page.get_by_placeholder("Text to continue").wait_for()
        settings(page, temperature="0", max_tokens="8")
        say(page, "San Francisco is a ")
        finished(page)
        body = {"model": "any", "prompt": "San Francisco is a ", "temperature": 0, "max_tokens": 8}
        body["model"] = server.service.model_name
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        assert page.locator(".assistant p").text_content() == answer["choices"][0]["text"]


def test_the_page_is_one_file_that_fetches_nothing_from_outside(server: Served) -> None:
    answer = httpx.get(f"{server.url}/ui")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"(?:https?:)?//\w[\w.-]*\.\w+", text)
    assert not re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=(?!["']data:)""", text)
    assert not re.findall(r"\son\w+=|innerHTML|insertAdjacentHTML|eval\(", text)
