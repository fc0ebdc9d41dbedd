// The view of all runs: a table of runs if there are several, and a card for each opened run.
import {Card} from './card.js';
import {gradient, shade} from './colours.js';
import {element, reconcile} from './dom.js';
import {EVENTS, label} from './marks.js';
import {warnings} from './model.js';
import {RunsTable} from './runs.js';

const MAX_DETAILED = 2; // With more open runs, cards are small.
const MARGIN = '800px'; // Cards within this distance of the window are drawn.

export class Overview {
  constructor(app) {
    this.app = app;
    this.cards = new Map();
    this.table = new RunsTable(app);
    this.grid = element('div.cards');
    this.none = element('p.quiet.none', {hidden: true}, 'No run is opened: choose one from the list “Runs” above.');
    this.ramp = element('span.ramp', {role: 'img', 'aria-label': 'colour scale from 0 to 100 per cent'});
    this.node = element(
      'div.view.overview',
      this.table.node,
      element(
        'div.legend',
        element('span.scale', 'units that do not work', element('span.number', '0'), this.ramp, element('span.number', '100 %')),
        [...warnings(), ...EVENTS.values()].map((sign) => label(sign)),
      ),
      this.grid,
      this.none,
    );
    this.observer = new IntersectionObserver((entries) => this.look(entries), {root: document, rootMargin: MARGIN});
  }

  /** Record which cards are in sight, and draw those that have come into sight. */
  look(entries) {
    for (const {target, isIntersecting} of entries) {
      const card = this.cards.get(target.dataset.run);
      if (card) card.isInSight = isIntersecting;
    }
    if (!entries.some(({isIntersecting}) => isIntersecting)) return;
    this.app.fetch();
    this.app.update();
  }

  isInSight(name) {
    return this.cards.get(name)?.isInSight ?? false;
  }

  /** Show the current data and the current choice. */
  update() {
    const {app} = this;
    this.ramp.style.background = gradient((share) => shade(share, app.isDark));
    this.table.node.hidden = app.versions.length <= MAX_DETAILED;
    if (!this.table.node.hidden) this.table.update();
    const names = app.openedNames();
    const isDetailed = names.length <= MAX_DETAILED;
    this.grid.classList.toggle('detailed', isDetailed);
    this.none.hidden = names.length > 0;
    for (const [name, card] of this.cards) {
      if (names.includes(name)) continue;
      card.observer.disconnect();
      this.observer.unobserve(card.node);
      this.cards.delete(name);
    }
    reconcile(this.grid, names, {make: (name) => this.make(name)});
    for (const card of this.cards.values()) card.update({isDetailed});
  }

  make(name) {
    const card = new Card(this.app, name);
    this.cards.set(name, card);
    this.observer.observe(card.node);
    return card.node;
  }

  restore() {
    for (const card of this.cards.values()) card.restore();
  }

  /** Choose the layer `by` rows below the chosen one (negative: above); it may belong to another run. */
  moveLayer(by) {
    const {run, layer} = this.app.state;
    const shown = this.app.openedNames().map((name) => this.app.data.get(name)).filter(Boolean);
    const places = shown.flatMap((other) => other.filtered(this.app.filter).map(({name}) => [other.name, name]));
    if (!places.length) return;
    const now = places.findIndex(([a, b]) => a === run && b === layer);
    const [nextRun, nextLayer] = places[Math.min(places.length - 1, Math.max(0, now + by))];
    this.app.go(nextRun === run ? {layer: nextLayer} : {run: nextRun, layer: nextLayer, step: null}, {isStep: true});
    this.cards.get(nextRun)?.reveal(nextLayer);
  }

  /** Move the keyboard focus back to the chosen row. */
  focus() {
    this.cards.get(this.app.state.run)?.reveal(this.app.state.layer);
  }
}
