"""Sequential editing: a scan of editor.update over batches."""

import jax
import optax

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
    report = optax.tree_utils.tree_get(state, 'report')
    return (apply_updates(params, updates), state), report

  (params, state), report = jax.lax.scan(step, (params, state), batches)
  return params, state, report
