// The view of a run over time: the share of working units of some layers, and their events.
import {Chart, swatch} from './chart.js';
import {Choice, cutName, element, reconcile, table} from './dom.js';
import {eventText, label, signOf} from './marks.js';
import {plural} from './model.js';

const NUM_CHOSEN = 6;
const MAX_EVENTS = 200;
const MAX_NAMED = 4; // The number of layers that are named per event.

export class Timeline {
  constructor(app) {
    this.app = app;
    this.chart = new Chart(app, 'Share of working units over steps; the events are in the table below.');
    this.runs = new Choice('Run', (name) => app.go({run: name, layer: null, step: null}));
    this.layers = element('div.layers');
    this.quiet = element('p.quiet');
    this.table = table('Events of the chosen layers', ['step', 'layer', 'event', 'units']);
    this.none = element('p.panel.none', {hidden: true});
    this.content = element(
      'div',
      element(
        'div.panel.beside',
        element('div.plot', element('h3', 'Working units'), this.chart.node),
        element('fieldset', element('legend', 'Layers'), this.layers),
      ),
      element('section.panel.events', element('h3', 'Events'), this.table, this.quiet),
    );
    this.node = element('div.view.timeline', element('div.bar-of-choices', this.runs.node), this.none, this.content);
  }

  update() {
    const run = this.app.run();
    this.runs.update(this.app.names(), this.app.state.run);
    this.none.hidden = Boolean(run);
    this.content.hidden = !run;
    if (!run) {
      this.none.textContent = this.app.absence();
      return;
    }
    // A run may have been written anew, under the same name and with other layers.
    if (this.run?.name !== run.name || ![...this.order].some((name) => run.byName.has(name))) {
      this.chosen = new Set([...run.selection(this.app.layer(), NUM_CHOSEN)].map(({name}) => name));
      this.order = new Set(this.chosen); // The layers chosen at first stay at the top of a long list.
    }
    this.run = run;
    this.list();
    const lines = run.layers.map((layer, line) => ({layer, line})).filter(({layer}) => this.chosen.has(layer.name));
    this.chart.update(run, lines);
    this.listEvents(lines.map(({layer}) => layer));
  }

  list() {
    const {run, order} = this;
    const places = new Map(run.layers.map((layer, line) => [layer, line]));
    const shown = [...run.filtered(this.app.filter)];
    if (run.layers.length > 12) shown.sort((a, b) => order.has(b.name) - order.has(a.name));
    reconcile(this.layers, shown, {
      key: ({name}) => name,
      version: (layer) => [places.get(layer), layer.title, layer.workingAt(run.steps.length - 1), layer.units, this.chosen.has(layer.name), layer.name === this.app.state.layer].join('\n'),
      make: (layer) => element('label', {'data-layer': layer.name, title: layer.title}, this.box(layer.name), element('span.rest')),
      update: (layer, node) => {
        const [box, rest] = node.children; // The box stays in the document, so that it keeps the keyboard focus.
        box.checked = this.chosen.has(layer.name);
        node.classList.toggle('chosen', layer.name === this.app.state.layer);
        const working = layer.workingAt(run.steps.length - 1);
        rest.replaceChildren(swatch(places.get(layer)), cutName(layer.title), element('span.numbers', working === null ? '–' : `${working} / ${layer.units}`));
      },
    });
  }

  box(name) {
    const choose = ({target}) => {
      this.chosen[target.checked ? 'add' : 'delete'](name);
      this.update();
    };
    return element('input', {type: 'checkbox', change: choose});
  }

  /** List the events in order of time, with one row for equal events of several layers at one step. */
  listEvents(layers) {
    const rows = new Map();
    for (const layer of layers) {
      for (const event of layer.events) {
        const key = [event.step, event.kind, event.verdict].join('\n');
        if (!rows.has(key)) rows.set(key, {key, event, happened: []});
        rows.get(key).happened.push({layer, text: event.text});
      }
    }
    const all = [...rows.values()].sort((a, b) => a.event.step - b.event.step);
    const shown = all.slice(0, MAX_EVENTS);
    reconcile(this.table.tBodies[0], shown, {
      key: ({key}) => key,
      version: ({happened}) => happened.map(({layer, text}) => `${layer.name}\n${text}`).join('\n'),
      make: () => element('tr'),
      update: ({event, happened}, node) => node.replaceChildren(...this.cells(event, happened).map((cell) => element('td', cell))),
    });
    this.table.hidden = !shown.length;
    const more = all.length - shown.length;
    this.quiet.hidden = Boolean(shown.length) && !more;
    this.quiet.textContent = more ? `${plural(more, 'more event')}: choose fewer layers.` : 'Nothing happened: all units of the chosen layers have been distinct at every check.';
  }

  cells(event, happened) {
    const names = [...new Set(happened.map(({layer}) => layer.title))];
    const named = names.slice(0, MAX_NAMED).join(', ');
    const texts = [...new Set(happened.map(({text}) => text))];
    const jump = () => this.app.go({view: 'layer', layer: happened[0].layer.name, step: event.step});
    return [
      element('button.link', {click: jump}, event.step.toLocaleString('en')),
      names.length > MAX_NAMED ? `${named} and ${plural(names.length - MAX_NAMED, 'more layer')}` : named,
      label(signOf(event), eventText(event)),
      texts.length > MAX_NAMED ? `${texts.slice(0, MAX_NAMED).join('; ')} and ${texts.length - MAX_NAMED} more` : texts.join('; '),
    ];
  }

  focus() {
    this.layers.querySelector('.chosen input')?.focus();
  }
}
