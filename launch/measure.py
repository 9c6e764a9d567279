"""What a run measures of a model: CounterFact's table, and what it says."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from jedit import evaluate, generate, requests
from jedit.models.load import Loaded
from jedit.types import Params
from launch import common

_SHOWN, _LENGTH = 3, 16  # prompts continued, tokens each


class Measurer(NamedTuple):
  """The questions of a request set, ready for any params of the model."""

  loaded: Loaded
  asked: Sequence[requests.Request]
  probe: evaluate.Probe

  def table(self, params: Params, name: str) -> dict:
    """{'counterfact': ...}, facts that later ones overwrite left out."""
    with common.bar(len(self.probe.kind), f'evaluation {name}', 'prompt') as b:
      scores = evaluate.score(
        self.loaded.model,
        params,
        self.probe.questions,
        progress=common.ticker(b),
      )
    gone = requests.overwritten(self.asked)
    return evaluate.counterfact(scores, self.probe, gone)

  def whole(self, params: Params, name: str) -> dict:
    """The table, the continuations of the first prompts, and seconds."""
    start = time.perf_counter()
    metrics = self.table(params, name)
    model, _, _, tokenizer = self.loaded
    said = generate.complete(model, params, tokenizer, self.shown(), _LENGTH)
    seconds = time.perf_counter() - start
    return {'metrics': metrics, 'said': said, 'seconds': seconds}

  def shown(self) -> list[str]:
    """The prompts that are continued."""
    return [r.text for r in self.asked[:_SHOWN]]


def measurer(
  loaded: Loaded, asked: Sequence[requests.Request], rendering: str
) -> Measurer:
  """The Measurer of a request set."""
  probe = evaluate.probe(loaded.tokenizer, asked, rendering)
  return Measurer(loaded, asked, probe)
