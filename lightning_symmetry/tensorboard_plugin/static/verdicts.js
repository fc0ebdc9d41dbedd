// Verdicts as the server describes them. This page names no verdict itself, so that each is described in one place.

// The traits of a verdict that only a newer version of the package knows: it is shown by its name, without a colour.
const UNKNOWN = {
  is_warning: null,
  is_redundant: null,
  colour: null,
  dark_colour: null,
  mark: 'M.8 4.7h2.6v2.6h-2.6zM4.7 4.7h2.6v2.6h-2.6zM8.6 4.7h2.6v2.6h-2.6z',
  gone: 'have parted',
  meaning: 'a newer version wrote this verdict, and this version does not know its meaning',
};

export class Verdicts {
  #known;

  /** Takes a list of traits; the most serious verdict comes first. */
  constructor(list) {
    this.list = list;
    this.#known = new Map(list.map((traits, rank) => [traits.name, {...traits, rank}]));
  }

  /** The traits of a verdict and its rank; verdicts that are not known rank after all others. */
  get(name) {
    return this.#known.get(name) ?? {...UNKNOWN, name, rank: this.#known.size};
  }

  /** The traits of the verdicts that the user is warned of. */
  get warnings() {
    return this.list.filter((traits) => traits.is_warning).map(({name}) => this.get(name));
  }

  /** Sort the names of verdicts by rank. */
  sort(names) {
    return [...names].sort((a, b) => this.get(a).rank - this.get(b).rank);
  }

  /** The first of some verdicts by rank that warns, or that is not known and may warn; null if there is none. */
  worst(names) {
    return this.sort(names).find((name) => this.get(name).is_warning !== false) ?? null;
  }
}
