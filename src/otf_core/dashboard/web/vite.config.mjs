import { defineConfig } from "vite";

export default defineConfig({
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
