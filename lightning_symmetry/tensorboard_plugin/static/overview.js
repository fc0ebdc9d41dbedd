// The view of all runs: a card for each, with a row per layer and a column per check.
import {css, shade} from './colours.js';
import {element, prepare, table} from './dom.js';
import {draw, eventSigns, eventText, label, mark, priority, signOf} from './marks.js';
import {lastAtMost, plural, ticks} from './model.js';

const ROW = 22;
const STRIP = 16;
const MAX_HEIGHT = 16 * ROW;
const MAP_HEIGHT = 72;

export class Overview {
  constructor(app) {
    this.app = app;
    this.cards = new Map();
    this.grid = element('div', {class: 'cards'});
    this.ramp = element('canvas', {class: 'ramp', role: 'img', 'aria-label': 'colour scale from 0 to 100 per cent'});
    this.node = element(
      'div',
      {class: 'view overview'},
      element(
        'div',
        {class: 'legend'},
        element('span', {class: 'scale'}, 'units that do not work', element('span', {class: 'number'}, '0'), this.ramp, element('span', {class: 'number'}, '100 %')),
        [...app.verdicts.warnings, ...eventSigns()].map((sign) => label(sign)),
      ),
      this.grid,
    );
  }

  /** Show the current data and the current choice. */
  update() {
    const context = prepare(this.ramp, 120, 10);
    for (let x = 0; x < 120; x++) {
      context.fillStyle = css(shade(x / 119, this.app.isDark));
      context.fillRect(x, 0, 1, 10);
    }
    const runs = this.app.shownRuns();
    for (const [name, card] of this.cards) {
      if (!runs.some((run) => run === card.run)) {
        card.dispose();
        this.cards.delete(name);
      }
    }
    for (const run of runs) {
      if (!this.cards.has(run.name)) this.cards.set(run.name, new Card(this.app, run));
    }
    const nodes = runs.map((run) => this.cards.get(run.name).node);
    if (nodes.some((node, i) => this.grid.children[i] !== node) || nodes.length !== this.grid.children.length) {
      this.grid.replaceChildren(...nodes);
    }
    for (const card of this.cards.values()) card.update();
  }

  /** Choose the layer that is so many rows further down; after the last layer of a run comes the next run. */
  moveLayer(by) {
    const {run, layer} = this.app.state;
    const runs = this.app.shownRuns();
    const places = runs.flatMap((shown) => shown.layers.map((other) => [shown.name, other.name]));
    const now = places.findIndex(([a, b]) => a === run && b === layer);
    const [nextRun, nextLayer] = places[Math.min(places.length - 1, Math.max(0, now + by))] ?? [run, layer];
    this.app.go(nextRun === run ? {layer: nextLayer} : {run: nextRun, layer: nextLayer, step: null});
    this.cards.get(nextRun)?.reveal(nextLayer);
  }
}

class Card {
  constructor(app, run) {
    this.app = app;
    this.run = run;
    this.rows = new Map(); // The rows that are in sight, by their place in the model.
    this.headline = element('div', {class: 'headline'});
    this.totals = element('dl', {class: 'totals'});
    this.map = element('canvas', {class: 'map', 'aria-hidden': 'true', click: (event) => this.jump(event)});
    this.space = element('div', {class: 'space'});
    this.space.style.height = `${run.layers.length * ROW}px`;
    this.scroller = element('div', {class: 'rows', tabindex: -1, scroll: () => this.redraw(() => this.update())}, this.space);
    this.scroller.style.height = `${Math.min(MAX_HEIGHT, run.layers.length * ROW)}px`;
    this.axis = element('div', {class: 'axis', 'aria-hidden': 'true'});
    const isLarge = run.layers.length * ROW > MAX_HEIGHT;
    this.node = element(
      'section',
      {class: 'card', 'aria-label': `run ${run.name}`, 'data-run': run.name},
      element('header', {}, element('h2', {title: run.name}, run.name), this.headline),
      this.totals,
      isLarge ? this.map : null,
      this.scroller,
      this.axis,
      this.notes(),
      this.table(),
    );
    if (!isLarge) this.map = null;
    this.widest = widest(run.layers.map(({title}) => title));
    this.observer = new ResizeObserver(() => this.redraw(() => this.resize()));
    this.observer.observe(this.scroller);
  }

  dispose() {
    this.observer.disconnect();
  }

  /** Draw because the browser has resized or scrolled the card. */
  redraw(draw) {
    this.app.attemptDrawing(`the card of run ${this.run.name}`, draw);
  }

  get check() {
    return this.run.checkAt(this.run.name === this.app.state.run ? this.app.state.step : null);
  }

  resize() {
    const whole = this.scroller.clientWidth;
    const name = Math.ceil(Math.min(0.42 * whole, Math.max(56, this.widest + 24)));
    this.node.style.setProperty('--name', `${name}px`);
    const numbers = parseFloat(getComputedStyle(this.node).getPropertyValue('--numbers'));
    this.width = Math.max(40, whole - name - numbers);
    this.drawAxis();
    this.update();
  }

  update() {
    if (!this.width) return;
    this.summarise();
    if (this.map) this.drawMap();
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 2);
    const last = Math.min(this.run.layers.length, Math.ceil((this.scroller.scrollTop + MAX_HEIGHT) / ROW) + 2);
    for (const [place, row] of this.rows) {
      if (place < first || place >= last) {
        row.node.remove();
        this.rows.delete(place);
      }
    }
    for (let place = first; place < last; place++) {
      if (!this.rows.has(place)) {
        const row = new Row(this, this.run.layers[place], place);
        this.rows.set(place, row);
        this.space.append(row.node);
      }
      this.rows.get(place).update();
    }
  }

  summarise() {
    if (this.summarised === this.check) return;
    this.summarised = this.check;
    const {units, working, redundant, dead} = this.run.totals(this.check);
    const findings = this.run.findings.filter((finding) => finding.broken === null).length;
    const worst = this.run.worst(this.check);
    const condensed = this.run.layers.filter((layer) => layer.isCondensed(this.check));
    const quiet = condensed.length ? 'no finding, condensed' : 'no finding';
    this.headline.replaceChildren(worst ? label(this.app.verdicts.get(worst)) : element('span', {class: 'quiet'}, quiet));
    const share = units ? working / units : 1;
    const bar = element('span', {class: 'bar'}, element('span', {}));
    bar.firstChild.style.width = `${100 * share}%`;
    this.totals.replaceChildren(
      ...total('units', units.toLocaleString('en')),
      ...total('working', working.toLocaleString('en'), bar),
      ...(redundant ? total('redundant', redundant.toLocaleString('en')) : []),
      ...(dead ? total('dead', dead.toLocaleString('en')) : []),
      ...(condensed.length ? total('directions', condensed.map((layer) => layer.orientationsAt(this.check)).join(' + ')) : []),
      ...total('findings', findings.toLocaleString('en')),
      ...total('step', this.run.steps[this.check].toLocaleString('en')),
    );
  }

  drawAxis() {
    const labels = ticks(this.run.steps, this.width, 12).map((check) => {
      const tick = element('span', {}, this.run.steps[check].toLocaleString('en'));
      tick.style.left = `${((check + 0.5) * this.width) / this.run.steps.length}px`;
      return tick;
    });
    this.axis.replaceChildren(...labels);
  }

  /** Draw the small map of all layers, with a frame around those in sight. */
  drawMap() {
    const {layers} = this.run;
    const width = this.scroller.clientWidth;
    const key = [width, this.app.isDark].join();
    if (this.mapKey !== key) {
      this.mapKey = key;
      this.picture = this.paintMap(Math.min(width, this.run.steps.length), Math.min(2 * MAP_HEIGHT, layers.length));
    }
    const context = prepare(this.map, width, MAP_HEIGHT);
    context.imageSmoothingEnabled = false;
    context.drawImage(this.picture, 0, 0, width, MAP_HEIGHT);
    const scale = MAP_HEIGHT / (layers.length * ROW);
    context.strokeStyle = this.app.ink();
    context.lineWidth = 1.5;
    context.strokeRect(0.75, this.scroller.scrollTop * scale + 0.75, width - 1.5, MAX_HEIGHT * scale - 1.5);
  }

  /** Draw all layers as a picture. Of several layers in one pixel, the one of which the least works is drawn. */
  paintMap(columns, lines) {
    const {layers, steps} = this.run;
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
    this.scroller.scrollTop = share * this.run.layers.length * ROW - MAX_HEIGHT / 2;
  }

  /** Scroll to a layer and give it the keyboard focus. */
  reveal(layer) {
    const place = this.run.layers.findIndex((other) => other.name === layer);
    const top = place * ROW;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    if (top + ROW > this.scroller.scrollTop + MAX_HEIGHT) this.scroller.scrollTop = top + ROW - MAX_HEIGHT;
    this.update();
    this.rows.get(place)?.node.focus();
  }

  notes() {
    const notes = this.run.findings
      .filter((finding) => !this.run.byName.has(finding.layer))
      .map((finding) => element('p', {class: 'note'}, mark(this.app.verdicts.get(finding.verdict)), `${finding.who}: ${finding.what} ${finding.why}`));
    if (this.run.unreadable) {
      notes.push(element('p', {class: 'note'}, `${plural(this.run.unreadable, 'event')} could not be read and ${this.run.unreadable === 1 ? 'was' : 'were'} passed over.`));
    }
    return notes;
  }

  /** The content of the card as a table, which is only made once the user opens it. */
  table() {
    const details = element('details', {class: 'as-table'}, element('summary', {}, 'As a table'));
    details.addEventListener('toggle', () => {
      details.querySelector('table')?.remove();
      if (!details.open) return;
      const rows = this.run.layers.map((layer) => {
        const state = layer.at(this.check);
        const numbers = state ? [layer.workingAt(this.check), layer.deadAt(this.check), layer.orientationsAt(this.check) ?? '–'].map(String) : ['–', '–', '–'];
        return [layer.title, String(layer.units), ...numbers, layer.countsText(this.check)];
      });
      const caption = `Layers of run ${this.run.name} at step ${this.run.steps[this.check]}`;
      details.append(table(caption, ['layer', 'units', 'working', 'dead', 'directions', 'units in groups'], rows));
    });
    return details;
  }
}

class Row {
  constructor(card, layer, place) {
    this.card = card;
    this.layer = layer;
    this.canvas = element('canvas', {'aria-hidden': 'true'});
    this.numbers = element('span', {class: 'numbers'});
    const {app} = card;
    this.node = element(
      'button',
      {
        class: 'row',
        type: 'button',
        'data-layer': layer.name,
        click: (event) => app.go({view: 'layer', run: card.run.name, layer: layer.name, step: this.stepUnder(event)}),
        pointermove: (event) => this.hover(event),
        pointerleave: () => app.tip.hide(),
      },
      element('span', {class: 'name', title: layer.title}, layer.title),
      this.canvas,
      this.numbers,
    );
    this.node.style.top = `${place * ROW}px`;
  }

  update() {
    const {app, run, check, width} = this.card;
    const working = this.layer.workingAt(check);
    const worst = this.layer.worst(check);
    const isChosen = run.name === app.state.run && this.layer.name === app.state.layer;
    const key = [width, app.isDark, check, isChosen, app.state.run === run.name].join();
    if (key === this.key) return;
    this.key = key;
    this.node.classList.toggle('chosen', isChosen);
    this.node.setAttribute('aria-label', `${this.layer.describe(check)}, step ${run.steps[check]}`);
    this.numbers.replaceChildren(working === null ? '–' : `${working} / ${this.layer.units}`, worst ? mark(app.verdicts.get(worst)) : element('span', {class: 'mark'}));
    this.draw(width, check, app.state.run === run.name);
  }

  draw(width, chosen, hasCursor) {
    const {app, run} = this.card;
    const context = prepare(this.canvas, width, STRIP);
    const column = width / run.steps.length;
    const spans = [];
    this.layer.spans((...span) => spans.push(span));
    if (column < 1) spans.sort(([a], [b]) => a - b); // Where the least works is painted over others in its pixel.
    for (const [share, from, to] of spans) {
      context.fillStyle = css(shade(share, app.isDark));
      context.fillRect(from * column, 0, Math.max(1, (to - from) * column), STRIP);
    }
    if (column >= 6) {
      for (let check = 1; check < run.steps.length; check++) context.clearRect(check * column - 1, 0, 1, STRIP);
    }
    if (hasCursor) {
      const x = (chosen + 0.5) * column;
      context.fillStyle = app.paper();
      context.fillRect(x - 2, 0, 4, STRIP);
      context.fillStyle = app.ink();
      context.fillRect(x - 1, 0, 2, STRIP);
    }
    const events = [...this.layer.events].sort((a, b) => priority(a, app.verdicts) - priority(b, app.verdicts));
    const taken = [];
    for (const event of events) {
      const x = Math.min(width - 6, Math.max(6, (run.checkAt(event.step) + 0.5) * column));
      if (taken.some((other) => Math.abs(other - x) < 11)) continue;
      taken.push(x);
      draw(context, signOf(event, app.verdicts), x, STRIP / 2, app.ink(), app.paper());
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

/** The width of the longest text in CSS pixels, for which only the text with the most characters is measured. */
function widest(texts) {
  const context = document.createElement('canvas').getContext('2d');
  context.font = getComputedStyle(document.body).font;
  const longest = texts.reduce((best, text) => (text.length > best.length ? text : best), '');
  return context.measureText(longest).width;
}

function total(name, value, extra = null) {
  return [element('div', {}, element('dt', {}, name), element('dd', {}, value, extra))];
}
