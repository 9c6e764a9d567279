"""What a run measures of a model: tables of metrics, and what it says."""

import collections
import dataclasses
import time
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from jedit import (
  checkpoint,
  evaluate,
  metrics,
  references,
  requests,
  speech,
  stats,
  writing,
)
from jedit.models.load import Loaded
from jedit.records import Request
from jedit.references import References
from jedit.tokens import render
from jedit.types import JeditError, Params
from launch import common, devices

_SHOWN, _LENGTH = 3, 16  # prompts continued, tokens each
_FORM = '4'  # of what is kept of the base model; older files are left alone
# Where results.json keeps CounterFact's measures, and whose they are.
COUNTERFACT = {'probability': 'memit-2022', 'argmax': 'jedit'}


@dataclasses.dataclass(frozen=True)
class Measured:
  """Of one model.

  Attributes:
    found: {table: [N, metrics]}, percent of each record; NaN unmeasured.
    says: the most probable token after a request's prompt, by its index.
    said: continuations of the prompts that are shown.
    guess: what `unchanged` is held against (evaluate.Scores).
    seconds: what it took.
  """

  found: dict[str, np.ndarray]
  says: dict[int, str]
  said: list[str]
  guess: np.ndarray
  seconds: float

  @property
  def metrics(self) -> dict:
    """What results.json says of it."""
    return _metrics(self.found)


class Counts(NamedTuple):
  """Records written at the first score on the way, at the last one, now."""

  first: int
  before: int
  now: int


@dataclasses.dataclass(frozen=True)
class Measurer:
  """The questions of a request set, ready for any params of the model."""

  loaded: Loaded
  asked: Sequence[Request]
  rendering: str
  sample: np.ndarray  # indices of the records that are measured
  probe: evaluate.Probe  # of the sample, and of those that curves go back to
  spoken: np.ndarray  # indices of the questions that are asked freely, too
  texts: References | None  # about the new facts

  def before(self, params: Params, base_hash: str) -> Measured:
    """Of the base model; kept in the cache, where any run finds it."""
    arrays = *self.probe.questions, self.probe.kind, self.spoken
    asked = [checkpoint.digest(a.tobytes()) for a in arrays]
    asked += self.shown()
    model, tokenizer = self.loaded.model, self.loaded.tokenizer
    how = (
      model.config, tokenizer.eos_token_id, jax.default_backend(),
      jax.config.jax_default_matmul_precision, _SHOWN, _LENGTH,
      metrics.PHRASE, speech.OPENED,
    )  # fmt: skip
    key = ' '.join([_FORM, base_hash, *asked, repr(how)])
    key = checkpoint.digest(key.encode())
    path = common.cache_dir() / 'scores' / f'{key}.npz'
    start = time.perf_counter()
    known = _read(path)
    if devices.agreed(known is not None):
      common.say(f'scores of the base model: {path}')
      scores, *said = known
    else:
      scores, *said = self._run(params, 'before')
      both = dict(zip(('said', 'spoken'), said, strict=True))
      stats.save_arrays(path, **scores._asdict(), **both)
    return self._measured(scores, *said, None, start)

  def after(self, params: Params, before: Measured | None) -> Measured:
    """Of an edited model."""
    start = time.perf_counter()
    return self._measured(*self._run(params, 'after'), before, start)

  def curve(
    self, params: Params, before: Measured, counts: Counts, most: int
  ) -> dict[str, dict]:
    """{schedule: metrics} of a model on the way; at most `most` records each.

    immediate: of the sample, the facts just written; so_far: all that are;
    first: those that were the first to be scored (retention), at which first
    score the three are one. Facts that later ones have overwritten by then are
    left out.
    """
    known = np.unique(self.probe.record)
    these = self.sample if counts.now > counts.first else known
    within = lambda records, start, end: _spread(
      self.asked, records[(start <= records) & (records < end)], most
    )
    chosen = {
      'immediate': within(these, counts.before, counts.now),
      'so_far': within(these, 0, counts.now),
      'first': within(known, 0, counts.first),
    }
    every = np.unique(np.concatenate(list(chosen.values())))
    here = np.flatnonzero(np.isin(self.probe.record, every))
    part = evaluate.pick(self.probe, here)
    scores = self._scores(params, part, f'after {counts.now}')
    gone = requests.overwritten(self.asked[: counts.now])
    rows = lambda kept: evaluate.by_record(
      scores,
      part,
      before.guess[here],
      gone | set(every.tolist()) - set(kept.tolist()),
    )
    return {
      name: {
        'records': len(set(kept.tolist()) - gone),
        **_metrics(rows(kept)),
      }
      for name, kept in chosen.items()
    }

  def shown(self) -> list[str]:
    """The prompts that are continued."""
    return [r.text for r in self.asked[:_SHOWN]]

  def _run(self, params, name):
    model, _, _, tokenizer = self.loaded
    put = [render(tokenizer, t, self.rendering) for t in self.shown()]
    said = writing.complete(model, params, tokenizer, put, _LENGTH)
    scores, spoken = self._scores(params, self.probe, name), []
    if len(self.spoken):
      part = evaluate.pick(self.probe, self.spoken)
      with common.bar(len(self.spoken), f'answers {name}', 'prompt') as b:
        spoken = speech.of_probe(
          model, params, tokenizer, part, common.ticker(b)
        )
    return scores, said, spoken

  def _scores(self, params, probe, name):
    with common.bar(len(probe.kind), f'evaluation {name}', 'prompt') as b:
      return evaluate.score(
        self.loaded.model, params, probe.questions, progress=common.ticker(b)
      )

  def _found(self, scores, spoken, before):
    gone = requests.overwritten(self.asked)
    gone |= set(self.probe.record.tolist()) - set(self.sample.tolist())
    then = before.guess if before else None
    spoken = dict(zip(self.spoken[: len(spoken)], spoken, strict=True))
    consistency = self._consistency(spoken) if self.texts else {}
    return evaluate.by_record(
      scores, self.probe, then, gone, spoken, consistency
    )

  def _consistency(self, spoken: dict[int, str]) -> dict[int, float]:
    """Of all texts of a record together, for each of its openings."""
    opening = metrics.ASKED.index('opening')
    by_record = collections.defaultdict(list)
    for i in spoken:
      if self.probe.kind[i] == opening:
        by_record[self.probe.record[i]].append(i)
    out = {}
    for record, here in by_record.items():
      written = ' '.join(spoken[i] for i in here)
      value = self.texts.score(self.asked[record], written)
      if value is not None:
        out |= dict.fromkeys(here, value)
    return out

  def _measured(self, scores, said, spoken, before, start) -> Measured:
    first = self.probe.kind == 0  # one rewrite a record
    says = {
      record: self.loaded.tokenizer.decode([token])
      for record, token in zip(
        self.probe.record[first].tolist(),
        scores.guess[first, 0, 0].tolist(),
        strict=True,
      )
    }
    found = self._found(scores, spoken, before)
    seconds = time.perf_counter() - start
    return Measured(found, says, said, scores.guess, seconds)


def _read(path) -> tuple[evaluate.Scores, list[str], list[str]] | None:
  """What is kept of the base model; None if nothing usable is."""
  try:
    with np.load(path) as f:
      scores = evaluate.Scores(*(f[n] for n in evaluate.Scores._fields))
      return scores, f['said'].tolist(), f['spoken'].tolist()
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
    return None


def _metrics(found: dict[str, np.ndarray]) -> dict:
  """The part "before" or "after" of results.json's metrics."""
  means, ends = metrics.summary(found), metrics.intervals(found)
  names = *metrics.KINDS, 'score'
  part = lambda rows: {
    p: {n: rows[t][n] for n in names} for p, t in COUNTERFACT.items()
  }
  tables = {
    table: {
      n: None if v is None else [v, *ends[table][n]] for n, v in row.items()
    }
    for table, row in means.items()
    if any(v is not None for v in row.values())
  }
  return {
    'counterfact': part(means),
    'intervals': part(ends),
    'tables': tables,
  }


def measurer(
  config: ConfigDict, loaded: Loaded, asked: Sequence[Request]
) -> Measurer:
  """The Measurer of a request set.

  Args:
    config: eval_records, curve_at and curve_records say whose questions are
      asked; rendering, how; of `spoken` records they are answered freely, too,
      and the openings continued, which `references` says the facts about.
    loaded: the model.
    asked: the requests.
  """
  every = np.arange(len(asked))
  beyond = [n for n in config.curve_at if n > len(asked)]
  if beyond:
    common.say(f'not scored after {beyond} edits: there are {len(asked)}')
  start = min(set(config.curve_at) - set(beyond), default=0)
  sample = _spread(asked, every, config.eval_records or len(asked))
  first = _spread(asked, every[:start], config.curve_records)
  chosen = _spread(asked, sample, config.spoken)
  kept = np.union1d(sample, first)
  openings = np.flatnonzero(np.isin(kept, chosen)).tolist()
  current = requests.standing(asked)
  these = [current[i] for i in kept]
  probe = evaluate.probe(loaded.tokenizer, these, config.rendering, openings)
  probe = probe._replace(record=kept[probe.record])
  room = loaded.model.config.context_length
  free = np.isin(probe.record, chosen)
  long = speech.tokens(probe, free)
  if (long > room).any():
    worst = asked[probe.record[long.argmax()]]
    raise JeditError(common.too_long(worst, long.max(), room))
  free = np.flatnonzero(free & (probe.kind != metrics.ASKED.index('denial')))
  about = references.read(config.references) if config.references else None
  return Measurer(loaded, asked, config.rendering, sample, probe, free, about)


def _spread(
  asked: Sequence[Request], index: np.ndarray, most: int
) -> np.ndarray:
  """Of at most so many records, at equal distances from the first on.

  Args:
    asked: the requests; those of one record are taken together.
    index: of those that are to choose from, ascending.
    most: records.
  """
  sizes = [len(group) for group in requests.whole([asked[i] for i in index])]
  record = np.repeat(np.arange(len(sizes)), sizes)
  chosen = np.linspace(0, len(sizes), min(most, len(sizes)), False)
  return index[np.isin(record, chosen.astype(int))]
