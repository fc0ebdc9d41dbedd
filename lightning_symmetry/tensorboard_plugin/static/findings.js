// Findings in words, as the overview and the view of a layer show them.
import {element, reconcile, withCode} from './dom.js';
import {EVENTS, mark, paint} from './marks.js';
import {isOver, traitsOf} from './model.js';

/** Show findings at a step, one article per kind. A kind is a list of findings that differ only in their layers. */
export function showFindings(parent, kinds, step, optionsOf) {
  reconcile(parent, kinds, {
    key: ([first]) => keyOf(first),
    version: (kind) => JSON.stringify([kind, isOver(kind[0], step)]),
    make: () => element('article.finding'),
    update: (kind, node) => node.replaceChildren(...describe(node, kind[0], step, optionsOf(kind))),
  });
}

/** Return the content of a finding at a step. A lead precedes its units; advice is optional. */
function describe(node, finding, step, {hasAdvice, lead = []}) {
  const hasEnded = isOver(finding, step);
  const verdict = traitsOf(finding.verdict);
  paint(node, hasEnded ? {} : verdict);
  const sign = hasEnded ? EVENTS.get('broke') : finding.hasCollapsed ? EVENTS.get('collapsed') : verdict;
  return [
    element('h4', mark(sign), element('span', lead, finding.who)),
    element('p', finding.what),
    ...(hasEnded ? [element('p', `They ${verdict.gone} at step ${finding.broken}.`)] : []),
    ...(hasAdvice && !hasEnded ? [element('p.advice', withCode(finding.why))] : []),
  ];
}

/** Group the findings of a run that differ only in their layers. Groups are in the order of their first findings. */
export function alike(findings, {byName}) {
  const kinds = new Map();
  for (const finding of findings) {
    const whole = byName.has(finding.layer) ? '' : finding.layer; // Findings about whole modules stay separate.
    const key = [whole, finding.verdict, finding.since, finding.broken, finding.who, finding.what, finding.origin].join('\n');
    if (kinds.has(key)) kinds.get(key).push(finding);
    else kinds.set(key, [finding]);
  }
  return [...kinds.values()];
}

/** Return a unique key of a finding within its run. */
export function keyOf({layer, verdict, since, who, origin}) {
  return [layer, verdict, since, origin, who].join('\n');
}
