// One stop for Tab, arrows inside: the pattern of toolbars and lists. `selector` names the places in the box.
function roving(box, selector) {
  const places = () => [...box.querySelectorAll(selector)].filter((place) => !place.disabled);
  function settle(wanted) {
    const all = places(), stop = all.includes(wanted) ? wanted : all.find((place) => place.tabIndex === 0) || all[0];
    for (const place of box.querySelectorAll(selector)) place.tabIndex = place === stop ? 0 : -1;
  }
  box.addEventListener("keydown", (event) => {
    const all = places(), at = all.indexOf(event.target);
    const steps = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: all.length - 1 };
    const to = all[steps[event.key]];
    if (at < 0 || !to) return;
    event.preventDefault();
    settle(to);
    to.focus();
  });
  box.addEventListener("focusin", (event) => places().includes(event.target) && settle(event.target));
  return settle;
}

