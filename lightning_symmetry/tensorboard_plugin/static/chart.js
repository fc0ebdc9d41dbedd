// A chart of the share of working units over steps, with events as marks.
import {svg} from './dom.js';
import {eventText, signOf} from './marks.js';
import {ticks} from './model.js';

const HEIGHT = 260;
const EDGE = {left: 52, right: 18, top: 16, bottom: 34};
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '5 2 1 2 1 2'];
const NUM_COLOURS = 7;

/** Return the colour and the dashes of the i-th line. The first 35 lines all differ, and neighbours differ in both. */
export function lineStyle(i) {
  return {stroke: `var(--line-${i % NUM_COLOURS})`, 'stroke-dasharray': DASHES[i % DASHES.length] || null};
}

/** Create a short piece of the i-th line, for a legend. */
export function swatch(i) {
  return svg('svg.swatch', {viewBox: '0 0 24 10', 'aria-hidden': 'true'}, svg('path', {d: 'M0 5H24', ...lineStyle(i)}));
}

/** A chart of some layers of a run. Each layer comes with the number of its line, which sets the style. */
export class Chart {
  constructor(app, name) {
    this.app = app;
    this.node = svg('svg.chart', {
      role: 'img',
      'aria-label': name,
      height: HEIGHT,
      click: (event) => this.run && app.go({run: this.run.name, step: this.run.steps[this.checkUnder(event)]}),
      pointermove: (event) => this.hover(event),
      pointerleave: () => app.tip.hide(),
    });
    new ResizeObserver(() => app.attemptDrawing(name, () => this.draw())).observe(this.node);
  }

  update(run, lines, check = run.checkAt(this.app.state.step)) {
    this.run = run;
    this.lines = lines;
    this.check = check;
    this.draw();
  }

  /** Return the x coordinate of a check. Checks are evenly spaced, since the first ones are only a few steps apart. */
  x(check) {
    return EDGE.left + ((check + 0.5) * (this.width - EDGE.left - EDGE.right)) / this.run.steps.length;
  }

  y(share) {
    return EDGE.top + (1 - share) * (HEIGHT - EDGE.top - EDGE.bottom);
  }

  draw() {
    this.width = this.node.clientWidth;
    if (!this.run || !this.width) return;
    const {run} = this;
    const right = this.width - EDGE.right;
    const grid = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
      svg('line.grid', {x1: EDGE.left, x2: right, y1: this.y(share), y2: this.y(share)}),
      svg('text', {x: EDGE.left - 8, y: this.y(share) + 4, 'text-anchor': 'end'}, `${100 * share} %`),
    ]);
    const axis = ticks(run.steps, right - EDGE.left, 24).flatMap((check) => [
      svg('line.tick', {x1: this.x(check), x2: this.x(check), y1: HEIGHT - EDGE.bottom, y2: HEIGHT - EDGE.bottom + 4}),
      svg('text', {x: this.x(check), y: HEIGHT - EDGE.bottom + 17, 'text-anchor': 'middle'}, run.steps[check].toLocaleString('en')),
    ]);
    const condensed = this.lines.filter(({layer}) => layer.orientations.some(({check}) => layer.isCondensed(check)));
    const cursor = this.x(this.check);
    this.node.replaceChildren(
      ...grid,
      ...axis,
      svg('text', {x: right, y: HEIGHT - 2, 'text-anchor': 'end'}, 'step, one place per check'),
      condensed.length ? svg('text', {x: EDGE.left, y: HEIGHT - 2}, 'thin line: directions among the units, where these have condensed') : '',
      svg('line.cursor', {x1: cursor, x2: cursor, y1: EDGE.top - 6, y2: HEIGHT - EDGE.bottom}),
      ...condensed.map(({layer, line}) => svg('path.line.thin', {d: this.path(layer.orientations, layer), stroke: lineStyle(line).stroke})),
      ...this.lines.map(({layer, line}) => svg('path.line', {d: this.path(layer.working, layer), ...lineStyle(line)})),
      ...this.marks(),
    );
  }

  /** Return an SVG path of counts of units over checks, as shares of the units of the layer; null makes a gap. */
  path(changes, {units}) {
    let d = '';
    changes.forEach(({check, number}, i) => {
      if (number === null) return;
      const end = changes[i + 1]?.check ?? this.run.steps.length - 1;
      const continues = d && changes[i - 1].number !== null;
      d += `${continues ? 'L' : 'M'}${this.x(check)} ${this.y(number / units)}H${this.x(end)}`;
    });
    return d;
  }

  /** Return the marks of the events, shifted to the right where they would overlap. */
  marks() {
    const taken = [];
    return this.lines.flatMap(({layer, line}) =>
      layer.events.map((event) => {
        const {step, text} = event;
        const check = this.run.checkAt(step);
        const y = this.y((layer.workingAt(check) ?? 0) / layer.units);
        let x = this.x(check);
        while (taken.some(([a, b]) => Math.abs(a - x) < 13 && Math.abs(b - y) < 13) && x < this.width - 14) x += 14;
        taken.push([x, y]);
        const title = `${layer.name}, step ${step}: ${eventText(event)}: ${text}`;
        return svg(
          'g.event',
          {transform: `translate(${x - 6} ${y - 6})`},
          svg('title', title),
          svg('path', {d: signOf(event).mark, 'fill-rule': 'evenodd', fill: lineStyle(line).stroke}),
        );
      }),
    );
  }

  checkUnder(event) {
    const place = (this.width - EDGE.left - EDGE.right) / this.run.steps.length;
    const check = Math.floor((event.clientX - this.node.getBoundingClientRect().left - EDGE.left) / place);
    return Math.min(this.run.steps.length - 1, Math.max(0, check));
  }

  hover(event) {
    if (!this.run || !this.lines.length) return;
    const check = this.checkUnder(event);
    const lines = this.lines.slice(0, 12).map(({layer}) => layer.describe(check));
    this.app.tip.show(event, [`step ${this.run.steps[check].toLocaleString('en')}`, ...lines]);
  }
}
