"""A real LLM end to end, where one is named: every list of the quickstart that it is asked about is accounted for.

Off unless IDISTILL_LLM_URL names an OpenAI-compatible server (BUILD.md, labelling, has the commands for a small one).
Small models answer badly: what is held here is that nothing they say goes unnoticed, not that they rank well.
"""

import json
import os
import pathlib

import pytest

from idistill_jax import config, flow
from idistill_jax.llm import parse, ranking, session
from idistill_jax.stages import labels
from idistill_jax.workdir import artifacts

URL = os.environ.get("IDISTILL_LLM_URL")
LISTS = 20

pytestmark = pytest.mark.skipif(URL is None, reason="asks a real LLM: set IDISTILL_LLM_URL, see BUILD.md")


def test_every_list_is_complete_repaired_refused_or_unanswered(tmp_path: pathlib.Path, capsys):
  cfg = config.Config(name="small", collection=config.Collection(source="stdlib"))
  cfg.labels = config.Labels(
    provider="openai", base_url=URL, model=os.environ.get("IDISTILL_LLM_MODEL", "default"), lists=LISTS,
    passage_tokens=32, max_output_tokens=128, refused_retries=0, concurrency=1, timeout_seconds=600.0,
  )
  workdir = artifacts.Workdir(tmp_path)
  workdir.execute(flow.STAGES["collection"], cfg)
  job = artifacts.Job(
    cfg=cfg, out=tmp_path, inputs={"collection": workdir.folder("collection")}, cache=workdir.cache
  )
  lists = labels.to_be_ordered(job)
  with session.Session(cfg.labels, job.cache) as opened:
    outcomes = opened.label(lists, session.plan(cfg.labels, cfg.seed))
    statuses = labels.summarise(outcomes, cfg.labels)
    with capsys.disabled():
      print("\n" + json.dumps(statuses, indent=1))
      for outcome in outcomes[:3]:
        print(json.dumps(outcome.answers[0].answer.text[:200]))
    again = opened.label(lists, session.plan(cfg.labels, cfg.seed))

  assert statuses["complete"] + statuses["repaired"] + sum(statuses["refused"].values()) == LISTS
  assert statuses["usage"]["input_tokens"] > 100 * LISTS
  assert not any(labelled.paid for outcome in again for labelled in outcome.answers), "asked twice for the same"
  for outcome in outcomes:
    if isinstance(outcome, ranking.Ranked):
      assert sorted(outcome.parsed.order) == list(range(len(outcome.unordered.passage_ids)))
    for labelled in outcome.answers:
      assert labelled.parsed == parse.parse(labelled.answer.text, len(outcome.unordered.passage_ids))
