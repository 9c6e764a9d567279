"""Scores of edited facts: arrays in, numbers out.

CounterFact's three measures, each under two protocols that must never share a
column (MEMIT's evaluation; strict accuracy as AlphaEdit's code reports it):

  probability  -log p of the wanted answer, a mean over its tokens, is below
               that of the other answer
  argmax       every token of the wanted answer is the most probable one,
               teacher-forced

A measure is a mean within each record, then over records, in percent. Records
are what is drawn, so a bootstrap over them says how sure a mean is.
"""

from collections.abc import Mapping, Sequence

import numpy as np

KINDS = 'efficacy', 'generalization', 'specificity'
PROTOCOLS = 'probability', 'argmax'


def score(values: Mapping[str, float | None], protocol: str) -> float | None:
  """One number of the three: harmonic mean under probability (MEMIT), the
  arithmetic mean under argmax (AlphaEdit+). None where one is unmeasured."""
  parts = [values[kind] for kind in KINDS]
  if any(p is None for p in parts):
    return None
  if protocol == 'argmax':
    return float(np.mean(parts))
  return 0.0 if min(parts) <= 0 else 3 / sum(1 / p for p in parts)


def hits(
  kind: Sequence[int], nll: np.ndarray, correct: np.ndarray
) -> dict[str, np.ndarray]:
  """Success of each question, float [Q], under both protocols; NaN unmeasured.

  Args:
    kind: index into KINDS of each question.
    nll: [Q, 2], per-token -log p of (new target, old target); NaN if absent.
    correct: [Q, 2], share of tokens that are the argmax; NaN if absent.
  """
  keep = np.asarray(kind) == KINDS.index('specificity')
  new, old = nll.T
  margin = np.where(keep, new - old, old - new)
  return {
    'probability': np.where(np.isnan(margin), np.nan, margin > 0),
    'argmax': np.floor(np.where(keep, correct[:, 1], correct[:, 0])),  # all
  }


def by_record(
  record: Sequence[int],
  kind: Sequence[int],
  success: Mapping[str, np.ndarray],
  exclude: frozenset[int] | set[int] = frozenset(),
) -> dict[str, np.ndarray]:
  """{protocol: [N, KINDS]}, percent of each record's questions; NaN unmeasured.

  Args:
    record: index of each question's record.
    kind: index into KINDS of each question.
    success: what `hits` returned.
    exclude: records that are left out (facts overwritten later).
  """
  record, kind = np.asarray(record), np.asarray(kind)
  out = {}
  for protocol in PROTOCOLS:
    flags = success[protocol]
    use = ~np.isnan(flags) & ~np.isin(record, list(exclude))
    total, count = np.zeros((2, record.max(initial=-1) + 1, len(KINDS)))
    np.add.at(total, (record[use], kind[use]), 100 * flags[use])
    np.add.at(count, (record[use], kind[use]), 1)
    out[protocol] = total / np.where(count, count, np.nan)
  return out


def _row(total: np.ndarray, count: np.ndarray, protocol: str) -> dict:
  """{kind: mean, 'score'} of sums [KINDS] over `count` records."""
  pairs = zip(KINDS, total, count, strict=True)
  row = {name: float(t / n) if n else None for name, t, n in pairs}
  return row | {'score': score(row, protocol)}


def counterfact(
  found: Mapping[str, np.ndarray],
) -> dict[str, dict[str, float | None]]:
  """{protocol: {*KINDS, score}} in percent, of what `by_record` returned."""
  return {
    p: _row(np.nansum(x, axis=0), np.sum(~np.isnan(x), axis=0), p)
    for p, x in found.items()
  }


def intervals(
  found: Mapping[str, np.ndarray], draws: int = 2000, seed: int = 0
) -> dict[str, dict[str, tuple[float, float] | None]]:
  """{protocol: {*KINDS, score: (low, high)}}, 95 % bootstrap over records."""
  out = {}
  for protocol, x in found.items():
    x = x[~np.isnan(x).all(axis=1)]
    some, x = ~np.isnan(x), np.nan_to_num(x)
    rng, rows = np.random.default_rng(seed), []
    for _ in range(draws if len(x) else 0):
      times = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x))
      rows.append(_row(times @ x, times @ some, protocol))
    row = {}
    for name in (*KINDS, 'score'):
      seen = [r[name] for r in rows if r[name] is not None]
      ends = np.percentile(seen, [2.5, 97.5]) if seen else None
      row[name] = None if ends is None else tuple(map(float, ends))
    out[protocol] = row
  return out
