"""Sequential editing: a scan of editor.update over batches."""

import jax
import jax.numpy as jnp

from jedit.types import EditBatch, Editor, EditReport, Params, apply_updates


def edit_sequence(
  editor: Editor, params: Params, state, batches: EditBatch
) -> tuple[Params, object, EditReport]:
  """Edits batch after batch; each starts from the weights the last one left.

  The carry (params, state) is all there is: saving it between two calls and
  going on later gives the same bits as one call over all batches.

  Args:
    editor: an editor, or an optax.chain that starts with one.
    params: split params (models.transformer.split).
    state: editor.init(params), or what the last call returned.
    batches: EditBatch stacked to [N, B, ...].

  Returns:
    (edited params, state, EditReport with leaves [N, ...]).
  """

  def step(carry, batch):
    params, state = carry
    updates, state = editor.update(batch, state, params)
    return (apply_updates(params, updates), state), report_of(state)

  (params, state), report = jax.lax.scan(step, (params, state), batches)
  return params, state, report


def report_of(state) -> EditReport:
  """The EditReport in a state; of several, one for all of them.

  An editor of several parts (BLUE) solves the same facts more than once: steps
  add up, and of the facts that reached their targets it is the least count.
  """
  here = lambda x: isinstance(x, EditReport)
  found = [x for x in jax.tree.leaves(state, is_leaf=here) if here(x)]
  if len(found) == 1:
    return found[0]
  return EditReport(
    found[0].facts,
    jnp.stack([r.reached for r in found]).min(0),
    sum(r.steps for r in found),
    found[-1].loss,
    jnp.concatenate([r.residual for r in found]),
    jax.tree.map(lambda *x: jnp.concatenate(x), *(r.notes for r in found)),
  )
