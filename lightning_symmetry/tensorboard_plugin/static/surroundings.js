// The page around: its address, which holds what can be shared, and its theme. In TensorBoard both belong to the
// window that holds our frame; elsewhere they are our own.

const PREFIX = 'p.symmetry.'; // how TensorBoard marks a plugin's part of the address
const KEYS = ['view', 'run', 'layer', 'step'];

function host() {
  try {
    if (window.parent !== window && window.parent.document.body) return window.parent;
  } catch {
    // A frame of somebody else's: its address and theme are not for us to know.
  }
  return null;
}

export class Link {
  #window = host() ?? window;
  #prefix = host() ? PREFIX : '';

  /** What the address asks for; keys that it does not name are missing. */
  read() {
    const parts = new Map(this.#parts());
    const found = {};
    for (const key of KEYS) {
      if (parts.has(this.#prefix + key)) found[key] = parts.get(this.#prefix + key);
    }
    return found;
  }

  /** Put what can be shared into the address, without a step in the browser's history. */
  write(values) {
    const others = this.#parts().filter(([name]) => !KEYS.some((key) => name === this.#prefix + key));
    if (this.#prefix && others[0]?.[0] !== 'symmetry') return; // another tab is in front
    const ours = KEYS.filter((key) => values[key] !== null && values[key] !== undefined);
    const parts = [...others, ...ours.map((key) => [this.#prefix + key, String(values[key])])];
    const hash = parts.map(([name, value]) => (value === null ? name : `${name}=${encodeURIComponent(value)}`)).join('&');
    if (`#${hash}` === this.#window.location.hash) return;
    const {pathname, search} = this.#window.location;
    this.#window.history.replaceState(this.#window.history.state, '', `${pathname}${search}#${hash}`);
  }

  onChange(listener) {
    this.#window.addEventListener('hashchange', listener);
  }

  #parts() {
    return this.#window.location.hash
      .slice(1)
      .split('&')
      .filter(Boolean)
      .map((part) => {
        const at = part.indexOf('=');
        return at < 0 ? [part, null] : [part.slice(0, at), decode(part.slice(at + 1))];
      });
  }
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Let the keys come here, unless somebody is typing elsewhere. */
export function takeFocus() {
  const active = host()?.document.activeElement;
  if (active && (active === window.frameElement || active === host().document.body)) window.focus();
}

/** Follow the theme: TensorBoard's, or that of the system. */
export function followTheme(listener) {
  const system = window.matchMedia('(prefers-color-scheme: dark)');
  const body = host()?.document.body;
  const apply = () => {
    const isDark = body ? body.classList.contains('dark-mode') : system.matches;
    document.documentElement.classList.toggle('dark', isDark);
    listener(isDark);
  };
  if (body) new MutationObserver(apply).observe(body, {attributes: true, attributeFilter: ['class']});
  else system.addEventListener('change', apply);
  apply();
}
