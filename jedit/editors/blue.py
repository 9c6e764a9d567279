"""BLUE (Li et al., 2025): the first and the last critical layer alone.

    v*_first at the first layer, its own solve; then v*_last at the last layer
    of the model so edited, its own solve; all of the residual each time

A wrapper of any editor that takes second moments: AlphaEdit, MEMIT, RECT, PMET,
AlphaEdit+ (which makes BLUE+), with transformations of dW chained or not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jedit.models import transformer
from jedit.types import Editor, Params, SecondMoment, apply_updates


def blue(
  host: Callable[[SecondMoment], Editor], moment: SecondMoment
) -> Editor:
  """BLUE around an editor.

    jedit.blue(lambda moment: jedit.alphaedit(model, moment, ridge=95), moment)

  Args:
    host: makes the editor of one layer from the moments of that layer.
    moment: second moments of the keys of the site layers.

  Returns:
    An editor of the whole site; what lies between first and last stays. Its
    state is the tuple of the two hosts' states. Over a site of one layer it is
    the host.
  """
  layers = len(moment.moment)
  ends = (0, layers - 1) if layers > 1 else (0,)
  hosts = [host(_layer(moment, e)) for e in ends]

  def init(params: Params):
    return tuple(
      h.init(transformer.narrow(params, e))
      for h, e in zip(hosts, ends, strict=True)
    )

  def update(batch, state, params):
    total, states = None, []
    for h, e, before in zip(hosts, ends, state, strict=True):
      change, after = h.update(batch, before, transformer.narrow(params, e))
      wide = lambda x, e=e: jnp.zeros((layers, *x.shape[1:])).at[e].set(x[0])
      change = jax.tree.map(wide, change)
      params = apply_updates(params, change)
      total = jax.tree.map(jnp.add, total, change) if total else change
      states.append(after)
    return total, tuple(states)

  return optax.GradientTransformation(init, update)


def _layer(moment: SecondMoment, e: int) -> SecondMoment:
  """The moments of one layer."""
  known = moment.spectrum and moment.spectrum[e : e + 1]
  return SecondMoment(moment.moment[e : e + 1], moment.count, known)
