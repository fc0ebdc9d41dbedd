// Marks for verdicts and events. Each has a shape of its own, so that they can be distinguished without colours.
//
// A sign is an object with a name, a mark (an outline in a square of 12 by 12), a meaning, a colour and a dark_colour.
// The traits of a verdict are a sign, and each kind of event has one.
import {element, svg} from './dom.js';
import {traitsOf} from './model.js';

/** The sign of each kind of event. */
export const EVENTS = new Map(
  [
    {name: 'collapsed', mark: 'M0.5 1.5h11L6 11z', meaning: 'distinct units became equal during training', colour: 'var(--collapsed)', dark_colour: 'var(--collapsed)'},
    {name: 'appeared', mark: 'M6 1.2a4.8 4.8 0 1 0 .01 0z', meaning: 'units were equal when first seen'},
    {name: 'broke', mark: 'M1 2.6L2.6 1L6 4.4L9.4 1L11 2.6L7.6 6L11 9.4L9.4 11L6 7.6L2.6 11L1 9.4L4.4 6z', meaning: 'the units have parted'},
  ].map((sign) => [sign.name, sign]),
);
const paths = new Map(); // Parsed outlines, because parsing takes time.

/** Return the sign of an event; if units appeared equal, the sign of their verdict. */
export function signOf({kind, verdict}) {
  return kind === 'appeared' && verdict !== null ? traitsOf(verdict) : EVENTS.get(kind);
}

/** Return the rank of an event, lowest for the most serious verdict. Where events overlap, the lowest rank is drawn. */
export function priority({kind, verdict}) {
  const isVerdict = kind === 'appeared' && verdict !== null;
  return isVerdict ? traitsOf(verdict).rank : traitsOf(null).rank + 1 + [...EVENTS.keys()].indexOf(kind);
}

/** Describe an event in a few words. */
export function eventText({kind, verdict}) {
  return verdict === null ? kind : `${kind}, ${verdict}`;
}

/** Draw a mark on a canvas with its centre at (x, y), in one colour and with a rim of another. */
export function draw(context, sign, x, y, colour, rim, size = 10) {
  if (!paths.has(sign.mark)) paths.set(sign.mark, new Path2D(sign.mark));
  const path = paths.get(sign.mark);
  context.save();
  context.translate(x - size / 2, y - size / 2);
  context.scale(size / 12, size / 12);
  context.lineJoin = 'round';
  context.lineWidth = 3;
  context.strokeStyle = rim;
  context.stroke(path);
  context.fillStyle = colour;
  context.fill(path, 'evenodd');
  context.restore();
}

/** Give an element the colours of a sign, if the sign has any; the style sheet chooses one by the theme. */
export function paint(node, sign) {
  node.style.setProperty('--light', sign.colour ?? '');
  node.style.setProperty('--dark', sign.dark_colour ?? '');
  return node;
}

/** Create a mark as an element. It is hidden from screen readers, so put a text beside it. */
export function mark(sign) {
  const outline = svg('path', {d: sign.mark, 'fill-rule': 'evenodd'});
  return paint(svg('svg.mark', {viewBox: '0 0 12 12', 'aria-hidden': 'true'}, outline), sign);
}

/** Create a mark with a text beside it. */
export function label(sign, text = sign.name) {
  return element('span.label', {title: sign.meaning}, mark(sign), text);
}
