"""Pictures of results, drawn without a display."""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def heat(
  path: pathlib.Path, tables: Mapping[str, np.ndarray], roles: Sequence[str]
) -> None:
  """Writes a map [L, roles] a title, side by side, layers to the right."""
  figure = Figure(figsize=(5 * len(tables), 2.6), layout='constrained')
  panels = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
  for panel, (title, table) in zip(panels, tables.items(), strict=True):
    drawn = panel.imshow(table.T, aspect='auto', cmap='viridis')
    panel.set(title=title, xlabel='layer', yticks=range(len(roles)))
    panel.set_yticklabels(roles)
    figure.colorbar(drawn, ax=panel)
  _write(figure, path)


def lines(
  path: pathlib.Path,
  labels: Sequence[str],
  panels: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> None:
  """Writes a panel a title, below each other: a line a name over the labels."""
  size = max(6, 0.5 * len(labels) + 2), 3 * len(panels) + 1
  figure = Figure(figsize=size, layout='constrained')
  axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
  for axis, (title, rows) in zip(axes, panels.items(), strict=True):
    for name, row in rows.items():
      heights = [math.nan if v is None else v for v in row]
      axis.plot(range(len(labels)), heights, marker='o', label=name)
    axis.set(title=title, ylabel='percent', ylim=(0, 105))
    axis.legend(fontsize='small')
  axes[-1].set_xticks(range(len(labels)), labels, rotation=45, ha='right')
  _write(figure, path)


def curve(
  lines: Mapping[str, tuple[Sequence, Sequence]], percent: bool = False
) -> str:
  """SVG of a line a name through its points (edits, heights)."""
  figure = Figure(figsize=(6, 3.2), layout='constrained')
  axis = figure.subplots()
  for name, (edits, heights) in lines.items():
    heights = [math.nan if v is None else v for v in heights]
    axis.plot(edits, heights, marker='.', label=name)
  axis.set_xlabel('edits')
  if percent:
    axis.set_ylim(0, 105)
  axis.legend(fontsize='small')
  text = io.StringIO()
  none = dict.fromkeys(('Creator', 'Date', 'Format', 'Type'))
  figure.savefig(text, format='svg', metadata=none)
  return text.getvalue()[text.getvalue().index('<svg') :]


def clouds(
  path: pathlib.Path,
  planes: Mapping[str, Sequence[np.ndarray]],
  names: Sequence[str],
) -> None:
  """Writes point clouds [Q, 2] a title, with the shares along both axes."""
  figure = Figure(figsize=(5.5 * len(planes), 5), layout='constrained')
  parts = figure.subfigures(1, len(planes), wspace=0.05, squeeze=False)[0]
  for part, (title, clouds) in zip(parts, planes.items(), strict=True):
    grid = part.add_gridspec(2, 2, height_ratios=(1, 4), width_ratios=(4, 1))
    main = part.add_subplot(grid[1, 0])
    above = part.add_subplot(grid[0, 0], sharex=main)
    beside = part.add_subplot(grid[1, 1], sharey=main)
    for name, cloud in zip(names, clouds, strict=True):
      main.scatter(*cloud.T, s=4, alpha=0.5, label=name)
      above.hist(cloud[:, 0], 40, histtype='step')
      beside.hist(cloud[:, 1], 40, histtype='step', orientation='horizontal')
    for side in above, beside:
      side.axis('off')
    above.set_title(title)
    main.legend(fontsize='small')
  _write(figure, path)


def squares(path: pathlib.Path, maps: Mapping[str, np.ndarray]) -> None:
  """Writes a map [N, N] of cosines a title, side by side."""
  figure = Figure(figsize=(5 * len(maps), 4.5), layout='constrained')
  panels = figure.subplots(1, len(maps), squeeze=False)[0]
  for panel, (title, values) in zip(panels, maps.items(), strict=True):
    drawn = panel.imshow(values, cmap='RdBu_r', vmin=-1, vmax=1)
    panel.set(title=title, xlabel='edited fact')
  figure.colorbar(drawn, ax=panels, label='cosine')
  _write(figure, path)


def _write(figure: Figure, path: pathlib.Path) -> None:
  part = path.with_name(path.name + '.part')
  figure.savefig(part, format='png', dpi=120)
  part.rename(path)
