// Functions that create elements. None of them parses markup, because names in event files may look like markup.

const SVG = 'http://www.w3.org/2000/svg';

/** Create an HTML element. Attributes that are null, undefined or false are left out; functions become listeners. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Create an SVG element, in the same way. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') {
      node.addEventListener(name, value);
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? '' : String(value));
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Create a table from a list of texts for its head and lists of texts or elements for its rows. */
export function table(caption, head, rows, attributes = {}) {
  return element(
    'table',
    attributes,
    element('caption', {class: 'for-readers'}, caption),
    element('thead', {}, element('tr', {}, head.map((text) => element('th', {scope: 'col'}, text)))),
    element('tbody', {}, rows.map((row) => element('tr', {}, row.map((cell) => element('td', {}, cell))))),
  );
}

/** Create a list of names to choose from; calls a function with the name that is chosen. */
export function select(label, names, chosen, choose) {
  const options = names.map((name) => element('option', {value: name, selected: name === chosen}, name));
  const list = element('select', {change: () => choose(list.value)}, options);
  return element('label', {class: 'choice'}, element('span', {}, label), list);
}

/** Clear a canvas and set its size in CSS pixels; returns a context whose unit is a CSS pixel on every screen. */
export function prepare(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext('2d');
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/** A tooltip that stays beside the pointer. */
export class Tip {
  constructor(root) {
    this.node = element('div', {class: 'tip', hidden: true, 'aria-hidden': 'true'});
    root.append(this.node);
  }

  show(event, lines) {
    this.node.replaceChildren(...lines.map((line) => element('div', {}, line)));
    this.node.hidden = false;
    const {offsetWidth, offsetHeight} = this.node;
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - offsetWidth - 8);
    const isLow = event.clientY + offsetHeight + 24 > document.documentElement.clientHeight;
    this.node.style.left = `${Math.max(4, left)}px`;
    this.node.style.top = `${isLow ? event.clientY - offsetHeight - 10 : event.clientY + 16}px`;
  }

  hide() {
    this.node.hidden = true;
  }
}
