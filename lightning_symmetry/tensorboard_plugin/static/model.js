// The history of a run, as the views ask for it.

export class Run {
  constructor(name, version, history, verdicts) {
    this.name = name;
    this.version = version;
    this.verdicts = verdicts;
    this.steps = history.steps;
    this.layers = history.layers.map((layer) => new Layer(layer, history, verdicts));
    this.findings = history.findings;
    this.unreadable = history.unreadable;
    this.byName = new Map(this.layers.map((layer) => [layer.name, layer]));
  }

  get lastStep() {
    return this.steps[this.steps.length - 1];
  }

  /** The latest check at or before a step; the last one of all for null. */
  checkAt(step) {
    return step === null ? this.steps.length - 1 : Math.max(0, lastAtMost(this.steps, step));
  }

  totals(check) {
    const states = this.layers.map((layer) => [layer, layer.at(check)]).filter(([, state]) => state);
    return {
      units: states.reduce((sum, [layer]) => sum + layer.units, 0),
      width: states.reduce((sum, [, state]) => sum + state.width, 0),
    };
  }

  /** The most serious verdict on any layer, or null. */
  worst(check) {
    return this.verdicts.worst(new Set(this.layers.map((layer) => layer.worst(check)).filter((verdict) => verdict !== null)));
  }
}

class Layer {
  constructor(values, history, verdicts) {
    Object.assign(this, values);
    this.verdicts = verdicts;
    this.steps = history.steps;
    this.findings = history.findings.filter((finding) => finding.layer === values.name);
    this.checks = values.states.map(({check}) => check);
  }

  get title() {
    return [this.name, ...this.also].join(' = ');
  }

  /** The state at a check; null before the first, and where the layer was there no longer. */
  at(check) {
    const state = this.states[lastAtMost(this.checks, check)];
    return state && state.width !== null ? state : null;
  }

  /** The most serious verdict at a check, or null. */
  worst(check) {
    return this.verdicts.worst(Object.keys(this.at(check)?.counts ?? {}));
  }

  /** How many units have which verdict at a check, such as "4 such, 2 other". */
  countsText(check) {
    const counts = this.at(check)?.counts ?? {};
    return this.verdicts.sort(Object.keys(counts)).map((verdict) => `${counts[verdict]} ${verdict}`).join(', ');
  }

  /** Call a function with every share of redundant units, and the checks from which and up to which it held. */
  spans(tell) {
    this.states.forEach(({check, width}, i) => {
      if (width === null) return;
      tell(1 - width / Math.max(1, this.units), check, this.states[i + 1]?.check ?? this.steps.length);
    });
  }

  describe(check) {
    const state = this.at(check);
    if (!state) return `${this.title}: not looked at`;
    const counts = this.countsText(check);
    return `${this.title}: ${state.width} of ${this.units} units distinct${counts ? `; ${counts}` : ''}`;
  }
}

/**
 * When a group that is listed at a step was found to have parted later: a step, null for never, undefined if the files
 * do not tell.
 *
 * A finding names the units that were warned of, and the group may have lost or won some by now; but it keeps the step
 * of the check that saw it first. So among the findings of that step, the one about these very units is meant, else the
 * one about the fewest units that hold these, else the one about the most units that are among these. Units with equal
 * and with different weights have findings of their own.
 */
export function partedLater(group, step, findings, verdicts) {
  const isRedundant = (verdict) => verdicts.get(verdict).is_redundant;
  const kin = findings.filter(({since, verdict}) => since === group.since && isRedundant(verdict) === isRedundant(group.verdict));
  if (kin.every(({broken}) => broken === null)) return null;
  if (kin.some(({groups}) => groups === null)) return undefined;
  const candidates = kin.flatMap(({broken, groups}) => groups.map((units) => ({broken, units})));
  const exact = candidates.find(({units}) => units.packed === group.units.packed);
  const [larger] = candidates.filter(({units}) => group.units.isWithin(units)).sort((a, b) => a.units.size - b.units.size);
  const [smaller] = candidates.filter(({units}) => units.isWithin(group.units)).sort((a, b) => b.units.size - a.units.size);
  const meant = exact ?? larger ?? smaller;
  if (meant) return meant.broken !== null && meant.broken > step ? meant.broken : null;
  const isPartial = group.units.isCut || kin.some(({groups, num_groups: total}) => groups.length < total || groups.some(({isCut}) => isCut));
  return isPartial ? undefined : null;
}

/** Index of the last of ascending numbers that is at most a value; -1 if none is. */
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

/** The last of entries in ascending order of a key, such as "check", that is not later than a value. */
export function latest(entries, key, value) {
  return entries?.[lastAtMost(entries.map((entry) => entry[key]), value)];
}

/** Checks to be named on an axis with a place for each check: those at round steps, as many as fit. */
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
