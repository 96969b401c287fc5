"""rank-llm's OpenAI reranker on the lists of `labelling.py`; run by it, in an environment that has rank-llm.

    python -m venv .venv-rank-llm
    .venv-rank-llm/bin/pip install --no-deps rank-llm tiktoken dacite ftfy wcwidth python-dotenv
    .venv-rank-llm/bin/pip install openai pyyaml tqdm regex requests

Imports nothing of this project.  rank-llm asks one list after the other; how fast it is with a thread for each of the
calls, which is for its user to write, is measured beside that.  Prints one JSON object.
"""

import concurrent.futures
import json
import sys
import time
from unittest import mock

# Local models, which the package imports with its OpenAI client and which this needs none of.
sys.modules |= {
  name: mock.MagicMock()
  for name in (
    "faiss", "google.generativeai", "pandas", "torch", "transformers", "vllm", "vllm.outputs",
    "rank_llm.rerank.listwise.rank_fid", "rank_llm.rerank.pairwise.duot5", "rank_llm.rerank.pointwise.monot5",
  )
}

import tiktoken  # noqa: E402
from rank_llm import data  # noqa: E402
from rank_llm.rerank import listwise, rankllm  # noqa: E402


class Words:
  """In place of a vocabulary that tiktoken would download; counting words is faster than what it does."""

  def encode(self, text):
    return text.split()


tiktoken.get_encoding = lambda name: Words()


def requests(count):
  """The lists of `labelling.lists`."""
  texts = [f"passage {i}: " + "some words of documentation " * 10 for i in range(20)]
  candidates = [data.Candidate(docid=f"p{i}", score=20.0 - i, doc={"text": text}) for i, text in enumerate(texts)]
  return [data.Request(query=data.Query(text=f"query q {i}", qid=f"q{i}"), candidates=candidates) for i in range(count)]


def main():
  url, calls, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  reranker = listwise.SafeOpenai(
    model="m", context_size=8192, prompt_mode=rankllm.PromptMode.RANK_GPT, keys=["none"], base_url=f"{url}/"
  )

  def rate(count, run):
    started, busy = time.perf_counter(), time.process_time()
    for found in run(requests(count)):
      assert [one.docid for one in found.candidates] == [f"p{i}" for i in range(19, -1, -1)]
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {"calls_per_second": count / seconds, "cpu_ms_per_call": 1000 * busy / count}

  with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:

    def in_threads(lists):
      return pool.map(lambda one: reranker.rerank_batch([one], rank_end=20)[0], lists)

    rate(concurrency, in_threads)  # connections
    threads = rate(calls, in_threads)
  alone = rate(min(calls, 50), lambda lists: reranker.rerank_batch(lists, rank_end=20))
  print(json.dumps({"rank-llm": alone, "rank-llm, a thread a call": threads}))


if __name__ == "__main__":
  main()
