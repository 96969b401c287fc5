"""Measured numbers -> the sentences and formats in which the page and the terminal say them."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from idistill_jax.llm import query_writing
from idistill_jax.report import gather
from idistill_jax.retrieval import significance, systems
from idistill_jax.workdir import outdated

# Main measure -> the one that says it in a reader's words.
FIRST_PLACE = {"MRR@10": "hit@1"}
# Of measures that do not look where among the first places: what they count there.
_IN_TOP = {"hit": "a right passage", "recall": "right passages", "answer": "an answer"}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
  """headline: one sentence.  detail: the numbers behind it.  verdict: "better", "worse" or "undecided"."""

  headline: str
  detail: str
  verdict: str


def claim(
  evaluation: gather.Evaluation | None, labels: Mapping[str, Any] | None, settings: Mapping[str, str]
) -> Claim:
  """What the run showed, as strongly as its test allows and no more.  labels: statuses of the labelling, None where
  there was none; claimed only where `settings` (see `gather.settings`) say that its lists taught."""
  if evaluation is None:
    return Claim(
      headline="Nothing has been measured yet.", detail="The evaluate stage has not run.", verdict="undecided"
    )
  test = evaluation.test(gather.AFTER).get(evaluation.main_measure)
  before, after = (evaluation.systems.get(one, {}).get(evaluation.main_measure)
                   for one in (gather.BEFORE, gather.AFTER))  # fmt: skip
  if before is None or after is None:
    return Claim(
      headline=f"No comparison of {gather.AFTER} and {gather.BEFORE} was measured.",
      verdict="undecided",
      detail=f"The evaluation compares {', '.join(evaluation.tests) or 'nothing'}.",
    )
  if test is None:
    return Claim(
      headline=f"{count(evaluation.known(evaluation.main_measure))} query is too few to tell anything.",
      verdict="undecided",
      detail=f"{evaluation.main_measure} {before:.3f} → {after:.3f}; a test needs two queries at least.",
    )
  change = f"{relative(test.relative)}; " if test.relative is not None else ""
  known = evaluation.known(evaluation.main_measure)
  measured = f"{count(known)} of " if known < evaluation.queries else ""
  detail = (
    f"{evaluation.main_measure} {before:.3f} → {after:.3f} ({change}difference {difference(test)}, "
    f"{p_value(test.p)}, the primary test and so not corrected for others, {measured}{count(evaluation.queries)} "
    f"{evaluation.split} queries).{_not_distillation(evaluation, settings)}"
    + (f" {query_writing.CAUTION}" if evaluation.written_queries else "")
  )
  lead = _lead(labels if _taught_by_lists(settings) else None)
  return Claim(headline=f"{lead}{_outcome(evaluation, test)}.", detail=detail, verdict=verdict(test))


def _taught_by_lists(settings: Mapping[str, str]) -> bool:
  """Whether what is measured as distilled has any part in it that learned from the LLM's rankings."""
  return settings.get("retriever.teacher") != '"pairs"' or settings.get("retriever.direct_share", "null") != "null"


def _not_distillation(evaluation: gather.Evaluation, settings: Mapping[str, str]) -> str:
  """What else is in the difference, where distilled was searched in another way than what it is compared with."""
  # Of an evaluation before it told its model's dimensions, these are smaller vectors, too.
  whole = {"index.dimensions": (None, evaluation.ann.get("whole_dimensions")), "index.precision": (None, "float32")}
  stated = {path: json.loads(settings.get(path, "null")) for path in whole}
  smaller = [f"{path} {value}" for path, value in stated.items() if value not in whole[path]]
  said = [f"with smaller vectors ({', '.join(smaller)})"] if smaller else []
  said += ["by ScaNN"] if evaluation.is_by_scann else []
  if not said:
    return ""
  return (
    f" Distilled was searched {' and '.join(said)}, the retrievers it is compared with exactly and with whole vectors: "
    "what that costs is part of the difference."
  )


def older(found: Mapping[str, list[str]]) -> str | None:
  """What must be said before anything else: some results are of what is there no more.  None where there are none."""
  return f"Outdated. {outdated.told(found)}" if found else None


def leak(found: Mapping[str, Any]) -> str | None:
  """What must be said before anything else: training saw queries of the test, or the result rests on passages that it
  put first.  None where neither is so."""
  said, sentences = [], []
  if number := int(found.get("test_queries_trained_on") or 0):
    examples = ", ".join(found.get("trained_on_examples", ()))
    said.append(f"{count(number)} have a list that training learned from ({examples})")
  if number := int(found.get("near_duplicate_queries") or 0):
    examples = ", ".join(f"{test} ~ {train}" for test, train, _ in found.get("examples", ()))
    said.append(f"{count(number)} have a near-duplicate among the training queries ({examples})")
  if said:
    sentences.append(f"Of {count(int(found['test_queries']))} test queries " + ", and ".join(said) + (
      ". What is measured on them is no evidence."
    ))
  rest = found.get("rest") or {}
  if rest.get("is_lost"):
    examples = ", ".join(f"{query}: {passage}" for query, passage in found.get("familiar_examples", ()))
    familiar = f"{count(int(found['familiar_queries']))} of {count(int(found['test_queries']))}"
    sentences.append(
      f"{familiar} test queries have a {_right(found)} that stands first in a list that training learned from "
      f"({examples}), and the result rests on them: "
      f"{_with_and_without(rest)}. The passages may have been learned, rather than how to find one."
    )
  return f"Leakage. {' '.join(sentences)}" if sentences else None


def caveats(metrics: Mapping[str, Any]) -> list[str]:
  """What the numbers of a metrics.json would be taken for more than they are without, wherever they stand alone."""
  found = []
  if (leaked := leak(metrics.get("leakage", {}))) is not None:
    found.append(leaked)
  if (over := metrics.get("ann", {}).get("options_against", systems.WHOLE)) != systems.WHOLE:
    found.append(f"`distilled` was searched over {over}; the retrievers it is compared with were over whole ones.")
  return found


def _right(found: Mapping[str, Any]) -> str:
  """What kind of passage is right: judged, or found and with an answer in it."""
  return "passage with an answer" if found.get("right_by_answers") else "right passage"


def _with_and_without(rest: Mapping[str, Any]) -> str:
  """The difference over all test queries, and over those without a right passage that training put first."""
  whole = f"{rest['of']} is {signed(rest['whole_delta'])} ({p_value(rest['whole_p'])})"
  others = f"over the other {count(int(rest['queries']))}"
  if rest["delta"] is None:
    return f"{whole}, and cannot be measured {others}"
  return f"{whole}, and {signed(rest['delta'])} ({p_value(rest['p'])}) {others}"


def seen(found: Mapping[str, Any]) -> str | None:
  """How many passages of the test training saw: normal in one corpus, and to be said.  None where it is not known."""
  if found.get("right_passages") is None:
    return None
  right, listed, first = (
    int(found[f"right_passages{where}"]) for where in ("", "_in_training_lists", "_first_in_training_lists")
  )
  by_answers = found.get("right_by_answers")
  are = "hold an answer to a test question that finds them" if by_answers else "are right for a test query"
  return (
    f"Of {count(right)} passages that {are}, {count(listed)} stand in a list that training "
    f"learned from, {count(first)} of them in first place, as is normal where both search one corpus."
  ) + _without_familiar(found)


def _without_familiar(found: Mapping[str, Any]) -> str:
  """Whether the result holds without the queries that have such a passage; "" where that is said aloud, or unknown."""
  rest = found.get("rest") or {}
  if not rest or rest["is_lost"] or rest["whole_p"] >= significance.SIGNIFICANT:
    return ""
  which = f"the {count(int(found['familiar_queries']))} test queries whose {_right(found)} stood first"
  # Half of a difference and more may be left of it, and too few queries to tell that from none.
  told = rest["p"] < significance.SIGNIFICANT
  said = f"The result does not rest on {which}" if told else f"Whether the result rests on {which} cannot be told"
  return f" {said}: {_with_and_without(rest)}."


def tuned(stages: Iterable[gather.StageRun]) -> str:
  """Which queries ScaNN was tuned on, as the index stage counted them; "" where it was not, or did not say."""
  found = next((stage.counts.get("tuned on") for stage in stages if stage.name == "index"), None) or {}
  words = {"dev": "of dev", "unused train": "of train that taught nothing", "used train": "of train"}
  parts = [f"{count(int(number))} {words.get(what, what)}" for what, number in found.items()]
  if not parts:
    return ""
  warned = "; training learned from the last, so it may find less for others" if "used train" in found else ""
  return f"Queries that ScaNN was tuned on: {', '.join(parts)}{warned}."


def measured_on(ann: Mapping[str, Any]) -> str:
  """Over which passages smaller vectors were measured: "all 3,743 passages"."""
  if "options_passages" not in ann:
    # As measured before it was written down.
    return "the index's passages (of more than 100,000, the first 100,000)"
  measured, of = map(int, ann["options_passages"])
  if measured == of:
    return f"all {count(of)} passages"
  # Where there are judgements, each option has measures of its own.
  judged = any("nDCG@10" in option for option in ann.get("options", ()))
  return f"{count(measured)} of {count(of)} passages, {'the judged ones and others ' if judged else ''}drawn at random"


def about(evaluation: gather.Evaluation) -> str:
  """The queries that were measured: "60 test queries", "60 test queries (answer@1, answer@20 over 11 of them)"."""
  fewer: dict[int, list[str]] = {}
  for measure in evaluation.measures:
    if (known := evaluation.known(measure)) < evaluation.queries:
      fewer.setdefault(known, []).append(measure)
  said = [f"{', '.join(measures)} over {count(known)} of them" for known, measures in fewer.items()]
  if evaluation.relevant_from != 1 and "nDCG@10" in evaluation.measures:  # there are judgements
    said.insert(0, f"passages relevant from grade {evaluation.relevant_from} on, but for nDCG, which counts all grades")
  which = "; ".join(said)
  return f"{count(evaluation.queries)} {evaluation.split} queries{f' ({which})' if which else ''}"


def bm25(evaluation: gather.Evaluation, settings: Mapping[str, str]) -> str:
  """What BM25 took for terms; "" where it was not measured."""
  if "bm25" not in evaluation.systems:
    return ""
  # Before there was a choice it read English.
  language = settings.get("evaluate.bm25_language", "english").strip('"')
  others = {"words": "words as they are", "cjk": "pairs of characters of Chinese, Japanese and Korean"}
  return f"BM25 matches {others.get(language, f'stems of {language.title()} words')}."


def verdict(test: gather.Comparison) -> str:
  """Which way a comparison points: "undecided" unless chance is an unlikely explanation of all that were made, or, of
  the primary test, of it alone."""
  if test.p_holm >= significance.SIGNIFICANT or test.delta == 0:
    return "undecided"
  return "better" if test.delta > 0 else "worse"


def _lead(labels: Mapping[str, Any] | None) -> str:
  lists = _learnt_lists(labels)
  return f"After learning from {count(lists)} LLM-ranked lists, " if lists else "After distillation, "


def _learnt_lists(labels: Mapping[str, Any] | None) -> int:
  if labels is None:
    return 0
  return sum(number for number in (labels.get("complete"), labels.get("repaired")) if isinstance(number, int))


def _outcome(evaluation: gather.Evaluation, test: gather.Comparison) -> str:
  measure, way = evaluation.main_measure, verdict(test)
  if way == "undecided":
    return f"no difference of the retriever can be told from chance ({measure} {difference(test)})"
  often = "more often" if test.delta > 0 else "less often than before"
  place = FIRST_PLACE.get(measure, "")
  first = evaluation.test(gather.AFTER).get(place)
  if first is not None and first.relative is not None and verdict(first) == way:
    share = f"{abs(first.relative):.0%}".replace("%", "\u00a0%")
    return f"the retriever puts the right passage first {share} {often} ({place} {difference(first)})"
  kind, _, depth = measure.partition("@")
  ranks = f"ranks the right passage {'higher' if test.delta > 0 else 'lower than before'}"
  said = f"finds {_IN_TOP[kind]} in its top {depth} {often}" if kind in _IN_TOP else ranks
  return f"the retriever {said} ({measure} {difference(test)})"


def difference(test: gather.Comparison) -> str:
  """With its interval: "+0.085, 95 % interval +0.060 to +0.110"."""
  low, high = map(signed, test.ci95)
  return f"{signed(test.delta)}, 95\u00a0% interval {low} to {high}"


def p_number(p: float) -> str:
  """The same for a table whose column says p already: "<0.001", "0.013"."""
  return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_value(p: float) -> str:
  """With spaces that do not break."""
  return ("p < 0.001" if p < 0.001 else f"p = {p:.3f}").replace(" ", "\u00a0")


def signed(number: float, digits: int = 3) -> str:
  text = f"{number:+.{digits}f}"
  return text.replace("-", "−")


def relative(number: float | None) -> str:
  return "–" if number is None else f"{signed(100 * number, 1)}\u00a0%"


def count(number: int) -> str:
  return f"{number:,}"


def plain(found: Any) -> str:
  """A fact of a manifest or a JSON file, for reading."""
  if isinstance(found, bool) or found is None:
    return {True: "yes", False: "no", None: "–"}[found]
  if isinstance(found, int):
    return count(found)
  if isinstance(found, float):
    return f"{found:,.0f}" if abs(found) >= 1000 else f"{found:.4g}"
  if isinstance(found, dict):
    return f"({', '.join(f'{key} {plain(one)}' for key, one in found.items())})"
  if isinstance(found, (list, tuple)):
    return ", ".join(map(plain, found))
  return str(found)


def duration(seconds: float) -> str:
  """3.2 s, 4 min 10 s, 2 h 5 min."""
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
