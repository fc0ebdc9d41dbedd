// Sources of data: the plugin in TensorBoard, and the page itself in a static report. docs/tab.md describes the data.

export class ServerSource {
  isLive = true;

  async runs() {
    return (await this.#json('runs', {})).runs;
  }

  history(run) {
    return this.#json('run', {run});
  }

  layer(run, layer) {
    return this.#json('layer', {run, layer});
  }

  async matrix(run, layer, step) {
    const response = await this.#fetch('matrix', {run, layer, step});
    return new Uint8Array(await response.arrayBuffer());
  }

  async #json(route, query) {
    return (await this.#fetch(route, query)).json();
  }

  async #fetch(route, query) {
    let response;
    try {
      response = await fetch(`./${route}?${new URLSearchParams(query)}`);
    } catch {
      throw new Error('TensorBoard does not answer. Is it still running?');
    }
    if (response.ok) return response;
    const answer = await response.json().catch(() => null); // Only answers of the plugin are JSON.
    throw new Error(answer?.error ?? `TensorBoard answered with status ${response.status}.`);
  }
}

export class EmbeddedSource {
  isLive = false;
  #data;

  constructor(data) {
    this.#data = data;
  }

  async runs() {
    return this.#data.runs.map(({name, summary}) => ({name, summary, version: '', pending: false}));
  }

  async history(run) {
    return this.#run(run).history;
  }

  async layer(run, layer) {
    return this.#run(run).layers[layer];
  }

  async matrix(run, layer, step) {
    return Uint8Array.from(atob(this.#run(run).matrices[layer][step]), (character) => character.charCodeAt(0));
  }

  #run(name) {
    return this.#data.runs.find((run) => run.name === name);
  }
}
