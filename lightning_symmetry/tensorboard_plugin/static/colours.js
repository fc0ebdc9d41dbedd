// Colour maps. Their lightness changes evenly, so that they can be read without seeing hues.
import {SIMILARITY} from './legend.js';

const {values: VALUES, colours: COLOURS} = SIMILARITY;
export const NO_DIRECTION = SIMILARITY.none;

/** Return the colour of a share, from 0 to 1, of units that do not work. The colour of 0 is close to the background. */
export function shade(share, isDark) {
  const t = Math.min(1, Math.max(0, share));
  const lightness = isDark ? 0.4 + 0.46 * t : 0.945 - 0.525 * t;
  const hue = isDark ? 15 + 70 * t : 85 - 70 * t;
  return fromOklch(lightness, 0.012 + 0.145 * Math.sqrt(t) * (isDark ? 1 - 0.2 * t : 1), hue);
}

/** Return the similarity from -1 to 1 that a byte of a matrix encodes; null if a row has no direction. */
export function toSimilarity(byte) {
  return byte === 0 ? null : (byte - 128) / 127;
}

/** Return the colour of a similarity from -1 to 1, or of null, as [red, green, blue]. */
export function similarity(value) {
  if (value === null) return NO_DIRECTION;
  const i = Math.max(1, VALUES.findIndex((stop) => value <= stop));
  const t = (value - VALUES[i - 1]) / (VALUES[i] - VALUES[i - 1]);
  return COLOURS[i].map((channel, c) => Math.round(COLOURS[i - 1][c] + t * (channel - COLOURS[i - 1][c])));
}

export function css([red, green, blue]) {
  return `rgb(${red},${green},${blue})`;
}

/** Return the colours of shares from 0 to 1 as a CSS gradient. */
export function gradient(colourOf) {
  return `linear-gradient(to right, ${Array.from({length: 21}, (_, i) => css(colourOf(i / 20))).join()})`;
}

function fromOklch(lightness, chroma, degrees) {
  const a = chroma * Math.cos((degrees * Math.PI) / 180);
  const b = chroma * Math.sin((degrees * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((linear) => {
    const x = Math.min(1, Math.max(0, linear));
    return Math.round(255 * (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055));
  });
}
