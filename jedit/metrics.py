"""Scores of edited facts: arrays in, numbers out.

CounterFact's three measures, each under two protocols that must never share a
column (MEMIT's evaluation; strict accuracy as AlphaEdit's code reports it):

  probability  -log p of the wanted answer, a mean over its tokens, is below
               that of the other answer
  argmax       every token of the wanted answer is the most probable one,
               teacher-forced

A measure is a mean within each record, then over records, in percent.
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


def counterfact(
  record: Sequence[int],
  kind: Sequence[int],
  success: Mapping[str, np.ndarray],
  exclude: frozenset[int] | set[int] = frozenset(),
) -> dict[str, dict[str, float | None]]:
  """{protocol: {efficacy, generalization, specificity, score}} in percent.

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
    row = {}
    for number, name in enumerate(KINDS):
      use = (kind == number) & ~np.isnan(flags)
      use &= ~np.isin(record, list(exclude))
      means = [
        flags[use & (record == r)].mean() for r in np.unique(record[use])
      ]
      row[name] = 100 * float(np.mean(means)) if means else None
    row['score'] = score(row, protocol)
    out[protocol] = row
  return out
