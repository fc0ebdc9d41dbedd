// One layer: which units are alike, since when, why, and what to do.
import {Chart} from './chart.js';
import {css, similarity, toSimilarity} from './colours.js';
import {element, prepare, select, table} from './dom.js';
import {MARKS, label, mark} from './marks.js';
import {holds, lastAtMost, plural, unitsText} from './model.js';

const SIDE = 448; // of the square, at most
const LEFT = 36; // for the indices of units
const TOP = 6; // for the upper half of the first of them
const FRAME_MS = 450;
const MAX_FRAMES = 60; // a long training is played in larger steps
const MAX_GROUPS = 100;

export class LayerView {
  constructor(app) {
    this.app = app;
    this.loaded = new Map(); // by run, version and layer
    this.matrices = new Map();
    this.head = element('div', {class: 'choices'});
    this.facts = element('p', {class: 'facts'});
    this.canvas = element('canvas', {class: 'heatmap', role: 'img', pointermove: (event) => this.hover(event), pointerleave: () => app.tip.hide()});
    this.missing = element('p', {class: 'missing', hidden: true});
    this.caption = element('p', {class: 'quiet caption'});
    this.playButton = element('button', {type: 'button', class: 'play', click: () => this.toggle()});
    this.slider = element('input', {type: 'range', min: 0, step: 1, 'aria-label': 'Check', input: () => app.go({step: this.run.steps[this.slider.value]})});
    this.at = element('output', {class: 'at'});
    this.scale = element('canvas', {class: 'scale', role: 'img', 'aria-label': 'colour scale of similarities from -1 to 1'});
    this.findings = element('div', {});
    this.groups = element('div', {class: 'groups'});
    this.groupsHead = element('h3', {}, 'Groups');
    this.chart = new Chart(app, 'Share of distinct units of this layer over steps; its events are in the timeline.');
    this.node = element(
      'div',
      {class: 'view layer'},
      element('div', {class: 'bar-of-choices'}, this.head, this.facts),
      element(
        'div',
        {class: 'columns'},
        element(
          'section',
          {class: 'panel figure'},
          element('h3', {}, 'Similarity of units'),
          element('div', {class: 'player'}, this.playButton, this.slider, this.at),
          element('div', {class: 'square'}, this.canvas, this.missing),
          element('div', {class: 'key'}, element('span', {class: 'number'}, '−1'), this.scale, element('span', {class: 'number'}, '1'), element('span', {class: 'swatch-none'}), 'no direction'),
          this.caption,
        ),
        element(
          'div',
          {class: 'side'},
          element('section', {class: 'panel'}, element('h3', {}, 'Findings'), this.findings),
          element('section', {class: 'panel'}, this.groupsHead, this.groups),
        ),
      ),
      element('section', {class: 'panel'}, element('h3', {}, 'Distinct units over steps'), this.chart.node),
    );
    this.setPlaying(false);
  }

  update() {
    this.run = this.app.run();
    this.layer = this.app.layer();
    if (!this.layer) return;
    const {run, layer} = this;
    const check = run.checkAt(this.app.state.step);
    const key = [run.name, run.version, layer.name].join('\n');
    if (this.key !== key) {
      this.key = key;
      this.head.replaceChildren(
        select('Run', this.app.names(), run.name, (name) => this.app.go({run: name, step: null})),
        select('Layer', run.layers.map(({name}) => name), layer.name, (name) => this.app.go({layer: name})),
      );
      this.load(key);
    }
    this.showFacts(check);
    this.slider.max = run.steps.length - 1;
    this.slider.value = check;
    this.slider.setAttribute('aria-valuetext', `step ${run.steps[check]}`);
    this.at.replaceChildren(element('strong', {}, `step ${run.steps[check].toLocaleString('en')}`), element('span', {}, `check ${check + 1} of ${run.steps.length}`));
    this.showFindings(run.steps[check]);
    this.chart.update(run, [{layer, line: 0}]);
    this.show(check);
  }

  async load(key) {
    if (!this.loaded.has(key)) {
      const answer = await this.app.attempt('layer', () => this.app.source.layer(this.run.name, this.layer.name));
      if (!answer) return;
      this.loaded.set(key, answer);
    }
    if (this.key === key) this.update();
  }

  /** Show the groups and the matrix of a check, as far as they are here; what is not is fetched. */
  async show(check) {
    const answer = this.loaded.get(this.key);
    if (!answer) return;
    const change = latest(answer.groups, check);
    this.groupsNow = (change?.[1] ?? []).map(([units, size, verdict, since]) => ({units, size, verdict, since, holds: holds(units)}));
    this.showGroups(change?.[2] ?? 0);
    const step = this.run.steps[check];
    const found = latest(answer.matrices, step) ?? answer.matrices[0];
    this.missing.hidden = Boolean(found);
    this.canvas.hidden = !found;
    if (!found) {
      this.missing.textContent = 'There is no picture of this layer: the run was monitored with heatmaps="none".';
      this.caption.textContent = '';
      this.figure = null;
      return;
    }
    const [at, units] = found;
    const matrixKey = `${this.key}\n${at}`;
    this.wanted = matrixKey;
    if (!this.matrices.has(matrixKey)) {
      const {run, layer} = this;
      const cells = await this.app.attempt('matrix', () => this.app.source.matrix(run.name, layer.name, at));
      if (!cells) return;
      this.matrices.set(matrixKey, cells);
    }
    if (this.wanted === matrixKey) this.draw({units, cells: this.matrices.get(matrixKey), at, step});
  }

  draw({units, cells, at, step}) {
    const {layer} = this;
    const n = units.length;
    const cell = Math.max(1, Math.floor(SIDE / n));
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
    const places = units.map((unit) => this.groupsNow.findIndex((group) => group.holds(unit)));
    const starts = new Set();
    for (let i = 0; i < n; ) {
      let end = i + 1;
      while (end < n && places[end] === places[i]) end++;
      if (places[i] >= 0) {
        const {verdict} = this.groupsNow[places[i]];
        context.strokeStyle = this.app.colour(verdict);
        context.lineWidth = (end - i) * cell > 24 ? 2 : 1;
        const start = i * cell + context.lineWidth / 2;
        const size = (end - i) * cell - context.lineWidth;
        context.strokeRect(start, start, size, size);
      }
      starts.add(i);
      i = end;
    }
    context.fillStyle = this.app.pale();
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
    const ramp = prepare(this.scale, 140, 10);
    for (let x = 0; x < 140; x++) {
      ramp.fillStyle = css(similarity((2 * x) / 139 - 1));
      ramp.fillRect(x, 0, 1, 10);
    }
    const shown = n === layer.units ? `all ${plural(n, 'unit')}` : `${n} of ${plural(layer.units, 'unit')}`;
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
    const [a, b] = [i, j].map((place) => this.groupsNow.findIndex((group) => group.holds(units[place])));
    const lines = [i === j ? `unit ${units[i]}` : `units ${units[i]} and ${units[j]}`];
    if (i !== j) {
      lines.push(`weights ${number(toSimilarity(cells[low * n + high]))}`);
      lines.push(`gradients ${number(toSimilarity(cells[high * n + low]))}`);
    }
    if (a >= 0 && a === b) lines.push(`group ${a + 1}: ${this.groupsNow[a].verdict} since step ${this.groupsNow[a].since.toLocaleString('en')}`);
    else lines.push(i === j ? 'in no group' : 'in no group together');
    this.app.tip.show(event, lines);
  }

  showFacts(check) {
    const {layer} = this;
    const state = layer.at(check);
    const dead = latest(this.loaded.get(this.key)?.dead, check)?.[1];
    const worst = layer.worst(check);
    const texts = [
      plural(layer.units, 'unit'),
      `${plural(layer.fan_in, 'input')} each`,
      state ? `${state.width.toLocaleString('en')} distinct` : 'not looked at here',
      dead === undefined ? '' : `${dead.toLocaleString('en')} dead`,
    ];
    this.facts.replaceChildren(...texts.map((text) => element('span', {}, text)), worst ? label(worst) : '');
  }

  showFindings(step) {
    const rows = this.layer.findings
      .filter((finding) => finding.since <= step)
      .map((finding) => {
        const isOver = finding.broken !== null && finding.broken <= step;
        const kind = finding.origin === 'collapse' ? 'collapsed' : finding.verdict;
        return element(
          'article',
          {class: `finding ${isOver ? 'over' : finding.verdict}`},
          element('h4', {}, mark(isOver ? 'broke' : kind), `${finding.who}`),
          element('p', {}, finding.what),
          isOver ? element('p', {}, `They have parted at step ${finding.broken}.`) : element('p', {class: 'advice'}, finding.why),
        );
      });
    this.findings.replaceChildren(...(rows.length ? rows : [element('p', {class: 'quiet'}, `Nothing to warn of up to step ${step.toLocaleString('en')}.`)]));
  }

  showGroups(total) {
    this.groupsHead.textContent = total ? plural(total, 'group') : 'Groups';
    if (!total) {
      this.groups.replaceChildren(element('p', {class: 'quiet'}, 'All units are distinct at this check.'));
      return;
    }
    const broken = (group) => this.layer.findings.find(({since, verdict, broken: at}) => at !== null && since === group.since && verdict === group.verdict);
    const rows = this.groupsNow.slice(0, MAX_GROUPS).map((group, i) => [
      String(i + 1),
      label(group.verdict),
      unitsText(group.units),
      group.size.toLocaleString('en'),
      group.since.toLocaleString('en'),
      broken(group)?.broken.toLocaleString('en') ?? '–',
    ]);
    const kinds = [...new Set(this.groupsNow.map(({verdict}) => verdict))];
    this.groups.replaceChildren(
      table('Groups of this layer at this check', ['', 'verdict', 'units', 'size', 'since step', 'broken'], rows),
      total > rows.length ? element('p', {class: 'quiet'}, `and ${plural(total - rows.length, 'more group')}`) : '',
      ...kinds.map((kind) => element('p', {class: 'quiet meaning'}, mark(kind), `${kind}: ${MARKS[kind].meaning}.`)),
    );
  }

  toggle() {
    this.setPlaying(!this.timer);
  }

  setPlaying(isPlaying) {
    clearInterval(this.timer);
    this.timer = isPlaying ? setInterval(() => this.advance(), FRAME_MS) : null;
    this.playButton.textContent = isPlaying ? '❚❚' : '▶';
    this.playButton.setAttribute('aria-label', isPlaying ? 'Pause' : 'Play');
    this.playButton.title = isPlaying ? 'Pause' : 'Play all checks';
    if (isPlaying && this.run.checkAt(this.app.state.step) === this.run.steps.length - 1) this.app.go({step: this.run.steps[0]});
  }

  advance() {
    const check = this.run.checkAt(this.app.state.step);
    if (check === this.run.steps.length - 1 || this.app.state.view !== 'layer') this.setPlaying(false);
    else this.app.moveStep(Math.ceil(this.run.steps.length / MAX_FRAMES));
  }

  moveLayer(by) {
    this.app.moveLayer(by);
  }
}

/** The last of the entries that begin with a check or a step that is not later. */
function latest(entries, at) {
  return entries?.[lastAtMost(entries.map(([first]) => first), at)];
}

function number(value) {
  return value === null ? 'no direction' : value.toFixed(2).replace('-', '−');
}
