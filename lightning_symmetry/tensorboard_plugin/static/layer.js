// The view of one layer: the similarities of its units, its groups and its findings.
import {Chart} from './chart.js';
import {Choice, element, show, table} from './dom.js';
import {showFindings} from './findings.js';
import {Heatmap} from './heatmap.js';
import {label, mark} from './marks.js';
import {WORDS, Units, byRank, partedLater, plural, traitsOf} from './model.js';

const SIDE = 448; // The largest side of the heatmap, in CSS pixels.
const FRAME_MS = 450;
const MAX_FRAMES = 60; // The player skips checks of longer runs.
const MAX_GROUPS = 100;

export class LayerView {
  constructor(app) {
    this.app = app;
    this.runs = new Choice('Run', (name) => app.go({run: name, layer: null, step: null}));
    this.layers = new Choice('Layer', (name) => app.go({layer: name}));
    this.facts = element('p.facts');
    this.heatmap = new Heatmap(app, SIDE);
    this.playButton = element('button.play', {click: () => this.setPlaying(!this.timer)});
    this.slider = element('input', {type: 'range', min: 0, step: 1, 'aria-label': 'Check', input: () => app.go({step: this.run.steps[this.slider.value]})});
    this.at = element('output.at');
    this.findings = element('div');
    this.quiet = element('p.quiet');
    this.groups = element('div.groups');
    this.groupsHead = element('h3', 'Groups');
    this.chart = new Chart(app, 'Share of working units of this layer over steps; its events are in the timeline.');
    this.none = element('p.panel.none', {hidden: true});
    this.content = element(
      'div',
      element(
        'div.columns',
        element(
          'section.panel.figure',
          element('h3', 'Similarity of units'),
          element('div.player', this.playButton, this.slider, this.at),
          this.heatmap.node,
        ),
        element(
          'div.side',
          element('section.panel', element('h3', 'Findings'), this.findings, this.quiet),
          element('section.panel', this.groupsHead, this.groups),
        ),
      ),
      element('section.panel', element('h3', 'Working units over steps'), this.chart.node),
    );
    this.node = element(
      'div.view.layer',
      element('div.bar-of-choices', element('div.choices', this.runs.node, this.layers.node), this.facts),
      this.none,
      this.content,
    );
    this.setPlaying(false);
  }

  update() {
    this.run = this.app.run();
    this.layer = this.app.layer();
    const {run, layer} = this;
    this.runs.update(this.app.names(), this.app.state.run);
    this.none.hidden = Boolean(layer);
    this.none.textContent = run ? 'No layer of this run was looked at.' : this.app.absence();
    this.content.hidden = this.layers.node.hidden = this.facts.hidden = !layer;
    if (!layer) {
      this.setPlaying(false);
      return;
    }
    this.layers.update(run.filtered(this.app.filter).map(({name}) => name), layer.name);
    const check = run.checkAt(this.app.state.step);
    const step = run.steps[check];
    this.showFacts(check);
    this.slider.max = run.steps.length - 1;
    this.slider.value = check;
    this.slider.setAttribute('aria-valuetext', `step ${step}`);
    show(this.at, `${check} ${step} ${run.steps.length}`, () => [
      element('strong', `step ${step.toLocaleString('en')}`),
      element('span', `check ${check + 1} of ${run.steps.length}`),
    ]);
    this.showFindings(step);
    this.chart.update(run, [{layer, line: 0}]);
    this.heatmap.update(run, layer, check);
    const answer = this.app.details.of(run, layer);
    if (answer) {
      this.showGroups(step, answer.findings);
    } else if (layer.key !== this.shown) {
      // Do not show the groups of another layer while those of this one are loading.
      this.groupsHead.textContent = 'Groups';
      show(this.groups, '', () => []);
    }
    this.shown = layer.key;
  }

  /** Focus the slider, after the view was opened by keyboard. */
  focus() {
    this.slider.focus();
  }

  showFacts(check) {
    const {layer} = this;
    const state = layer.at(check);
    const dead = layer.deadAt(check);
    const orientations = layer.orientationsAt(check);
    const worst = layer.worst(check);
    const facts = [
      [plural(layer.units, 'unit')],
      [`${plural(layer.fan_in, 'input')} each`],
      state ? [`${layer.workingAt(check).toLocaleString('en')} working`, WORDS.working] : ['not looked at here'],
      state ? [`${(layer.units - state.width).toLocaleString('en')} redundant`, WORDS.redundant] : [''],
      [`${dead.toLocaleString('en')} dead`, WORDS.dead],
      orientations === null ? [''] : [plural(orientations, 'direction'), WORDS.directions],
    ];
    const version = [layer.name, ...facts, worst].join();
    show(this.facts, version, () => [...facts.map(([text, title]) => element('span', {title}, text)), worst ? label(traitsOf(worst)) : null]);
  }

  showFindings(step) {
    const shown = this.layer.findings.filter(({since}) => since <= step);
    showFindings(this.findings, shown.map((finding) => [finding]), step, () => ({hasAdvice: true}));
    this.quiet.hidden = shown.length > 0;
    this.quiet.textContent = `Nothing to warn of up to step ${step.toLocaleString('en')}.`;
  }

  showGroups(step, findings) {
    const {groups, total} = this.heatmap;
    this.groupsHead.textContent = total ? plural(total, 'group') : 'Groups';
    const parted = (group) => {
      const at = partedLater(group, step, findings);
      return at === undefined ? '' : at?.toLocaleString('en') ?? '–';
    };
    const rows = groups.slice(0, MAX_GROUPS).map((group, i) => [
      String(i + 1),
      group.verdict,
      group.mirrored ? `${group.units}; negatives: ${new Units(group.mirrored)}` : String(group.units),
      group.size.toLocaleString('en'),
      group.since.toLocaleString('en'),
      parted(group),
    ]);
    const present = byRank(new Set(groups.map(({verdict}) => verdict))).map(traitsOf);
    show(this.groups, JSON.stringify([rows, total, present]), () => {
      if (!total) return [element('p.quiet', 'All units are distinct at this check.')];
      const shown = rows.map((row) => row.map((cell, column) => (column === 1 ? label(traitsOf(cell)) : cell)));
      return [
        table('Groups of this layer at this check', ['', 'verdict', 'units', 'size', 'since step', 'broken'], shown),
        total > rows.length ? element('p.quiet', `and ${plural(total - rows.length, 'more group')}`) : null,
        ...present.map((traits) => element('p.quiet.meaning', mark(traits), `${traits.name}: ${traits.meaning}.`)),
      ];
    });
  }

  setPlaying(isPlaying) {
    clearInterval(this.timer);
    this.timer = isPlaying ? setInterval(() => this.advance(), FRAME_MS) : null;
    this.playButton.textContent = isPlaying ? '❚❚' : '▶';
    this.playButton.setAttribute('aria-label', isPlaying ? 'Pause' : 'Play');
    this.playButton.title = isPlaying ? 'Pause' : 'Play all checks';
    if (isPlaying && this.run.checkAt(this.app.state.step) === this.run.steps.length - 1) this.app.go({step: this.run.steps[0]});
  }

  advance() {
    const check = this.run.checkAt(this.app.state.step);
    if (check === this.run.steps.length - 1 || this.app.state.view !== 'layer') this.setPlaying(false);
    else this.app.moveStep(Math.ceil(this.run.steps.length / MAX_FRAMES));
  }
}
