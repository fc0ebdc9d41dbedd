// The worked example of docs/idea.md as a figure to play with.
//
// Every element with the attribute `data-worked-example` is filled with one. The mathematics comes first, in pure
// functions; the pictures follow, each drawn from a list of weights; the figure at the end keeps that list.
(() => {
  'use strict';

  // The network: x1, x2 -> y1, y2 -> y3, y4 -> y, with identity activations, no bias, and y as the loss.

  /** @typedef {number[]} Weights  The ten numbers w1 ... w10, or their gradients, in this order. */
  /** @typedef {[number, number]} Row  The weights that feed a unit, or their gradients. */
  /** @typedef {'locked' | 'frozen' | 'lockstep' | 'breaking' | 'duplicate' | 'near' | 'distinct'} Verdict */
  /** @typedef {{name: string, title: string, start: Weights}} Preset */
  /** @typedef {{title: string, units: [string, string], inputs: [string, string], rows: [Row, Row]}} Layer */

  const X1 = 0.6;
  const X2 = -0.35;
  const LEARNING_RATE = 0.02;
  const MAX_STEPS = 160;
  /** The loss has no lowest value: a training ends once it is so far below zero and below its start. */
  const FALL = 2;
  /** Relative distance up to which rows count as equal: that of the package for float64. */
  const TOLERANCE = 1e-9;
  /** Relative distance up to which the figure speaks of rows that are nearly equal. */
  const NEARLY = 0.15;

  /** The hidden layers. `rows` holds the places of the weights of each unit. @type {[Layer, Layer]} */
  const LAYERS = [
    {title: 'First hidden layer', units: ['y1', 'y2'], inputs: ['x1', 'x2'], rows: [[0, 2], [1, 3]]},
    {title: 'Second hidden layer', units: ['y3', 'y4'], inputs: ['y1', 'y2'], rows: [[4, 6], [5, 7]]},
  ];

  /** @type {Preset[]} */
  const PRESETS = [
    {name: 'Equal', title: 'every weight is 0.5', start: Array(10).fill(0.5)},
    {name: 'Nearly equal', title: 'w2 and w6 are 0.55', start: [0.5, 0.55, 0.5, 0.5, 0.5, 0.55, 0.5, 0.5, 0.5, 0.5]},
    {name: 'Breaking', title: 'only the second layer differs', start: [0.5, 0.5, 0.5, 0.5, 0.3, 0.7, 0.6, -0.2, 0.5, 0.5]},
    {name: 'Zero', title: 'every weight is 0', start: Array(10).fill(0)},
    {name: 'Lockstep', title: 'w5 = w8 and w6 = w7', start: [0.5, 0.5, 0.5, 0.5, 0.3, 0.7, 0.7, 0.3, 0.5, 0.5]},
    {name: 'Mirrored', title: 'units are each other’s negatives', start: [0.4, -0.4, 0.6, -0.6, 0.6, -0.6, -0.6, 0.6, 0.5, -0.5]},
    {name: 'Healthy', title: 'every unit is different', start: [0.6, -0.5, 0.3, 0.7, 0.5, -0.4, 0.3, 0.6, 0.5, -0.6]},
  ];

  /** The values of all units. @param {Weights} w */
  function forward([w1, w2, w3, w4, w5, w6, w7, w8, w9, w10]) {
    const y1 = w1 * X1 + w3 * X2;
    const y2 = w2 * X1 + w4 * X2;
    const y3 = w5 * y1 + w7 * y2;
    const y4 = w6 * y1 + w8 * y2;
    return {y1, y2, y3, y4, y: w9 * y3 + w10 * y4};
  }

  /** The loss, which is the output. @param {Weights} w */
  function lossOf(w) {
    return forward(w).y;
  }

  /** The gradients of the loss. @param {Weights} w @returns {Weights} */
  function gradientsOf(w) {
    const [, , , , w5, w6, w7, w8, w9, w10] = w;
    const {y1, y2, y3, y4} = forward(w);
    const toY1 = w9 * w5 + w10 * w6;
    const toY2 = w9 * w7 + w10 * w8;
    return [toY1 * X1, toY2 * X1, toY1 * X2, toY2 * X2, w9 * y1, w10 * y1, w9 * y2, w10 * y2, y3, y4];
  }

  /** The weights after a step of SGD. @param {Weights} w @returns {Weights} */
  function stepFrom(w) {
    const gradients = gradientsOf(w);
    return w.map((weight, i) => weight - LEARNING_RATE * gradients[i]);
  }

  /** Whether a training ends here. @param {Weights[]} history */
  function hasEnded(history) {
    const lowest = Math.min(0, lossOf(history[0])) - FALL;
    return history.length > MAX_STEPS || lossOf(history[history.length - 1]) < lowest;
  }

  /** The two rows of a hidden layer. @param {Weights} w @param {Layer} layer @returns {[Row, Row]} */
  function rowsOf(w, {rows: [[a, b], [c, d]]}) {
    return [[w[a], w[b]], [w[c], w[d]]];
  }

  /** The distance of two rows, relative to the longer one; 0 for two rows of zeros. @param {Row} a @param {Row} b */
  function distance([a, b], [c, d]) {
    const longest = Math.max(Math.hypot(a, b), Math.hypot(c, d));
    return longest === 0 ? 0 : Math.hypot(a - c, b - d) / longest;
  }

  /** The signs, 1 or -1, with which two rows are equal. @param {[Row, Row]} rows */
  function signsOf([one, two]) {
    return [1, -1].filter((sign) => distance(one, [sign * two[0], sign * two[1]]) <= TOLERANCE);
  }

  /** @param {[Row, Row]} rows */
  function areZero(rows) {
    return rows.every((row) => row.every((value) => value === 0));
  }

  /** What becomes of the two units of a layer. @param {Weights} w @param {Layer} layer @returns {Verdict} */
  function verdictOf(w, layer) {
    const [rows, gradients] = [rowsOf(w, layer), rowsOf(gradientsOf(w), layer)];
    const signs = signsOf(rows);
    const signsOfGradients = signsOf(gradients);
    if (signs.length > 0) {
      // A zero gradient says nothing yet, except if all are zero: then no later step can differ from this one.
      if (areZero(gradients)) return gradientsOf(w).every((gradient) => gradient === 0) ? 'frozen' : 'duplicate';
      return signs.some((sign) => signsOfGradients.includes(sign)) ? 'locked' : 'breaking';
    }
    // Gradients of different rows may be equal in passing; if they are at the next step too, they remain so.
    const next = rowsOf(gradientsOf(stepFrom(w)), layer);
    if (!areZero(gradients) && signsOfGradients.includes(1) && signsOf(next).includes(1)) return 'lockstep';
    return distance(...rows) < NEARLY && distance(...gradients) < NEARLY ? 'near' : 'distinct';
  }

  /** The number of distinct units of a hidden layer, its effective width. @param {Weights} w @param {Layer} layer */
  function widthOf(w, layer) {
    return signsOf(rowsOf(w, layer)).length > 0 ? 1 : 2;
  }

  // What is said.

  /** What the verdicts are called, and their marks in a square of 12 by 12; the most serious one comes first. */
  const SIGNS = {
    locked: {label: 'locked', mark: 'M2 2h8v8h-8z'},
    frozen: {label: 'frozen', mark: 'M6 0.5L11.5 6L6 11.5L0.5 6z'},
    lockstep: {label: 'lockstep', mark: 'M1.5 1h3.4v10h-3.4zM7.1 1h3.4v10h-3.4z'},
    breaking: {label: 'breaking', mark: 'M6 1a5 5 0 1 0 .01 0zM6 3.2a2.8 2.8 0 1 1 -.01 0z'},
    duplicate: {label: 'duplicate', mark: 'M1 4h10v1.8h-10zM1 7.4h10v1.8h-10z'},
    near: {label: 'nearly equal', mark: 'M4.2 2.4a3.6 3.6 0 1 0 .01 0zM7.8 2.4a3.6 3.6 0 1 0 .01 0z'},
    distinct: {label: 'distinct', mark: 'M2.9 3.4a2.6 2.6 0 1 0 .01 0zM9.1 3.4a2.6 2.6 0 1 0 .01 0z'},
  };

  /** The more serious of two verdicts. @param {Verdict} a @param {Verdict} b @returns {Verdict} */
  function worse(a, b) {
    const order = Object.keys(SIGNS);
    return order.indexOf(a) <= order.indexOf(b) ? a : b;
  }

  /** How far the units of a layer are apart, as a text. @param {Weights} w @param {Layer} layer */
  function gapOf(w, layer) {
    const [[a, b], [c, d]] = rowsOf(w, layer);
    return Math.hypot(a - c, b - d).toFixed(2);
  }

  /** What happens to the units of a layer. @param {Weights[]} history @param {Layer} layer */
  function clauseOf(history, layer) {
    const [first, last] = [history[0], history[history.length - 1]];
    const pair = layer.units.join(' and ');
    const isMirrored = !signsOf(rowsOf(last, layer)).includes(1);
    const gap = gapOf(last, layer);
    switch (verdictOf(last, layer)) {
      case 'locked':
        return isMirrored
          ? `${pair} are mirror images and so are their gradients: up to the sign they train as one`
          : `${pair} are equal and get equal gradients: they train as one`;
      case 'frozen':
      case 'duplicate':
        return `${pair} are equal and get no gradient at this step`;
      case 'breaking':
        return `${pair} are equal but get different gradients: the next step parts them`;
      case 'lockstep':
        return `${pair} differ but get equal gradients: they move in parallel`;
      case 'near':
        return `${pair} are ${gap} apart: nearly equal gradients part them slowly`;
      default:
        return widthOf(first, layer) === 1
          ? `${pair} started as one and have parted: they are ${gap} apart`
          : `${pair} differ and get gradients of their own`;
    }
  }

  /** One sentence on all that happens. @param {Weights[]} history */
  function sentenceOf(history) {
    const last = history[history.length - 1];
    const [one, two] = LAYERS.map((layer) => verdictOf(last, layer));
    const [first, second] = LAYERS.map((layer) => clauseOf(history, layer));
    const [units, others] = LAYERS.map((layer) => layer.units.join(' and '));
    if (one === 'frozen') return 'Every gradient is zero: no weight moves, now or ever.';
    if (one === 'near' && two === 'near') {
      const [gap, otherGap] = LAYERS.map((layer) => gapOf(last, layer));
      return `Nearly equal gradients part the units slowly: ${units} are ${gap} apart, ${others} ${otherGap}.`;
    }
    if (first.replace(units, others) !== second) return `Units ${first}; ${second}.`;
    return one === 'distinct'
      ? 'All units differ and get gradients of their own: each of them does work of its own.'
      : `Units ${first}, and so do ${others}.`;
  }

  // Elements.

  const SVG = 'http://www.w3.org/2000/svg';

  /**
   * Give an element attributes and children. Functions become listeners; null and false are left out.
   * @template {Element} Node
   * @param {Node} node
   * @param {Record<string, unknown>} attributes
   * @param {(Element | string)[]} children
   * @returns {Node}
   */
  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === 'function') node.addEventListener(name, /** @type {EventListener} */ (value));
      else if (value !== null && value !== false) node.setAttribute(name, String(value));
    }
    node.append(...children);
    return node;
  }

  /**
   * @template {keyof HTMLElementTagNameMap} Tag
   * @param {Tag} tag @param {Record<string, unknown>} [attributes] @param {...(Element | string)} children
   */
  function element(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  /**
   * @template {keyof SVGElementTagNameMap} Tag
   * @param {Tag} tag @param {Record<string, unknown>} [attributes] @param {...(Element | string)} children
   */
  function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  /** A number as people read it, with a true minus. @param {number} value @param {number} [digits] */
  function shown(value, digits = 2) {
    const text = value.toFixed(digits);
    return /^-0\.?0*$/.test(text) ? text.slice(1) : text.replace('-', '\u2212');
  }

  /** A verdict with its mark. @param {Verdict} verdict */
  function badge(verdict) {
    const {label, mark} = SIGNS[verdict];
    const outline = svg('path', {d: mark, 'fill-rule': 'evenodd'});
    return element(
      'span',
      {class: 'we-badge', 'data-verdict': verdict},
      svg('svg', {class: 'we-mark', viewBox: '0 0 12 12', 'aria-hidden': 'true'}, outline),
      label,
    );
  }

  // Pictures.

  /** @typedef {(row: Row) => Row} Place  From weights to pixels. */

  /** A path through points. @param {Row[]} points */
  function pathOf(points) {
    return points.map(([x, y], i) => `${i ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`).join('');
  }

  /** A text in a picture. @param {string} name @param {Row} place @param {string} anchor @param {string} words */
  function written(name, [x, y], anchor, words) {
    return svg('text', {class: name, x, y, 'text-anchor': anchor}, words);
  }

  /**
   * The direction in which the next step moves a unit; its length grows with the gradient up to 0.45.
   * @param {Row} gradient @returns {Row}
   */
  function arrowOf([a, b]) {
    const size = Math.hypot(a, b);
    const length = 0.45 * Math.tanh(2 * size);
    return size === 0 ? [0, 0] : [(-a * length) / size, (-b * length) / size];
  }

  /** The ends of the arrows of a layer. @param {Weights} w @param {Layer} layer @returns {Row[]} */
  function tipsOf(w, layer) {
    const arrows = rowsOf(gradientsOf(w), layer).map(arrowOf);
    return rowsOf(w, layer).map(([a, b], unit) => [a + arrows[unit][0], b + arrows[unit][1]]);
  }

  /** Half of the side of the planes, in weights: there is room for all that was drawn so far. @param {Weights[]} history */
  function reachOf(history) {
    const drawn = history.flatMap((w) => LAYERS.flatMap((layer) => [...rowsOf(w, layer), ...tipsOf(w, layer)]));
    return Math.max(1.2, ...drawn.flat().map((value) => Math.abs(value) + 0.1));
  }

  /** The lines behind a plane. @param {Place} place @param {number} side */
  function gridOf(place, side) {
    const lines = [-1, -0.5, 0.5, 1, 0].flatMap((value) => {
      const [x, y] = place([value, value]);
      const name = value === 0 ? 'we-axis' : 'we-grid';
      return [
        svg('line', {class: name, x1: x, x2: x, y1: 0, y2: side}),
        svg('line', {class: name, x1: 0, x2: side, y1: y, y2: y}),
      ];
    });
    const ticks = [-1, 1].flatMap((value) => {
      const [x, y] = place([value, value]);
      return [
        written('we-tick', [x, side / 2 + 13], 'middle', shown(value, 0)),
        written('we-tick', [side / 2 - 5, y + 4], 'end', shown(value, 0)),
      ];
    });
    return [...lines, ...ticks];
  }

  /**
   * A unit: where it started, its path, where it is now, and an arrow to where the next step moves it. The second unit is
   * drawn smaller, so that both are seen if they are in one place.
   * @param {Row[]} points @param {Row} tip  of the arrow @param {number} unit
   */
  function drawnUnit(points, tip, unit) {
    const [start, now] = [points[0], points[points.length - 1]];
    const [dx, dy] = [tip[0] - now[0], tip[1] - now[1]];
    const head = Math.min(unit ? 7 : 11, Math.hypot(dx, dy));
    const angle = (Math.atan2(dy, dx) * 180) / Math.PI;
    return svg(
      'g',
      {class: `we-unit-${unit + 1}`},
      svg('path', {class: 'we-path', d: pathOf(points)}),
      svg('circle', {class: 'we-start', cx: start[0], cy: start[1], r: unit ? 2.5 : 4.5}),
      svg('line', {class: 'we-arrow', x1: now[0], y1: now[1], x2: now[0] + 0.8 * dx, y2: now[1] + 0.8 * dy}),
      svg('path', {class: 'we-head', d: `M0 0L${-head} ${-head / 2}V${head / 2}z`, transform: `translate(${tip}) rotate(${angle})`}),
      svg('circle', {class: 'we-point', cx: now[0], cy: now[1], r: unit ? 4 : 7.5}),
    );
  }

  /**
   * The direction, on the screen, in which the name of a unit stands: beside its arrow, and away from the other unit.
   * @param {Row} arrow @param {Row} away  from the other unit to this one
   * @returns {Row}
   */
  function besideOf([a, b], [x, y]) {
    const [size, gap] = [Math.hypot(a, b), Math.hypot(x, y)];
    const isOne = gap < 1;
    if (size === 0) return isOne ? [Math.SQRT1_2, -Math.SQRT1_2] : [x / gap, y / gap];
    const side = (isOne ? -a : y * a - x * b) >= 0 ? 1 : -1; // of units in one place: upwards
    return [(-side * b) / size, (side * a) / size];
  }

  /**
   * The names of two units, or one for both where they are close.
   * @param {Row[]} now @param {Row[]} tips  of their arrows @param {Layer} layer @param {string} sign  between names @param {number} side
   */
  function namesOf(now, tips, layer, sign, side) {
    /** @type {Row} */
    const away = [now[0][0] - now[1][0], now[0][1] - now[1][1]];
    const areClose = Math.hypot(...away) < 15;
    return (areClose ? [layer.units.join(sign)] : layer.units).map((words, unit) => {
      const [x, y] = now[unit];
      const [dx, dy] = besideOf([tips[unit][0] - x, tips[unit][1] - y], unit ? [-away[0], -away[1]] : away);
      const half = 4 * words.length + 4; // about half of its width
      const middle = x + dx * (12 + half);
      return written(
        areClose ? 'we-name' : `we-name we-name-${unit + 1}`,
        [Math.min(side - half, Math.max(half, middle)), Math.min(side - 6, Math.max(14, y + 16 * dy + 4))],
        'middle',
        words,
      );
    });
  }

  /**
   * Draw the weights of the units of a layer as points of the plane.
   * @param {SVGSVGElement} node @param {number} side  in pixels @param {Weights[]} history @param {Layer} layer
   */
  function drawPlane(node, side, history, layer) {
    const scale = side / 2 / reachOf(history);
    /** @type {Place} */
    const place = ([a, b]) => [side / 2 + a * scale, side / 2 - b * scale];
    const last = history[history.length - 1];
    const rows = rowsOf(last, layer);
    const now = rows.map(place);
    const tips = tipsOf(last, layer).map(place);
    const units = tips.map((tip, unit) => drawnUnit(history.map((w) => place(rowsOf(w, layer)[unit])), tip, unit));
    const sign = signsOf(rows).includes(1) ? ' = ' : ', ';
    const places = rows.map(([a, b], unit) => `${layer.units[unit]} at (${shown(a)}, ${shown(b)})`);
    node.setAttribute('aria-label', `Weights of the ${layer.title.toLowerCase()}: ${places.join(', ')}`);
    node.replaceChildren(...gridOf(place, side), ...units, ...namesOf(now, tips, layer, sign, side));
  }

  /**
   * Draw the loss over the steps.
   * @param {SVGSVGElement} node @param {number} width @param {number} height  in pixels @param {Weights[]} history
   */
  function drawLoss(node, width, height, history) {
    const losses = history.map(lossOf);
    const [first, last] = [losses[0], losses[losses.length - 1]];
    const top = Math.max(0.5, Math.ceil(2 * first) / 2);
    const bottom = Math.min(0, first) - FALL - 0.3;
    const edge = {left: 30, right: 10, top: 10, bottom: 22};
    /** @type {Place} */
    const place = ([step, loss]) => [
      edge.left + ((width - edge.left - edge.right) * step) / MAX_STEPS,
      edge.top + ((height - edge.top - edge.bottom) * (top - Math.max(loss, bottom))) / (top - bottom),
    ];
    const levels = Array.from({length: Math.floor(top) - Math.ceil(bottom) + 1}, (_, i) => Math.floor(top) - i);
    const grid = levels.flatMap((level) => {
      const [x, y] = place([0, level]);
      return [
        svg('line', {class: level === 0 ? 'we-axis' : 'we-grid', x1: x, x2: width - edge.right, y1: y, y2: y}),
        written('we-tick', [x - 8, y + 4], 'end', shown(level, 0)),
      ];
    });
    const steps = [0, MAX_STEPS / 2, MAX_STEPS].map((step) => {
      return written('we-tick', [place([step, 0])[0], height - 5], step === MAX_STEPS ? 'end' : 'middle', String(step));
    });
    const points = losses.map((loss, step) => place([step, loss]));
    const [x, y] = points[points.length - 1];
    node.setAttribute('aria-label', `Loss: ${shown(first, 3)} at the start, ${shown(last, 3)} at step ${losses.length - 1}`);
    node.replaceChildren(
      ...grid,
      ...steps,
      svg('path', {class: 'we-loss-line', d: pathOf(points)}),
      svg('circle', {class: 'we-loss-point', cx: x, cy: y, r: 4}),
    );
  }

  // The figure.

  const STEPS_PER_SECOND = 40;
  const MOST_STEPS_PER_FRAME = 4;
  const ENDING = `The loss is y itself and has no lowest value: a training ends far below zero, or after ${MAX_STEPS} steps.`;
  const KEY = {start: 'start', now: 'now', next: 'next step, enlarged'};
  let numFigures = 0;

  class Figure {
    /** @param {HTMLElement} host */
    constructor(host) {
      this.host = host;
      /** The weights at the start and after every step. @type {Weights[]} */
      this.history = [PRESETS[0].start];
      /** The number of the next frame of the animation; 0 while it stands still. */
      this.frame = 0;
      this.willDraw = false;

      this.presets = PRESETS.map(({name, title, start}) =>
        element('button', {type: 'button', class: 'we-chip', title, click: () => this.restart(start)}, name),
      );
      this.train = element('button', {type: 'button', class: 'we-button we-primary', click: () => this.toggle()});
      this.single = element('button', {type: 'button', class: 'we-button', click: () => this.stepOnce()}, 'Step');
      this.reset = element('button', {type: 'button', class: 'we-button', click: () => this.restart(this.history[0])}, 'Reset');
      this.count = element('span', {class: 'we-count'});
      this.verdict = element('span', {class: 'we-verdict'});
      this.sentence = element('span', {class: 'we-sentence'});
      this.status = element('div', {class: 'we-status', role: 'status'}, this.verdict, this.sentence);
      this.layers = LAYERS.map((layer) => ({
        layer,
        note: element('div', {class: 'we-note'}),
        plane: svg('svg', {class: 'we-plane', role: 'img'}),
      }));
      this.lossNote = element('div', {class: 'we-note'});
      this.loss = svg('svg', {class: 'we-loss', role: 'img'});
      this.numbers = element('tbody');
      const id = `worked-example-${(numFigures += 1)}`;
      this.sliders = this.history[0].map((_, place) => ({
        input: element('input', {
          type: 'range', id: `${id}-w${place + 1}`, min: -1, max: 1, step: 0.01, input: () => this.restart(this.chosen()),
        }),
        value: element('output', {for: `${id}-w${place + 1}`}),
      }));

      host.replaceChildren(this.layout());
      this.draw();
      new ResizeObserver(() => this.drawPictures()).observe(host);
    }

    /** Put all parts in their places. */
    layout() {
      const start = element('span', {class: 'we-lead', 'aria-hidden': 'true'}, 'Start');
      const key = Object.entries(KEY).map(([name, words]) => element('span', {}, element('span', {class: `we-key-${name}`}), words));
      return element(
        'div',
        {class: 'we-figure', role: 'group', 'aria-label': 'The worked example, to play with'},
        element('div', {class: 'we-bar', role: 'group', 'aria-label': 'Start'}, start, ...this.presets),
        element('div', {class: 'we-bar'}, this.train, this.single, this.reset, this.count),
        this.status,
        element('div', {class: 'we-panels'}, ...this.layers.map((part) => this.layoutLayer(part)), this.layoutOutput()),
        element('div', {class: 'we-key', 'aria-hidden': 'true'}, ...key),
        element('details', {class: 'we-numbers'}, element('summary', {}, 'All weights in numbers'), this.layoutTable()),
      );
    }

    /** @param {{layer: Layer, note: Element, plane: Element}} part */
    layoutLayer({layer, note, plane}) {
      return element(
        'section',
        {class: 'we-panel', 'aria-label': layer.title},
        element('div', {class: 'we-title'}, layer.title),
        note,
        plane,
        element('div', {class: 'we-caption', 'aria-hidden': 'true'}, `\u2192 weight of ${layer.inputs[0]}, \u2191 of ${layer.inputs[1]}`),
        ...layer.units.map((name, unit) => this.layoutSliders(name, layer.inputs, layer.rows[unit], unit + 1)),
      );
    }

    layoutOutput() {
      return element(
        'section',
        {class: 'we-panel we-output', 'aria-label': 'Loss and output'},
        element('div', {class: 'we-title'}, 'Loss'),
        this.lossNote,
        this.loss,
        element('div', {class: 'we-caption', 'aria-hidden': 'true'}, '\u2192 step, \u2191 loss'),
        this.layoutSliders('y', ['y3', 'y4'], [8, 9], 0),
        element('div', {class: 'we-caption'}, ENDING),
      );
    }

    /** The sliders of a unit. @param {string} unit @param {string[]} inputs @param {number[]} places @param {number} number */
    layoutSliders(unit, inputs, places, number) {
      const rows = places.map((place, i) => {
        const {input, value} = this.sliders[place];
        const more = element('span', {class: 'we-hidden'}, ` at the start, from ${inputs[i]} to ${unit}`);
        return element('div', {class: 'we-slider'}, element('label', {for: input.id}, `w${place + 1}`, more), input, value);
      });
      const legend = element('legend', {}, element('span', {class: 'we-swatch', 'aria-hidden': 'true'}), unit);
      return element('fieldset', {class: `we-sliders we-unit-${number}`}, legend, ...rows);
    }

    layoutTable() {
      const head = ['weight', 'start', 'now', 'gradient'].map((text) => element('th', {scope: 'col'}, text));
      return element('table', {class: 'we-table'}, element('thead', {}, element('tr', {}, ...head)), this.numbers);
    }

    /** The weights that the sliders stand at. @returns {Weights} */
    chosen() {
      return this.sliders.map(({input}) => Number(input.value));
    }

    /** @param {Weights} start */
    restart(start) {
      this.pause();
      this.history = [start];
      this.draw();
    }

    /** Take steps until there are so many weights in the history, or the training ends. @param {number} length */
    advance(length) {
      while (this.history.length < length && !hasEnded(this.history)) {
        this.history.push(stepFrom(this.history[this.history.length - 1]));
      }
    }

    stepOnce() {
      this.pause();
      this.advance(this.history.length + 1);
      this.draw();
    }

    /** Train from here, or from the start if this is the end, or pause. Who wants less motion sees the end at once. */
    toggle() {
      const isPlaying = this.frame !== 0;
      this.pause();
      if (!isPlaying) {
        if (hasEnded(this.history)) this.history.length = 1;
        if (matchMedia('(prefers-reduced-motion: reduce)').matches) this.advance(Infinity);
        else this.play();
      }
      this.draw();
    }

    play() {
      let clock = performance.now();
      /** @param {number} now */
      const tick = (now) => {
        const due = Math.floor(((now - clock) / 1000) * STEPS_PER_SECOND);
        clock += (due * 1000) / STEPS_PER_SECOND;
        // On a busy machine the training takes longer, rather than being over after a few frames.
        this.advance(this.history.length + Math.min(due, MOST_STEPS_PER_FRAME));
        // The host is gone if the reader has gone on to another page that was put in the place of this one.
        const goesOn = !hasEnded(this.history) && this.host.isConnected;
        this.frame = goesOn ? requestAnimationFrame(tick) : 0;
        this.draw();
      };
      this.frame = requestAnimationFrame(tick);
    }

    pause() {
      cancelAnimationFrame(this.frame);
      this.frame = 0;
    }

    /** Show where the training is: in words and numbers at once, and in pictures with the next frame. */
    draw() {
      this.drawControls();
      this.drawStatus();
      this.drawNumbers();
      if (!this.willDraw) requestAnimationFrame(() => this.drawPictures());
      this.willDraw = true;
    }

    drawPictures() {
      this.willDraw = false;
      const [sides, {clientWidth, clientHeight}] = [this.layers.map(({plane}) => plane.clientWidth), this.loss];
      this.layers.forEach(({layer, plane}, i) => drawPlane(plane, sides[i], this.history, layer));
      drawLoss(this.loss, clientWidth, clientHeight, this.history);
    }

    drawControls() {
      const start = this.history[0];
      const isOver = hasEnded(this.history);
      this.presets.forEach((chip, i) => {
        chip.setAttribute('aria-pressed', String(PRESETS[i].start.every((weight, place) => weight === start[place])));
      });
      this.train.textContent = this.frame ? 'Pause' : isOver ? 'Train again' : 'Train';
      this.single.setAttribute('aria-disabled', String(isOver)); // it keeps the focus, as `disabled` would not
      this.count.textContent = `step ${this.history.length - 1}`;
      this.sliders.forEach(({input, value}, place) => {
        if (Number(input.value) !== start[place]) input.value = String(start[place]);
        value.textContent = shown(start[place]);
      });
    }

    drawStatus() {
      const last = this.history[this.history.length - 1];
      const verdicts = LAYERS.map((layer) => verdictOf(last, layer));
      const sentence = sentenceOf(this.history);
      this.status.setAttribute('aria-busy', String(this.frame !== 0)); // of a training, only the end is read out
      if (this.sentence.textContent !== sentence) {
        this.status.dataset.verdict = worse(verdicts[0], verdicts[1]);
        this.verdict.replaceChildren(badge(worse(verdicts[0], verdicts[1])));
        this.sentence.textContent = sentence;
      }
      this.layers.forEach(({layer, note}, i) => {
        note.replaceChildren(element('span', {class: 'we-width'}, `${widthOf(last, layer)} of 2 distinct`), badge(verdicts[i]));
      });
    }

    drawNumbers() {
      const [start, last] = [this.history[0], this.history[this.history.length - 1]];
      const gradients = gradientsOf(last);
      const loss = lossOf(last);
      this.lossNote.replaceChildren('y = ', element('data', {value: loss}, shown(loss, 3)));
      const rows = last.map((weight, i) => {
        const cells = [start[i], weight, gradients[i]].map((value) => element('td', {}, element('data', {value}, shown(value, 4))));
        return element('tr', {}, element('th', {scope: 'row'}, `w${i + 1}`), ...cells);
      });
      this.numbers.replaceChildren(...rows);
    }
  }

  /** Fill all elements of the page that ask for the figure and have none yet. */
  function mountAll() {
    for (const host of document.querySelectorAll('[data-worked-example]')) {
      if (host instanceof HTMLElement && host.dataset.workedExample !== 'ready') {
        host.dataset.workedExample = 'ready';
        new Figure(host);
      }
    }
  }

  // Material for MkDocs puts pages in the place of others without loading them anew, and tells of each here.
  const pages = /** @type {any} */ (globalThis).document$;
  if (pages) pages.subscribe(mountAll);
  else if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', mountAll);
  else mountAll();
})();
