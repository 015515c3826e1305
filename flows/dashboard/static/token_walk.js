// A window's tokens are walked with the arrow keys or tapped, and their values shown.
let tokenHere = null;

function showToken(token) {
  tokenHere?.classList.remove("here");
  tokenHere = token;
  token?.classList.add("here");
  const values = document.getElementById("token-values");
  if (values) values.textContent = token?.title ?? "";
}

function makeTokensWalkable(root) {
  for (const text of root.querySelectorAll(".windows .text")) {
    const tokens = [...text.querySelectorAll(".k")];
    if (!tokens.length) continue;
    text.tabIndex = 0;
    text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      const at = tokens.indexOf(tokenHere);
      showToken(tokens[at < 0 ? 0 : Math.min(tokens.length - 1, Math.max(0, at + step))]);
      event.preventDefault();
    });
    text.addEventListener("click", (event) => showToken(event.target.closest(".k")));
    text.addEventListener("blur", () => showToken(null));
  }
}
