"use strict";
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const axis = (line) => ({ gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, exponentformat: "power" });
  function template(isDark) {
    const ink = isDark ? "#e6e8ec" : "#1b1f27", line = isDark ? "#2d333d" : "#e6e8ec", card = isDark ? "#1a1e25" : "#ffffff";
    return {
      layout: {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
        font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
        margin: { l: 55, r: 15, t: 30, b: 45 },
        legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: isDark ? "#5d6675" : "#b6bcc6", activecolor: ink },
        hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
        updatemenudefaults: { bgcolor: card, bordercolor: line, font: { color: ink } },
        xaxis: axis(line), yaxis: axis(line),
      },
    };
  }
  const config = { displaylogo: false, responsive: true, modeBarButtons: [["toImage", "resetScale2d"]] };
  const figures = Array.from(document.querySelectorAll(".figure"));
  const specs = new Map(figures.map((element) => [element, JSON.parse(element.querySelector("script").textContent)]));

  function draw(element, isDark, size) {
    const spec = specs.get(element);
    const layout = Object.assign({ height: 360, autosize: true }, spec.layout, size, { template: template(isDark) });
    window.Plotly.react(element, spec.data, layout, config);
  }
  function drawVisible(isDark, size) {
    figures.filter((element) => element.offsetParent !== null).forEach((element) => draw(element, isDark, size));
  }
  figures.forEach((element) => element.replaceChildren());
  drawVisible(dark.matches);
  dark.addEventListener("change", () => drawVisible(dark.matches));
  window.addEventListener("beforeprint", () => {
    document.documentElement.classList.add("print");
    drawVisible(false, { width: 660, autosize: false });  // a sheet of paper is narrower than the window
  });
  window.addEventListener("afterprint", () => {
    document.documentElement.classList.remove("print");
    drawVisible(dark.matches);
  });

  document.querySelectorAll(".tabs button").forEach((tab) => tab.addEventListener("click", () => {
    const section = tab.closest("section");
    section.querySelectorAll(".tabs button").forEach((other) => other.setAttribute("aria-selected", String(other === tab)));
    section.querySelectorAll(".pane").forEach((pane) => { pane.hidden = pane.id !== tab.getAttribute("aria-controls"); });
    drawVisible(dark.matches);
  }));

  document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      window.getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }));
})();
