// The page: it holds what the user has chosen and the data that has been fetched, and shows one of three views.
import {Tip, element} from './dom.js';
import {LayerView} from './layer.js';
import {Run} from './model.js';
import {Overview} from './overview.js';
import {Link, followTheme, takeFocus} from './surroundings.js';
import {Timeline} from './timeline.js';
import {Verdicts} from './verdicts.js';

const POLL_MS = 3000;
const MAX_SHOWN = 16; // With more runs than this, the others are shown only if the user chooses them.
const VIEWS = {overview: 'Overview', layer: 'Layer', timeline: 'Timeline'};
const EXAMPLE = `from lightning.pytorch import Trainer
from lightning_symmetry import SymmetryMonitor

trainer = Trainer(callbacks=[SymmetryMonitor()])
trainer.fit(model, data)`;

export class App {
  constructor(root, source) {
    this.source = source;
    this.state = {view: 'overview', run: null, layer: null, step: null}; // A step of null means the latest.
    this.versions = []; // The name and the version of every run.
    this.data = new Map(); // The runs that have been fetched, by name.
    this.shown = new Set();
    this.known = new Set(); // The names of runs for which it was decided whether to show them at first.
    this.failures = new Map(); // The message and the task itself, by name of each task whose last attempt failed.
    this.link = new Link();
    this.error = element('div', {class: 'error', role: 'alert', hidden: true});
    this.status = element('span', {class: 'status', role: 'status'}, 'Loading…');
    this.nav = element('nav', {'aria-label': 'Views'}, Object.entries(VIEWS).map(([view, name]) => element('button', {type: 'button', 'data-view': view, click: () => this.go({view})}, name)));
    this.picker = element('details', {class: 'picker'});
    this.main = element('main', {});
    root.append(element('div', {class: 'top'}, this.nav, this.picker, this.status), this.error, this.main);
    this.tip = new Tip(root);
  }

  async start() {
    this.follow();
    followTheme((isDark) => {
      this.isDark = isDark;
      this.palette = getComputedStyle(document.documentElement);
      this.update();
    });
    this.link.onChange(() => {
      this.follow();
      this.update();
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

  /** Ask which runs there are, fetch those that have changed, and repeat the tasks that failed before. */
  async refresh() {
    if (this.isBusy) return;
    this.isBusy = true;
    const failed = [...this.failures];
    try {
      if (await this.attempt('runs', () => this.look())) {
        const untried = failed.filter(([name, failure]) => this.failures.get(name) === failure);
        await Promise.all(untried.map(([name, {task}]) => this.attempt(name, task)));
      }
    } finally {
      this.isBusy = false;
    }
  }

  async look() {
    const [verdicts, versions] = await Promise.all([this.verdicts?.list ?? this.source.verdicts(), this.source.runs()]);
    this.verdicts ??= new Verdicts(verdicts);
    this.views ??= {overview: new Overview(this), layer: new LayerView(this), timeline: new Timeline(this)};
    this.versions = versions;
    this.hasAsked = true;
    for (const {name} of versions) {
      if (!this.known.has(name) && this.shown.size < MAX_SHOWN) this.shown.add(name);
      this.known.add(name);
    }
    await this.fetch();
    this.status.textContent = this.source.isLive ? `Updated ${new Date().toLocaleTimeString()}` : '';
  }

  async fetch() {
    const wanted = this.versions.filter(({name}) => this.isWanted(name));
    const tasks = new Set(wanted.map(({name}) => `run ${name}`));
    for (const task of this.failures.keys()) if (task.startsWith('run ') && !tasks.has(task)) this.failures.delete(task);
    this.showFailures();
    const changed = wanted.filter(({name, version}) => this.data.get(name)?.version !== version);
    await Promise.all(
      changed.map(({name, version}) =>
        this.attempt(`run ${name}`, async () => {
          this.data.set(name, new Run(name, version, await this.history(name), this.verdicts));
          this.update();
        }),
      ),
    );
    const names = new Set(this.names());
    for (const name of this.data.keys()) if (!names.has(name)) this.data.delete(name);
    if (!this.hasDrawn) this.update();
  }

  async history(name) {
    const history = await this.source.history(name);
    if (!history.steps.length) throw new Error(`Run ${name} holds no check that can be read: its events are damaged, or of another version.`);
    return history;
  }

  isWanted(name) {
    return this.shown.has(name) || name === this.state.run;
  }

  /**
   * Carry out a task, including what is done with its result. Returns whether it succeeded. If it fails, the page shows
   * the message of the error. Each refresh and the button "Try again" repeat the task until it succeeds, or until
   * another task of the same name succeeds.
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

  /** Draw something at once, as a task whose message says that drawing has failed. */
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
    if (content === this.failuresShown) return; // A new button would miss a click that began on the old one.
    this.failuresShown = content;
    const retry = () => [...this.failures].forEach(([name, {task}]) => this.attempt(name, task));
    this.error.replaceChildren(
      element('div', {}, messages.map((message) => element('p', {}, message))),
      element('button', {type: 'button', click: retry}, 'Try again'),
    );
    this.error.hidden = !messages.length;
  }

  // ---------------------------------------------------------------- state

  names() {
    return this.versions.map(({name}) => name);
  }

  shownRuns() {
    return this.names().filter((name) => this.shown.has(name) && this.data.has(name)).map((name) => this.data.get(name));
  }

  run() {
    return this.data.get(this.state.run) ?? null;
  }

  layer() {
    return this.run()?.byName.get(this.state.layer) ?? null;
  }

  /** Change what is chosen. */
  go(changes) {
    Object.assign(this.state, changes);
    const run = this.run();
    // At the latest step, the page moves on as new ones come.
    if (run && this.state.step === run.lastStep) this.state.step = null;
    this.tip.hide();
    if (!run && this.state.run !== null) this.fetch();
    this.update();
    this.link.write(this.state);
  }

  /** Choose what the address asks for. */
  follow() {
    const {view, run, layer, step} = this.link.read();
    if (view in VIEWS) this.state.view = view;
    if (run !== undefined) Object.assign(this.state, {run, layer: layer ?? null, step: null});
    if (/^\d{1,15}$/.test(step ?? '')) this.state.step = Number(step);
    if (run !== undefined && this.hasDrawn) this.fetch();
  }

  /** If the chosen run or layer does not exist, choose the first run and its first layer with events. */
  complete() {
    const names = this.names();
    if (!names.includes(this.state.run)) this.state.run = names.find((name) => this.shown.has(name)) ?? names[0];
    const run = this.run();
    if (run && !run.byName.has(this.state.layer)) {
      this.state.layer = (run.layers.find(({events}) => events.length) ?? run.layers[0])?.name ?? null;
    }
  }

  moveLayer(by) {
    const {layers} = this.run();
    const place = layers.indexOf(this.layer()) + by;
    if (layers[place]) this.go({layer: layers[place].name});
  }

  moveStep(by) {
    const {steps, checkAt} = this.run();
    const check = Math.min(steps.length - 1, Math.max(0, checkAt.call(this.run(), this.state.step) + by));
    this.go({step: steps[check]});
  }

  press(event) {
    const {target, key} = event;
    const isRange = target.type === 'range';
    if (event.altKey || event.ctrlKey || event.metaKey || !this.run()) return;
    if (target.matches('input:not([type=range]), select, textarea, summary')) return;
    const view = this.views[this.state.view];
    const moves = {
      ArrowUp: () => view.moveLayer(-1),
      ArrowDown: () => view.moveLayer(1),
      ArrowLeft: () => this.moveStep(-1),
      ArrowRight: () => this.moveStep(1),
      Home: () => this.moveStep(-Infinity),
      End: () => this.moveStep(Infinity),
    };
    if (!(key in moves) || (isRange && !['ArrowUp', 'ArrowDown'].includes(key))) return;
    event.preventDefault();
    moves[key]();
  }

  // ---------------------------------------------------------------- what is seen

  update() {
    this.attemptDrawing('the view', () => this.draw());
  }

  draw() {
    if (!this.palette || !this.versions.length) {
      if (this.palette && this.hasAsked) this.showEmpty();
      return;
    }
    this.hasDrawn = true;
    this.nav.hidden = this.picker.hidden = false;
    this.complete();
    this.fillPicker();
    this.nav.querySelectorAll('button').forEach((button) => button.setAttribute('aria-current', String(button.dataset.view === this.state.view)));
    const view = this.views[this.state.view];
    if (this.main.firstChild !== view.node) this.main.replaceChildren(view.node);
    view.update();
  }

  showEmpty() {
    this.nav.hidden = this.picker.hidden = true;
    this.main.replaceChildren(
      element(
        'section',
        {class: 'empty'},
        element('h2', {}, 'No symmetry data yet'),
        element('p', {}, 'This log directory holds no run that was watched. Add the callback to your Trainer, and the tab fills at the first optimizer step:'),
        element('pre', {}, element('code', {}, EXAMPLE)),
        element('p', {class: 'quiet'}, 'The Trainer needs a TensorBoardLogger, which is its default where TensorBoard is installed. This page looks again every few seconds.'),
      ),
    );
  }

  fillPicker() {
    const names = this.names();
    const content = names.join('\n') + [...this.shown].join('\n');
    if (this.pickerContent === content) return;
    this.pickerContent = content;
    const count = names.filter((name) => this.shown.has(name)).length;
    const boxes = names.map((name) => {
      const box = element('input', {type: 'checkbox', checked: this.shown.has(name), change: () => this.choose(box.checked ? [...this.shown, name] : [...this.shown].filter((other) => other !== name))});
      return element('label', {title: name}, box, element('span', {}, name));
    });
    this.picker.replaceChildren(
      element('summary', {}, `Runs: ${count} of ${names.length}`),
      element(
        'div',
        {class: 'list'},
        element('div', {class: 'actions'}, element('button', {type: 'button', click: () => this.choose(names)}, 'All'), element('button', {type: 'button', click: () => this.choose([])}, 'None')),
        boxes,
      ),
    );
  }

  choose(names) {
    this.shown = new Set(names);
    this.fetch();
    this.update();
  }

  // ---------------------------------------------------------------- colours of the theme

  colour(name) {
    return this.palette.getPropertyValue(`--${name}`).trim();
  }

  ink() {
    return this.colour('ink');
  }

  pale() {
    return this.colour('pale');
  }

  paper() {
    return this.colour('paper');
  }
}
