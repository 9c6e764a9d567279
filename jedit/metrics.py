"""What is measured of edited facts: a table of metrics, arrays in, numbers out.

A metric asks some of a record's questions and counts the answers by a protocol:

  probability  -log p of the wanted answer, a mean over its tokens, is below
               that of the other answer
  strict       every token of the wanted answer is the most probable one,
               teacher-forced
  token        the share of its tokens that are
  exact        the model, speaking freely and greedily, says the answer and
               nothing else in its first line (SQuAD's normal form)
  contains     it says the answer among other words there
  rouge-l      the share of a long answer's words that it says in their order
               (answers.recall)
  entropy      of the words of a text that it writes after an opening
               (answers.entropy), times 100: fluency
  tf-idf       how far such texts use the words of texts about the new fact
               (references.py): consistency
  withheld     not all tokens of the new answer are the most probable ones
  unchanged    the share of its positions at which the most probable token is
               what it was before the edit; right or wrong

Metrics come in tables, each with the id of the evaluation that it reproduces:
numbers under different ids must never share a column. A number is a mean within
each record, then over records, in percent. Records are what is drawn, so a
bootstrap over them says how sure a mean is (of records that are all right, or
all wrong, the binomial distribution does).
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

ASKED = (
  'rewrite', 'paraphrase', 'neighbour', 'locality', 'portability', 'opening',
  'denial',
)  # fmt: skip
PHRASE = 32  # tokens; an answer of more is long
KINDS = 'efficacy', 'generalization', 'specificity'


class Metric(NamedTuple):
  """A number: its name, the questions it asks (of ASKED), and the protocol."""

  name: str
  asked: tuple[str, ...]
  protocol: str


class Table(NamedTuple):
  """Metrics, and the mean of those named in KINDS that is their score."""

  metrics: tuple[Metric, ...]
  mean: Literal['harmonic', 'arithmetic', ''] = ''

  @property
  def names(self) -> tuple[str, ...]:
    score = ('score',) if self.mean else ()
    return tuple(m.name for m in self.metrics) + score

  def score(self, values: Mapping[str, float | None]) -> float | None:
    """None where one of the three is unmeasured."""
    parts = [values[kind] for kind in KINDS]
    if any(p is None for p in parts):
      return None
    if self.mean == 'arithmetic':
      return float(np.mean(parts))
    return 0.0 if min(parts) <= 0 else 3 / sum(1 / p for p in parts)


def _three(rewrite: str, specificity: tuple[str, str]) -> tuple[Metric, ...]:
  asked, protocol = specificity
  return (
    Metric('efficacy', ('rewrite',), rewrite),
    Metric('generalization', ('paraphrase',), rewrite),
    Metric('specificity', (asked,), protocol),
  )


def _spoken(protocol: str) -> Table:
  return Table(
    (
      *_three(protocol, ('neighbour', protocol)),
      Metric('locality', ('locality',), protocol),
      Metric('portability', ('portability',), protocol),
    ),
  )


# Whose evaluation each is, and what else is to be known of it: README.
TABLES = {
  'memit-2022': Table(
    _three('probability', ('neighbour', 'probability')), 'harmonic'
  ),
  'memit-2022-text': Table(
    (
      Metric('fluency', ('opening',), 'entropy'),
      Metric('consistency', ('opening',), 'tf-idf'),
    )
  ),
  'jedit': Table(
    (
      *_three('strict', ('neighbour', 'strict')),
      Metric('locality', ('locality',), 'unchanged'),
      Metric('portability', ('portability',), 'strict'),
      Metric('negation', ('denial',), 'withheld'),
    ),
    'arithmetic',
  ),
  'alphaedit-2025': Table(_three('token', ('locality', 'token'))),
  'alphaedit-plus-2026': Table(
    _three('token', ('neighbour', 'strict')), 'arithmetic'
  ),
  'easyedit-token': Table(
    (
      Metric('rewrite_acc', ('rewrite',), 'token'),
      Metric('rephrase_acc', ('paraphrase',), 'token'),
      Metric('locality', ('locality', 'neighbour'), 'unchanged'),
      Metric('portability', ('portability',), 'token'),
    )
  ),
  'wild-2025': _spoken('exact'),
  'jedit-spoken': _spoken('contains'),
  'jedit-long': Table(
    (
      Metric('efficacy', ('rewrite',), 'rouge-l'),
      Metric('generalization', ('paraphrase',), 'rouge-l'),
      Metric('portability', ('portability',), 'rouge-l'),
    )
  ),
}


def values(
  kind: Sequence[int], nll: np.ndarray, correct: np.ndarray, same: np.ndarray
) -> dict[str, np.ndarray]:
  """{protocol: [Q]}, what each question counts, 0 to 1; NaN unmeasured.

  Of the protocols that are teacher-forced.

  Args:
    kind: index into ASKED of each question.
    nll: [Q, 2], per-token -log p of (wanted answer, other answer), where a
      neighbour's wanted one is the other.
    correct: [Q, 2], share of tokens that are the argmax; NaN if absent.
    same: [Q, 2], share of positions whose argmax was the same before; NaN if
      absent, or nothing was before.
  """
  keep = np.asarray(kind) == ASKED.index('neighbour')
  wanted = lambda x: np.where(keep, x[:, 1], x[:, 0])
  margin = np.where(keep, -1, 1) * (nll[:, 1] - nll[:, 0])
  return {
    # Absent is what has no share of tokens; a broken model's margin is NaN.
    'probability': np.where(np.isnan(correct).any(1), np.nan, margin > 0),
    'strict': np.floor(wanted(correct)),
    'token': wanted(correct),
    'withheld': 1 - np.floor(correct[:, 0]),
    'unchanged': wanted(same),
  }


def by_record(
  record: Sequence[int],
  kind: Sequence[int],
  found: Mapping[str, np.ndarray],
  exclude: frozenset[int] | set[int] = frozenset(),
  tables: Mapping[str, Table] = TABLES,
) -> dict[str, np.ndarray]:
  """{table: [N, metrics]}, percent of each record's questions; NaN unmeasured.

  Args:
    record: index of each question's record.
    kind: index into ASKED of each question.
    found: what `values` returned.
    exclude: records that are left out (facts overwritten later).
    tables: what to fill in.
  """
  record, kind = np.asarray(record), np.asarray(kind)
  count = record.max(initial=-1) + 1

  def column(metric):
    flags = found[metric.protocol]
    asked = np.isin(kind, [ASKED.index(a) for a in metric.asked])
    use = asked & ~np.isnan(flags) & ~np.isin(record, list(exclude))
    times = np.bincount(record[use], minlength=count)
    total = np.bincount(record[use], 100 * flags[use], minlength=count)
    return total / np.where(times, times, np.nan)

  return {
    name: np.stack([column(m) for m in table.metrics], axis=-1)
    for name, table in tables.items()
  }


def _row(table: Table, total: np.ndarray, count: np.ndarray) -> dict:
  """{name: mean} of sums [metrics] over `count` records, and the score."""
  parts = zip(table.metrics, total, count, strict=True)
  row = {m.name: float(t / n) if n else None for m, t, n in parts}
  return row | {'score': table.score(row)} if table.mean else row


def summary(
  found: Mapping[str, np.ndarray], tables: Mapping[str, Table] = TABLES
) -> dict[str, dict[str, float | None]]:
  """{table: {name: percent}} of what `by_record` returned."""
  return {
    name: _row(tables[name], np.nansum(x, axis=0), np.sum(~np.isnan(x), axis=0))
    for name, x in found.items()
  }


def _drawn(
  table: Table, x: np.ndarray, draws: int, seed: int
) -> dict[str, np.ndarray]:
  """{name: [draws]}, means of resampled records; NaN where none is measured."""
  some, x = ~np.isnan(x), np.nan_to_num(x)
  rng, rows = np.random.default_rng(seed), []
  for _ in range(draws if len(x) else 0):
    times = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x))
    rows.append(_row(table, times @ x, times @ some))
  return {n: np.array([r[n] for r in rows], float) for n in table.names}


def _ends(drawn: np.ndarray) -> tuple[float, float] | None:
  """95 % of what was drawn lie between."""
  drawn = drawn[~np.isnan(drawn)]
  if not len(drawn):
    return None
  low, high = np.percentile(drawn, [2.5, 97.5])
  return float(low), float(high)


def sure(x: np.ndarray) -> tuple[float, float] | None:
  """The exact 95 % interval of records that are all 0, or all 100 percent.

  However they are drawn, they are: a bootstrap would be sure of them. (Clopper
  and Pearson, Biometrika 1934.) Of a single record between the two, which says
  nothing of the rest, 0 to 100; None of others.
  """
  room = 100 * 0.025 ** (1 / max(len(x), 1))
  if len(x) == 1 and 0 < x[0] < 100:
    return 0.0, 100.0
  if len(x) and (x == 100).all():
    return room, 100.0
  return (0.0, 100 - room) if len(x) and (x == 0).all() else None


def intervals(
  found: Mapping[str, np.ndarray],
  tables: Mapping[str, Table] = TABLES,
  draws: int = 2000,
  seed: int = 0,
) -> dict[str, dict[str, tuple[float, float] | None]]:
  """{table: {name: (low, high)}}, 95 % bootstrap over records, or `sure`."""
  out = {}
  for key, x in found.items():
    x = x[~np.isnan(x).all(axis=1)]
    drawn = _drawn(tables[key], x, draws, seed)
    out[key] = {name: _ends(values) for name, values in drawn.items()}
    for metric, column in zip(tables[key].metrics, x.T, strict=True):
      exact = sure(column[~np.isnan(column)])
      out[key][metric.name] = exact or out[key][metric.name]
    low, high = out[key].get('score') or (0, 1)
    if low == high:  # however records are drawn, as sure as its parts
      rows = ({n: out[key][n][i] for n in KINDS} for i in range(2))
      out[key]['score'] = tuple(map(tables[key].score, rows))
  return out


def differences(
  found: Mapping[str, np.ndarray],
  base: Mapping[str, np.ndarray],
  tables: Mapping[str, Table] = TABLES,
  draws: int = 2000,
  seed: int = 0,
) -> dict[str, dict[str, tuple[float, float, float] | None]]:
  """{table: {name: (found - base, low, high)}} of the same records.

  Paired: what makes a record hard is hard for both, so that the interval (95 %
  bootstrap over records) is narrower than those of the two means suggest.

  Args:
    found: {table: [N, metrics]}, what `by_record` returned.
    base: of the same N records, edited in another way.
    tables: what `found` and `base` are rows of.
    draws: resamplings.
    seed: of them.
  """
  out = {}
  for key, x in found.items():
    gaps = np.isnan(x + base[key])
    two = [np.where(gaps, np.nan, rows) for rows in (x, base[key])]
    two = [rows[~gaps.all(axis=1)] for rows in two]
    means = [summary({key: rows}, tables)[key] for rows in two]
    drawn = [_drawn(tables[key], rows, draws, seed) for rows in two]
    pairs = np.sum(~np.isnan(two[0]), axis=0).tolist()
    count = {'score': min(pairs)}
    count |= zip((m.name for m in tables[key].metrics), pairs, strict=True)
    row = dict.fromkeys(tables[key].names)
    for name in row:
      if None in (means[0][name], means[1][name]):
        continue
      low, high = _ends(drawn[0][name] - drawn[1][name])
      value = means[0][name] - means[1][name]
      if np.isclose(low, high):  # one for all pairs that were seen: see `sure`
        others = 1 - 0.025 ** (1 / count[name])  # at most, of all pairs
        low = max(value - others * (100 + value), -100.0)
        high = min(value + others * (100 - value), 100.0)
      row[name] = value, low, high
    out[key] = row
  return out
