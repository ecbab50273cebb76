import { defineConfig } from "vite";

/** What of uPlot no chart of ours uses: dates on axes, and other paths than lines and points. */
const UNUSED = [
  [/\nconst \[ timeIncrsMs,.*= genTimeStuffs\(1\);\n/, "\nconst [timeIncrsMs, _timeAxisStampsMs, timeAxisSplitsMs] = [[], [], () => null];\n"],
  [/\nconst \[ timeIncrsS,.*= genTimeStuffs\(1e-3\);\n/, "\nconst [timeIncrsS, _timeAxisStampsS, timeAxisSplitsS] = [[], [], () => null];\n"],
  [/\tconst _fmtDate = .*\n/, "\tconst _fmtDate = null;\n"],
  [/\tconst _timeSeriesVal  = .*\n/, "\tconst _timeSeriesVal = null;\n"],
  [/\nuPlot\.assign = [^]*\nuPlot\.orient   = orient;\n/, "\n"],
  [/\n\{\n\tuPlot\.join = [^]*monotoneCubic\);\n\}\n/, "\n"],
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
