// Comfort on a feature's page: a window's tokens are walked with the arrow keys or tapped, and
// their values shown; "s" goes to the next way of shading. All else works without.
const values = document.getElementById("token-values");
let here = null;

function show(token) {
  here?.classList.remove("here");
  here = token;
  token?.classList.add("here");
  if (values) values.textContent = token?.title ?? "";
}

for (const text of document.querySelectorAll(".windows .text")) {
  const tokens = [...text.querySelectorAll(".k")];
  if (!tokens.length) continue;
  text.tabIndex = 0;
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = tokens.indexOf(here);
    show(tokens[at < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, at + step))]);
    event.preventDefault();
  });
  text.addEventListener("click", (event) => show(event.target.closest(".k")));
  text.addEventListener("blur", () => show(null));
}

document.addEventListener("keydown", (event) => {
  if (event.key !== "s" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof Element && event.target.closest("input:not([type=radio]), textarea, select")) return;
  const ways = [...document.querySelectorAll("input[name=shading]")];
  const next = ways[(ways.findIndex((way) => way.checked) + 1) % ways.length];
  if (next) next.checked = true;
});
