// A run in the overview: its totals and a row per layer. A detailed card also has findings, curves, the similarities of
// the worst layer, and advice.
import {Chart, swatch} from './chart.js';
import {css, shade} from './colours.js';
import {cutName, download, element, prepare, reconcile, show, table, withCode} from './dom.js';
import {alike, keyOf, showFindings} from './findings.js';
import {Heatmap} from './heatmap.js';
import {draw, eventText, label, mark, priority, signOf} from './marks.js';
import {WORDS, isOver, lastAtMost, plural, ticks, traitsOf} from './model.js';
import {bar} from './runs.js';

const ROW = 22;
const STRIP = 16;
const MAX_ROWS = 16;
const MAX_HEIGHT = MAX_ROWS * ROW;
const MAP_HEIGHT = 72;
const SIDE = 320; // The largest side of the heatmap, in CSS pixels.
const MAX_LINES = 5;
const MAX_KINDS = 20; // The number of kinds of findings that are described.
const MAX_NAMED = 3; // The number of layers that are named per kind of finding.
const TABLE_HEAD = ['layer', 'units', 'working', 'dead', 'directions', 'units in groups'];

export class Card {
  constructor(app, name) {
    this.app = app;
    this.name = name;
    this.run = null;
    this.isInSight = false;
    this.rows = new Map(); // The rows that are in sight, by the names of their layers.
    this.headline = element('div.headline');
    this.totals = element('dl.totals');
    this.map = element('canvas.map', {'aria-hidden': 'true', hidden: true, click: (event) => this.jump(event)});
    this.space = element('div.space');
    this.scroller = element('div.rows', {tabindex: -1, scroll: () => this.scrolled()}, this.space);
    this.axis = element('div.axis', {'aria-hidden': 'true'});
    this.none = element('p.quiet', {hidden: true});
    this.notes = element('div');
    this.tableFrame = element('div.frame');
    this.details = element(
      'details.as-table',
      {toggle: () => this.showTable()},
      element('summary', 'As a table'),
      element('button.small', {click: () => this.save()}, 'CSV'),
      this.tableFrame,
    );
    this.where = element('section.where', element('h3.question', 'Where'), this.map, this.none, this.scroller, this.axis);
    this.parts = element('div.parts', this.where);
    this.node = element(
      'section.card',
      {'aria-label': `run ${name}`, 'data-run': name},
      element('header', element('h2', {title: name}, cutName(name)), this.headline),
      this.totals,
      this.parts,
      this.notes,
      this.details,
    );
    this.reserve(app.summary(name)?.layers ?? 1);
    this.observer = new ResizeObserver(() => this.redraw(() => this.resize()));
    this.observer.observe(this.scroller);
  }

  /** Draw after the browser has resized or scrolled the card. If that fails, the page shows a message. */
  redraw(draw) {
    this.app.attemptDrawing(`the card of run ${this.name}`, draw);
  }

  scrolled() {
    if (this.scroller.clientHeight) this.top = this.scroller.scrollTop;
    this.redraw(() => this.drawRows());
  }

  get check() {
    return this.run.checkAt(this.name === this.app.state.run ? this.app.state.step : null);
  }

  reserve(numLayers) {
    this.scroller.style.height = `${Math.min(MAX_HEIGHT, numLayers * ROW)}px`;
  }

  /** Restore the scroll position, which browsers forget while the overview is not in the document. */
  restore() {
    if (this.top) this.scroller.scrollTop = this.top;
  }

  /** Show the latest data of the run and the current choice, unless the card is out of sight. */
  update({isDetailed}) {
    if (!this.isInSight) return;
    this.isDetailed = isDetailed;
    this.node.classList.toggle('detailed', isDetailed);
    if (isDetailed && !this.wrong) this.addParts();
    const run = this.app.data.get(this.name) ?? null;
    if (run === null) {
      this.showTotals(this.app.summary(this.name), null);
      return;
    }
    const layers = run.filtered(this.app.filter);
    if (this.run !== run || this.layers !== layers) {
      this.run = run;
      this.layers = layers;
      this.reserve(layers.length);
      this.space.style.height = `${layers.length * ROW}px`;
      this.map.hidden = layers.length <= MAX_ROWS;
      this.none.hidden = layers.length > 0;
      this.none.textContent = run.layers.length ? 'No layer of this run passes the filter.' : 'No layer of this run was looked at.';
      this.widest = widest(layers.map(({title}) => title));
      this.measure();
    }
    this.draw();
  }

  resize() {
    if (!this.run || !this.scroller.clientWidth) return;
    this.measure();
    this.draw();
  }

  measure() {
    const whole = this.scroller.clientWidth;
    if (!whole) return;
    const name = Math.ceil(Math.min(0.42 * whole, Math.max(56, this.widest + 24)));
    this.node.style.setProperty('--name', `${name}px`);
    const numbers = parseFloat(getComputedStyle(this.node).getPropertyValue('--numbers'));
    this.width = Math.max(40, whole - name - numbers);
    this.drawAxis();
  }

  draw() {
    if (!this.width) return;
    this.summarise();
    this.drawRows();
    this.showNotes();
    this.showTable();
    if (this.isDetailed) this.showParts();
  }

  drawRows() {
    if (!this.width || !this.run) return;
    if (!this.map.hidden) this.drawMap();
    const {layers} = this;
    const top = this.scroller.scrollTop;
    const first = Math.max(0, Math.floor(top / ROW) - 2);
    const shown = layers.slice(first, Math.ceil((top + MAX_HEIGHT) / ROW) + 2);
    const names = new Set(shown.map(({name}) => name));
    for (const [name, row] of this.rows) {
      // A row with the keyboard focus stays, so that scrolling does not lose the focus.
      if (names.has(name) || (row.node === document.activeElement && layers.some((layer) => layer.name === name))) continue;
      row.node.remove();
      this.rows.delete(name);
    }
    shown.forEach((layer, i) => {
      if (!this.rows.has(layer.name)) {
        const row = new Row(this, layer.name);
        this.rows.set(layer.name, row);
        this.space.append(row.node);
      }
      this.rows.get(layer.name).update(layer, first + i);
    });
  }

  summarise() {
    const {run, check} = this;
    const step = run.steps[check];
    const holding = run.findings.filter((finding) => finding.since <= step && !isOver(finding, step));
    const condensed = run.layers.filter((layer) => layer.isCondensed(check));
    const summary = {...run.totals(check), findings: holding.length, step, directions: condensed.map((layer) => layer.orientationsAt(check))};
    this.showTotals(summary, run.worst(check));
  }

  showTotals(summary, worst) {
    if (!summary) return;
    const verdict = worst ?? (this.run ? null : summary.worst?.verdict ?? null);
    const {units, working, redundant, dead, directions = [], findings, step} = summary;
    show(this.totals, [verdict, units, working, redundant, dead, ...directions, findings, step].join(), () => {
      const quiet = directions.length ? 'no finding, condensed' : 'no finding';
      this.headline.replaceChildren(verdict ? label(traitsOf(verdict)) : element('span.quiet', quiet));
      return [
        total('units', units),
        total('working', working, bar(summary)),
        redundant ? total('redundant', redundant) : null,
        dead ? total('dead', dead) : null,
        directions.length ? total('directions', directions.join(' + ')) : null,
        total('findings', findings),
        total('step', step),
      ];
    });
  }

  drawAxis() {
    const {steps} = this.run;
    show(this.axis, `${this.width} ${steps.length} ${steps[steps.length - 1]}`, () =>
      ticks(steps, this.width, 12).map((check) => {
        const tick = element('span', steps[check].toLocaleString('en'));
        tick.style.left = `${((check + 0.5) * this.width) / steps.length}px`;
        return tick;
      }),
    );
  }

  /** Draw the small map of all layers, with a frame around those in sight. */
  drawMap() {
    const {layers} = this;
    const width = this.scroller.clientWidth;
    const key = [width, this.app.isDark].join();
    if (this.mapKey !== key || this.mapLayers !== layers) {
      this.mapKey = key;
      this.mapLayers = layers;
      this.picture = this.paintMap(Math.min(width, this.run.steps.length), Math.min(2 * MAP_HEIGHT, layers.length));
    }
    const context = prepare(this.map, width, MAP_HEIGHT);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, 0, 0, width, MAP_HEIGHT);
    const scale = MAP_HEIGHT / (layers.length * ROW);
    context.strokeStyle = this.app.colour('ink');
    context.lineWidth = 1.5;
    context.strokeRect(0.75, this.scroller.scrollTop * scale + 0.75, width - 1.5, MAX_HEIGHT * scale - 1.5);
  }

  /** Draw all layers as a picture. If layers share a pixel, it shows the one with the smallest share of working units. */
  paintMap(columns, lines) {
    const {layers, run: {steps}} = this;
    const worst = new Float32Array(columns * lines).fill(NaN);
    layers.forEach((layer, place) => {
      const start = Math.floor((place * lines) / layers.length) * columns;
      layer.spans((share, from, to) => {
        const end = Math.ceil((to * columns) / steps.length);
        for (let cell = start + Math.floor((from * columns) / steps.length); cell < start + end; cell++) {
          if (!(worst[cell] >= share)) worst[cell] = share;
        }
      });
    });
    const picture = element('canvas', {width: columns, height: lines});
    const context = picture.getContext('2d');
    const image = context.createImageData(columns, lines);
    worst.forEach((share, cell) => {
      if (!Number.isNaN(share)) image.data.set([...shade(share, this.app.isDark), 255], 4 * cell);
    });
    context.putImageData(image, 0, 0);
    return picture;
  }

  jump(event) {
    const share = event.offsetY / MAP_HEIGHT;
    this.scroller.scrollTop = share * this.layers.length * ROW - MAX_HEIGHT / 2;
  }

  /** Scroll to a layer and give it the keyboard focus. */
  reveal(name) {
    const place = this.layers?.findIndex((layer) => layer.name === name) ?? -1;
    if (place < 0) return;
    const top = place * ROW;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    if (top + ROW > this.scroller.scrollTop + MAX_HEIGHT) this.scroller.scrollTop = top + ROW - MAX_HEIGHT;
    this.drawRows();
    this.rows.get(name)?.node.focus();
  }

  /** Show findings about whole modules, which have no row, and the number of unreadable events. */
  showNotes() {
    const {run} = this;
    const others = this.isDetailed ? [] : run.findings.filter((finding) => !run.byName.has(finding.layer));
    show(this.notes, JSON.stringify([others, run.unreadable]), () => [
      ...others.map((finding) => element('p.note', mark(traitsOf(finding.verdict)), `${finding.who}: ${finding.what} ${finding.why}`)),
      run.unreadable ? element('p.note', `${plural(run.unreadable, 'event')} could not be read and ${run.unreadable === 1 ? 'was' : 'were'} passed over.`) : null,
    ]);
  }

  // ---------------------------------------------------------------- the parts of a detailed card

  addParts() {
    const part = (name, title, ...content) => element(`section.${name}`, element('h3.question', title), ...content);
    this.wrong = element('div');
    this.more = element('p.quiet');
    this.advice = element('div');
    this.legend = element('div.lines');
    this.chart = new Chart(this.app, `Share of working units of run ${this.name} over steps`);
    this.heatmap = new Heatmap(this.app, SIDE);
    this.looks = element('h3.question', 'What it looks like');
    this.toDo = part('to-do', 'What to do', this.advice);
    this.parts.prepend(part('wrong', 'What is wrong', this.wrong, this.more));
    this.parts.append(part('when', 'Since when', this.chart.node, this.legend), element('section.looks', this.looks, this.heatmap.node), this.toDo);
  }

  showParts() {
    const {app, run, check} = this;
    const step = run.steps[check];
    const kinds = alike(run.findingsAt(step), run);
    const shown = kinds.slice(0, MAX_KINDS);
    showFindings(this.wrong, shown, step, (kind) => ({lead: this.layersOf(kind)}));
    this.more.textContent = kinds.length ? (kinds.length > shown.length ? `and ${plural(kinds.length - shown.length, 'more finding')}` : '') : `Nothing to warn of up to step ${step.toLocaleString('en')}.`;
    const toDo = shown.filter(([first]) => !isOver(first, step));
    this.toDo.hidden = !toDo.length;
    reconcile(this.advice, toDo, {
      key: ([first]) => keyOf(first),
      version: JSON.stringify,
      make: () => element('p.advice'),
      update: ([first, ...others], node) => {
        const more = others.length ? ` ${others.length === 1 ? 'The other layer needs' : `The ${others.length} other layers need`} the same.` : '';
        const name = run.byName.has(first.layer) ? first.layer : first.who;
        node.replaceChildren(mark(traitsOf(first.verdict)), element('span', element('strong', name), ': ', ...withCode(first.why), more));
      },
    });
    const chosen = (run === app.run() ? app.layer() : null) ?? run.worstLayer;
    const selection = run.selection(chosen, MAX_LINES);
    const lines = run.layers.map((layer, line) => ({layer, line})).filter(({layer}) => selection.has(layer));
    this.chart.update(run, lines, check);
    reconcile(this.legend, lines, {
      key: ({layer}) => layer.name,
      version: ({layer, line}) => `${layer.title} ${line}`,
      make: () => element('span.line-name'),
      update: ({layer, line}, node) => node.replaceChildren(swatch(line), cutName(layer.title)),
    });
    if (!chosen) return;
    this.looks.textContent = `What it looks like: ${chosen.title}`;
    this.heatmap.update(run, chosen, check);
  }

  /** Return links to the layers of the findings of one kind; none if they are about whole modules. */
  layersOf(kind) {
    const {run, app} = this;
    const known = kind.filter(({layer}) => run.byName.has(layer));
    const links = known.slice(0, MAX_NAMED).flatMap(({layer, since}, i) => [
      i ? ', ' : '',
      element('button.link', {click: () => app.go({view: 'layer', run: run.name, layer, step: since})}, cutName(layer)),
    ]);
    const more = known.length - Math.min(known.length, MAX_NAMED);
    return links.length ? [...links, more ? ` and ${plural(more, 'more layer')}: ` : ': '] : [];
  }

  // ---------------------------------------------------------------- the card as a table

  /** Show the content of the card as a table, which is only made once the user opens it. */
  showTable() {
    if (!this.details.open || !this.run) return;
    const rows = this.tableRows();
    const caption = `Layers of run ${this.name} at step ${this.run.steps[this.check]}`;
    show(this.tableFrame, JSON.stringify([caption, rows]), () => [table(caption, TABLE_HEAD, rows.map((row) => row.map(String)))]);
  }

  tableRows() {
    const {check} = this;
    return this.layers.map((layer) => {
      const numbers = layer.at(check) ? [layer.workingAt(check), layer.deadAt(check), layer.orientationsAt(check) ?? '–'] : ['–', '–', '–'];
      return [layer.title, layer.units, ...numbers, layer.countsText(check)];
    });
  }

  save() {
    if (this.run) download(`${this.name.replaceAll(/[^\w.-]+/g, '_')}_step_${this.run.steps[this.check]}.csv`, TABLE_HEAD, this.tableRows());
  }
}

class Row {
  constructor(card, name) {
    this.card = card;
    this.canvas = element('canvas', {'aria-hidden': 'true'});
    this.numbers = element('span.numbers');
    const {app} = card;
    this.node = element(
      'button.row',
      {
        'data-layer': name,
        click: (event) => app.go({view: 'layer', run: card.name, layer: name, step: this.stepUnder(event)}, {byKeyboard: event.detail === 0}),
        pointermove: (event) => this.hover(event),
        pointerleave: () => app.tip.hide(),
      },
      (this.title = element('span.title')),
      this.canvas,
      this.numbers,
    );
  }

  update(layer, place) {
    this.layer = layer;
    this.node.style.top = `${place * ROW}px`;
    const {app, run, check, width} = this.card;
    const working = layer.workingAt(check);
    const worst = layer.worst(check);
    const hasCursor = app.state.run === run.name;
    const isChosen = hasCursor && layer.name === app.state.layer;
    const key = [width, app.isDark, check, isChosen, hasCursor].join();
    if (key === this.key && layer === this.drawn) return;
    this.key = key;
    this.drawn = layer;
    show(this.title, layer.title, () => [cutName(layer.title)]);
    this.node.classList.toggle('chosen', isChosen);
    this.node.setAttribute('aria-label', `${layer.describe(check)}, step ${run.steps[check]}`);
    this.numbers.replaceChildren(working === null ? '–' : `${working} / ${layer.units}`, worst ? mark(traitsOf(worst)) : element('span.mark'));
    this.draw(width, check, hasCursor);
  }

  draw(width, chosen, hasCursor) {
    const {app, run} = this.card;
    const context = prepare(this.canvas, width, STRIP);
    const column = width / run.steps.length;
    const spans = [];
    this.layer.spans((...span) => spans.push(span));
    if (column < 1) spans.sort(([a], [b]) => a - b); // Where checks share a pixel, the worst one is painted last.
    for (const [share, from, to] of spans) {
      context.fillStyle = css(shade(share, app.isDark));
      context.fillRect(from * column, 0, Math.max(1, (to - from) * column), STRIP);
    }
    if (column >= 6) {
      for (let check = 1; check < run.steps.length; check++) context.clearRect(check * column - 1, 0, 1, STRIP);
    }
    if (hasCursor) {
      const x = (chosen + 0.5) * column;
      context.fillStyle = app.colour('paper');
      context.fillRect(x - 2, 0, 4, STRIP);
      context.fillStyle = app.colour('ink');
      context.fillRect(x - 1, 0, 2, STRIP);
    }
    const events = [...this.layer.events].sort((a, b) => priority(a) - priority(b));
    const taken = [];
    for (const event of events) {
      const x = Math.min(width - 6, Math.max(6, (run.checkAt(event.step) + 0.5) * column));
      if (taken.some((other) => Math.abs(other - x) < 11)) continue;
      taken.push(x);
      draw(context, signOf(event), x, STRIP / 2, app.colour('ink'), app.colour('paper'));
    }
  }

  checkUnder(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    return share >= 0 && share < 1 ? Math.floor(share * this.card.run.steps.length) : null;
  }

  stepUnder(event) {
    const check = this.checkUnder(event);
    const {state} = this.card.app;
    if (event.detail > 0 && check !== null) return this.card.run.steps[check];
    return this.card.run.name === state.run ? state.step : null;
  }

  hover(event) {
    const {app, run} = this.card;
    const check = this.checkUnder(event);
    if (check === null) {
      app.tip.hide();
      return;
    }
    const reach = Math.max(0, Math.ceil((7 * run.steps.length) / this.card.width) - 1);
    const near = this.layer.events.filter(({step}) => Math.abs(lastAtMost(run.steps, step) - check) <= reach);
    app.tip.show(event, [
      `step ${run.steps[check].toLocaleString('en')}`,
      this.layer.describe(check),
      ...near.slice(0, 6).map((event) => `${eventText(event)} at step ${event.step}: ${event.text}`),
    ]);
  }
}

/** Return the width of the text with the most characters, in CSS pixels. */
function widest(texts) {
  const context = document.createElement('canvas').getContext('2d');
  context.font = getComputedStyle(document.body).font;
  const longest = texts.reduce((best, text) => (text.length > best.length ? text : best), '');
  return context.measureText(longest).width;
}

function total(name, value, extra = null) {
  return element('div', {title: WORDS[name]}, element('dt', name), element('dd', value.toLocaleString('en'), extra));
}
