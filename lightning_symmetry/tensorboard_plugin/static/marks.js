// What happens to units, as marks: each has a shape of its own, so that no colour is needed to tell them apart.
import {element, svg} from './dom.js';

/** In a square of 12 by 12. */
export const MARKS = {
  locked: {path: 'M2 2h8v8h-8z', text: 'locked', meaning: 'equal weights, equal gradients: they train as one'},
  frozen: {path: 'M6 0.5L11.5 6L6 11.5L0.5 6z', text: 'frozen', meaning: 'equal weights, zero gradients: they do not train at all'},
  lockstep: {path: 'M1.5 1h3.4v10h-3.4zM7.1 1h3.4v10h-3.4z', text: 'lockstep', meaning: 'different weights, equal gradients: they move in parallel'},
  collapsed: {path: 'M0.5 1.5h11L6 11z', text: 'collapsed', meaning: 'distinct units became equal during training'},
  breaking: {path: 'M6 1a5 5 0 1 0 .01 0zM6 3.2a2.8 2.8 0 1 1 -.01 0z', text: 'breaking', meaning: 'equal weights, different gradients: the symmetry breaks by itself'},
  duplicate: {path: 'M1 4h10v1.8h-10zM1 7.4h10v1.8h-10z', text: 'duplicate', meaning: 'equal weights; the gradients say nothing so far'},
  appeared: {path: 'M6 1.2a4.8 4.8 0 1 0 .01 0z', text: 'appeared', meaning: 'units were equal when first seen'},
  broke: {path: 'M1 2.6L2.6 1L6 4.4L9.4 1L11 2.6L7.6 6L11 9.4L9.4 11L6 7.6L2.6 11L1 9.4L4.4 6z', text: 'broke', meaning: 'the units have parted'},
};

const paths = new Map();

/** Draw a mark on a canvas, its centre at (x, y), with a rim that sets it off from what is below. */
export function draw(context, kind, x, y, colour, rim, size = 10) {
  if (!paths.has(kind)) paths.set(kind, new Path2D(MARKS[kind].path));
  context.save();
  context.translate(x - size / 2, y - size / 2);
  context.scale(size / 12, size / 12);
  context.lineJoin = 'round';
  context.lineWidth = 3;
  context.strokeStyle = rim;
  context.stroke(paths.get(kind));
  context.fillStyle = colour;
  context.fill(paths.get(kind), 'evenodd');
  context.restore();
}

/** A mark as an element; its text is beside it, or in its title. */
export function mark(kind, title = null) {
  return svg(
    'svg',
    {viewBox: '0 0 12 12', class: `mark ${kind}`, role: title ? 'img' : null, 'aria-hidden': title ? null : 'true'},
    title ? svg('title', {}, title) : null,
    svg('path', {d: MARKS[kind].path, 'fill-rule': 'evenodd'}),
  );
}

/** A mark with its name. */
export function label(kind, text = MARKS[kind].text) {
  return element('span', {class: 'label', title: MARKS[kind].meaning}, mark(kind), text);
}

/** Which mark an event gets: of what appears the verdict is what matters. */
export function kindOf([, kind, verdict]) {
  return kind === 'appeared' && verdict ? verdict : kind;
}
