// What the server says of verdicts: this page names none itself, so that each is described in one place.

// A newer version may have written a verdict that this one does not know: it is shown by its name, without a colour.
const UNKNOWN = {
  is_warning: null,
  is_redundant: null,
  colour: null,
  dark_colour: null,
  mark: 'M6 .8a5.2 5.2 0 1 0 .01 0zM5.2 2.8h1.6v4h-1.6zM5.2 7.8h1.6v1.6h-1.6z',
  meaning: 'a newer version wrote this verdict, and this version does not know its meaning',
};

export class Verdicts {
  #known;

  /** Takes the traits of each verdict, the most serious verdict first. */
  constructor(list) {
    this.list = list;
    this.#known = new Map(list.map((traits, rank) => [traits.name, {...traits, rank}]));
  }

  /** The traits of a verdict and its rank; those that are not known come after all others. */
  get(name) {
    return this.#known.get(name) ?? {...UNKNOWN, name, rank: this.#known.size};
  }

  /** Those that the user is warned of. */
  get warnings() {
    return this.list.filter((traits) => traits.is_warning).map(({name}) => this.get(name));
  }

  /** Names in the order of their rank. */
  sort(names) {
    return [...names].sort((a, b) => this.get(a).rank - this.get(b).rank);
  }

  /** The name of the most serious verdict that the user should see, or null; one that is not known may be serious. */
  worst(names) {
    return this.sort(names).find((name) => this.get(name).is_warning !== false) ?? null;
  }
}
