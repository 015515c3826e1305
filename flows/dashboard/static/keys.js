// Keys: "/" searches; on a feature's page "j" and "k" go to the next and the previous feature,
// "l" to the form for a label. Links and fields say by `data-key` which key is theirs.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target;
  if (at instanceof HTMLElement && at.closest("input:not([type=radio]), textarea, select")) {
    if (event.key === "Escape") at.blur();
    return;
  }
  if (event.key === "/") {
    document.getElementById("find")?.focus();
    event.preventDefault();
    return;
  }
  const wanted = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (wanted instanceof HTMLAnchorElement) wanted.click();
  else if (wanted instanceof HTMLElement) {
    wanted.closest("details")?.setAttribute("open", "");
    wanted.focus();
    event.preventDefault();
  }
});
