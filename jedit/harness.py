"""An edited model for lm-evaluation-harness, with all its tasks.

  import lm_eval
  from jedit import harness
  lm_eval.simple_evaluate(harness.Harness(jedit.load('runs/a')), tasks=['piqa'])

Needs the extra `harness` (lm-eval, without torch). Texts are encoded as by the
harness's own model of transformers: no BOS unless asked for, a text without
context after BOS or else EOS.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from jedit import evaluate, writing
from jedit.models.load import Loaded, load
from jedit.questions import pack
from jedit.types import JeditError

_TOGETHER = 1024  # tokens of candidates whose logits are made at once


@register_model('jedit')
class Harness(TemplateLM):
  """A loaded model (or what jedit.load opens) as the harness wants it."""

  def __init__(
    self,
    loaded: Loaded | str,
    rows: int = 32,
    max_length: int = 2048,
    max_gen_toks: int = 256,
    add_bos_token: bool = False,
  ):
    """Takes a model.

    Args:
      loaded: the model, or its name.
      rows: texts run together.
      max_length: longest text in tokens, at most the model's context.
      max_gen_toks: tokens generated where a task does not say.
      add_bos_token: put BOS before every text.
    """
    super().__init__()
    loaded = load(loaded) if isinstance(loaded, str) else loaded
    self.model, self.tokenizer = loaded.model, loaded.tokenizer
    self.params = jax.tree.map(jnp.asarray, loaded.params)
    self.rows, self.max_gen_toks = rows, max_gen_toks
    self.max_length = min(max_length, self.model.config.context_length)
    self.add_bos_token = add_bos_token
    if self.prefix_token_id is None:
      raise JeditError('the tokenizer has neither a BOS nor an EOS token')

  @property
  def eot_token_id(self) -> int:
    return self.tokenizer.eos_token_id

  @property
  def prefix_token_id(self) -> int:
    bos = self.tokenizer.bos_token_id
    return self.eot_token_id if bos is None else bos

  @property
  def tokenizer_name(self) -> str:
    return self.tokenizer.name_or_path.replace('/', '__')

  def tok_encode(
    self, string: str, add_special_tokens: bool | None = None, **kwargs
  ) -> list[int]:
    special = (
      self.add_bos_token if add_special_tokens is None else (add_special_tokens)
    )
    return self.tokenizer(string, add_special_tokens=special).input_ids

  def apply_chat_template(
    self, chat_history, add_generation_prompt=True
  ) -> str:
    if not self.tokenizer.chat_template:
      raise JeditError('this tokenizer has no chat template')
    return self.tokenizer.apply_chat_template(
      chat_history,
      tokenize=False,
      add_generation_prompt=add_generation_prompt,
      continue_final_message=not add_generation_prompt,
    )

  def _loglikelihood_tokens(
    self, requests, disable_tqdm: bool = False, **kwargs
  ) -> list[tuple[float, bool]]:
    """(sum of log p, whether it is what greedy decoding says) of each.

    Requests that share a context run it once.
    """
    contexts: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for number, (_, context, rest) in enumerate(requests):
      room = self.max_length + 1 - len(rest)
      if room < 1:
        raise JeditError(
          f'a text to score has {len(rest)} tokens, max_length is '
          f'{self.max_length}: raise it'
        )
      contexts.setdefault(tuple(context[-room:]), []).append((number, rest))
    out: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    groups: dict[int, list] = {}  # rows, by number of candidates
    for context, candidates in contexts.items():
      for some in _cut(candidates):
        groups.setdefault(len(some), []).append((context, some))
    for group in groups.values():
      answers = [[rest for _, rest in some] for _, some in group]
      q = pack([context for context, _ in group], answers)
      found = evaluate.score(self.model, self.params, q, self.rows)
      total = found.nll * q.target_len
      for row, (_, some) in enumerate(group):
        for k, (number, rest) in enumerate(some):
          if rest:
            greedy = bool(found.correct[row, k] == 1)
            out[number] = -float(total[row, k]), greedy
    return out

  def loglikelihood_rolling(
    self, requests, disable_tqdm: bool = False
  ) -> list[float]:
    """Sum of log p of whole texts, in windows where they are long."""
    parts, owner = [], []
    for number, request in enumerate(requests):
      ids = self.tok_encode(request.args[0])
      windows = utils.get_rolling_token_windows(
        ids, self.prefix_token_id, self.max_length, 1
      )
      for window in windows:
        parts.append((None, *utils.make_disjoint_window(window)))
        owner.append(number)
    total = [0.0] * len(requests)
    found = self._loglikelihood_tokens(parts)
    for number, (value, _) in zip(owner, found, strict=True):
      total[number] += value
    return total

  def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
    """Continuations, cut at the first stop text or the end-of-text token."""
    out = [''] * len(requests)
    groups: dict[tuple, list[int]] = {}
    for number, request in enumerate(requests):
      groups.setdefault(_how(request.args[1], self.max_gen_toks), []).append(
        number
      )
    for (length, until, sampled), numbers in groups.items():
      room = self.max_length - length
      if sampled:
        raise JeditError('do_sample: only greedy generation is offered')
      if room < 1:
        raise JeditError(
          f'max_gen_toks={length} leaves no room for a prompt: max_length is '
          f'{self.max_length}'
        )
      texts = [requests[n].args[0] for n in numbers]
      order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
      for start in range(0, len(order), self.rows):
        some = order[start : start + self.rows]
        first = [self.prefix_token_id]  # of an empty text
        ids = [self.tok_encode(texts[i])[-room:] or first for i in some]
        said = writing.continued(
          self.model, self.params, self.tokenizer, ids, length
        )
        for i, text in zip(some, said, strict=True):
          for stop in until:
            text = text.partition(stop)[0]
          out[numbers[i]] = text
    return out


def _cut(
  candidates: list[tuple[int, list[int]]],
) -> Iterator[list[tuple[int, list[int]]]]:
  """Candidates of one context, in rows of at most so many padded tokens."""
  row: list[tuple[int, list[int]]] = []
  longest = 0
  for one in candidates:
    longest = max(longest, len(one[1]))
    if row and longest * (len(row) + 1) > _TOGETHER:
      yield row
      row, longest = [], len(one[1])
    row.append(one)
  yield row


def _how(settings: dict, usual: int) -> tuple[int, tuple[str, ...], bool]:
  """(tokens, stop texts, whether sampled) of a task's generation settings."""
  until = settings.get('until') or ()
  until = (until,) if isinstance(until, str) else tuple(until)
  length = settings.get('max_gen_toks', settings.get('max_new_tokens', usual))
  sampled = settings.get('do_sample', (settings.get('temperature') or 0) > 0)
  return int(length), tuple(s for s in until if s), bool(sampled)
