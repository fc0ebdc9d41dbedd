// The heatmap: similarities between the units of a layer.
import {NO_DIRECTION, css, gradient, similarity, toSimilarity} from './colours.js';
import {element, prepare} from './dom.js';
import {Units, latest, plural, traitsOf} from './model.js';

const LEFT = 36; // The room for the indices of units.
const TOP = 6; // The room for the upper half of the first index.

export class Heatmap {
  /** Create an empty picture. Its side is at most `side` CSS pixels, and less where space is short. */
  constructor(app, side) {
    this.app = app;
    this.side = side;
    this.canvas = element('canvas.heatmap', {role: 'img', pointermove: (event) => this.hover(event), pointerleave: () => app.tip.hide()});
    this.missing = element('p.missing', {hidden: true});
    this.caption = element('p.quiet.caption');
    const ramp = element('span.ramp', {role: 'img', 'aria-label': 'colour scale of similarities from -1 to 1'});
    ramp.style.background = gradient((share) => similarity(2 * share - 1));
    this.square = element('div.square', this.canvas, this.missing);
    this.square.style.minHeight = `${side * 0.7}px`;
    const swatch = element('span.swatch-none');
    swatch.style.background = css(NO_DIRECTION);
    this.key = element('div.key', {hidden: true}, element('span.number', '−1'), ramp, element('span.number', '1'), swatch, 'no direction');
    this.node = element('div', this.square, this.key, this.caption);
    new ResizeObserver(() => app.attemptDrawing('the similarities', () => this.resize())).observe(this.square);
  }

  resize() {
    if (!this.shown || this.width === this.square.clientWidth) return;
    this.drawn = null;
    this.update(...this.shown);
  }

  /** Show a layer at a check. Missing data is requested, and shown when it arrives. */
  update(run, layer, check) {
    this.shown = [run, layer, check];
    this.width = this.square.clientWidth;
    const answer = this.app.details.of(run, layer);
    this.groups = [];
    this.total = 0;
    if (!answer) {
      this.clearOther(layer);
      return;
    }
    const change = latest(answer.groups, 'check', check);
    this.total = change?.num_groups ?? 0;
    this.groups = (change?.groups ?? []).map((group) => ({...group, units: new Units(group.units)}));
    const step = run.steps[check];
    const found = latest(answer.matrices, 'step', step) ?? answer.matrices[0];
    this.missing.hidden = Boolean(found);
    if (!found) {
      this.clear();
      this.missing.textContent = 'There is no picture of this layer: the run was monitored with heatmaps="none".';
      return;
    }
    const cells = this.app.details.cells(run, layer, found);
    if (!cells) this.clearOther(layer);
    if (!cells || !this.width) return;
    const key = [layer.key, found.key, found.step, step, change?.check, this.width, this.app.isDark].join('\n');
    if (this.drawn !== key) this.draw(layer, found, cells, step);
    this.drawn = key;
    this.subject = layer.key;
    this.canvas.hidden = this.key.hidden = false;
  }

  /** Clear the picture of another layer while the data of this one is loading. */
  clearOther(layer) {
    if (this.subject === layer.key) return;
    this.missing.hidden = true;
    this.clear();
  }

  clear() {
    this.figure = this.drawn = this.subject = null;
    this.canvas.hidden = this.key.hidden = true;
    this.caption.textContent = '';
  }

  draw(layer, {units, step: at}, cells, step) {
    const n = units.length;
    const cell = Math.max(1, Math.floor(Math.min(this.side, this.width - LEFT - 1) / n));
    const side = cell * n;
    this.figure = {units, cells, cell, n};
    const context = prepare(this.canvas, LEFT + side + 1, TOP + side + 1);
    context.translate(LEFT, TOP);
    for (let i = 0; i < n; i++) {
      for (let j = 0; j < n; j++) {
        context.fillStyle = css(similarity(toSimilarity(cells[i * n + j])));
        context.fillRect(j * cell, i * cell, cell, cell);
      }
    }
    const places = units.map((unit) => this.groups.findIndex((group) => group.units.has(unit)));
    const starts = new Set();
    for (let i = 0; i < n; ) {
      let end = i + 1;
      while (end < n && places[end] === places[i]) end++;
      if (places[i] >= 0) {
        const traits = traitsOf(this.groups[places[i]].verdict);
        context.strokeStyle = (this.app.isDark ? traits.dark_colour : traits.colour) ?? this.app.colour('pale');
        context.lineWidth = (end - i) * cell > 24 ? 2 : 1;
        const start = i * cell + context.lineWidth / 2;
        const size = (end - i) * cell - context.lineWidth;
        context.strokeRect(start, start, size, size);
      }
      starts.add(i);
      i = end;
    }
    context.fillStyle = this.app.colour('pale');
    context.font = '11px Roboto, system-ui, sans-serif';
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    const taken = [];
    for (const i of [...starts, ...units.keys()]) {
      const y = (i + 0.5) * cell;
      if (taken.some((other) => Math.abs(other - y) < 13)) continue;
      taken.push(y);
      context.fillText(String(units[i]), -6, y);
    }
    const shown = n === layer.units ? (n === 1 ? 'its only unit' : `all ${n} units`) : `${n} of ${plural(layer.units, 'unit')}`;
    const age = at === step ? '' : ` Similarities of step ${at.toLocaleString('en')}: they are stored when they have changed.`;
    this.caption.textContent = `Cosine of weights below the diagonal, of gradients above; ${shown}, groups first.${age}`;
    this.canvas.setAttribute('aria-label', `Similarities of ${shown} of layer ${layer.title} at step ${at}; the groups are in the table.`);
  }

  hover(event) {
    if (!this.figure) return;
    const {units, cells, cell, n} = this.figure;
    const box = this.canvas.getBoundingClientRect();
    const j = Math.floor((event.clientX - box.left - LEFT) / cell);
    const i = Math.floor((event.clientY - box.top - TOP) / cell);
    if (i < 0 || j < 0 || i >= n || j >= n) {
      this.app.tip.hide();
      return;
    }
    const [low, high] = [Math.max(i, j), Math.min(i, j)];
    const [a, b] = [i, j].map((place) => this.groups.findIndex((group) => group.units.has(units[place])));
    const lines = [i === j ? `unit ${units[i]}` : `units ${units[i]} and ${units[j]}`];
    if (i !== j) {
      lines.push(`weights ${number(toSimilarity(cells[low * n + high]))}`);
      lines.push(`gradients ${number(toSimilarity(cells[high * n + low]))}`);
    }
    if (a >= 0 && a === b) lines.push(`group ${a + 1}: ${this.groups[a].verdict} since step ${this.groups[a].since.toLocaleString('en')}`);
    else lines.push(i === j ? 'in no group' : 'in no group together');
    this.app.tip.show(event, lines);
  }
}

function number(value) {
  return value === null ? 'no direction' : value.toFixed(2).replace('-', '−');
}
