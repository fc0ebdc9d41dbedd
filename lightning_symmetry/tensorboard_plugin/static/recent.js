// A store of bounded size.

/** Keeps the values that were used last. */
export class Recent {
  #size;
  #kept = new Map(); // in the order of use

  constructor(size) {
    this.#size = size;
  }

  get(key) {
    if (!this.#kept.has(key)) return undefined;
    const value = this.#kept.get(key);
    this.set(key, value);
    return value;
  }

  set(key, value) {
    this.#kept.delete(key);
    this.#kept.set(key, value);
    if (this.#kept.size > this.#size) this.#kept.delete(this.#kept.keys().next().value);
  }
}
