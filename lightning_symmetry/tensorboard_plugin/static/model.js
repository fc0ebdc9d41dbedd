// The history of a run: its layers, the sets of their units, and findings. Also the traits of verdicts, which come
// from Python: the files of the page name no verdict but "dead".
import {VERDICTS} from './legend.js';

const MAX_COMPARED = 100_000; // Larger sets are not compared: a malicious file may contain sets of any size.

// The traits of a verdict of a newer version of the package: the page shows its name, without a colour.
const UNKNOWN = {
  is_warning: null,
  is_redundant: null,
  colour: null,
  dark_colour: null,
  mark: 'M.8 4.7h2.6v2.6h-2.6zM4.7 4.7h2.6v2.6h-2.6zM8.6 4.7h2.6v2.6h-2.6z',
  gone: 'have parted',
  meaning: 'a newer version wrote this verdict, and this version does not know its meaning',
  rank: VERDICTS.length,
};
const KNOWN = new Map(VERDICTS.map((traits, rank) => [traits.name, {...traits, rank}]));

/** The meaning of the numbers of units, for tooltips. */
export const WORDS = {
  units: 'all units: neurons, channels, or anything else with a row of weights of its own',
  working: 'units that are neither redundant nor dead',
  redundant: 'units that compute the same as another one: the layer would do the same without them',
  dead: 'units that get no gradient, so that they do not train',
  directions: 'how many directions the weights of the living units point in; far fewer than units means that they have condensed',
  findings: 'findings that still hold',
};

export class Run {
  constructor(name, version, history) {
    this.name = name;
    this.version = version;
    this.steps = history.steps;
    const findings = new Map(history.layers.map(({name}) => [name, []]));
    for (const finding of history.findings) findings.get(finding.layer)?.push(finding);
    this.layers = history.layers.map((layer) => new Layer(layer, history.steps, findings.get(layer.name), `${name}\n${layer.name}`));
    this.findings = history.findings;
    this.unreadable = history.unreadable;
    this.byName = new Map(this.layers.map((layer) => [layer.name, layer]));
  }

  /** Return the layers whose names contain a text; optionally only those with news, that is findings or events. */
  filtered({text, onlyFound}) {
    const key = `${onlyFound} ${text}`;
    if (this.filterKey !== key) {
      this.filterKey = key;
      this.left = this.layers.filter((layer) => (!onlyFound || layer.hasNews) && layer.title.toLowerCase().includes(text.toLowerCase()));
    }
    return this.left;
  }

  /** Return the findings up to a step: those that hold, the most serious first; then those that no longer hold. */
  findingsAt(step) {
    const rank = (finding) => 1000 * isOver(finding, step) + traitsOf(finding.verdict).rank;
    return this.findings.filter(({since}) => since <= step).sort((a, b) => rank(a) - rank(b) || a.since - b.since);
  }

  /** The layer to show first: the one with the most serious finding, else one with events. */
  get worstLayer() {
    const found = this.findingsAt(Infinity).filter(({broken}) => broken === null).find(({layer}) => this.byName.has(layer));
    return this.byName.get(found?.layer) ?? this.layers.find(({hasNews}) => hasNews) ?? this.layers[0] ?? null;
  }

  /** Return layers to draw: the chosen one, then those with findings or events, then others. Equal curves come last. */
  selection(layer, number) {
    const rank = (other) => 2 * (other === layer) + other.hasNews;
    const ordered = [...this.layers].sort((a, b) => rank(b) - rank(a));
    const seen = new Set();
    const first = ordered.filter(({working, units}) => {
      const curve = working.map(({check, number: count}) => [check, count === null ? null : count / units]).join();
      return !seen.has(curve) && seen.add(curve);
    });
    return new Set([...first, ...ordered].slice(0, number));
  }

  /** Return the index of the latest check at or before a step; for null, that of the last check. */
  checkAt(step) {
    return step === null ? this.steps.length - 1 : Math.max(0, lastAtMost(this.steps, step));
  }

  totals(check) {
    const states = this.layers.map((layer) => [layer, layer.at(check)]).filter(([, state]) => state);
    return {
      units: states.reduce((sum, [layer]) => sum + layer.units, 0),
      working: states.reduce((sum, [layer]) => sum + layer.workingAt(check), 0),
      redundant: states.reduce((sum, [layer, state]) => sum + layer.units - state.width, 0),
      dead: states.reduce((sum, [layer]) => sum + layer.deadAt(check), 0),
    };
  }

  /** Return the most serious verdict in any layer at a check, or null. */
  worst(check) {
    return worstOf(new Set(this.layers.map((layer) => layer.worst(check)).filter((verdict) => verdict !== null)));
  }
}

/** Return whether a finding no longer holds at a step. */
export function isOver({broken}, step) {
  return broken !== null && broken <= step;
}

class Layer {
  constructor(values, steps, findings, key) {
    Object.assign(this, values);
    this.key = key; // Unique among the layers of all runs.
    this.steps = steps;
    this.findings = findings;
    this.hasNews = values.events.length > 0 || findings.length > 0;
    for (const finding of findings) {
      finding.hasCollapsed = values.events.some(({kind, step, verdict}) => kind === 'collapsed' && step === finding.since && verdict === finding.verdict);
    }
    this.checks = values.states.map(({check}) => check);
    this.working = workingOverTime(values);
    this.workingChecks = this.working.map(({check}) => check);
  }

  get title() {
    return [this.name, ...this.also].join(' = ');
  }

  /** Return the state at a check; null before the first state, and while the model does not have the layer. */
  at(check) {
    const state = this.states[lastAtMost(this.checks, check)];
    return state && state.width !== null ? state : null;
  }

  /** Return the number of working units at a check; null where the model does not have the layer. */
  workingAt(check) {
    return this.working[lastAtMost(this.workingChecks, check)]?.number ?? null;
  }

  /** Return the number of dead units at a check. */
  deadAt(check) {
    return latest(this.dead, 'check', check)?.units ?? 0;
  }

  /** Return the number of directions among the living units at a check; null if they were not counted. */
  orientationsAt(check) {
    return latest(this.orientations, 'check', check)?.number ?? null;
  }

  /** Return whether there are at most half as many directions as distinct living units at a check. */
  isCondensed(check) {
    const number = this.orientationsAt(check);
    return Boolean(number) && this.fan_in > 2 && 2 * number <= (this.at(check)?.width ?? 0) - this.deadAt(check);
  }

  /** Return the most serious verdict at a check, or null. */
  worst(check) {
    return worstOf(Object.keys(this.at(check)?.counts ?? {}));
  }

  /** Return the number of units of each verdict at a check, as a text; the most serious verdict comes first. */
  countsText(check) {
    const counts = this.at(check)?.counts ?? {};
    return byRank(Object.keys(counts)).map((verdict) => `${counts[verdict]} ${verdict}`).join(', ');
  }

  /** Call visit(share, from, to) for each span of checks with the same share of units that do not work. */
  spans(visit) {
    this.working.forEach(({check, number}, i) => {
      if (number === null) return;
      visit(1 - number / Math.max(1, this.units), check, this.working[i + 1]?.check ?? this.steps.length);
    });
  }

  describe(check) {
    if (!this.at(check)) return `${this.title}: not looked at`;
    const counts = this.countsText(check);
    const dead = this.deadAt(check);
    const orientations = this.isCondensed(check) ? this.orientationsAt(check) : null;
    const more = [counts || (dead ? `${dead} dead` : ''), orientations === null ? '' : plural(orientations, 'direction')];
    return [`${this.title}: ${this.workingAt(check)} of ${this.units} units working`, ...more.filter(Boolean)].join('; ');
  }
}

/** Return the number of working units at each check where it may change; null while the model lacks the layer. */
function workingOverTime({states, dead}) {
  const checks = [...new Set([...states, ...dead].map(({check}) => check))].sort((a, b) => a - b);
  let [i, j] = [0, 0]; // How many entries of states and of dead are at or before the check.
  return checks.map((check) => {
    while (states[i]?.check <= check) i++;
    while (dead[j]?.check <= check) j++;
    const {width = null, both} = states[i - 1] ?? {};
    return {check, number: width === null ? null : Math.max(0, width - (dead[j - 1]?.units ?? 0) + both)};
  });
}

/**
 * A set of units, from a text such as "0-3,8,10-14:2": single indices, ranges, and ranges with a stride. An ellipsis at
 * the end means that units were left out.
 */
export class Units {
  #ranges;

  constructor(packed) {
    this.packed = packed;
    const parts = packed.split(',');
    this.isCut = parts[parts.length - 1] === '...';
    if (this.isCut) parts.pop();
    this.#ranges = parts.map((part) => {
      const [, first, last, stride] = /^(\d+)-(\d+)(?::(\d+))?$/.exec(part) ?? [];
      return first === undefined ? [Number(part), Number(part), 1] : [Number(first), Number(last), Math.max(1, Number(stride ?? 1))];
    });
  }

  has(unit) {
    return this.#ranges.some(([first, last, stride]) => unit >= first && unit <= last && (unit - first) % stride === 0);
  }

  get size() {
    return this.#ranges.reduce((sum, [first, last, stride]) => sum + Math.floor((last - first) / stride) + 1, 0);
  }

  /** Return whether all of these units are among others; false if that is unknown. */
  isWithin(others) {
    if (this.packed === others.packed) return true;
    if (this.isCut || this.size > MAX_COMPARED) return false;
    return this.#ranges.every(([first, last, stride]) => {
      for (let unit = first; unit <= last; unit += stride) if (!others.has(unit)) return false;
      return true;
    });
  }

  /** Return the units as a text for users. */
  toString() {
    const texts = this.#ranges.map(([first, last, stride]) => {
      if (first === last) return String(first);
      return stride > 1 ? `${first}, ${first + stride}, … ${last}` : `${first}–${last}`;
    });
    return [...texts, ...(this.isCut ? ['…'] : [])].join(', ');
  }
}

/**
 * Return the later step at which a group had diverged; null if it has not, undefined if the event file lacks the step.
 *
 * The finding about the group has that step. A candidate for it begins at the same step as the group, and agrees with
 * the group on whether weights are equal. A group may have lost or gained units since the warning, so the best match
 * counts: the same units, else the smallest larger set, else the largest smaller one.
 */
export function partedLater(group, step, findings) {
  const isRedundant = (verdict) => traitsOf(verdict).is_redundant;
  const related = findings.filter(({since, verdict}) => since === group.since && isRedundant(verdict) === isRedundant(group.verdict));
  if (related.every(({broken}) => broken === null)) return null;
  if (related.some(({groups}) => groups === null)) return undefined;
  const candidates = related.flatMap(({broken, groups}) => groups.map((units) => ({broken, units})));
  const exact = candidates.find(({units}) => units.packed === group.units.packed);
  const [larger] = candidates.filter(({units}) => group.units.isWithin(units)).sort((a, b) => a.units.size - b.units.size);
  const [smaller] = candidates.filter(({units}) => units.isWithin(group.units)).sort((a, b) => b.units.size - a.units.size);
  const match = exact ?? larger ?? smaller;
  if (match) return match.broken !== null && match.broken > step ? match.broken : null;
  const isPartial = group.units.isCut || related.some(({groups, num_groups: total}) => groups.length < total || groups.some(({isCut}) => isCut));
  return isPartial ? undefined : null;
}

/** Return the index of the last of ascending numbers that is at most a value; -1 if there is none. */
export function lastAtMost(numbers, value) {
  let low = 0;
  let high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** Return the last of entries, in ascending order of a key, whose key is at most a value. */
export function latest(entries, key, value) {
  return entries?.findLast((entry) => entry[key] <= value);
}

/** Return the checks that an axis labels: those at multiples of a round number of steps, as many as fit its width. */
export function ticks(steps, width, gap) {
  const place = width / steps.length;
  const room = gap + 7 * steps[steps.length - 1].toLocaleString('en').length;
  for (let size = 1; ; size *= 10) {
    for (const factor of [1, 2, 5]) {
      const checks = steps.flatMap((step, check) => (step % (factor * size) === 0 ? [check] : []));
      if (checks.every((check, i) => i === 0 || (check - checks[i - 1]) * place >= room)) return checks;
    }
  }
}

export function plural(count, word) {
  return `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;
}

/** Return the traits of a verdict, with its rank: 0 for the most serious one; unknown verdicts come last. */
export function traitsOf(name) {
  return KNOWN.get(name) ?? {...UNKNOWN, name};
}

/** Return the traits of the verdicts that the user is warned of. */
export function warnings() {
  return [...KNOWN.values()].filter((traits) => traits.is_warning);
}

/** Sort the names of verdicts by rank. */
export function byRank(names) {
  return [...names].sort((a, b) => traitsOf(a).rank - traitsOf(b).rank);
}

/** Return the most serious of some verdicts that warn or are unknown; null if there is none. */
export function worstOf(names) {
  return byRank(names).find((name) => traitsOf(name).is_warning !== false) ?? null;
}
