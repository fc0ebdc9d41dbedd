// The traits of verdicts, as the package defines them. The page names no verdict but "dead" itself.
import {VERDICTS} from './legend.js';

// The traits of a verdict that only a newer version of the package knows: it is shown by its name, without a colour.
const UNKNOWN = {
  is_warning: null,
  is_redundant: null,
  colour: null,
  dark_colour: null,
  mark: 'M.8 4.7h2.6v2.6h-2.6zM4.7 4.7h2.6v2.6h-2.6zM8.6 4.7h2.6v2.6h-2.6z',
  gone: 'have parted',
  meaning: 'a newer version wrote this verdict, and this version does not know its meaning',
  rank: VERDICTS.length,
};
const KNOWN = new Map(VERDICTS.map((traits, rank) => [traits.name, {...traits, rank}]));

/** The traits of a verdict and its rank; the most serious verdict has rank 0, and unknown verdicts come last. */
export function traitsOf(name) {
  return KNOWN.get(name) ?? {...UNKNOWN, name};
}

/** The traits of the verdicts that the user is warned of. */
export function warnings() {
  return [...KNOWN.values()].filter((traits) => traits.is_warning);
}

/** Sort the names of verdicts by rank. */
export function byRank(names) {
  return [...names].sort((a, b) => traitsOf(a).rank - traitsOf(b).rank);
}

/** The most serious of some verdicts that warns, or that is unknown and may warn; null if there is none. */
export function worstOf(names) {
  return byRank(names).find((name) => traitsOf(name).is_warning !== false) ?? null;
}
