import { defineConfig } from "vite";

/** What of uPlot no chart of ours uses: dates on axes, a legend, focus, charts that follow each other, other paths and scales. */
const UNUSED = [
  [/\nconst \[ timeIncrsMs,.*= genTimeStuffs\(1\);\n/, "\nconst [timeIncrsMs, _timeAxisStampsMs, timeAxisSplitsMs] = [[], [], () => null];\n"],
  [/\nconst \[ timeIncrsS,.*= genTimeStuffs\(1e-3\);\n/, "\nconst [timeIncrsS, _timeAxisStampsS, timeAxisSplitsS] = [[], [], () => null];\n"],
  [/\tconst _fmtDate = .*\n/, "\tconst _fmtDate = null;\n"],
  [/\tconst _timeSeriesVal  = .*\n/, "\tconst _timeSeriesVal = null;\n"],
  [/\nuPlot\.assign = [^]*\nuPlot\.orient   = orient;\n/, "\n"],
  [/\n\{\n\tuPlot\.join = [^]*monotoneCubic\);\n\}\n/, "\n"],
  [/\tself\.(addSeries|delSeries|addBand|setBand|delBand|setLegend|setSeries|pub|redraw) = \w+;\n/g, ""],
  [/(?<!function )\bpubSync\([^;]*\);/g, ";"],
  [/_pub && ;/g, ";"],
  [/\tevents\.\w+ = \w+;\n/g, ""],
  [/\tevents\["setSeries"\] = [^]*?\n\t\};\n/, ""],
  [/\tfunction pub\([^]*?\n\t\}\n/, ""],
  [/\tfunction pubSync\([^]*?\n\t\}\n/, ""],
  [/\tconst syncKey = [^]*?sync\.sub\(self\);\n/, ""],
  [/\t\tsync\.unsub\(self\);\n/, ""],
  [/\bsrc != null\b/g, "false"],
  [/\bsrc == null\b/g, "true"],
  [/\bsyncKey != null\b/g, "false"],
  [/\be != null\b/g, "true"],
  [/\bmode == 1\b/g, "true"],
  [/\bmode == 2\b/g, "false"],
  [/\bscaleX\.ori == 0/g, "true"],
  [/\bscaleX\.ori == 1/g, "false"],
  [/\b(?:xScaleDistr|distr|sc\.distr|scale\.distr|wsc\.distr) == (?:2|4|100)\b/g, "false"],
  [/\bxScaleDistr == 3\b/g, "false"],
  [/(?:\bcursorFocus|\bcursorOnePt|\bshowLegend|\bmultiValLegend|\bisTime|\bcursor\._lock|\bcursor\.lock|\bdrag\.setScale|\bscaleX\.time)\b(?! =)/g, "false"],
];

const smaller = {
  name: "smaller-uplot",
  transform(code, id) {
    if (!id.endsWith("uPlot.esm.js")) return null;
    return UNUSED.reduce((text, [what, instead]) => {
      if (!what.test(text)) this.error(`uPlot has changed: ${what} is not in it`);
      return text.replace(what, instead);
    }, code);
  },
};

export default defineConfig({
  plugins: [smaller],
  define: { __OTF_BUILD__: JSON.stringify(process.env.OTF_BUILD ?? "") },
  base: "./", // the page is served below any path prefix
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  build: {
    target: "es2022",
    assetsInlineLimit: 0, // a data: address would break the content policy
    modulePreload: { polyfill: false }, // it would be an inline script
    cssCodeSplit: false,
    sourcemap: false,
  },
});
