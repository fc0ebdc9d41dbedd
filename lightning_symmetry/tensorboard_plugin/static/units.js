// Sets of units. Events hold them as texts such as "0-3,8,10-14:2", made of single indices, runs, and runs with a
// stride. An ellipsis at the end stands for units that were left out.

const MAX_COMPARED = 100_000; // Larger sets are not compared, because a file that is made to do harm may hold any.

export class Units {
  #runs;

  constructor(packed) {
    this.packed = packed;
    const parts = packed.split(',');
    this.isCut = parts[parts.length - 1] === '...';
    if (this.isCut) parts.pop();
    this.#runs = parts.map((part) => {
      const [, first, last, stride] = /^(\d+)-(\d+)(?::(\d+))?$/.exec(part) ?? [];
      return first === undefined ? [Number(part), Number(part), 1] : [Number(first), Number(last), Math.max(1, Number(stride ?? 1))];
    });
  }

  has(unit) {
    return this.#runs.some(([first, last, stride]) => unit >= first && unit <= last && (unit - first) % stride === 0);
  }

  get size() {
    return this.#runs.reduce((sum, [first, last, stride]) => sum + Math.floor((last - first) / stride) + 1, 0);
  }

  /** Whether all of these units are among some others; false if that cannot be told. */
  isWithin(others) {
    if (this.packed === others.packed) return true;
    if (this.isCut || this.size > MAX_COMPARED) return false;
    return this.#runs.every(([first, last, stride]) => {
      for (let unit = first; unit <= last; unit += stride) if (!others.has(unit)) return false;
      return true;
    });
  }

  /** The units as a text for people. */
  toString() {
    const texts = this.#runs.map(([first, last, stride]) => {
      if (first === last) return String(first);
      return stride > 1 ? `${first}, ${first + stride}, … ${last}` : `${first}–${last}`;
    });
    return [...texts, ...(this.isCut ? ['…'] : [])].join(', ');
  }
}
