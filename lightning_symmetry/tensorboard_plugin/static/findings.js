// Findings in words, as the overview and the view of a layer show them.
import {element, withCode} from './dom.js';
import {eventSign, mark, paint} from './marks.js';
import {traitsOf} from './verdicts.js';

/** The content of a finding at a step, optionally with advice, and with a lead before its units. */
export function describe(node, finding, step, {hasAdvice, lead = []}) {
  const isOver = finding.broken !== null && finding.broken <= step;
  const verdict = traitsOf(finding.verdict);
  node.classList.toggle('over', isOver);
  if (isOver) ['--light', '--dark'].forEach((name) => node.style.removeProperty(name));
  else paint(node, verdict);
  const sign = isOver ? eventSign('broke') : finding.hasCollapsed ? eventSign('collapsed') : verdict;
  return [
    element('h4', {}, mark(sign), element('span', {}, lead, finding.who)),
    element('p', {}, finding.what),
    ...(isOver ? [element('p', {}, `They ${verdict.gone} at step ${finding.broken}.`)] : []),
    ...(hasAdvice && !isOver ? [element('p', {class: 'advice'}, withCode(finding.why))] : []),
  ];
}

/** Group the findings of a run that differ only in their layers, in the order of the first of each group. */
export function alike(findings, {byName}) {
  const kinds = new Map();
  for (const finding of findings) {
    const whole = byName.has(finding.layer) ? '' : finding.layer; // Findings about whole modules, which have no row, stay separate.
    const key = [whole, finding.verdict, finding.since, finding.broken, finding.who, finding.what, finding.origin].join('\n');
    if (kinds.has(key)) kinds.get(key).push(finding);
    else kinds.set(key, [finding]);
  }
  return [...kinds.values()];
}

/** A unique key of a finding within its run. */
export function keyOf({layer, verdict, since, who, origin}) {
  return [layer, verdict, since, origin, who].join('\n');
}
