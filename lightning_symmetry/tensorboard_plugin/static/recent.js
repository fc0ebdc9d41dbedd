// A store that holds a limited number of values: when it is full, the least recently used value is dropped.
export class Recent {
  #size;
  #kept = new Map(); // The least recently used value comes first.

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
