// What is only fetched of a layer that is opened: its groups, its findings' units, and its matrices.
import {Recent} from './recent.js';
import {Units} from './units.js';

const NUM_LAYERS_KEPT = 32;
const NUM_MATRICES_KEPT = 512; // Together at most 2 MiB.

export class Details {
  #answers = new Recent(NUM_LAYERS_KEPT); // What the server said of layers, by run and layer.
  #matrices = new Recent(NUM_MATRICES_KEPT); // By their keys, which stay the same as the run goes on.
  #underway = new Set(); // The keys of requests that wait for an answer.

  constructor(app) {
    this.app = app;
  }

  /**
   * What the server said of a layer, maybe of an earlier version of the run; undefined before the first answer. If there
   * is a later version, it is requested, and the page is drawn again when it arrives.
   */
  of(run, layer) {
    const key = `${run.name}\n${layer.name}`;
    const answer = this.#answers.get(key);
    if (answer?.version !== run.version) {
      this.#fetch(run, layer, 'layer', `${key}\n${run.version}`, async () => {
        const {groups, findings, matrices} = await this.app.source.layer(run.name, layer.name);
        this.#answers.set(key, {
          version: run.version,
          groups,
          findings: findings.map((finding) => ({...finding, groups: finding.groups?.map((units) => new Units(units)) ?? null})),
          matrices,
        });
      });
    }
    return answer;
  }

  /** The cells of a matrix; undefined until they have arrived. */
  cells(run, layer, {key, step}) {
    const cells = this.#matrices.get(key);
    if (!cells) this.#fetch(run, layer, 'matrix', key, async () => this.#matrices.set(key, await this.app.source.matrix(run.name, layer.name, step)));
    return cells;
  }

  /** Make a request and then draw, unless the same request waits for an answer already. */
  #fetch(run, layer, name, key, request) {
    if (this.#underway.has(key)) return;
    this.app.attempt(name, async () => {
      // It may be tried again after the run or the layer has vanished.
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
