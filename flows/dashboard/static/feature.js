// Comfort on a feature's page: tokens are walked, and "s" goes to the next way of shading. All else
// works without.
makeTokensWalkable(document);

document.addEventListener("keydown", (event) => {
  if (event.key !== "s" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof Element && event.target.closest("input:not([type=radio]), textarea, select")) return;
  const ways = [...document.querySelectorAll("input[name=shading]")];
  const next = ways[(ways.findIndex((way) => way.checked) + 1) % ways.length];
  if (next) next.checked = true;
});
