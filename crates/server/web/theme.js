// Sets the chosen colour scheme before the first paint; the only script that is not a module, because modules run late.
"use strict";
(() => {
  try {
    const theme = localStorage.getItem("biplane.theme");
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  } catch {
    // Storage may be forbidden; the system's scheme holds then.
  }
})();
