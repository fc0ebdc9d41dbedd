// The table of all runs, in which the user opens some.
import {cutName, download, element, reconcile, svg, table} from './dom.js';
import {label, paint} from './marks.js';
import {WORDS, traitsOf} from './model.js';

const COLUMNS = [
  {name: '', title: 'open the run below'},
  {name: 'run', order: (a, b) => a.name.localeCompare(b.name, 'en', {numeric: true})},
  {name: 'working', title: WORDS.working, order: (a, b) => shareOf(a) - shareOf(b)},
  {name: 'worst finding', order: null}, // Sorted by severity.
  {name: 'since step', order: (a, b) => (a.summary?.worst?.since ?? Infinity) - (b.summary?.worst?.since ?? Infinity)},
  {name: 'findings', title: WORDS.findings, order: (a, b) => (b.summary?.findings ?? 0) - (a.summary?.findings ?? 0)},
  {name: 'step', order: (a, b) => (b.summary?.step ?? 0) - (a.summary?.step ?? 0)},
  {name: 'working units over time'},
];
const [SPARK_WIDTH, SPARK_HEIGHT] = [96, 18];

export class RunsTable {
  constructor(app) {
    this.app = app;
    this.column = COLUMNS.find(({order}) => order === null); // The column that the rows are sorted by.
    this.isReversed = false;
    this.search = element('input', {type: 'search', placeholder: 'Filter runs', 'aria-label': 'Filter runs', input: () => this.update()});
    this.note = element('span.quiet');
    const head = COLUMNS.map((column) =>
      column.order === undefined
        ? column.name
        : element('button.sort', {title: column.title, click: () => this.sortBy(column)}, column.name),
    );
    const runs = table('All runs', head);
    runs.className = 'runs';
    this.body = runs.tBodies[0];
    this.head = [...runs.tHead.rows[0].cells];
    COLUMNS.forEach(({title}, i) => title && (this.head[i].title = title));
    this.frame = element('div.frame', runs);
    this.node = element(
      'section.panel.all-runs',
      {'aria-label': 'All runs'},
      element('div.choices', element('h3', 'Runs'), this.search, this.note, element('button.small', {click: () => this.save()}, 'CSV')),
      this.frame,
    );
  }

  sortBy(column) {
    this.isReversed = this.column === column && !this.isReversed;
    this.column = column;
    this.order = null;
    this.update();
  }

  sorted() {
    const wanted = this.search.value.toLowerCase();
    const rows = this.app.versions.filter(({name}) => name.toLowerCase().includes(wanted));
    const compare = this.column.order ?? ((a, b) => this.app.compareSeverity(a, b));
    const sign = this.isReversed ? -1 : 1;
    return rows.sort((a, b) => sign * compare(a, b));
  }

  /** Return the rows in order. While the pointer or the focus is in the table, the order stays. */
  arrange() {
    const rows = this.sorted();
    const isUsed = this.frame.matches(':hover, :focus-within');
    if (this.order && isUsed) {
      const place = new Map(this.order.map((name, i) => [name, i]));
      rows.sort((a, b) => (place.get(a.name) ?? Infinity) - (place.get(b.name) ?? Infinity));
    }
    this.order = rows.map(({name}) => name);
    return rows;
  }

  update() {
    const {app} = this;
    this.head.forEach((cell, i) => {
      const isSorted = COLUMNS[i] === this.column;
      if (COLUMNS[i].order !== undefined) cell.setAttribute('aria-sort', isSorted ? (this.isReversed ? 'descending' : 'ascending') : 'none');
    });
    const rows = this.arrange();
    const pending = app.versions.filter((row) => row.pending).length;
    this.note.textContent = [rows.length < app.versions.length ? `${rows.length} of ${app.versions.length} runs` : '', pending ? `${pending} still being read` : ''].filter(Boolean).join(', ');
    reconcile(this.body, rows, {
      key: ({name}) => name,
      version: ({name, version, pending: isPending, summary}) => [version, isPending, summary?.step, app.opened.has(name), name === app.state.run].join('\n'),
      make: (row) => this.make(row),
      update: (row, node) => this.show(row, node),
    });
  }

  make({name}) {
    const box = element('input', {type: 'checkbox', 'aria-label': `Open run ${name}`, change: () => this.app.toggle(name)});
    const alone = element('button.link', {title: `${name}: open this run alone`, click: () => this.app.open(name)}, cutName(name));
    return element('tr', {'data-name': name}, element('td', box), element('td.run', alone), ...COLUMNS.slice(2).map(() => element('td')));
  }

  show({name, summary, pending}, node) {
    const {app} = this;
    const [box, , working, worst, since, findings, step, spark] = node.children;
    box.firstChild.checked = app.opened.has(name);
    node.classList.toggle('chosen', name === app.state.run);
    if (!summary) {
      working.replaceChildren(element('span.quiet', pending ? '…' : 'cannot be read'));
      [worst, since, findings, step, spark].forEach((cell) => cell.replaceChildren());
      return;
    }
    const {worst: found} = summary;
    working.replaceChildren(bar(summary), summary.units ? `${Math.floor((100 * summary.working) / summary.units)} %` : '–');
    worst.replaceChildren(found ? this.sentence(name, found) : element('span.quiet', 'none'));
    since.replaceChildren(found ? found.since.toLocaleString('en') : '');
    findings.replaceChildren(summary.findings.toLocaleString('en'));
    step.replaceChildren(summary.step.toLocaleString('en'));
    spark.replaceChildren(sparkline(summary.shares));
  }

  sentence(run, {layer, who, verdict, since, what}) {
    const open = () => this.app.go({view: 'layer', run, layer, step: since});
    const link = element('button.link', {title: what, click: open}, cutName(layer, {title: undefined}), element('span.who', `: ${who}`));
    return element('span.worst', label(traitsOf(verdict)), link);
  }

  save() {
    const keys = ['units', 'working', 'redundant', 'dead', 'findings', 'step'];
    const rows = this.sorted().map(({name, summary}) => {
      const {verdict, layer, since} = summary?.worst ?? {};
      return [name, ...keys.map((key) => summary?.[key]), verdict, layer, since];
    });
    download('runs.csv', ['run', ...keys, 'worst verdict', 'worst layer', 'since step'], rows);
  }
}

/** Create a bar of all units in three parts: working, dead, and redundant. */
export function bar({units, working, dead}) {
  const part = (name, number) => {
    const node = element(`span.${name}`);
    node.style.width = `${(100 * number) / Math.max(1, units)}%`;
    return node;
  };
  const dying = Math.min(dead, units - working);
  return element('span.bar', {'aria-hidden': 'true'}, part('working', working), paint(part('mark', dying), traitsOf('dead')), part('redundant', units - working - dying));
}

/** Create a small curve of the share of working units over time; null makes a gap. */
function sparkline(shares) {
  const x = (i) => 1 + ((SPARK_WIDTH - 2) * i) / Math.max(1, shares.length - 1);
  const y = (value) => 1 + (SPARK_HEIGHT - 2) * (1 - value);
  let d = '';
  shares.forEach((value, i) => {
    if (value !== null) d += `${d && shares[i - 1] !== null ? 'L' : 'M'}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
  });
  if (d && shares.length === 1) d += `H${SPARK_WIDTH - 1}`;
  return svg('svg.spark', {width: SPARK_WIDTH, height: SPARK_HEIGHT, 'aria-hidden': 'true'}, svg('path', {d}));
}

function shareOf({summary}) {
  return summary?.units ? summary.working / summary.units : Infinity;
}
