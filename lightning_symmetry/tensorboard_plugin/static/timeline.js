// The view of a run over time: the share of working units of some layers, and their events.
import {Chart, lineStyle} from './chart.js';
import {element, select, svg, table} from './dom.js';
import {eventText, label, signOf} from './marks.js';
import {plural} from './model.js';

const NUM_CHOSEN = 6;
const MAX_EVENTS = 200;

export class Timeline {
  constructor(app) {
    this.app = app;
    this.chart = new Chart(app, 'Share of working units over steps; the events are in the table below.');
    this.head = element('div', {class: 'bar-of-choices'});
    this.search = element('input', {type: 'search', placeholder: 'Filter layers', 'aria-label': 'Filter layers', input: () => this.list()});
    this.layers = element('div', {class: 'layers'});
    this.events = element('div', {class: 'events'});
    this.node = element(
      'div',
      {class: 'view timeline'},
      this.head,
      element(
        'div',
        {class: 'panel beside'},
        element('div', {class: 'plot'}, element('h3', {}, 'Working units'), this.chart.node),
        element('fieldset', {}, element('legend', {}, 'Layers'), this.search, this.layers),
      ),
      element('section', {class: 'panel'}, element('h3', {}, 'Events'), this.events),
    );
  }

  update() {
    const run = this.app.run();
    if (!run) return;
    if (this.run?.name !== run.name) this.chosen = choose(run, this.app.state.layer);
    if (this.run !== run) {
      this.run = run;
      this.head.replaceChildren(select('Run', this.app.names(), run.name, (name) => this.app.go({run: name, step: null})));
      this.search.hidden = run.layers.length <= 12;
      this.list();
    }
    this.layers.querySelectorAll('label').forEach((node) => node.classList.toggle('chosen', node.dataset.layer === this.app.state.layer));
    const lines = run.layers.map((layer, line) => ({layer, line})).filter(({layer}) => this.chosen.has(layer.name));
    this.chart.update(run, lines);
    this.listEvents(lines.map(({layer}) => layer));
  }

  list() {
    const wanted = this.search.value.toLowerCase();
    const lines = this.run.layers.map((layer, line) => [layer, line]);
    const isLong = !this.search.hidden;
    if (isLong) lines.sort(([a], [b]) => this.chosen.has(b.name) - this.chosen.has(a.name));
    const rows = lines.flatMap(([layer, line]) => {
      if (!layer.title.toLowerCase().includes(wanted)) return [];
      const box = element('input', {
        type: 'checkbox',
        checked: this.chosen.has(layer.name),
        change: () => {
          this.chosen[box.checked ? 'add' : 'delete'](layer.name);
          this.update();
        },
      });
      const swatch = svg('svg', {class: 'swatch', viewBox: '0 0 24 10', 'aria-hidden': 'true'}, svg('path', {d: 'M0 5H24', ...lineStyle(line)}));
      const working = layer.workingAt(this.run.steps.length - 1);
      const numbers = element('span', {class: 'numbers'}, working === null ? '–' : `${working} / ${layer.units}`);
      return [element('label', {'data-layer': layer.name, title: layer.title}, box, swatch, element('span', {class: 'name'}, layer.title), numbers)];
    });
    this.layers.replaceChildren(...rows);
  }

  listEvents(layers) {
    const events = layers.flatMap((layer) => layer.events.map((event) => [layer, event])).sort(([, a], [, b]) => a.step - b.step);
    if (!events.length) {
      this.events.replaceChildren(element('p', {class: 'quiet'}, 'Nothing happened: all units of the chosen layers have been distinct at every check.'));
      return;
    }
    const rows = events.slice(0, MAX_EVENTS).map(([layer, event]) => {
      const {step, text} = event;
      const jump = () => this.app.go({view: 'layer', layer: layer.name, step});
      const link = element('button', {type: 'button', class: 'link', click: jump}, step.toLocaleString('en'));
      return [link, layer.title, label(signOf(event, this.app.verdicts), eventText(event)), text];
    });
    const more = events.length - rows.length;
    this.events.replaceChildren(
      table('Events of the chosen layers', ['step', 'layer', 'event', 'units'], rows),
      more ? element('p', {class: 'quiet'}, `${plural(more, 'more event')}: choose fewer layers.`) : '',
    );
  }

  moveLayer(by) {
    this.app.moveLayer(by);
  }
}

/** The layers that are chosen at first: the current one, those with events, then others; of equal curves only one. */
function choose(run, layer) {
  const rank = ({name, events}) => (name === layer ? 2 : 0) + (events.length > 0);
  const ordered = [...run.layers].sort((a, b) => rank(b) - rank(a));
  const told = new Set();
  const first = ordered.filter(({working, units: total}) => {
    const story = working.map(({check, units}) => [check, units === null ? null : units / total]).join();
    return !told.has(story) && told.add(story);
  });
  return new Set([...first, ...ordered].slice(0, NUM_CHOSEN).map(({name}) => name));
}
