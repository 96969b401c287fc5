"""An LLM's answers in one file, what each is about in another, in the same order -> ranked lists.

So RankGPT publishes its training data (https://github.com/sunnweiwei/RankGPT): `marco-train-10k.jsonl` is what was
shown, an object a line with `query`, `query_id` and `retrieved_passages`, each with its `docid`; its first stages write
`hits` in their place, with the query's `qid` in each.  `marco-train-10k-gpt3.5.json` is an array of answers, as in
"[2] > [1]".  Answers are read from lines as well: of JSON (`.jsonl`), or each a text (`.txt`).  An answer may also be a
list of positions.  Positions count from 1.  Both files may end in `.gz`.
"""

import collections
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from idistill_jax import records
from idistill_jax.data import collection
from idistill_jax.data.corpora import jsonl
from idistill_jax.llm import parse
from idistill_jax.workdir import outside

_PASSAGES = ("retrieved_passages", "hits")


def read(
  answers: outside.Path, shown: outside.Path, queries: Iterable[records.Query], drops: list[collection.Drop]
) -> Iterator[tuple[str, records.RankedList]]:
  """Where each list stands, and its ranking, in file order; refused answers and unknown texts go to `drops`.

  queries: what a line without an id is looked up in, by its text.  Raises CollectionError naming file and line where
  the files are not equally long, a position is of no passage, or ids are missing.
  """
  by_text: dict[str, list[str]] = collections.defaultdict(list)
  for query in queries:
    by_text[query.text.strip()].append(query.id)
  lists, said = jsonl.read(shown), _answers(answers)
  for number, (row, answer) in enumerate(itertools.zip_longest(lists, said), start=1):
    if row is None or answer is None:
      where, longer, shorter = (answer[0], "answer", shown) if row is None else (row.where, "list", answers)
      raise collection.CollectionError(
        f"{where}: {longer} {number} has no counterpart: {shorter} ends after {number - 1:,}; are the two of one set?"
      )
    passage_ids = _passage_ids(row)
    parsed = _order(answer, len(passage_ids))
    query_id = _query_id(row, by_text)
    if parsed.status == "refused":
      drops.append(collection.Drop("refused LLM answer", answer[0]))
    elif query_id is None:
      drops.append(collection.Drop("LLM ranking of a text that no query, or more than one, has", row.where))
    else:
      yield row.where, ranked(query_id, passage_ids, parsed)


def ranked(query_id: str, shown: Sequence[str], parsed: parse.Parsed) -> records.RankedList:
  """What an answer that was not refused says of the passages in the order shown."""
  return records.RankedList(
    query_id=query_id, passage_ids=tuple(shown[place] for place in parsed.order), status=parsed.status,
    permutation=parsed.order, filled_places=parsed.filled, repairs=parsed.reasons,
  )


def _answers(path: outside.Path) -> Iterator[tuple[str, Any]]:
  """`file:line`, or the entry, and each answer; an empty line of text is an answer that says nothing."""
  match outside.plain_name(path).suffix:
    case ".json":
      yield from ((f"{path}: entry {number}", one) for number, one in enumerate(jsonl.entries(path), start=1))
    case ".jsonl":
      yield from ((where, jsonl.value(where, line)) for where, line in jsonl.lines(path) if line.strip())
    case ".txt":
      yield from ((where, line.decode(errors="replace")) for where, line in jsonl.lines(path))
    case _:
      raise collection.CollectionError(
        f"{path}: answers about lists of their own are read from .json, .jsonl and .txt; where rankings name their "
        "queries themselves, leave those lists out: --config.collection.rankings_shown=none"
      )


def _order(answer: tuple[str, Any], count: int) -> parse.Parsed:
  """Words are read as a live answer's, so that a slip of the LLM is repaired or refused, and counted; a list of
  positions is somebody's data, in which a slip is an error."""
  where, said = answer
  if isinstance(said, str):
    return parse.parse(said, count)
  if not isinstance(said, list) or not all(isinstance(one, int) and not isinstance(one, bool) for one in said):
    raise collection.CollectionError(f"{where}: an answer must be text or a list of positions, found {said!r:.80}")
  wrong = [one for one in said if not 1 <= one <= count]
  if wrong:
    raise collection.CollectionError(
      f"{where}: position {wrong[0]} is of no passage: {count} were shown, and positions count from 1"
    )
  if len(set(said)) < len(said):
    raise collection.CollectionError(f"{where}: {json.dumps(said)} names a position twice")
  return parse.parse(" > ".join(f"[{one}]" for one in said), count)


def _passage_ids(row: jsonl.Row) -> tuple[str, ...]:
  passages = jsonl.first(row, _PASSAGES)
  if not isinstance(passages, list) or not passages or not all(isinstance(one, dict) for one in passages):
    raise collection.CollectionError(f"{row.where}: {' or '.join(_PASSAGES)} must be a list of objects with `docid`")
  ids = [jsonl.words(jsonl.Row(row.where, one), ("docid",)) for one in passages]
  if None in ids:
    raise collection.CollectionError(f"{row.where}: passage {ids.index(None) + 1} has no `docid`")
  return tuple(jsonl.whole_id(row.where, str(one)) for one in ids)


def _query_id(row: jsonl.Row, by_text: Mapping[str, list[str]]) -> str | None:
  """As the line says, or its passages, or by its text; None where that is no query's or several's."""
  own = jsonl.words(row, ("query_id", "qid"))
  if own is not None:
    return own
  of_passages = {jsonl.words(jsonl.Row(row.where, one), ("qid",)) for one in jsonl.first(row, _PASSAGES)} - {None}
  if len(of_passages) > 1:
    raise collection.CollectionError(f"{row.where}: passages of several queries: {', '.join(map(str, of_passages))}")
  if of_passages:
    return of_passages.pop()
  found = by_text.get(jsonl.text(row, "query").strip(), [])
  return found[0] if len(found) == 1 else None
