// The history of a run, as the views ask for it.

const COUNTS = ['locked', 'frozen', 'lockstep', 'breaking', 'duplicate'];
export const SERIOUS = ['locked', 'frozen', 'lockstep'];

export class Run {
  constructor(name, version, history) {
    this.name = name;
    this.version = version;
    this.steps = history.steps;
    this.layers = history.layers.map((layer) => new Layer(layer, history));
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

  /** The worst that can be said of any layer: "locked", "frozen", "lockstep", or null. */
  worst(check) {
    const kinds = new Set(this.layers.map((layer) => layer.worst(check)));
    return SERIOUS.find((kind) => kinds.has(kind)) ?? null;
  }
}

class Layer {
  constructor(values, history) {
    Object.assign(this, values);
    this.steps = history.steps;
    this.findings = history.findings.filter((finding) => finding.layer === values.name);
    this.checks = values.states.map(([check]) => check);
  }

  get title() {
    return [this.name, ...this.also].join(' = ');
  }

  /** The state at a check; null before the first, and where the layer was there no longer. */
  at(check) {
    const i = lastAtMost(this.checks, check);
    if (i < 0 || this.states[i].length === 1) return null;
    const [, width, ...counts] = this.states[i];
    return {width, counts: Object.fromEntries(COUNTS.map((verdict, j) => [verdict, counts[j]]))};
  }

  worst(check) {
    const state = this.at(check);
    return (state && SERIOUS.find((verdict) => state.counts[verdict] > 0)) ?? null;
  }

  /** Call a function with every share of redundant units, and the checks from which and up to which it held. */
  spans(tell) {
    this.states.forEach(([check, width], i) => {
      if (width === undefined) return;
      tell(1 - width / Math.max(1, this.units), check, i + 1 < this.states.length ? this.states[i + 1][0] : this.steps.length);
    });
  }

  describe(check) {
    const state = this.at(check);
    if (!state) return `${this.title}: not looked at`;
    const verdicts = COUNTS.filter((verdict) => state.counts[verdict]).map((verdict) => `${state.counts[verdict]} ${verdict}`);
    return `${this.title}: ${state.width} of ${this.units} units distinct${verdicts.length ? `; ${verdicts.join(', ')}` : ''}`;
  }
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

/** Packed indices such as "0-3,8,10-14:2,..." for people. */
export function unitsText(packed) {
  return packed
    .split(',')
    .map((part) => {
      const [, first, last, stride] = /^(\d+)-(\d+)(?::(\d+))?$/.exec(part) ?? [];
      if (part === '...') return '…';
      if (first === undefined) return part;
      return stride ? `${first}, ${Number(first) + Number(stride)}, … ${last}` : `${first}–${last}`;
    })
    .join(', ');
}

/** A test whether packed indices hold a unit. */
export function holds(packed) {
  const singles = new Set();
  const runs = [];
  for (const part of packed.split(',')) {
    const [, first, last, stride] = /^(\d+)-(\d+)(?::(\d+))?$/.exec(part) ?? [];
    if (first === undefined) singles.add(Number(part));
    else runs.push([Number(first), Number(last), Number(stride ?? 1)]);
  }
  return (unit) => singles.has(unit) || runs.some(([a, b, s]) => unit >= a && unit <= b && (unit - a) % s === 0);
}

export function plural(count, word) {
  return `${count.toLocaleString('en')} ${word}${count === 1 ? '' : 's'}`;
}
