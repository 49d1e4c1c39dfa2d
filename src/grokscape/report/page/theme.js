// Runs before anything is painted: follow the system's theme unless the reader chose one.
(() => {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("grokscape-theme"); } catch { /* a file may have no storage */ }
  const apply = () => { document.documentElement.dataset.theme = chosen || (dark.matches ? "dark" : "light"); };
  apply();
  dark.addEventListener("change", () => { if (!chosen) { apply(); document.dispatchEvent(new Event("themechange")); } });
  window.switchTheme = () => {
    chosen = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("grokscape-theme", chosen); } catch { /* it lasts as long as the page */ }
    apply();
    document.dispatchEvent(new Event("themechange"));
  };
})();
