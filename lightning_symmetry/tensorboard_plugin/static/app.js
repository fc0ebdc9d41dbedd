// The page: it keeps the user's choice and the fetched data, and shows one of three views.
import {Details} from './details.js';
import {Tip, element, reconcile} from './dom.js';
import {LayerView} from './layer.js';
import {Run, traitsOf} from './model.js';
import {Overview} from './overview.js';
import {Link, followTheme, takeFocus} from './surroundings.js';
import {Timeline} from './timeline.js';

const POLL_MS = 3000;
const MAX_PARTS = 40;
const MAX_OPENED = 16; // With more runs, only the two with the most serious findings are opened at first.
const MAX_KEPT = 48; // Beyond this number of histories, those out of sight are dropped.
const VIEWS = {overview: 'Overview', layer: 'Layer', timeline: 'Timeline'};
const EXAMPLE = `from lightning.pytorch import Trainer
from lightning_symmetry import SymmetryMonitor

trainer = Trainer(callbacks=[SymmetryMonitor()])
trainer.fit(model, data)`;

export class App {
  constructor(root, source) {
    this.root = root;
    this.source = source;
    this.state = {view: 'overview', run: null, layer: null, step: null}; // A step of null means the latest.
    this.filter = {text: '', onlyFound: false}; // Which layers are shown.
    this.versions = []; // Name, version and summary of every run.
    this.data = new Map(); // The runs that have been fetched, by name.
    this.opened = new Set();
    this.awaited = null; // The choice of a run that does not exist, or that TensorBoard has not found yet.
    this.known = new Set(); // The names of the runs that openFirst() has opened or passed over.
    this.details = new Details(this);
    this.underway = new Map(); // The version of each run that is being fetched, by name.
    this.failures = new Map(); // By name of each task whose last attempt failed: the message and the task.
    this.link = new Link();
    this.error = element('div.error', {role: 'alert', hidden: true});
    this.status = element('span.status', {role: 'status'}, 'Loading…');
    this.nav = element('nav', {'aria-label': 'Views'}, Object.entries(VIEWS).map(([view, name]) => element('button', {'data-view': view, click: () => this.go({view})}, name)));
    this.search = element('input.filter', {type: 'search', placeholder: 'Filter layers', 'aria-label': 'Filter layers', input: () => this.applyFilter()});
    this.onlyFound = element('input', {type: 'checkbox', change: () => this.applyFilter()});
    this.filters = element('div.filters', {role: 'search'}, this.search, element('label', this.onlyFound, 'Only with findings'));
    this.pickerTitle = element('summary');
    this.pickerList = element('div');
    this.picker = element(
      'details.picker',
      {toggle: () => this.fillPicker()},
      this.pickerTitle,
      element(
        'div.list',
        element('div.actions', element('button', {click: () => this.choose(this.names())}, 'All'), element('button', {click: () => this.choose([])}, 'None')),
        this.pickerList,
      ),
    );
    this.main = element('main');
    this.scrolled = new Map(); // How far each view was scrolled when it was left.
    root.append(element('div.top', this.nav, this.filters, this.picker, this.status), this.error, this.main);
    this.tip = new Tip(root);
    this.views = {overview: new Overview(this), layer: new LayerView(this), timeline: new Timeline(this)};
  }

  async start() {
    this.follow();
    followTheme((isDark) => {
      this.isDark = isDark;
      this.palette = getComputedStyle(document.documentElement);
      this.drawAtOnce();
    });
    this.link.onChange(() => {
      this.follow();
      this.drawAtOnce();
    });
    document.addEventListener('keydown', (event) => this.press(event));
    document.addEventListener('click', (event) => {
      if (!event.composedPath().includes(this.picker)) this.picker.open = false;
    });
    takeFocus();
    await this.refresh();
    if (this.source.isLive) setInterval(() => this.isInSight() && this.refresh(), POLL_MS);
  }

  isInSight() {
    return !document.hidden && document.body.clientWidth > 0; // TensorBoard gives a hidden tab no width.
  }

  // ---------------------------------------------------------------- data

  /** List the runs, fetch those that have changed, and repeat the tasks that failed before. */
  async refresh() {
    if (this.isBusy) return;
    this.isBusy = true;
    const failed = [...this.failures];
    try {
      let hasSucceeded = await this.attempt('runs', () => this.fetchRuns());
      // A server with much to read answers in parts. Their number is limited: runs may grow faster than they are read.
      for (let part = 1; hasSucceeded && part < MAX_PARTS && this.isInSight() && this.versions.some(({pending}) => pending); part++) {
        hasSucceeded = await this.attempt('runs', () => this.fetchRuns());
      }
      if (hasSucceeded) {
        const untried = failed.filter(([name, failure]) => this.failures.get(name) === failure);
        await Promise.all(untried.map(([name, {task}]) => this.attempt(name, task)));
      }
    } finally {
      this.isBusy = false;
    }
  }

  async fetchRuns() {
    this.versions = await this.source.runs();
    this.byName = new Map(this.versions.map((row) => [row.name, row]));
    this.hasAsked = true;
    this.openFirst();
    this.update();
    await this.fetch();
    this.status.textContent = this.source.isLive ? `Updated ${new Date().toLocaleTimeString()}` : '';
  }

  /** Open new runs: all if there are few, else the two with the most serious findings, once all have been read. */
  openFirst() {
    const {versions} = this;
    if (versions.length <= MAX_OPENED) {
      versions.filter(({name}) => !this.known.has(name)).forEach(({name}) => this.opened.add(name));
    } else if (!this.known.size && !versions.some(({pending}) => pending)) {
      this.bySeverity().slice(0, 2).forEach(({name}) => this.opened.add(name));
    } else if (!this.known.size) {
      return;
    }
    versions.forEach(({name}) => this.known.add(name));
  }

  /** Fetch the histories that are in sight and have changed. */
  async fetch() {
    const wanted = this.versions.filter(({name}) => this.isWanted(name));
    const tasks = new Set(wanted.map(({name}) => `run ${name}`));
    for (const task of this.failures.keys()) if (task.startsWith('run ') && !tasks.has(task)) this.failures.delete(task);
    this.showFailures();
    const changed = wanted.filter(({name, version}) => this.data.get(name)?.version !== version && this.underway.get(name) !== version);
    await Promise.all(
      changed.map(async ({name, version}) => {
        const hasFailedBefore = this.failures.has(`run ${name}`);
        const hasSucceeded = await this.attempt(`run ${name}`, async () => {
          this.underway.set(name, version);
          try {
            const history = await this.source.history(name);
            if (!history.steps.length) throw new Error(`Run ${name} holds no check that can be read: its events are damaged, or of another version.`);
            this.data.set(name, new Run(name, version, history));
          } finally {
            this.underway.delete(name);
          }
          this.update();
        });
        if (!hasSucceeded && !hasFailedBefore) this.update(); // Show the failure in place of the run.
      }),
    );
    const names = new Set(this.names());
    let spare = this.data.size - MAX_KEPT;
    for (const name of this.data.keys()) if (!names.has(name) || (!this.isWanted(name) && spare-- > 0)) this.data.delete(name);
  }

  isWanted(name) {
    if (name === this.state.run) return true;
    const isUnreadable = !this.summary(name) && !this.byName.get(name)?.pending;
    return this.state.view === 'overview' && this.opened.has(name) && (isUnreadable || this.views.overview.isInSight(name));
  }

  /**
   * Run a task that uses its result itself. Return whether the task succeeded. If it fails, the page shows the
   * message of the error. Each refresh and the button "Try again" repeat the task until it, or another task of the same
   * name, succeeds.
   */
  async attempt(name, task) {
    try {
      await task();
      this.failures.delete(name);
    } catch (error) {
      if (this.failures.get(name)?.message !== error.message) console.warn(error); // The console shows the stack.
      this.failures.set(name, {message: error.message, task});
      if (this.status.textContent === 'Loading…') this.status.textContent = '';
    }
    this.showFailures();
    return !this.failures.has(name);
  }

  /** Draw at once, as a task. If it fails, the message says that a part of the page could not be drawn. */
  attemptDrawing(name, draw) {
    return this.attempt(`drawing ${name}`, () => {
      try {
        draw();
      } catch (error) {
        throw new Error(`A part of this page could not be drawn: ${error.message}`, {cause: error});
      }
    });
  }

  showFailures() {
    const messages = [...new Set([...this.failures.values()].map(({message}) => message))];
    const content = messages.join('\n');
    if (content === this.failuresShown) return; // If the button were replaced, a click that began on it would be lost.
    this.failuresShown = content;
    const retry = () => [...this.failures].forEach(([name, {task}]) => this.attempt(name, task));
    this.error.replaceChildren(
      element('div', messages.map((message) => element('p', message))),
      element('button', {click: retry}, 'Try again'),
    );
    this.error.hidden = !messages.length;
  }

  // ---------------------------------------------------------------- state

  names() {
    return this.versions.map(({name}) => name);
  }

  /** Return the row of a run in the table of runs; null if it was not read yet or is unreadable. */
  summary(name) {
    return this.byName?.get(name)?.summary ?? null;
  }

  /** Return the names of the opened runs, without those known to be unreadable. */
  openedNames() {
    return this.versions.filter(({name, summary, pending}) => this.opened.has(name) && (summary || pending)).map(({name}) => name);
  }

  /** Return all runs: the most serious verdict first, then the smallest share of working units. */
  bySeverity() {
    return [...this.versions].sort((a, b) => this.compareSeverity(a, b));
  }

  compareSeverity({summary: a}, {summary: b}) {
    const rank = (summary) => (summary ? (summary.worst ? traitsOf(summary.worst.verdict).rank : 1000) : 2000);
    const share = (summary) => (summary?.units ? summary.working / summary.units : 1);
    return rank(a) - rank(b) || share(a) - share(b);
  }

  run() {
    return this.data.get(this.state.run) ?? null;
  }

  layer() {
    return this.run()?.byName.get(this.state.layer) ?? null;
  }

  /** Return the reason why the chosen run is not shown. */
  absence() {
    const {run} = this.state;
    return this.failures.has(`run ${run}`) ? `Run ${run} cannot be shown.` : `Run ${run} is being read.`;
  }

  /**
   * Change the choice, and draw. This adds an entry to the browser's history, unless only the step has changed or isStep
   * is set, as for keys that move from layer to layer.
   */
  go(changes, {isStep = false, byKeyboard = false} = {}) {
    const before = {...this.state};
    this.isAutomatic = false;
    this.awaited = null;
    if (changes.run !== undefined && changes.run !== before.run && changes.layer === undefined) changes = {...changes, layer: null};
    Object.assign(this.state, changes);
    const run = this.run();
    // If the user chooses the latest step, the page follows new steps.
    if (run && this.state.step === run.steps.at(-1)) this.state.step = null;
    this.tip.hide();
    if (!run && this.state.run !== null) this.fetch();
    this.drawAtOnce();
    if (byKeyboard) this.views[this.state.view].focus?.();
    const isNew = !isStep && ['view', 'run', 'layer'].some((key) => before[key] !== this.state[key]);
    this.link.write(this.state, {isNew});
  }

  /** Apply the choice in the address. */
  follow() {
    const {view, run, layer, step} = this.link.read();
    if (Object.hasOwn(VIEWS, view ?? '')) this.state.view = view;
    if (run !== undefined) {
      Object.assign(this.state, {run, layer: layer ?? null, step: null});
      this.isAutomatic = false;
      this.awaited = null;
    }
    if (/^\d{1,15}$/.test(step ?? '')) this.state.step = Number(step);
    if (run !== undefined && this.hasDrawn) this.fetch();
  }

  /**
   * If the chosen run or layer does not exist, choose the one with the most serious finding, until the chosen run
   * appears or the user makes another choice.
   */
  complete() {
    if (this.awaited && this.names().includes(this.awaited.run)) {
      Object.assign(this.state, this.awaited);
      this.awaited = null;
      this.isAutomatic = false;
      this.fetch();
    }
    // An automatic choice that was made before all runs were known is replaced by an opened run.
    const isEarly = this.isAutomatic && this.opened.size && !this.opened.has(this.state.run);
    if (isEarly || !this.names().includes(this.state.run)) {
      if (this.state.run !== null && !this.isAutomatic) {
        const {run, layer, step} = this.state;
        this.awaited = {run, layer, step};
        this.state.step = null;
      }
      this.isAutomatic = true;
      const rows = this.bySeverity().filter(({name, summary}) => summary && (this.opened.has(name) || !this.opened.size));
      const [worst] = [...rows, ...this.versions];
      Object.assign(this.state, {run: worst.name, layer: null});
      this.fetch();
    }
    const run = this.run();
    if (run && !run.byName.has(this.state.layer)) this.state.layer = run.worstLayer?.name ?? null;
  }

  /** Filter the layers in every view. */
  applyFilter() {
    this.filter = {text: this.search.value, onlyFound: this.onlyFound.checked};
    this.drawAtOnce();
  }

  moveLayer(by) {
    const layers = this.run().filtered(this.filter);
    const place = layers.indexOf(this.layer()) + by;
    if (layers[place]) this.go({layer: layers[place].name}, {isStep: true});
  }

  moveStep(by) {
    const run = this.run();
    const check = Math.min(run.steps.length - 1, Math.max(0, run.checkAt(this.state.step) + by));
    this.go({step: run.steps[check]});
  }

  press(event) {
    const {target, key} = event;
    const isRange = target.type === 'range';
    if (event.altKey || event.ctrlKey || event.metaKey || !this.run()) return;
    if (target.matches('input:not([type=range]), select, textarea, summary')) return;
    const view = this.views[this.state.view];
    const moveLayer = (by) => (view.moveLayer ? view.moveLayer(by) : this.moveLayer(by));
    const moves = {
      ArrowUp: () => moveLayer(-1),
      ArrowDown: () => moveLayer(1),
      ArrowLeft: () => this.moveStep(-1),
      ArrowRight: () => this.moveStep(1),
      Home: () => this.moveStep(-Infinity),
      End: () => this.moveStep(Infinity),
    };
    if (!(key in moves) || (isRange && !['ArrowUp', 'ArrowDown'].includes(key))) return;
    event.preventDefault();
    moves[key]();
  }

  // ---------------------------------------------------------------- drawing

  /** Draw at the next frame, once for all changes until then. */
  update() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => this.isDue && this.drawAtOnce());
  }

  drawAtOnce() {
    this.isDue = false;
    this.attemptDrawing('the view', () => this.draw());
  }

  draw() {
    if (!this.palette || !this.versions.length) {
      if (this.palette && this.hasAsked) this.showEmpty();
      return;
    }
    this.nav.hidden = this.picker.hidden = this.filters.hidden = false;
    this.complete();
    this.fillPicker();
    this.nav.querySelectorAll('button').forEach((button) => button.setAttribute('aria-current', String(button.dataset.view === this.state.view)));
    const view = this.views[this.state.view];
    if (this.main.firstChild !== view.node) {
      const before = Object.keys(VIEWS).find((name) => this.views[name].node === this.main.firstChild);
      if (before) this.scrolled.set(before, window.scrollY);
      this.main.replaceChildren(view.node);
      view.restore?.();
      // A report has a cover above the page: scroll past it.
      window.scrollTo(0, this.scrolled.get(this.state.view) ?? Math.min(window.scrollY, this.root.offsetTop));
    }
    view.update();
    if (!this.hasDrawn && !this.awaited) this.link.write(this.state);
    this.hasDrawn = true;
  }

  showEmpty() {
    this.nav.hidden = this.picker.hidden = this.filters.hidden = true;
    if (this.main.firstChild?.className === 'empty') return; // The user may be selecting the example.
    this.main.replaceChildren(
      element(
        'section.empty',
        element('h2', 'No symmetry data yet'),
        element('p', 'This log directory holds no run that was watched. Add the callback to your Trainer, and the tab fills at the first optimizer step:'),
        element('pre', element('code', EXAMPLE)),
        element('p.quiet', 'The Trainer needs a TensorBoardLogger, which is its default where TensorBoard is installed. This page checks again every few seconds.'),
      ),
    );
  }

  fillPicker() {
    const names = this.names();
    const count = names.filter((name) => this.opened.has(name)).length;
    this.pickerTitle.textContent = `Runs: ${count} of ${names.length}`;
    if (!this.picker.open) return;
    reconcile(this.pickerList, names, {
      version: (name) => this.opened.has(name),
      make: (name) => {
        const box = element('input', {type: 'checkbox', change: () => this.toggle(name)});
        return element('label', {title: name}, box, element('span', name));
      },
      update: (name, node) => (node.firstChild.checked = this.opened.has(name)),
    });
  }

  /** Open a run, or close it if it is open. */
  toggle(name) {
    this.choose(this.opened.has(name) ? [...this.opened].filter((other) => other !== name) : [...this.opened, name]);
  }

  /** Open some runs and close all others. */
  choose(names) {
    this.opened = new Set(names);
    this.drawAtOnce();
    this.fetch();
  }

  /** Open one run alone. */
  open(name) {
    this.opened = new Set([name]);
    this.go({run: name, step: null});
    this.fetch();
  }

  /** Return a colour of the current theme by its name, such as 'ink', for canvases. */
  colour(name) {
    return this.palette.getPropertyValue(`--${name}`).trim();
  }
}
