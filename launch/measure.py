"""What a run measures of a model: CounterFact's table, and what it says."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jedit import evaluate, generate, metrics, requests
from jedit.models.load import Loaded
from jedit.records import Request
from jedit.types import Params
from launch import common

_SHOWN, _LENGTH = 3, 16  # prompts continued, tokens each


class Measurer(NamedTuple):
  """The questions of a request set, ready for any params of the model."""

  loaded: Loaded
  asked: Sequence[Request]
  probe: evaluate.Probe

  def table(self, params: Params, name: str) -> dict:
    """The table of CounterFact's measures, and its intervals."""
    return _table(self.records(params, name)[0])

  def records(self, params: Params, name: str):
    """({protocol: [N, KINDS]}, the most probable token after each request).

    NaN for facts that later ones overwrite.
    """
    with common.bar(len(self.probe.kind), f'evaluation {name}', 'prompt') as b:
      scores = evaluate.score(
        self.loaded.model,
        params,
        self.probe.questions,
        progress=common.ticker(b),
      )
    gone = requests.overwritten(self.asked)
    says = scores.says[self.probe.kind == 0]  # one rewrite prompt a record
    decode = self.loaded.tokenizer.decode
    found = evaluate.by_record(scores, self.probe, gone)
    return found, [decode([i]) for i in says.tolist()]

  def whole(self, params: Params, name: str) -> dict:
    """The table and what it is of, what the model says, and seconds."""
    start = time.perf_counter()
    found, says = self.records(params, name)
    model, _, _, tokenizer = self.loaded
    said = generate.complete(model, params, tokenizer, self.shown(), _LENGTH)
    seconds = time.perf_counter() - start
    return {
      'metrics': _table(found),
      'records': {
        p: np.where(np.isnan(x), None, x).tolist() for p, x in found.items()
      },
      'says': says,
      'said': said,
      'seconds': seconds,
    }

  def shown(self) -> list[str]:
    """The prompts that are continued."""
    return [r.text for r in self.asked[:_SHOWN]]


def _table(found: dict[str, np.ndarray]) -> dict:
  return {
    'counterfact': metrics.counterfact(found),
    'intervals': metrics.intervals(found),
  }


def measurer(
  loaded: Loaded, asked: Sequence[Request], rendering: str
) -> Measurer:
  """The Measurer of a request set."""
  probe = evaluate.probe(loaded.tokenizer, asked, rendering)
  return Measurer(loaded, asked, probe)
