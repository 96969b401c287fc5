"""The search page: answers, limits, escaping, many clients at once; served for real, searched in Chromium."""

import concurrent.futures
import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from unittest import mock

import browser
import markupsafe
import pytest

from idistill_jax import records, search
from idistill_jax.data import tfrecord

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from idistill_jax import serve

HOSTILE = "<img src=x onerror=\"document.documentElement.dataset.error='hit'\"></script><script>alert(1)</script>"


class Echo:
  """Finds passages that repeat the question; notes what was asked, counts how many ask at once."""

  def __init__(self, seconds: float = 0.0):
    self.seconds = seconds
    self.questions: list[str] = []
    self.at_once = self.most_at_once = 0

  @property
  def asked(self) -> int:
    return len(self.questions)

  def search(self, query: str, k: int) -> dict[str, search.Answer]:
    search.check(query, k)
    self.at_once += 1
    self.most_at_once = max(self.most_at_once, self.at_once)
    time.sleep(self.seconds)
    self.questions.append(query)
    self.at_once -= 1
    passages = tuple(records.Passage(id=f"p{i}", title=f"{query} {i}", text=HOSTILE) for i in range(k))
    return {name: search.Answer(passages=passages, milliseconds=1.25, by=by)
            for name, by in (("initial", "exact search"), ("distilled", "ScaNN"))}


class Served:
  """`with Served(searcher) as url:`"""

  def __init__(self, searcher: Echo, per_minute: int = serve.PER_MINUTE):
    self.server = serve.server(searcher, per_minute)
    self.thread = threading.Thread(target=self.server.run, args=([serve.bound(0)],), daemon=True)

  def __enter__(self) -> str:
    self.thread.start()
    while not self.server.started:
      time.sleep(0.01)
    (listening,) = self.server.servers[0].sockets
    self.address = listening.getsockname()
    return f"http://127.0.0.1:{self.address[1]}"

  def __exit__(self, *exc: object) -> None:
    self.server.should_exit = True
    self.thread.join(10)


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
  request = urllib.request.Request(url, headers=headers)
  try:
    with urllib.request.urlopen(request, timeout=30) as response:
      return response.status, dict(response.headers), response.read()
  except urllib.error.HTTPError as e:
    return e.code, dict(e.headers), e.read()


def ask(url: str, question: str, k: object = 5) -> tuple[int, dict]:
  status, _, body = get(f"{url}/api/search?{urllib.parse.urlencode({'q': question, 'k': k})}")
  return status, json.loads(body)


def test_answers_and_what_is_no_question():
  with Served(Echo()) as url:
    status, found = ask(url, "where is it?", 2)
    assert status == 200 and found["question"] == "where is it?"
    assert set(found["systems"]) == {"initial", "distilled"}
    assert [one["id"] for one in found["systems"]["initial"]["passages"]] == ["p0", "p1"]
    assert found["systems"]["initial"]["milliseconds"] == 1.25
    assert {name: of["by"] for name, of in found["systems"].items()} == {
      "initial": "exact search", "distilled": "ScaNN"}
    for question, k, expected, message in (
      ("", 5, 400, "the query is empty"),
      ("x" * 1001, 5, 413, "1001 characters"),
      ("x", 0, 400, "from 1 to 20"),
      ("x", 21, 400, "from 1 to 20"),
      ("x", "9" * 40, 400, "from 1 to 20"),
      ("x", "five", 400, "from 1 to 20"),
    ):
      status, found = ask(url, question, k)
      assert status == expected and message in found["error"], (question[:9], k)
    assert get(f"{url}/nothing")[0] == 404 and get(f"{url}/../pyproject.toml")[0] == 404


def test_a_damaged_passage_is_no_fault_of_who_asks(monkeypatch):
  damaged = Echo()
  with Served(damaged) as url:
    monkeypatch.setattr(damaged, "search", mock.Mock(side_effect=tfrecord.CorruptRecord("x", 0, 0, "truncated")))
    assert get(f"{url}/api/search?q=x")[0] == 500
    monkeypatch.undo()
    assert ask(url, "x")[0] == 200


def test_only_this_machine_is_served_and_nothing_runs():
  served = Served(Echo())
  with served as url:
    assert served.address[0] == "127.0.0.1"
    # A page of another site that resolves to 127.0.0.1 sends its own name.
    assert get(url, Host="evil.example")[0] == 400
    status, headers, body = get(url)
    headers = {name.lower(): value for name, value in headers.items()}
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"] and headers["x-content-type-options"] == "nosniff"
    assert "script-src" not in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers and b"<script" not in body


def test_pages_of_other_sites_may_link_to_an_answer_and_use_up_nothing():
  """As their images, frames and scripts would; what a browser says of who asks is what tells them."""
  searcher = Echo()
  says = lambda site, dest: {"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest}
  with Served(searcher, per_minute=3) as url:
    for path in ("/api/search?q=x", "/?q=x"):
      for site, dest in (("cross-site", "image"), ("same-site", "iframe"), ("cross-site", "empty")):
        assert get(url + path, **says(site, dest))[0] == 403
    assert searcher.asked == 0
    for site, dest in (("cross-site", "document"), ("none", "document"), ("same-origin", "empty")):
      assert get(f"{url}/api/search?q=x", **says(site, dest))[0] == 200
    assert get(f"{url}/api/search?q=x")[0] == 429, "the control: these were counted"


def test_a_request_that_does_not_end_is_not_read_to_its_end():
  searcher = Echo()
  with Served(searcher) as url:
    try:
      assert get(f"{url}/api/search?q=x&more={'y' * 4_000_000}")[0] == 400
    except OSError as e:  # closed before all of it was sent, or before the answer was read
      assert isinstance(getattr(e, "reason", e), ConnectionError)
    assert get(f"{url}/api/search?q=x&more={'y' * 1_000}")[0] == 200 and searcher.asked == 1


def page(url: str, **asked: object) -> tuple[int, str]:
  status, headers, body = get(f"{url}/?{urllib.parse.urlencode(asked)}")
  assert {name.lower(): value for name, value in headers.items()}["content-type"].startswith("text/html")
  return status, body.decode()


def test_a_question_lives_in_the_address_and_needs_no_script():
  searcher = Echo()
  with Served(searcher) as url:
    status, empty = page(url)
    assert status == 200 and "<ol>" not in empty and 'name="q"' in empty and "autofocus" in empty
    # Blanks are no question, and the rate is not charged for them.
    assert page(url, q="  ") == (200, empty) and searcher.asked == 0
    status, found = page(url, q="where is it?", k=2)
    assert status == 200 and len(re.findall("<li[ >]", found)) == 4 and "<b>where is it? 1</b>" in found
    assert re.findall(r"1\.2 ms, [\w ]+", found) == ["1.2 ms, exact search", "1.2 ms, ScaNN"]
    assert 'value="where is it?"' in found and "<title>where is it? · idistill_jax: search</title>" in found
    for said in (empty, found):
      assert "<script" not in said and '<link rel="icon" href="data:image/svg+xml,' in said


def test_whatever_is_asked_and_found_is_shown_as_text():
  with Served(Echo()) as url:
    for question in (HOSTILE, '"><b autofocus onfocus=alert(1)>', "{{ 7 * 7 }} {% raw %}", "café → 北京"):
      status, shown = page(url, q=question, k=1)
      assert status == 200 and f'value="{markupsafe.escape(question)}"' in shown
      assert f"<b>{markupsafe.escape(question)} 0</b><p>{markupsafe.escape(HOSTILE)}</p>" in shown
      assert "<img" not in shown and "<script" not in shown and "onfocus=alert(1)>" not in shown


def test_the_page_says_why_a_question_is_not_answered():
  with Served(Echo(), per_minute=1) as url:
    assert ask(url, "the first")[0] == 200
    for asked, expected, message in (
      ({"q": "x" * 1001}, 413, "1001 characters"), ({"q": "x", "k": "<b>"}, 400, "from 1 to 20"),
      ({"q": "x"}, 429, "more than 1 questions"),
    ):  # fmt: skip
      status, shown = page(url, **asked)
      assert status == expected and 'role="alert"' in shown and message in shown and "<ol>" not in shown


def test_what_another_system_puts_elsewhere_is_marked():
  class Moving(Echo):
    def search(self, query: str, k: int) -> dict[str, search.Answer]:
      one, other, third = (records.Passage(id=f"p{i}", title="", text="") for i in range(3))
      orders = {"initial": (one, other), "distilled": (one, third, other), "ranker": (other, one)}
      return {name: search.Answer(passages=found, milliseconds=1, by="exact search") for name, found in orders.items()}

  with Served(Moving()) as url:
    _, shown = page(url, q="x")
  # Without a title, a passage is called by its id.
  marked = re.findall(r"<li( class=\"moved\")?><b>(p\d)</b>", shown)
  assert [(bool(moved), name) for moved, name in marked] == [
    (False, "p0"), (False, "p1"), (False, "p0"), (True, "p2"), (True, "p1"), (True, "p1"), (True, "p0")]


def test_who_asks_too_much_waits():
  now = [0.0]
  rate = serve.Rate(2, clock=lambda: now[0])
  rate.admit(), rate.admit()
  with pytest.raises(serve.Refused, match="more than 2 questions"):
    rate.admit()
  now[0] = 61.0
  rate.admit()
  with Served(Echo(), per_minute=3) as url:
    assert [ask(url, "x")[0] for _ in range(5)] == [200, 200, 200, 429, 429]
    # The first of the three leaves the minute when that has passed.
    assert 55 < int(get(f"{url}/api/search?q=x")[1]["retry-after"]) <= 60


def test_who_is_turned_away_uses_up_nothing():
  searcher = Echo(seconds=0.05)
  many = serve.MOST_WAITING + 40
  with Served(searcher, per_minute=many) as url, concurrent.futures.ThreadPoolExecutor(many) as pool:
    assert {ask(url, "")[0] for _ in range(9)} == {400} and ask(url, "x" * 1001)[0] == 413
    statuses = [one[0] for one in pool.map(lambda number: ask(url, f"q{number}"), range(many))]
    assert set(statuses) == {200, 503}
    # As many of the minute are left as were turned away, and no more.
    again = [ask(url, "again")[0] for _ in range(statuses.count(503) + 1)]
  assert again == [200] * statuses.count(503) + [429]


def test_a_port_that_is_taken_is_told_before_any_model_is_loaded(tmp_path):
  with socket.create_server(("127.0.0.1", 0)) as taken:
    port = taken.getsockname()[1]
    with pytest.raises(OSError, match=rf"127.0.0.1:{port}: .*take another with --port"):
      serve.bound(port)
    command = [sys.executable, "-m", "idistill_jax.serve", f"--workdir={tmp_path}", f"--port={port}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "take another with --port" in done.stderr and "loading" not in done.stderr
  # Nor one at which another's models are still being loaded.
  with serve.bound(0) as first, pytest.raises(OSError, match="take another with --port"):
    serve.bound(first.getsockname()[1])


def test_everybody_gets_the_answer_to_the_own_question():
  searcher = Echo(seconds=0.002)
  with Served(searcher) as url, concurrent.futures.ThreadPoolExecutor(32) as pool:
    questions = [f"question {number}" for number in range(320)]
    for question, (status, found) in zip(questions, pool.map(lambda one: ask(url, one, 1), questions), strict=True):
      assert status == 200 and found["systems"]["initial"]["passages"][0]["title"] == f"{question} 0"
  assert searcher.asked == 320 and searcher.most_at_once == 1


def test_nothing_is_searched_for_clients_that_have_left():
  searcher = Echo(seconds=0.4)
  served = Served(searcher)
  with served as url, concurrent.futures.ThreadPoolExecutor(2) as pool:
    first = pool.submit(ask, url, "first")
    while searcher.at_once == 0:
      time.sleep(0.01)
    for number in range(3):
      with socket.create_connection(served.address) as leaving:
        leaving.sendall(f"GET /api/search?q=left{number} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    last = pool.submit(ask, url, "last")
    assert first.result()[0] == last.result()[0] == 200
  assert searcher.questions == ["first", "last"]


def test_who_waits_too_long_is_told_when_to_ask_again(monkeypatch):
  monkeypatch.setattr(serve, "LONGEST_WAIT", 0.2)
  searcher = Echo(seconds=1.0)
  with Served(searcher) as url, concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(ask, url, "first")
    while searcher.at_once == 0:
      time.sleep(0.01)
    status, headers, body = get(f"{url}/api/search?q=late")
    assert status == 503 and b"waited" in body and int(headers["retry-after"]) >= 1
    # Told so while the first is still searched for.
    assert not first.done() and first.result()[0] == 200
    # Who was refused holds up nobody.
    assert ask(url, "next")[0] == 200
  assert searcher.questions == ["first", "next"]


def test_models_are_compiled_before_anybody_asks(monkeypatch):
  asked = []
  monkeypatch.setattr(Echo, "search", lambda self, query, k: asked.append(k))
  monkeypatch.setattr(search, "Searcher", Echo)
  serve.ready("w", 1)
  assert asked == [20]


def test_every_number_of_passages_is_cut_from_one_that_is_compiled(monkeypatch):
  asked, real = [], Echo.search
  monkeypatch.setattr(Echo, "search", lambda self, query, k: asked.append(k) or real(self, query, k))
  with Served(Echo()) as url:
    for k in (1, 7, 20):
      found = ask(url, "x", k)[1]["systems"]
      assert {name: len(of["passages"]) for name, of in found.items()} == {"initial": k, "distilled": k}
    # The page, which names no number, shows as many as ever.
    assert len(re.findall("<li[ >]", page(url, q="x")[1])) == 2 * serve.SHOWN
  assert asked == [20] * 4


def test_more_than_may_wait_are_turned_away_and_nobodys_page_waits():
  searcher = Echo(seconds=0.05)
  many = serve.MOST_WAITING + 40
  with Served(searcher) as url, concurrent.futures.ThreadPoolExecutor(many) as pool:
    asked = [pool.submit(ask, url, f"q{number}") for number in range(many)]
    next(one for one in concurrent.futures.as_completed(asked) if one.result()[0] == 503)
    # One is searched for and as many wait as may; the page does not.
    before = searcher.asked
    assert get(url)[0] == 200 and searcher.asked < before + 20
    statuses = [one.result()[0] for one in asked]
  assert set(statuses) == {200, 503}
  # Few are answered before the last has arrived, and each makes room for another.
  assert serve.MOST_WAITING < statuses.count(200) < many


def test_the_page_in_a_browser(tmp_path):
  with Served(Echo()) as url, browser.page() as tab:
    shows = lambda question: f"document.querySelector('li b')?.textContent === {json.dumps(question + ' 0')}"
    for width, height, dark in ((1280, 900, False), (390, 844, False), (390, 844, True), (320, 640, False)):
      tab.look(width=width, height=height, dark=dark)
      # Told apart from the page before it, which looks the same.
      asked = "?" + urllib.parse.urlencode({"q": HOSTILE, "look": f"{width}-{dark}"})
      tab.open(f"{url}/{asked}", f"document.readyState === 'complete' && location.search === {json.dumps(asked)}")
      assert tab.run(shows(HOSTILE))
      assert tab.run("document.documentElement.scrollWidth") <= width
      assert 0.3 < tab.picture(tmp_path / f"{width}-{'dark' if dark else 'light'}.png") < 0.97
    assert tab.run("document.querySelectorAll('li').length") == 10
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert tab.run("document.querySelectorAll('script').length") == 0
    assert tab.run("document.querySelector('li p').textContent") == HOSTILE
    assert tab.run("document.documentElement.dataset.error") is None and not tab.errors
    tab.run("document.forms[0].q.value = 'and now?'; document.forms[0].requestSubmit()")
    tab.wait(shows("and now?"))
    assert tab.run("location.search") == "?q=and+now%3F"
    tab.run("history.back()")
    tab.wait(shows(HOSTILE))
    # A page that the browser kept has in its field what was typed last, and says itself what it answers.
    assert tab.run("document.querySelector('.asked').textContent") == HOSTILE and not tab.errors
