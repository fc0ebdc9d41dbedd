// Functions that create elements. None of them parses markup, because names in event files may look like markup.

const HTML = 'http://www.w3.org/1999/xhtml';
const SVG = 'http://www.w3.org/2000/svg';
const MAX_TAIL = 20; // The number of characters at the end of a name that are never cut.

/**
 * Create an HTML element from its tag and classes, such as 'p.quiet', its attributes, and its children, which are texts or
 * elements. Attributes that are functions become listeners. Null and undefined are left out, and so are false attributes.
 */
export function element(name, ...content) {
  return create(HTML, name, content);
}

/** Create an SVG element, in the same way. */
export function svg(name, ...content) {
  return create(SVG, name, content);
}

function create(namespace, name, content) {
  const [tag, ...classes] = name.split('.');
  const node = document.createElementNS(namespace, tag);
  node.classList.add(...classes);
  for (const part of content.flat()) {
    if (part?.constructor === Object) Object.entries(part).forEach(([key, value]) => setAttribute(node, key, value));
    else if (part !== null && part !== undefined) node.append(part);
  }
  return node;
}

function setAttribute(node, name, value) {
  if (typeof value === 'function') node.addEventListener(name, value);
  else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? '' : value);
}

/** Create a table. The cells of its head and of its rows are texts or elements; the caption is for screen readers. */
export function table(caption, head, rows = []) {
  return element(
    'table',
    element('caption.for-readers', caption),
    element('thead', element('tr', head.map((cell) => element('th', {scope: 'col'}, cell)))),
    element('tbody', rows.map((row) => element('tr', row.map((cell) => element('td', cell))))),
  );
}

/** A list of names to choose from; it calls a function with the chosen name. */
export class Choice {
  constructor(label, choose) {
    this.list = element('select', {change: () => choose(this.list.value)});
    this.node = element('label.choice', element('span', label), this.list);
  }

  /** Show some names, always including the chosen one. */
  update(names, chosen) {
    const all = names.includes(chosen) ? names : [chosen, ...names];
    reconcile(this.list, all, {make: (name) => element('option', {value: name}, name)});
    if (this.list.value !== chosen) this.list.value = chosen;
  }
}

/**
 * Give an element one child per item, in the order of the items. Items with the same key keep their element, and with it
 * scrolling, focus, and what is open or selected.
 *
 * key(item) identifies an item, by default the item itself, and version(item) is a text that changes with its content.
 * make(item) creates its element, and update(item, element) fills it whenever the version has changed.
 */
export function reconcile(parent, items, {key = (item) => item, version = () => '', make, update = () => {}}) {
  const kept = (parent.keyed ??= new Map());
  const keys = new Set(items.map(key));
  for (const [name, {node}] of kept) {
    if (keys.has(name)) continue;
    node.remove();
    kept.delete(name);
  }
  let place = parent.firstChild;
  for (const item of items) {
    const name = key(item);
    let entry = kept.get(name);
    if (!entry) kept.set(name, (entry = {node: make(item)}));
    const shown = String(version(item));
    if (entry.shown !== shown) {
      update(item, entry.node);
      entry.shown = shown;
    }
    if (entry.node === place) place = place.nextSibling;
    else parent.insertBefore(entry.node, place);
  }
}

/** Replace the children of an element by those that content() creates, if the version has changed. */
export function show(parent, version, content) {
  if (parent.shown === version) return;
  parent.shown = version;
  parent.replaceChildren(...content().flat().filter((child) => child !== null));
}

/** Create nodes for a text, with the parts between backticks as code. */
export function withCode(text) {
  return text.split('`').map((part, i) => (i % 2 ? element('code', part) : part));
}

/** Create a name that is cut in its middle where space is short: names of layers differ at both ends. */
export function cutName(text, attributes = {}) {
  const tail = Math.min(MAX_TAIL, Math.ceil(text.length / 2));
  const start = element('span.start', text.slice(0, -tail));
  start.style.setProperty('--tail', widthInEms(text.slice(-tail)));
  return element('span.name', {title: text, ...attributes}, start, text.slice(-tail));
}

let measuring = null;

function widthInEms(text) {
  if (!measuring) {
    measuring = document.createElement('canvas').getContext('2d');
    measuring.font = `100px ${getComputedStyle(document.body).fontFamily}`;
  }
  return measuring.measureText(text).width / 100;
}

/** Offer a table as a CSV file. */
export function download(name, head, rows) {
  // A quote keeps spreadsheets from reading a text as a formula.
  const safe = (text) => (/^[=+@\t\r\n-]/.test(text) ? `'${text}` : text);
  const line = (cells) => cells.map((cell) => `"${(typeof cell === 'number' ? String(cell) : safe(String(cell ?? ''))).replaceAll('"', '""')}"`).join(',');
  const link = element('a', {download: name, href: URL.createObjectURL(new Blob([[head, ...rows].map(line).join('\r\n')], {type: 'text/csv'}))});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Clear a canvas and set its size in CSS pixels. Return a context whose unit is a CSS pixel on every screen. */
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
    this.node = element('div.tip', {hidden: true, 'aria-hidden': 'true'});
    root.append(this.node);
  }

  show(event, lines) {
    this.node.replaceChildren(...lines.map((line) => element('div', line)));
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
