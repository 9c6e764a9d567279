"""How much room a batch has: the sizes that programs are made for."""

import dataclasses

from jedit.types import EditBatch


def round_up(n: int, step: int) -> int:
  """The least multiple of `step` that is at least n, and above 0."""
  return -(-max(int(n), 1) // step) * step


def room_of(batches: EditBatch) -> tuple[int, ...]:
  """The budget that is enough for each of batches [N, ...], and no more.

  Then that of their validation rows, if there are any. Each number is a
  multiple of 16 for every part.
  """
  plain = (batches.head_len + batches.tail_len)[:, :, 0]
  scored = batches.label >= 0
  cut = len(plain) * batches.parts

  def enough(counts):
    most = int(counts.reshape(cut, -1).sum(1).max())
    return batches.parts * round_up(most, 16)

  counted = batches.head_len, batches.tail_len, plain, scored
  own, held = tuple(map(enough, counted)), batches.validation
  return own if held is None else own + room_of(held)


def with_room(batches: EditBatch, size: tuple[int, ...]) -> EditBatch:
  """The same batches with a budget as `room_of` gives it."""
  held = batches.validation
  if held is not None:
    held = with_room(held, size[4:])
  return dataclasses.replace(batches, budget=size[:4], validation=held)
