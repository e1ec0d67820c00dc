(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("figure-data")?.textContent ?? "null");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { displayModeBar: false, responsive: true };

  // Every light color in a figure has a dark form; other strings pass through unchanged.
  const inColors = (value, colors) => {
    if (typeof value === "string") return colors[value] ?? value;
    if (Array.isArray(value)) return value.map((item) => inColors(item, colors));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, inColors(item, colors)]),
    );
  };

  const draw = (dark, width) => {
    for (const [id, figure] of Object.entries(data?.figures ?? {})) {
      const place = document.getElementById(id);
      const shown = inColors(figure, dark ? data.dark : {});
      if (width) Object.assign(shown.layout, { width: width(place), autosize: false });
      Plotly.react(place, shown.data, shown.layout, config);
    }
  };

  // The page is read before its figures are drawn: their library, which is large, runs after the
  // first screen stands and the rows can be read. It is text until then; the policy knows it by its hash.
  const prepare = () => {
    if (window.Plotly) return;
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
  };
  if (data) {
    const begin = () => {
      prepare();
      draw(system.matches);
      document.documentElement.dataset.drawn = "true";
      system.addEventListener("change", () => draw(system.matches));
    };
    const first = document.querySelector(".rows") ? "rows-ready" : "load";
    window.addEventListener(first, () => setTimeout(begin, 30));
    // Paper is light and narrower than most windows.
    window.addEventListener("beforeprint", () => {
      prepare();
      draw(false, (place) => (place.closest(".panels") ? 316 : 650));
    });
    window.addEventListener("afterprint", () => draw(system.matches));
  }

  // Paper cannot be clicked: what is folded away is printed, what is blurred stays so.
  const opened = [];
  window.addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll(".facts details:not([open])")) {
      each.open = true;
      opened.push(each);
    }
  });
  window.addEventListener("afterprint", () => {
    for (const each of opened.splice(0)) each.open = false;
  });

  const reveal = (button, shown) => {
    const body = document.getElementById(button.getAttribute("aria-controls"));
    body.classList.toggle("veiled", !shown);
    body.inert = !shown;
    button.setAttribute("aria-expanded", String(shown));
    button.textContent = shown ? "Hide" : "Show answers";
  };
  for (const button of document.querySelectorAll("button.reveal")) {
    button.addEventListener("click", () =>
      reveal(button, button.getAttribute("aria-expanded") !== "true"),
    );
  }
  for (const button of document.querySelectorAll("button.reveal-all")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      button.textContent = shown ? "Hide all" : "Show all";
      for (const each of button.closest(".block").querySelectorAll("button.reveal")) {
        reveal(each, shown);
      }
    });
  }
})();
