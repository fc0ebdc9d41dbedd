// The theme, and the address, which contains the user's choice. In TensorBoard the page is in a frame, and both belong
// to the window around the frame. In a static report both belong to the page itself.

const PREFIX = 'p.symmetry.'; // TensorBoard reserves parts of the address with such a prefix for plugins.
const KEYS = ['view', 'run', 'layer', 'step'];

function host() {
  try {
    if (window.parent !== window && window.parent.document.body) return window.parent;
  } catch {
    // The browser forbids access to a parent window of another site.
  }
  return null;
}

export class Link {
  #window = host() ?? window;
  #prefix = host() ? PREFIX : '';

  /** Read the choice in the address; keys that it lacks are undefined. */
  read() {
    const parts = new Map(this.#parts());
    return Object.fromEntries(KEYS.map((key) => [key, parts.get(this.#prefix + key)]));
  }

  /** Write the choice into the address. A new choice adds an entry to the browser's history. */
  write(values, {isNew = false} = {}) {
    const others = this.#parts().filter(([name]) => !KEYS.some((key) => name === this.#prefix + key));
    if (this.#prefix && others[0]?.[0] !== 'symmetry') return; // TensorBoard shows another tab.
    const ours = KEYS.filter((key) => values[key] !== null && values[key] !== undefined);
    const parts = [...others, ...ours.map((key) => [this.#prefix + key, String(values[key])])];
    const hash = parts.map(([name, value]) => (value === null ? name : `${name}=${encodeURIComponent(value.toWellFormed?.() ?? value)}`)).join('&');
    if (`#${hash}` === this.#window.location.hash) return;
    const {pathname, search} = this.#window.location;
    const {history} = this.#window;
    history[isNew ? 'pushState' : 'replaceState'](history.state, '', `${pathname}${search}#${hash}`);
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

/** Give this frame the keyboard focus, unless the focus is in a control of TensorBoard. */
export function takeFocus() {
  const active = host()?.document.activeElement;
  if (active && (active === window.frameElement || active === host().document.body)) window.focus();
}

/** Follow the theme of TensorBoard or else of the system, and call listener(isDark) now and whenever it changes. */
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
