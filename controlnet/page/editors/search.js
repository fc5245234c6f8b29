// Finds classes, [[name, color, drawable, [other words]], ...], by what people call them: the whole name first, then how
// names begin, then any part of one, and the other words for the same thing likewise. Indices, the best first; `prefer`
// compares two that match equally well.
function findClasses(classes, text, prefer) {
  const query = text.trim().toLowerCase();
  const found = rankClasses(classes, query, prefer);
  if (found.length || !/..s$/.test(query)) return found;
  // Of one that is spoken of as many.
  const singulars = [query.replace(/ies$/, "y"), query.slice(0, -1), query.replace(/es$/, "")];
  return singulars.map((one) => rankClasses(classes, one, prefer)).find((some) => some.length) || [];
}

function rankClasses(classes, query, prefer) {
  const rank = (word) => {
    if (word === query) return 0;
    if (word.startsWith(query)) return 2;
    if (word.split(" ").some((part) => part.startsWith(query))) return 4;
    return word.includes(query) ? 6 : Infinity;
  };
  const ranks = classes.map(([name, , , others]) => Math.min(rank(name), ...others.map((word) => rank(word) + 1)));
  return ranks
    .map((_, index) => index)
    .filter((index) => ranks[index] < Infinity)
    .sort((a, b) => ranks[a] - ranks[b] || prefer(a, b) || classes[a][0].localeCompare(classes[b][0]));
}

