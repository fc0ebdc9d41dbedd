// Data that is fetched only for layers in view: groups, the units of findings, and matrices.
import {Units} from './model.js';

const NUM_LAYERS_KEPT = 32;
const NUM_MATRICES_KEPT = 512; // Together at most 2 MiB.

export class Details {
  #answers = new Recent(NUM_LAYERS_KEPT); // The server's answers, by run and layer.
  #matrices = new Recent(NUM_MATRICES_KEPT); // By key. Equal matrices have the same key, whatever their steps.
  #underway = new Set(); // The keys of requests that wait for an answer.

  constructor(app) {
    this.app = app;
  }

  /**
   * Return the data of a layer; undefined before the first answer. If the data is of an earlier version of the run, the
   * current version is requested, and drawn when it arrives.
   */
  of(run, layer) {
    const answer = this.#answers.get(layer.key);
    if (answer?.version !== run.version) {
      this.#fetch(run, layer, 'layer', `${layer.key}\n${run.version}`, async () => {
        const {groups, findings, matrices} = await this.app.source.layer(run.name, layer.name);
        this.#answers.set(layer.key, {
          version: run.version,
          groups,
          findings: findings.map((finding) => ({...finding, groups: finding.groups?.map((units) => new Units(units)) ?? null})),
          matrices,
        });
      });
    }
    return answer;
  }

  /** Return the cells of a matrix; undefined until they have arrived. */
  cells(run, layer, {key, step}) {
    const cells = this.#matrices.get(key);
    if (!cells) this.#fetch(run, layer, 'matrix', key, async () => this.#matrices.set(key, await this.app.source.matrix(run.name, layer.name, step)));
    return cells;
  }

  /** Make a request and then draw, unless the same request waits for an answer already. */
  #fetch(run, layer, name, key, request) {
    if (this.#underway.has(key)) return;
    this.app.attempt(name, async () => {
      // The run or the layer may have vanished before a repeated attempt.
      if (!this.app.data.get(run.name)?.byName.has(layer.name)) return;
      this.#underway.add(key);
      try {
        await request();
      } finally {
        this.#underway.delete(key);
      }
      this.app.update();
    });
  }
}

/** A store that keeps a limited number of values: when it is full, the least recently used value is dropped. */
export class Recent {
  #size;
  #kept = new Map(); // The least recently used value comes first.

  constructor(size) {
    this.#size = size;
  }

  get(key) {
    const value = this.#kept.get(key);
    if (value !== undefined) this.set(key, value);
    return value;
  }

  set(key, value) {
    this.#kept.delete(key);
    this.#kept.set(key, value);
    if (this.#kept.size > this.#size) this.#kept.delete(this.#kept.keys().next().value);
  }
}
