"""Requests that wait for a batch: what is noted comes back, once, in its order."""

from idistill_jax.llm import protocol, waiting


def request(name: str, prompt: str = "words\nand 世界") -> protocol.Request:
  return protocol.Request(f"q-{name}", (f"p-{name}", "p"), prompt)


def test_what_was_noted_comes_back_in_its_order() -> None:
  requests = waiting.Waiting()
  assert not requests
  for name in ("b", "a", "c"):
    requests.note(name, request(name))
  requests.note("a", request("a", "of another list with the same key"))
  assert requests and list(requests) == ["b", "a", "c"]
  assert [requests.get(name) for name in ("a", "c", "d")] == [request("a"), request("c"), None]


def test_nothing_is_left_of_what_was_forgotten() -> None:
  requests = waiting.Waiting()
  requests.note("a", request("a"))
  requests.forget()
  assert not requests and requests.get("a") is None
  requests.note("a", request("a", "later"))
  assert requests.get("a") == request("a", "later")
