// The view of one layer: the similarities of its units, its groups and its findings.
import {Chart} from './chart.js';
import {css, similarity, toSimilarity} from './colours.js';
import {element, prepare, select, table} from './dom.js';
import {eventSign, label, mark, paint} from './marks.js';
import {latest, partedLater, plural} from './model.js';
import {Recent} from './recent.js';
import {Units} from './units.js';

const SIDE = 448; // The largest side of the heatmap, in CSS pixels.
const LEFT = 36; // The room for the indices of units.
const TOP = 6; // The room for the upper half of the first index.
const FRAME_MS = 450;
const MAX_FRAMES = 60; // Of a run with more checks, only some are played.
const MAX_GROUPS = 100;
const NUM_LAYERS_KEPT = 32;
const NUM_MATRICES_KEPT = 512; // Together at most 2 MiB.

export class LayerView {
  constructor(app) {
    this.app = app;
    this.answers = new Recent(NUM_LAYERS_KEPT); // What the server said of layers, by run and layer.
    this.matrices = new Recent(NUM_MATRICES_KEPT); // By their keys, which stay the same as the run goes on.
    this.underway = new Set(); // The keys of requests that wait for an answer.
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
    this.chart = new Chart(app, 'Share of working units of this layer over steps; its events are in the timeline.');
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
      element('section', {class: 'panel'}, element('h3', {}, 'Working units over steps'), this.chart.node),
    );
    this.setPlaying(false);
  }

  update() {
    const hasChanged = this.layer !== this.app.layer();
    this.run = this.app.run();
    this.layer = this.app.layer();
    if (!this.layer) return;
    const {run, layer} = this;
    const check = run.checkAt(this.app.state.step);
    if (hasChanged) {
      this.head.replaceChildren(
        select('Run', this.app.names(), run.name, (name) => this.app.go({run: name, step: null})),
        select('Layer', run.layers.map(({name}) => name), layer.name, (name) => this.app.go({layer: name})),
      );
    }
    if (this.answer()?.version !== run.version) this.fetchLayer();
    this.showFacts(check);
    this.slider.max = run.steps.length - 1;
    this.slider.value = check;
    this.slider.setAttribute('aria-valuetext', `step ${run.steps[check]}`);
    this.at.replaceChildren(element('strong', {}, `step ${run.steps[check].toLocaleString('en')}`), element('span', {}, `check ${check + 1} of ${run.steps.length}`));
    this.showFindings(run.steps[check]);
    this.chart.update(run, [{layer, line: 0}]);
    this.show(check);
  }

  key(run, layer) {
    return `${run.name}\n${layer.name}`;
  }

  /** What the server said of this layer, maybe of an earlier version of the run; undefined before the first answer. */
  answer() {
    return this.answers.get(this.key(this.run, this.layer));
  }

  fetchLayer() {
    const {run, layer} = this;
    this.fetch('layer', `${this.key(run, layer)}\n${run.version}`, async () => {
      const {groups, findings, matrices} = await this.app.source.layer(run.name, layer.name);
      this.answers.set(this.key(run, layer), {
        version: run.version,
        groups,
        findings: findings.map((finding) => ({...finding, groups: finding.groups?.map((units) => new Units(units)) ?? null})),
        matrices,
      });
    });
  }

  fetchMatrix({key, step}) {
    const {run, layer} = this;
    this.fetch('matrix', key, async () => this.matrices.set(key, await this.app.source.matrix(run.name, layer.name, step)));
  }

  /** Make a request and then draw, unless the same request waits for an answer already. */
  fetch(name, key, request) {
    if (this.underway.has(key)) return;
    this.app.attempt(name, async () => {
      this.underway.add(key);
      try {
        await request();
      } finally {
        this.underway.delete(key);
      }
      this.app.update();
    });
  }

  /** Show the groups and the matrix of a check. What has not been fetched is requested, and shown when it arrives. */
  show(check) {
    const answer = this.answer();
    this.groupsNow = [];
    this.figure = null;
    if (!answer) return;
    const step = this.run.steps[check];
    const change = latest(answer.groups, 'check', check);
    this.groupsNow = (change?.groups ?? []).map((group) => ({...group, units: new Units(group.units)}));
    this.showGroups(change?.num_groups ?? 0, step, answer.findings);
    const found = latest(answer.matrices, 'step', step) ?? answer.matrices[0];
    this.missing.hidden = Boolean(found);
    this.canvas.hidden = !found;
    if (!found) {
      this.missing.textContent = 'There is no picture of this layer: the run was monitored with heatmaps="none".';
      this.caption.textContent = '';
      return;
    }
    const cells = this.matrices.get(found.key);
    if (cells) this.draw(found, cells, step);
    else this.fetchMatrix(found);
  }

  draw({units, step: at}, cells, step) {
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
    const places = units.map((unit) => this.groupsNow.findIndex((group) => group.units.has(unit)));
    const starts = new Set();
    for (let i = 0; i < n; ) {
      let end = i + 1;
      while (end < n && places[end] === places[i]) end++;
      if (places[i] >= 0) {
        const traits = this.app.verdicts.get(this.groupsNow[places[i]].verdict);
        context.strokeStyle = (this.app.isDark ? traits.dark_colour : traits.colour) ?? this.app.pale();
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
    const [a, b] = [i, j].map((place) => this.groupsNow.findIndex((group) => group.units.has(units[place])));
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
    const dead = layer.deadAt(check);
    const orientations = layer.orientationsAt(check);
    const worst = layer.worst(check);
    const texts = [
      plural(layer.units, 'unit'),
      `${plural(layer.fan_in, 'input')} each`,
      state ? `${layer.workingAt(check).toLocaleString('en')} working` : 'not looked at here',
      state ? `${(layer.units - state.width).toLocaleString('en')} redundant` : '',
      `${dead.toLocaleString('en')} dead`,
      orientations === null ? '' : plural(orientations, 'direction'),
    ];
    this.facts.replaceChildren(...texts.map((text) => element('span', {}, text)), worst ? label(this.app.verdicts.get(worst)) : '');
  }

  showFindings(step) {
    const rows = this.layer.findings
      .filter((finding) => finding.since <= step)
      .map((finding) => {
        const isOver = finding.broken !== null && finding.broken <= step;
        const verdict = this.app.verdicts.get(finding.verdict);
        const hasCollapsed = this.layer.events.some(({kind, step: at, verdict: name}) => kind === 'collapsed' && at === finding.since && name === finding.verdict);
        const begin = hasCollapsed ? eventSign('collapsed') : verdict;
        const article = element(
          'article',
          {class: 'finding'},
          element('h4', {}, mark(isOver ? eventSign('broke') : begin), `${finding.who}`),
          element('p', {}, finding.what),
          isOver ? element('p', {}, `They ${verdict.gone} at step ${finding.broken}.`) : element('p', {class: 'advice'}, finding.why),
        );
        return isOver ? article : paint(article, verdict);
      });
    this.findings.replaceChildren(...(rows.length ? rows : [element('p', {class: 'quiet'}, `Nothing to warn of up to step ${step.toLocaleString('en')}.`)]));
  }

  showGroups(total, step, findings) {
    this.groupsHead.textContent = total ? plural(total, 'group') : 'Groups';
    if (!total) {
      this.groups.replaceChildren(element('p', {class: 'quiet'}, 'All units are distinct at this check.'));
      return;
    }
    const {verdicts} = this.app;
    const parted = (group) => {
      const at = partedLater(group, step, findings, verdicts);
      return at === undefined ? '' : at?.toLocaleString('en') ?? '–';
    };
    const rows = this.groupsNow.slice(0, MAX_GROUPS).map((group, i) => [
      String(i + 1),
      label(verdicts.get(group.verdict)),
      group.mirrored ? `${group.units}; negatives: ${new Units(group.mirrored)}` : String(group.units),
      group.size.toLocaleString('en'),
      group.since.toLocaleString('en'),
      parted(group),
    ]);
    const present = verdicts.sort(new Set(this.groupsNow.map(({verdict}) => verdict))).map((name) => verdicts.get(name));
    this.groups.replaceChildren(
      table('Groups of this layer at this check', ['', 'verdict', 'units', 'size', 'since step', 'broken'], rows),
      total > rows.length ? element('p', {class: 'quiet'}, `and ${plural(total - rows.length, 'more group')}`) : '',
      ...present.map((traits) => element('p', {class: 'quiet meaning'}, mark(traits), `${traits.name}: ${traits.meaning}.`)),
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

function number(value) {
  return value === null ? 'no direction' : value.toFixed(2).replace('-', '−');
}
